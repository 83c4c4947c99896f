"""Reads image files into uint8 arrays (H, W, C), and writes them."""

from vqtok.images.color import WHITE, Color, parse_color
from vqtok.images.depth import (
    Range,
    parse_range,
    range_of_record,
    show_range,
    suggest,
    to_8_bits,
    used_range,
)
from vqtok.images.read import (
    IMAGE_SUFFIXES,
    MAX_BYTES,
    MAX_PIXELS,
    DecodedImage,
    count_pixels,
    from_any,
    is_deep,
    may_be_image,
    read_image,
)
from vqtok.images.recognize import START, Recognizer
from vqtok.images.resize import crop, pad, resize_to
from vqtok.images.write import check_suffix, encode_as, encode_png, write_image

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "START",
    "WHITE",
    "Color",
    "DecodedImage",
    "Range",
    "Recognizer",
    "check_suffix",
    "count_pixels",
    "crop",
    "encode_as",
    "encode_png",
    "from_any",
    "is_deep",
    "may_be_image",
    "pad",
    "parse_color",
    "parse_range",
    "range_of_record",
    "read_image",
    "resize_to",
    "show_range",
    "suggest",
    "to_8_bits",
    "used_range",
    "write_image",
]
