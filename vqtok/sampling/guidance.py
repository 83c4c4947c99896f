"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): away from what an image
without a class would be.

Each grid is in the batch twice, with its class and without. The logits are u + W (c - u), of c with
the class and u without; W = 1 is no guidance.
"""

from vqtok.sampling.backends import Backend
from vqtok.sampling.base import Cursor, Values

GUIDANCE_MAX = 100.0


class GuidedCursor:
    """A `Cursor` of n grids over one of 2n: the first half with classes, the second without."""

    def __init__(self, both: Cursor, backend: Backend, weight: float) -> None:
        self.both, self.backend, self.weight = both, backend, weight

    def next_row(self, above: Values | None) -> None:
        self.both.next_row(None if above is None else self.backend.twice(above))

    def next_column(self, left: Values | None) -> None:
        self.both.next_column(None if left is None else self.backend.twice(left))

    def logits(self) -> Values:
        logits = self.both.logits()
        n = len(logits) // 2
        return logits[n:] + self.weight * (logits[:n] - logits[n:])
