"""New index grids from a prior: every position is computed once."""

from vqtok.sampling.sample import sample

__all__ = [
    "sample",
]
