"""The library: load a model, encode images, decode codes, sample new ones.

The one place where file, array, tensor and network meet.

>>> model = load("photo")
>>> codes = model.encode("photo.jpg")       # Codes: a grid of indices
>>> image = model.decode(codes)             # uint8 (H, W, C), of the original's size
"""

from vqtok.codec.entropy_coder import EntropyCoder, unpack, without_prior
from vqtok.codec.loading import (
    build_tokenizer,
    load_tokenizer,
    pick_device,
    to_device,
    tokenizer_from_weights,
)
from vqtok.codec.model import Model, load, parse_keep

__all__ = [
    "EntropyCoder",
    "Model",
    "build_tokenizer",
    "load",
    "load_tokenizer",
    "parse_keep",
    "pick_device",
    "to_device",
    "tokenizer_from_weights",
    "unpack",
    "without_prior",
]
