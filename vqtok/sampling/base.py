"""The protocols of a prior's sampler: in raster order, or all places of a level in a few steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from vqtok.priors import Prior
from vqtok.sampling.backends import TORCH, Backend

AnyPrior = TypeVar("AnyPrior", bound=Prior)
Values = Any  # a NumPy array or a tensor, whichever the sampler's backend computes with


class Cursor(Protocol):
    """A sampler's state part-way through one level of n grids.

    It keeps what it needs of earlier positions: nothing is computed twice.
    """

    def next_row(self, above: Values | None) -> None:
        """Moves on to the next row; `above` (n, w) holds the indices of the row before it, None at
        the top.
        """
        ...

    def next_column(self, left: Values | None) -> None:
        """Moves on to the next column; `left` (n,) holds the indices of the column before it, None
        at the edge. The columns at the end of a row may be left out.
        """
        ...

    def logits(self) -> Values:
        """Returns (n, K) of this position, valid until the next call."""
        ...


class Sampler(ABC, Generic[AnyPrior]):
    """Prepares a prior for n grids of h x w; `rows` (n,) are the labels' rows, None without."""

    backend: Backend = TORCH

    def __init__(self, prior: AnyPrior, n: int, h: int, w: int, rows: Tensor | None) -> None:
        self.prior, self.n, self.h, self.w, self.rows = prior, n, h, w, rows

    @abstractmethod
    def start_level(self, level: int, indices: Tensor) -> Cursor:
        """Starts one level, knowing the levels below it of `indices` (n, L, h, w)."""


@dataclass(frozen=True)
class Draws:
    """How the indices of one level are drawn."""

    draw: Callable[[Values, Values], Values]  # indices (n,) from logits (n, K) and chances (n,)
    chances: Tensor  # (n, h, w) in [0, 1), one for each place
    order: Tensor  # (n, h, w) in [0, 1), independent of them: for which places come first
    greedy: bool  # no chance at all
    guidance: float | None  # None where grids are not guided


class ParallelSampler(ABC, Generic[AnyPrior]):
    """Prepares a prior that sees all sides for n grids of h x w; `rows` as in `Sampler`."""

    backend: Backend = TORCH

    def __init__(self, prior: AnyPrior, n: int, h: int, w: int, rows: Tensor | None) -> None:
        self.prior, self.n, self.h, self.w, self.rows = prior, n, h, w, rows

    @abstractmethod
    def fill_level(
        self,
        level: int,
        indices: Tensor,
        unknown: Tensor,
        draws: Draws,
        tick: Callable[[], None],
    ) -> None:
        """Draws the unknown indices (n, h, w) of one level of `indices` (n, L, h, w), in place;
        calls `tick` h times on its way.

        Where grids are guided, `rows` are (2n,): with labels, then without.
        """
