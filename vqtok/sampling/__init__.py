"""New index grids from a prior: every position is computed once."""

from vqtok.sampling.sample import sample_grids

__all__ = ["sample_grids"]
