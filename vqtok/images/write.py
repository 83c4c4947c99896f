"""Writes uint8 arrays (H, W, C) to image files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqtok.errors import OutputError, UsageError
from vqtok.files import write_bytes
from vqtok.images.read import checked, pillow_limits

# Level 4 of zlib in place of 6: photos take 1 to 4 % more bytes, and 40 % of the time, which was
# longer than decoding them (768x512: 42 for 105 ms; level 1: 24 ms and 10 to 18 % more).
_SAVE: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 4}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".avif": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
}


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns the content of a PNG file; pixels are uint8 (H, W), (H, W, 1) or (H, W, 3)."""
    return _encode(pixels, ".png")


def write_image(path: Path, pixels: np.ndarray, force: bool = False) -> None:
    """Writes uint8 (H, W, 1|3) in the format that the suffix names:
    lossless, or at high quality for JPEG and AVIF.

    Raises UsageError for an unknown suffix, OutputError when the format cannot hold the size or
    the file cannot be written.
    """
    check_suffix(path)
    try:
        data = _encode(pixels, path.suffix.lower())
    except (OSError, ValueError, KeyError, SystemError) as error:
        # KeyError: this Pillow has no such encoder
        H, W = pixels.shape[:2]
        message = (
            f"cannot write {path}: {path.suffix[1:].upper()} does not take {W}x{H} pixels ({error})"
        )
        raise OutputError(message, "write a .png") from None
    write_bytes(path, data, force)


def check_suffix(path: Path) -> None:
    """Raises UsageError when `write_image` knows no format for the suffix:
    before the work, not after it.
    """
    if path.suffix.lower() not in _SAVE:
        raise UsageError(
            f"cannot write {path}: unknown image format {path.suffix!r}",
            f"use one of {' '.join(_SAVE)}",
        )


def _encode(pixels: np.ndarray, suffix: str) -> bytes:
    kind, options = _SAVE[suffix]
    file = io.BytesIO()
    with pillow_limits:
        Image.fromarray(checked(pixels)).save(file, kind, **options)
    return file.getvalue()
