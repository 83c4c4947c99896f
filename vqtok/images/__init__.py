"""Picture file <-> uint8 array (H, W, C)."""

from vqtok.images.color import WHITE, Color, parse_color
from vqtok.images.read import (
    IMAGE_SUFFIXES,
    MAX_BYTES,
    MAX_PIXELS,
    Picture,
    from_any,
    may_be_picture,
    read,
)
from vqtok.images.resize import crop, fit, pad
from vqtok.images.write import check_suffix, encode_png, write

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "WHITE",
    "Color",
    "Picture",
    "check_suffix",
    "crop",
    "encode_png",
    "fit",
    "from_any",
    "may_be_picture",
    "pad",
    "parse_color",
    "read",
    "write",
]
