"""Priors over index grids: how likely a grid is, and new grids."""

from vqtok.priors.exact import ExactPrior, exact_shapes, largest_sum
from vqtok.priors.integer import IntegerPrior
from vqtok.priors.pixelcnn import PixelCNN, cross_entropy, receptive_field
from vqtok.priors.sampling import sample

__all__ = ["ExactPrior", "IntegerPrior", "PixelCNN", "cross_entropy", "exact_shapes", "largest_sum", "receptive_field", "sample"]
