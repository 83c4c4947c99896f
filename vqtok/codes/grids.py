"""Describes index grids: what both forms of a codes file say of them."""

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from vqtok.codes.checks import COPY_AGAIN, is_int, require
from vqtok.errors import FormatError, UsageError

# of an image, as in `images`: 30 kB of deflated zeros can claim a thousand times more
PIXELS_MAX = 200_000_000


class GridDescription:
    """Describes index grids in either form."""

    model: str
    fingerprint: str
    codebook_size: int
    downsample: int
    channels: int
    sizes: tuple[tuple[int, int], ...]
    range: tuple[float, float] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns (n, L, h, w)."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        """Shows the model, sizes, grid and levels in one line; no indices."""
        _, L, h, w = self.shape
        sizes = dict.fromkeys(f"{W}x{H}" for H, W in self.sizes)
        shown = ", ".join([*sizes][:3]) + (", ..." if len(sizes) > 3 else "")
        images = "1 image" if len(self) == 1 else f"{len(self)} images"
        return (
            f"<{type(self).__name__} of {self.model} ({self.fingerprint}): {images} of {shown}, "
            f"grid {w}x{h}, {count_levels(L)} of {self.codebook_size} codes>"
        )

    @property
    def levels(self) -> int:
        """Counts the levels that are here: the model's first ones, or all of them."""
        return self.shape[1]

    @property
    def bits(self) -> float:
        """Returns the bits that the raw indices take: n * L * h * w * log2(K)."""
        return math.prod(self.shape) * math.log2(self.codebook_size)

    @property
    def pixels(self) -> int:
        """Counts the pixels of all images together, at their own sizes."""
        return sum(H * W for H, W in self.sizes)

    def _check_description(self) -> None:
        """Checks all but the sizes, which `check_sizes` compares with the grid."""
        require(
            is_int(self.codebook_size, 2, 1 << 32), "the codebook size is no integer from 2 to 2^32"
        )
        require(is_int(self.downsample, 1, 1024), "downsample is no integer from 1 to 1024")
        require(is_int(self.channels, 1, 3) and self.channels != 2, "channels is neither 1 nor 3")
        named = (
            isinstance(self.model, str) and 0 < len(self.model) < 256 and self.model.isprintable()
        )
        require(named, "the model's name is not a line of text")
        marked = (
            isinstance(self.fingerprint, str)
            and re.fullmatch("[0-9a-f]{8}", self.fingerprint) is not None
        )
        require(marked, "the fingerprint is not eight hex digits")
        require(self.range is None or _is_range(self.range), "the range is no pair LOW, HIGH")


@dataclass(frozen=True, eq=False, repr=False)
class Codes(GridDescription):
    """Holds index grids of n images that share a grid size, and what decoding needs; FormatError
    where the parts disagree.
    """

    indices: np.ndarray  # (n, L, h, w), of index_dtype(K)
    model: str  # name of the model that made them
    fingerprint: str  # of its tokenizer: eight hex digits
    codebook_size: int  # K
    downsample: int  # f: pixels per index along each axis
    channels: int  # of the images: 1 or 3
    sizes: tuple[tuple[int, int], ...]  # (H, W) of each image
    # values of the originals that became 0 and 255; None: they had 8 bits, or several ranges
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._check_description()
        _check_indices(self.indices, self.codebook_size)
        check_sizes(self.sizes, self.indices.shape, self.downsample)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        return self.description == other.description and np.array_equal(self.indices, other.indices)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.indices.shape

    @property
    def description(self) -> tuple[object, ...]:
        """Returns all that is said of the indices."""
        return (
            self.model,
            self.fingerprint,
            self.codebook_size,
            self.downsample,
            self.channels,
            self.sizes,
            self.range,
        )

    def first_levels(self, count: int) -> "Codes":
        """Returns the same images at their first `count` levels: fewer bits, less detail.

        UsageError where so many are not here.
        """
        if not has_levels(count, self.levels):
            raise UsageError(
                f"these codes hold {count_levels(self.levels)}, not {count}",
                levels_fix(self.levels),
            )
        return replace(self, indices=np.ascontiguousarray(self.indices[:, :count]))


def _is_range(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(type(end) is float and math.isfinite(end) for end in value)
        and value[0] < value[1]
    )


def index_dtype(codebook_size: int) -> np.dtype:
    """Returns the smallest unsigned dtype that holds the indices of a codebook of that size."""
    return np.dtype(
        np.uint8
        if codebook_size <= 1 << 8
        else np.uint16
        if codebook_size <= 1 << 16
        else np.uint32
    )


def count_levels(levels: int) -> str:
    """Writes '1 level' or '8 levels'."""
    return "1 level" if levels == 1 else f"{levels} levels"


def has_levels(count: object, levels: int) -> bool:
    """Whether a number of first levels is an integer, of Python or NumPy, from 1 to `levels`."""
    return isinstance(count, int | np.integer) and 1 <= int(count) <= levels


def levels_fix(levels: int) -> str:
    """Advises on a number of levels that is not among those there are."""
    return (
        "there is only one level: leave the number of levels out"
        if levels == 1
        else f"choose 1 to {levels} levels"
    )


def _check_indices(indices: np.ndarray, K: int) -> None:
    """Checks indices from a file, or from a caller: the fixes are for both."""
    require(
        isinstance(indices, np.ndarray) and indices.ndim == 4,
        "the indices lack the four axes images, levels, rows, columns",
        "give an array (n, L, h, w), or copy or download the file again",
    )
    require(indices.size > 0, f"the indices are empty: shape {indices.shape}")
    wanted = index_dtype(K)
    require(
        indices.dtype == wanted,
        f"the indices are {indices.dtype}, K = {K} asks for {wanted}",
        f"give indices.astype({wanted.name!r}); Model.codes takes integers of any type",
    )
    largest = int(indices.max())
    require(
        largest < K,
        f"the indices go up to {largest}, the codebook has {K} entries",
        f"give indices from 0 to {K - 1}, or copy or download the file again",
    )


def check_sizes(sizes: object, shape: tuple[int, ...], f: int) -> None:
    """Compares sizes with the (n, L, h, w) of the indices."""
    n, _, h, w = shape
    if not isinstance(sizes, tuple) or len(sizes) != n:
        raise FormatError("the sizes do not match the number of images", COPY_AGAIN)
    pairs = all(
        isinstance(size, tuple)
        and len(size) == 2
        and all(is_int(side, 1, math.inf) for side in size)
        for size in sizes
    )
    require(pairs, "the sizes are not pairs of positive integers")
    for H, W in set(sizes):
        require(
            H * W <= PIXELS_MAX,
            f"an image of {W}x{H} is claimed, larger than any that vqtok reads",
        )
        require(
            (-(-H // f), -(-W // f)) == (h, w),
            f"an image of {W}x{H} does not have a grid of {w}x{h} at downsample {f}",
        )
