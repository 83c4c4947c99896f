"""Inference of the integer prior, in NumPy alone: probabilities that are equal on every machine."""

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
