"""Priors over index grids: how likely a grid is, and new grids."""

from vqtok.config import PriorConfig
from vqtok.config.registry import PRIORS
from vqtok.integer_prior import IntegerInference, integer_tensor_shapes, largest_sum
from vqtok.priors.base import Prior, cross_entropy
from vqtok.priors.fvsbn import FVSBN
from vqtok.priors.integer import IntegerPrior
from vqtok.priors.masked import MaskedTransformer
from vqtok.priors.pixelcnn import PixelCNN, receptive_field
from vqtok.priors.pixelrnn import PixelRNN
from vqtok.priors.transformer import Transformer

__all__ = [
    "FVSBN",
    "IntegerInference",
    "IntegerPrior",
    "MaskedTransformer",
    "PixelCNN",
    "PixelRNN",
    "Prior",
    "Transformer",
    "build_prior",
    "cross_entropy",
    "integer_tensor_shapes",
    "largest_sum",
    "receptive_field",
]


def build_prior(config: PriorConfig) -> Prior:
    """Builds the prior that a config names."""
    return PRIORS[config.architecture].load()(config)
