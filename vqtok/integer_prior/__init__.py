"""Inference of the integer prior, in NumPy alone: probabilities that are equal on every machine."""

from typing import TYPE_CHECKING

from vqtok.lazy import lazy_names

if TYPE_CHECKING:
    from vqtok.integer_prior.arithmetic import integer_tensor_shapes, largest_sum
    from vqtok.integer_prior.inference import CodedGrids, IntegerInference
    from vqtok.integer_prior.neighborhood import IMAGE, Neighborhood

__all__ = [
    "IMAGE",
    "CodedGrids",
    "IntegerInference",
    "Neighborhood",
    "integer_tensor_shapes",
    "largest_sum",
]


# Imported on first use: to draw images takes `blas` alone.
if not TYPE_CHECKING:  # type checkers would take every name for one that is here
    __getattr__, __dir__ = lazy_names(
        __name__,
        __all__,
        arithmetic="integer_tensor_shapes largest_sum",
        inference="CodedGrids IntegerInference",
        neighborhood="IMAGE Neighborhood",
    )
