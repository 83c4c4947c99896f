"""Vectors to indices and back: one small class per quantizer, all behind the protocol `Quantizer`."""

from vqtok.config import TokenizerConfig
from vqtok.quantizers.base import Quantized, Quantizer
from vqtok.quantizers.codebook import EMAQuantizer, VectorQuantizer

__all__ = ["EMAQuantizer", "Quantized", "Quantizer", "VectorQuantizer", "build"]

_CLASSES = {"vq": VectorQuantizer, "ema": EMAQuantizer}


def build(config: TokenizerConfig) -> Quantizer:
    """The quantizer that a tokenizer's config names."""
    return _CLASSES[config.quantizer](config)
