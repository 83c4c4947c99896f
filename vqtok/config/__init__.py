"""Settings as frozen dataclasses: defaults < preset < TOML recipe < flags.

Each class checks its own values.
"""

from vqtok.config.coerce import OLD_DEFAULTS, from_dict
from vqtok.config.presets import PRESETS
from vqtok.config.recipe import (
    ARCHITECTURES,
    ENTROPY_CODES_MAX,
    OPTIMIZERS,
    OUTPUTS,
    DataConfig,
    EntropyConfig,
    LossConfig,
    PriorConfig,
    Recipe,
    StageConfig,
    TokenizerStageConfig,
)
from vqtok.config.registry import EXPORT_FORMATS
from vqtok.config.tokenizer import (
    GRAY_LEVELS,
    LEARNED,
    LEVELS_MAX,
    LIKELIHOODS,
    NETWORKS,
    QUANTIZERS,
    TokenizerConfig,
)
from vqtok.config.toml import parse_duration, parse_setting, read_recipe, to_toml

__all__ = [
    "ARCHITECTURES",
    "ENTROPY_CODES_MAX",
    "EXPORT_FORMATS",
    "GRAY_LEVELS",
    "LEARNED",
    "LEVELS_MAX",
    "LIKELIHOODS",
    "NETWORKS",
    "OLD_DEFAULTS",
    "OPTIMIZERS",
    "OUTPUTS",
    "PRESETS",
    "QUANTIZERS",
    "DataConfig",
    "EntropyConfig",
    "LossConfig",
    "PriorConfig",
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
