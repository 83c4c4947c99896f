"""Vectors to indices and back: one small class per quantizer, all behind
the protocol `Quantizer`.
"""

from dataclasses import replace

from vqtok.config import TokenizerConfig
from vqtok.meta_init import init_empty_weights
from vqtok.quantizers.base import Quantized, Quantizer
from vqtok.quantizers.codebook import EMAQuantizer, VectorQuantizer
from vqtok.quantizers.finite import FSQuantizer, LFQuantizer
from vqtok.quantizers.pixels import PixelQuantizer
from vqtok.quantizers.residual import ResidualQuantizer
from vqtok.quantizers.simvq import SimVQuantizer

__all__ = [
    "EMAQuantizer",
    "FSQuantizer",
    "LFQuantizer",
    "PixelQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "SimVQuantizer",
    "VectorQuantizer",
    "build_quantizer",
    "check_quantizer",
]

_CLASSES = {
    "ema": EMAQuantizer,
    "vq": VectorQuantizer,
    "simvq": SimVQuantizer,
    "fsq": FSQuantizer,
    "lfq": LFQuantizer,
}


def build_quantizer(config: TokenizerConfig) -> Quantizer:
    """The quantizer that a tokenizer's config names; with several levels, one for each of them."""
    if config.is_pixels:
        return PixelQuantizer(config)
    if config.levels == 1:
        return _CLASSES[config.quantizer](config)
    single = replace(config, levels=1)
    return ResidualQuantizer(config, [build_quantizer(single) for _ in range(config.levels)])


def check_quantizer(config: TokenizerConfig) -> None:
    """Raises UsageError where the quantizer cannot have that many codes, or
    not in that code dimension.
    """
    with init_empty_weights():
        build_quantizer(config if config.is_pixels else replace(config, levels=1))
