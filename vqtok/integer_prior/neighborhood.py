"""What a place of a grid sees, and the order of decoding that follows from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

Offset = tuple[int, ...]
PLACES_AT_ONCE = 1 << 14  # that are put in order


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
        each = np.indices((levels, *sides[:-2])).reshape(len(sides) - 1, -1)
        begins = np.array([self.lag, *self.speeds[:-2]]) @ each  # (rows of all but the last axes,)
        speed, (h, w) = self.speeds[-2], sides[-2:]
        times = self.last_time(levels, sides) + 1
        at_once = max(1, PLACES_AT_ONCE // (each.shape[1] * min(h, w)))
        for start in range(0, times, at_once):
            time = np.arange(start, min(start + at_once, times))
            left = time[:, None] - begins  # the column that a row 0 would have
            first = np.maximum(0, -((w - 1 - left) // speed))
            counts = np.maximum(0, np.minimum(h - 1, left // speed) - first + 1)
            which = np.arange(counts.size).repeat(counts.ravel())
            row = np.arange(len(which)) + (first.ravel() - counts.cumsum() + counts.ravel())[which]
            column = left.ravel()[which] - speed * row
            places = np.concatenate([each[:, which % each.shape[1]], [row, column]])
            ends = counts.sum(1).cumsum().tolist()
            for begin, end in pairwise([0, *ends]):
                if begin < end:  # in a single column every other time has none
                    yield places[:, begin:end]

    def last_time(self, levels: int, sides: tuple[int, ...]) -> int:
        """When the last place is decoded; the first is at 0."""
        far = sum(speed * (side - 1) for speed, side in zip(self.speeds, sides, strict=True))
        return far + self.lag * (levels - 1)


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
