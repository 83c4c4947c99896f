"""Priors over index grids: how likely a grid is, and new grids."""

from vqtok.priors.pixelcnn import PixelCNN, cross_entropy, receptive_field
from vqtok.priors.sampling import sample

__all__ = ["PixelCNN", "cross_entropy", "receptive_field", "sample"]
