"""Holds settings as frozen dataclasses: defaults < preset < TOML recipe < flags.

Each class checks its own values.
"""

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
