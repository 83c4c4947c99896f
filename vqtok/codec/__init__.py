"""The library: load a model, encode pictures, decode codes, sample new ones.

The one place where file, array, tensor and network meet.

>>> model = load("photo")
>>> codes = model.encode("photo.jpg")       # Codes: a grid of indices
>>> picture = model.decode(codes)           # uint8 (H, W, C), of the original's size
"""

from vqtok.codec.entropy_coder import EntropyCoder, unpack, without_prior
from vqtok.codec.loading import build_tokenizer, load_tokenizer, pick_device, place, tokenizer_of
from vqtok.codec.model import Model, kept_part, load

__all__ = [
    "EntropyCoder",
    "Model",
    "build_tokenizer",
    "kept_part",
    "load",
    "load_tokenizer",
    "pick_device",
    "place",
    "tokenizer_of",
    "unpack",
    "without_prior",
]
