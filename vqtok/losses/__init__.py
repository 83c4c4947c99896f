"""Measures a decoder's output: likelihoods, structure, and distances of features."""

from typing import TYPE_CHECKING

from vqtok.lazy import lazy_names
from vqtok.losses.likelihood import (
    Likelihood,
    build_likelihood,
    discretized_logistic,
    output_channels,
)

if TYPE_CHECKING:
    from vqtok.losses.criterion import Criterion
    from vqtok.losses.lpips import LPIPS

__all__ = [
    "LPIPS",
    "Criterion",
    "Likelihood",
    "build_likelihood",
    "discretized_logistic",
    "output_channels",
]


# imported on first use: a decoder needs its likelihood alone
if not TYPE_CHECKING:  # type checkers would take every name for one that is here
    __getattr__, __dir__ = lazy_names(
        __name__,
        __all__,
        criterion="Criterion",
        lpips="LPIPS",
    )
