"""What a place of a grid sees, and the order of decoding that follows from it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Offset = tuple[int, ...]


@dataclass(frozen=True)
class Neighborhood:
    """The places that a place of level l sees, as offsets along the axes of a grid.

    At the `causal` offsets it sees the levels up to l, at the `around` offsets the levels below l.
    A place is decoded at time speeds . place + lag * l. Each causal offset must go back in time,
    and each of `around`, one level down, too. The last axis has speed 1.
    There are two axes or more.
    """

    causal: tuple[Offset, ...]
    around: tuple[Offset, ...]
    speeds: tuple[int, ...]
    lag: int

    def __post_init__(self) -> None:
        assert len(self.speeds) > 1
        assert self.speeds[-1] == 1
        assert all(self._ahead(offset) < 0 for offset in self.causal)
        assert all(self._ahead(offset) < self.lag for offset in self.around)

    def _ahead(self, offset: Offset) -> int:
        return sum(speed * shift for speed, shift in zip(self.speeds, offset, strict=True))

    @property
    def places(self) -> int:
        """How many vectors a place sees."""
        return len(self.causal) + len(self.around)

    @cached_property
    def margins(self) -> tuple[tuple[int, int], ...]:
        """Places before and after the grid that offsets reach, along each axis."""
        axes = list(zip(*self.causal, *self.around, strict=True)) if self.places else []
        each = [list(axis) for axis in axes]
        return tuple((max(0, -min(shifts)), max(0, *shifts)) for shifts in each)

    def steps(self, levels: int, sides: tuple[int, ...]) -> Iterator[np.ndarray]:
        """The order of a stream: steps of places (1 + axes, n), of which each depends on earlier
        steps alone. Rows are level and place along each axis; sorted by level, then in C order.

        One after another: a short stream that claims a vast grid ends long before the last.
        """
        last = sum(speed * (side - 1) for speed, side in zip(self.speeds, sides, strict=True))
        for time in range(last + self.lag * (levels - 1) + 1):
            lowest = max(0, -((last - time) // self.lag))
            runs = [
                run
                for level in range(lowest, min(levels, time // self.lag + 1))
                for run in self._runs(level, time - self.lag * level, sides)
            ]
            if runs:
                yield self._unrolled(np.array(runs).T)

    def _runs(self, level: int, time: int, sides: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The places of one level at that time since its first, in C order: level, place along all
        axes but the last two, and of the rows that follow each other the count, the first, and the
        column that a row 0 would have.
        """
        speed, (h, w) = self.speeds[-2], sides[-2:]
        for outer in itertools.product(*(range(side) for side in sides[:-2])):
            left = time - sum(s * o for s, o in zip(self.speeds, outer, strict=False))
            first, last = max(0, -((w - 1 - left) // speed)), min(h - 1, left // speed)
            if first <= last:
                yield level, *outer, last - first + 1, first, left

    def _unrolled(self, runs: np.ndarray) -> np.ndarray:
        """The places (1 + axes, n) of runs (axes + 2, runs)."""
        counts, first, left = runs[-3:]
        begins = counts.cumsum() - counts
        fixed = np.concatenate([runs[:-3], [first - begins, left]]).repeat(counts, axis=1)
        row = fixed[-2] + np.arange(fixed.shape[1])
        return np.concatenate([fixed[:-2], [row, fixed[-1] - self.speeds[-2] * row]])


REACH = 3  # rows up and columns to either side that a place of an image's grid sees
# Rows and columns from a place to those before it that it sees.
# A row up reaches one column to the right, two rows up three: each of them has a smaller 2i + j.
CAUSAL = tuple(
    (di, dj)
    for di in range(-REACH, 1)
    for dj in range(-REACH, REACH + 1)
    if 2 * di + dj < 0 and (di > -REACH or abs(dj) < 3)
)
AROUND = tuple((di, dj) for di in (-1, 0, 1) for dj in (-1, 0, 1))
LAG = 4  # steps by which a level follows the one below: its 3x3 reaches to 2i + j + 3
IMAGE = Neighborhood(CAUSAL, AROUND, (2, 1), LAG)
