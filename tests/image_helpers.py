"""Images for the tests of reading and writing them."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms


def smooth(H: int, W: int, C: int = 3) -> np.ndarray:
    """A soft gradient with a different slope in each channel and direction:
    flips, swaps and shifts all show.
    """
    y, x = np.mgrid[0:H, 0:W]
    planes = [
        60 + 120 * x / max(W - 1, 1),
        200 - 150 * y / max(H - 1, 1),
        90 + 40 * (x + 2 * y) / (W + 2 * H),
    ]
    return np.stack(planes[:C], -1).astype(np.uint8)  # (H, W, C)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(pixels: np.ndarray, **options: Any) -> bytes:
    return saved(Image.fromarray(pixels), "PNG", **options)


def distance(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def with_gamma_one() -> bytes:
    """An RGB profile unlike sRGB: littlecms' own sRGB with its shared tone
    curve made a straight line.
    """
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    start = data.index(b"para", 128)
    data[start + 8 : start + 10] = b"\0\0"  # curve type 0: y = x ** g
    data[start + 12 : start + 16] = (1 << 16).to_bytes(4, "big")  # g = 1.0
    return bytes(data)
