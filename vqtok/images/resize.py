"""Changes images to another size: padded to a multiple, cropped, or resized."""

import numpy as np
from PIL import Image

from vqtok.images.read import checked


def pad(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """Repeats the last row and column of (H, W, C) until H and W are multiples;
    any size from 1x1 on.
    """
    H, W = pixels.shape[:2]
    return np.pad(pixels, ((0, -H % multiple), (0, -W % multiple), (0, 0)), mode="edge")


def crop(pixels: np.ndarray, H: int, W: int) -> np.ndarray:
    """Crops to the top left (H, W, C) of the pixels, a view: undoes `pad`."""
    assert pixels.shape[0] >= H > 0 < W <= pixels.shape[1], (pixels.shape, H, W)
    return pixels[:H, :W]


def resize_to(pixels: np.ndarray, H: int, W: int) -> np.ndarray:
    """Resizes uint8 (H, W, C) from any size: Lanczos, after a box filter where it shrinks more than
    threefold.
    """
    if pixels.shape[:2] == (H, W):
        return pixels
    image = Image.fromarray(checked(pixels)).resize(
        (W, H), Image.Resampling.LANCZOS, reducing_gap=3.0
    )
    return np.array(image).reshape(H, W, pixels.shape[2])
