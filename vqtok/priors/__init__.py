"""Priors over index grids: how likely a grid is, and new grids."""

from typing import TYPE_CHECKING

from vqtok.config import PriorConfig
from vqtok.config.registry import PRIORS
from vqtok.lazy import lazy_names
from vqtok.priors.base import Prior, cross_entropy

if TYPE_CHECKING:
    from vqtok.priors.fvsbn import FVSBN
    from vqtok.priors.integer import IntegerPrior
    from vqtok.priors.masked import MaskedTransformer
    from vqtok.priors.pixelcnn import PixelCNN, receptive_field
    from vqtok.priors.pixelrnn import PixelRNN
    from vqtok.priors.transformer import Transformer

__all__ = [
    "FVSBN",
    "IntegerPrior",
    "MaskedTransformer",
    "PixelCNN",
    "PixelRNN",
    "Prior",
    "Transformer",
    "build_prior",
    "cross_entropy",
    "receptive_field",
]


def build_prior(config: PriorConfig) -> Prior:
    """Builds the prior that a config names."""
    return PRIORS[config.architecture].load()(config)


# imported on first use: a model has one prior, or none
if not TYPE_CHECKING:  # type checkers would take every name for one that is here
    __getattr__, __dir__ = lazy_names(
        __name__,
        __all__,
        fvsbn="FVSBN",
        integer="IntegerPrior",
        masked="MaskedTransformer",
        pixelcnn="PixelCNN receptive_field",
        pixelrnn="PixelRNN",
        transformer="Transformer",
    )
