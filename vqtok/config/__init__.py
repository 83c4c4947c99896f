"""Holds settings as frozen dataclasses: defaults < preset < TOML recipe < flags.

Each class checks its own values. Names are imported on first use: who reads a model's settings
needs no recipes.
"""

from typing import TYPE_CHECKING

from vqtok.lazy import lazy_names

if TYPE_CHECKING:
    from vqtok.config.coerce import OLD_DEFAULTS, from_dict
    from vqtok.config.presets import PRESETS
    from vqtok.config.recipe import (
        ENTROPY_CODES_MAX,
        DataConfig,
        EntropyConfig,
        LossConfig,
        PriorConfig,
        PriorStageConfig,
        Recipe,
        SamplingConfig,
        StageConfig,
        TokenizerStageConfig,
    )
    from vqtok.config.registry import (
        EXPORT_FORMATS,
        LIKELIHOODS,
        LOSSES,
        NETWORKS,
        OPTIMIZERS,
        OUTPUTS,
        PRIORS,
        QUANTIZERS,
        TOKEN_FORMATS,
    )
    from vqtok.config.tokenizer import (
        GRAY_LEVELS,
        LEARNED,
        LEVELS_MAX,
        TokenizerConfig,
    )
    from vqtok.config.toml import parse_duration, parse_setting, read_recipe, to_toml

__all__ = [
    "ENTROPY_CODES_MAX",
    "EXPORT_FORMATS",
    "GRAY_LEVELS",
    "LEARNED",
    "LEVELS_MAX",
    "LIKELIHOODS",
    "LOSSES",
    "NETWORKS",
    "OLD_DEFAULTS",
    "OPTIMIZERS",
    "OUTPUTS",
    "PRESETS",
    "PRIORS",
    "QUANTIZERS",
    "TOKEN_FORMATS",
    "DataConfig",
    "EntropyConfig",
    "LossConfig",
    "PriorConfig",
    "PriorStageConfig",
    "Recipe",
    "SamplingConfig",
    "StageConfig",
    "TokenizerConfig",
    "TokenizerStageConfig",
    "from_dict",
    "parse_duration",
    "parse_setting",
    "read_recipe",
    "to_toml",
]

if not TYPE_CHECKING:  # type checkers would take every name for one that is here
    __getattr__, __dir__ = lazy_names(
        __name__,
        __all__,
        coerce="OLD_DEFAULTS from_dict",
        presets="PRESETS",
        recipe="DataConfig ENTROPY_CODES_MAX EntropyConfig LossConfig PriorConfig "
        "PriorStageConfig Recipe SamplingConfig StageConfig TokenizerStageConfig",
        registry="EXPORT_FORMATS LIKELIHOODS LOSSES NETWORKS OPTIMIZERS OUTPUTS PRIORS "
        "QUANTIZERS TOKEN_FORMATS",
        tokenizer="GRAY_LEVELS LEARNED LEVELS_MAX TokenizerConfig",
        toml="parse_duration parse_setting read_recipe to_toml",
    )
