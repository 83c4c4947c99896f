"""The built-in images: one shape on a gradient, drawn by arithmetic, so that a first
training needs no download.
"""

from collections.abc import Callable

import numpy as np

from vqtok.data import counter_rng
from vqtok.data.dataset import Plain

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]
# images drawn at a time: 20,000 took 1.8 s so, and 6.4 all at once, in gigabytes of floats
AT_ONCE = 500


class Shapes(Plain):
    """`n` square images of `size` pixels a side;
    image i is the same on every machine and in every process.

    Each shows one of six shapes (its label) with random place, size, tilt and colors on a
    gradient, over a soft shadow.
    """

    name = "shapes"
    labels = ("circle", "square", "triangle", "ring", "star", "cross")
    channels = 3
    skipped = 0

    def __init__(self, n: int = 20000, size: int = 32, seed: int = 0) -> None:
        assert n > 0
        assert size >= 8
        self._n, self._seed = n, seed
        self._kinds = (
            counter_rng.bits(seed, 0, np.arange(n)) % np.uint64(len(self.labels))
        ).astype(np.int64)
        self.size = (size, size)

    @property
    def description(self) -> str:
        return (
            f"{self._n:,} built-in images of {self.size[1]}x{self.size[0]} with "
            f"{len(self.labels)} labels"
        )

    def __len__(self) -> int:
        return self._n

    def label(self, index: int) -> int:
        return int(self._kinds[index])

    def image(self, index: int) -> np.ndarray:
        return self.images(np.array([index]))[0]

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Returns many at once: uint8 (n, size, size, 3)."""
        drawn = np.empty((len(indices), *self.size, 3), np.uint8)
        for start in range(0, len(indices), AT_ONCE):
            drawn[start : start + AT_ONCE] = self._draw(indices[start : start + AT_ONCE])
        return drawn

    def _draw(self, indices: np.ndarray) -> np.ndarray:
        """Draws the images of a few indices: their floats are ten times as large."""
        # before the drawing: it raises IndexError where there is no such image
        kinds = self._kinds[indices]
        draws = np.stack(
            [counter_rng.uniform(self._seed, k, indices) for k in range(1, 14)]
        ).astype(np.float32)
        draws = draws[:, :, None, None]  # (13, n, 1, 1)
        # each (n, size, size, 3) or (n, 1, 1, 3)
        ground, shape_colors = _colors(draws[:7], self.size[0])
        shape, shadow = _coverage(kinds, draws[7:], self.size[0])  # each (n, size, size, 1)
        canvas = ground * (1 - 0.35 * shadow)
        canvas = canvas * (1 - shape) + shape_colors * shape
        return np.rint(canvas * 255).astype(np.uint8)


def _hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Converts hue in turns, saturation and value to colors (..., 3) in [0, 1]."""
    ramp = np.abs((hue[..., None] + np.array([0.0, 2 / 3, 1 / 3], np.float32)) % 1 * 6 - 3) - 1
    return value[..., None] * (1 + saturation[..., None] * (np.clip(ramp, 0, 1) - 1))


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (y, x) of the pixel centers from -1 to 1, (size, 1) and (1, size)."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    return line[:, None], line[None, :]


def _colors(u: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the background, a gradient between two near hues, and the shape's color, whose hue and
    value differ from it.
    """
    y, x = _grid(size)
    hue, turn = u[0], u[1] * 2 * np.pi
    # (n, size, size, 1)
    along = np.clip(0.5 + 0.4 * (np.cos(turn) * x + np.sin(turn) * y), 0, 1)[..., None]
    dark = u[2] < 0.5  # dark ground and bright shape, or the reverse
    value = np.where(dark, 0.18 + 0.22 * u[3], 0.80 + 0.18 * u[3])
    # a tint: with a color as strong as the shape's a small codebook knows each pair of both badly
    tint = np.where(dark, 0.15, 0.05) + np.where(dark, 0.15, 0.10) * u[4]
    first = _hsv(hue, tint, value)
    second = _hsv(hue + 0.12, tint, value + np.where(dark, 0.2, -0.18))
    shape = _hsv(u[5], 0.65 + 0.3 * u[6], np.where(dark, 0.95, 0.60).astype(np.float32))
    light = 0.06 * (-y)[None, :, :, None]  # the shape's upper part is a little brighter
    return first + (second - first) * along, np.clip(shape + light, 0, 1)


def _coverage(kinds: np.ndarray, u: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes how much of each pixel the shape and its shadow cover, in [0, 1], (n, size, size,
    1): antialiased by signed distance.
    """
    y, x = _grid(size)
    radius = 0.5 + 0.28 * u[0]
    center_x, center_y = (u[1] * 2 - 1) * (0.92 - radius), (u[2] * 2 - 1) * (0.92 - radius)
    tilt = (u[3] * 2 - 1) * 0.45
    shape, shadow = np.empty((2, len(kinds), size, size), np.float32)
    for kind, field in enumerate(_FIELDS):
        here = kinds == kind
        cos, sin, r = np.cos(tilt[here]), np.sin(tilt[here]), radius[here]
        dx, dy = x - center_x[here], y - center_y[here]
        shape[here] = np.clip(0.5 - field(*_turned(dx, dy, cos, sin, r)) * r * size / 2, 0, 1)
        shadow[here] = np.clip(
            0.5 - field(*_turned(dx - 0.07, dy - 0.09, cos, sin, r)) * r * 6, 0, 1
        )
    return shape[..., None], shadow[..., None]


def _turned(
    dx: np.ndarray, dy: np.ndarray, cos: np.ndarray, sin: np.ndarray, r: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return (cos * dx + sin * dy) / r, (cos * dy - sin * dx) / r


# Signed distances in units of the shape's radius, negative inside; x right, y down.


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.9


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.78


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x) * 0.8660254 - y * 0.5, y) - 0.52


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.68) - 0.24


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Computes the distance to the edge of a five-pointed star. Folded into a tenth of the plane,
    it has one edge: from the tip (1, 0) to the notch.
    """
    distance, sector = np.hypot(x, y), np.pi / 5
    # 0 at a tip, pi/5 at a notch
    angle = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    notch_x, notch_y = 0.45 * np.cos(sector), 0.45 * np.sin(sector)
    edge_x, edge_y = notch_x - 1, notch_y
    across = (distance * np.cos(angle) - 1) * edge_y - distance * np.sin(angle) * edge_x
    return across / np.hypot(edge_x, edge_y)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.9, y - 0.31), np.maximum(x - 0.31, y - 0.9))


# in the order of Shapes.labels
_FIELDS: tuple[Field, ...] = (_circle, _square, _triangle, _ring, _star, _cross)
