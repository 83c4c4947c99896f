"""Measures a decoder's output: likelihoods, structure, and distances of features."""

from vqtok.losses.criterion import Criterion
from vqtok.losses.likelihood import (
    Likelihood,
    build_likelihood,
    discretized_logistic,
    output_channels,
)
from vqtok.losses.lpips import LPIPS

__all__ = [
    "LPIPS",
    "Criterion",
    "Likelihood",
    "build_likelihood",
    "discretized_logistic",
    "output_channels",
]
