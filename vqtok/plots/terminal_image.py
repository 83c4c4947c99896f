"""Shows an image as lines of text: half blocks of two pixels each in the colors of the terminal, or
characters by lightness.
"""

import math
import re
from collections.abc import Mapping
from itertools import groupby

import numpy as np
from PIL import Image

COLORS = ("truecolor", "256", "none")
RAMP = " .:-=+*#%@"  # dark to light, for terminals with a dark ground
HALF = "▀"
_CUBE = np.array([0, 95, 135, 175, 215, 255])  # of the colors 16 to 231 of a terminal with 256


def colors_of(environment: Mapping[str, str], encoding: str) -> str:
    """Returns the entry of COLORS that the environment says the terminal can show."""
    term = environment.get("TERM", "")
    if (
        "NO_COLOR" in environment
        or term in ("", "dumb")
        or not encoding.lower().replace("-", "").startswith("utf")
    ):
        return "none"
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit") or re.search(
        "direct|kitty|ghostty|alacritty", term
    ):
        return "truecolor"
    return "256" if "256" in term else "none"


def fit_to_terminal(
    pixels: np.ndarray, columns: int, rows: int, cell: tuple[int, int] = (1, 2)
) -> np.ndarray:
    """Shrinks the image (H, W, C) to RGB of at most columns x rows characters, each `cell` =
    (width, height) pixels.

    Larger images are shrunk; smaller ones are enlarged by whole numbers, as the terminal's
    characters are large pixels.
    """
    H, W = pixels.shape[:2]
    width, height = max(1, columns * cell[0]), max(1, rows * cell[1])
    scale = min(width / W, height / H)
    scale = math.floor(scale) if scale >= 1 else scale
    size = max(1, round(W * scale)), max(1, round(H * scale))
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (H, W, 3))))
    return np.asarray(
        image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
    )


def lines(pixels: np.ndarray, columns: int, rows: int, colors: str) -> list[str]:
    """Returns the image as at most `rows` lines of at most `columns` characters; colors is one of
    COLORS.
    """
    assert colors in COLORS
    if colors == "none":
        # A character is twice as high as wide:
        # each shows two rows of pixels, of which there is one value.
        small = fit_to_terminal(pixels, columns, rows).astype(np.float64) @ (0.299, 0.587, 0.114)
        small = _even(small)
        light = (small[0::2] + small[1::2]) / 2
        steps = np.minimum((light / 256 * len(RAMP)).astype(int), len(RAMP) - 1)
        return ["".join(RAMP[step] for step in row).rstrip() for row in steps]
    small = _even(fit_to_terminal(pixels, columns, rows))
    code = _true if colors == "truecolor" else _of_256
    return [
        _line(code(above), code(below))
        for above, below in zip(small[0::2], small[1::2], strict=True)
    ]


def _even(rows: np.ndarray) -> np.ndarray:
    """Repeats the last row where the number of rows is odd."""
    return np.concatenate([rows, rows[-1:]]) if len(rows) % 2 else rows


def _line(above: list[str], below: list[str]) -> str:
    """Draws half blocks: foreground for the upper pixel, background for the lower; escape codes are
    written only where a color changes.
    """
    parts = [
        f"\x1b[38;{ink};48;{ground}m{HALF * len(list(run))}"
        for (ink, ground), run in groupby(zip(above, below, strict=True))
    ]
    return "".join(parts) + "\x1b[0m"


def _true(row: np.ndarray) -> list[str]:
    """Returns 24-bit color codes for pixels (W, 3)."""
    return [f"2;{r};{g};{b}" for r, g, b in row.tolist()]


def _of_256(row: np.ndarray) -> list[str]:
    """Returns the nearest of the 240 colors that all 256-color terminals share: a 6x6x6 cube and 24
    grays.
    """
    values = row.astype(int)
    steps = np.abs(values[..., None] - _CUBE).argmin(-1)  # (W, 3)
    gray = np.clip((values.mean(-1) - 8 + 5) // 10, 0, 23).astype(int)  # (W,), of 8, 18, ..., 238
    by_cube = ((_CUBE[steps] - values) ** 2).sum(-1)
    by_gray = ((8 + 10 * gray[:, None] - values) ** 2).sum(-1)
    cube = 16 + 36 * steps[:, 0] + 6 * steps[:, 1] + steps[:, 2]
    return [f"5;{number}" for number in np.where(by_gray < by_cube, 232 + gray, cube).tolist()]
