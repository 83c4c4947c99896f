"""Turns vectors into indices and back: one small class per quantizer, all behind the protocol
`Quantizer`.
"""

from dataclasses import replace
from typing import Any

from vqtok.config import QUANTIZERS, TokenizerConfig
from vqtok.meta_init import init_empty_weights
from vqtok.quantizers.base import Quantized, Quantizer
from vqtok.quantizers.residual import LevelQuantizer, ProductQuantizer, ResidualQuantizer

__all__ = [
    "LevelQuantizer",
    "ProductQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "build_quantizer",
    "check_quantizer",
]


def build_quantizer(config: TokenizerConfig) -> Quantizer:
    """Builds the quantizer that a tokenizer's config names; with several levels, one for each of
    them.
    """
    if config.is_pixels or config.levels == 1:
        return QUANTIZERS[config.quantizer].load()(config)
    kind = ProductQuantizer if config.product else ResidualQuantizer
    return kind(config, [build_quantizer(_level_of(config)) for _ in range(config.levels)])


# settings of a network that fits several levels, not one: a quantizer reads none of them
_NO_NETWORK: dict[str, Any] = {
    "network": "folded",
    "stages": (),
    "attention": (),
    "groups": 0,
    "z_channels": 0,
    "encoder_layers": (),
    "decoder_layers": (),
    "input_mean": (),
    "input_std": (),
}


def _level_of(config: TokenizerConfig) -> TokenizerConfig:
    """Returns the settings of the quantizer of one level."""
    return replace(config, levels=1, product=False, code_dim=config.part_dim, **_NO_NETWORK)


def check_quantizer(config: TokenizerConfig) -> None:
    """Raises UsageError where the quantizer cannot have that many codes, or
    not in that code dimension.
    """
    with init_empty_weights():
        build_quantizer(config if config.is_pixels else _level_of(config))
