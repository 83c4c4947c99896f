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
    "StageConfig",
    "TokenizerConfig",
    "TokenizerStageConfig",
    "from_dict",
    "parse_duration",
    "parse_setting",
    "read_recipe",
    "to_toml",
]

_HOMES = {
    "DataConfig": "vqtok.config.recipe",
    "ENTROPY_CODES_MAX": "vqtok.config.recipe",
    "EXPORT_FORMATS": "vqtok.config.registry",
    "EntropyConfig": "vqtok.config.recipe",
    "GRAY_LEVELS": "vqtok.config.tokenizer",
    "LEARNED": "vqtok.config.tokenizer",
    "LEVELS_MAX": "vqtok.config.tokenizer",
    "LIKELIHOODS": "vqtok.config.registry",
    "LOSSES": "vqtok.config.registry",
    "LossConfig": "vqtok.config.recipe",
    "NETWORKS": "vqtok.config.registry",
    "OLD_DEFAULTS": "vqtok.config.coerce",
    "OPTIMIZERS": "vqtok.config.registry",
    "OUTPUTS": "vqtok.config.registry",
    "PRESETS": "vqtok.config.presets",
    "PRIORS": "vqtok.config.registry",
    "PriorConfig": "vqtok.config.recipe",
    "PriorStageConfig": "vqtok.config.recipe",
    "QUANTIZERS": "vqtok.config.registry",
    "Recipe": "vqtok.config.recipe",
    "StageConfig": "vqtok.config.recipe",
    "TOKEN_FORMATS": "vqtok.config.registry",
    "TokenizerConfig": "vqtok.config.tokenizer",
    "TokenizerStageConfig": "vqtok.config.recipe",
    "from_dict": "vqtok.config.coerce",
    "parse_duration": "vqtok.config.toml",
    "parse_setting": "vqtok.config.toml",
    "read_recipe": "vqtok.config.toml",
    "to_toml": "vqtok.config.toml",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES, __all__)
