"""Reads image files into uint8 arrays (H, W, C), and writes them."""

from typing import TYPE_CHECKING

from vqtok.lazy import lazy_names

if TYPE_CHECKING:
    from vqtok.images.color import WHITE, Color, parse_color
    from vqtok.images.depth import (
        Range,
        count_nan,
        nan_note,
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
    "count_nan",
    "count_pixels",
    "crop",
    "encode_as",
    "encode_png",
    "from_any",
    "is_deep",
    "may_be_image",
    "nan_note",
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


# Imported on first use: to write an image takes no reader.
if not TYPE_CHECKING:  # type checkers would take every name for one that is here
    __getattr__, __dir__ = lazy_names(
        __name__,
        __all__,
        color="WHITE Color parse_color",
        depth="Range count_nan nan_note parse_range range_of_record show_range suggest to_8_bits "
        "used_range",
        read="IMAGE_SUFFIXES MAX_BYTES MAX_PIXELS DecodedImage count_pixels from_any is_deep "
        "may_be_image read_image",
        recognize="START Recognizer",
        resize="crop pad resize_to",
        write="check_suffix encode_as encode_png write_image",
    )
