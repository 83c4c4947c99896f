"""Turns vectors into indices and back: one small class per quantizer, all behind the protocol
`Quantizer`.
"""

from dataclasses import replace

from vqtok.config import QUANTIZERS, TokenizerConfig
from vqtok.meta_init import init_empty_weights
from vqtok.quantizers.base import Quantized, Quantizer
from vqtok.quantizers.residual import ResidualQuantizer

__all__ = ["Quantized", "Quantizer", "ResidualQuantizer", "build_quantizer", "check_quantizer"]


def build_quantizer(config: TokenizerConfig) -> Quantizer:
    """Builds the quantizer that a tokenizer's config names; with several levels, one for each of
    them.
    """
    if config.is_pixels or config.levels == 1:
        return QUANTIZERS[config.quantizer].load()(config)
    single = replace(config, levels=1)
    return ResidualQuantizer(config, [build_quantizer(single) for _ in range(config.levels)])


def check_quantizer(config: TokenizerConfig) -> None:
    """Raises UsageError where the quantizer cannot have that many codes, or
    not in that code dimension.
    """
    with init_empty_weights():
        build_quantizer(config if config.is_pixels else replace(config, levels=1))
