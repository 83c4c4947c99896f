"""Samples new index grids from a prior; computes every position once."""

from vqtok.sampling.sample import sample_grids

__all__ = ["sample_grids"]
