"""Reads image files into uint8 arrays (H, W, C), and writes them."""

from vqtok.images.color import WHITE, Color, parse_color
from vqtok.images.read import (
    IMAGE_SUFFIXES,
    MAX_BYTES,
    MAX_PIXELS,
    DecodedImage,
    from_any,
    may_be_image,
    read_image,
)
from vqtok.images.resize import crop, pad, resize_to
from vqtok.images.write import check_suffix, encode_png, write_image

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "WHITE",
    "Color",
    "DecodedImage",
    "check_suffix",
    "crop",
    "encode_png",
    "from_any",
    "may_be_image",
    "pad",
    "parse_color",
    "read_image",
    "resize_to",
    "write_image",
]
