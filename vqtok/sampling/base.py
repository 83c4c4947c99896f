"""The protocol of a prior's sampler."""

from abc import ABC, abstractmethod
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
