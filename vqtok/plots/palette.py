"""Turns numbers into colors: similar codes look alike, and larger amounts are lighter."""

import numpy as np

_HEAT = np.array(
    [[20, 11, 53], [84, 20, 110], [158, 40, 100], [217, 80, 60], [246, 160, 38], [252, 245, 190]],
    np.float64,
)
_LMS = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def heat(values: np.ndarray, top: float) -> np.ndarray:
    """Turns amounts of any shape, 0 to `top`, into colors (..., 3) uint8, dark for none and lighter
    for more, so that they differ in gray as well.
    """
    position = np.clip(np.nan_to_num(values) / max(top, 1e-12), 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(position.astype(int), len(_HEAT) - 2)
    part = (position - low)[..., None]
    return (_HEAT[low] * (1 - part) + _HEAT[low + 1] * part).round().astype(np.uint8)


def by_vectors(vectors: np.ndarray) -> np.ndarray:
    """Colors K codes (K, D) by their vectors, uint8 (K, 3): lightness by the first principal
    component, hue by the next two.
    """
    centered = vectors.astype(np.float64) - vectors.mean(0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    along = np.zeros((len(vectors), 3))
    along[:, : min(3, len(axes))] = centered @ axes[:3].T
    ranks = along.argsort(0, kind="stable").argsort(0, kind="stable") / max(1, len(vectors) - 1)
    return _colors(ranks)


def by_number(numbers: np.ndarray) -> np.ndarray:
    """Colors codes by their numbers alone, uint8 (..., 3): neighboring numbers look different."""
    parts = np.stack(
        [numbers.ravel() * step % 1.0 for step in (0.8191725134, 0.6710436067, 0.5497004779)],
        axis=1,
    )  # the R3 sequence
    return _colors(parts).reshape(*numbers.shape, 3)


def _colors(parts: np.ndarray) -> np.ndarray:
    """Converts (n, 3) in [0, 1], lightness and the two color axes of Oklab (Ottosson 2020), to sRGB
    uint8 (n, 3).
    """
    lab = np.stack(
        [0.3 + 0.62 * parts[:, 0], (parts[:, 1] - 0.5) * 0.34, (parts[:, 2] - 0.5) * 0.34], axis=1
    )
    linear = np.clip((lab @ _LMS.T) ** 3 @ _RGB.T, 0, 1)
    return (
        (255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))
        .round()
        .astype(np.uint8)
    )
