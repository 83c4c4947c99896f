"""Settings of an import that the checkpoint does not say, and its result."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vqtok.config import TokenizerConfig


@dataclass(frozen=True)
class ImportOptions:
    """The user's answers to what a checkpoint does not say of its network; None: as its program
    does.
    """

    normalize: bool | None = None  # whether codes are on the unit sphere
    distance: str | None = None  # l2, dot or cosine
    beta: float | None = None
    input_range: str | None = None  # as `ranges.parse_range` reads it
    variant: str | None = None  # as `variants.parse_variant` reads it
    part: str | None = None  # which weights, where a file holds several


@dataclass(frozen=True)
class Trial:
    """A measure of how well one reading of the file reconstructs images."""

    input_range: str
    variant: str
    distance: str
    psnr: float  # dB, mean over the images
    images: tuple[np.ndarray, ...]  # uint8 (H, W, C)


@dataclass(frozen=True)
class Converted:
    """A network's settings and tensors under our names, without the likelihood's."""

    program: str
    settings: TokenizerConfig
    tensors: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = ()  # what was assumed, a line each
    trials: tuple[Trial, ...] = ()  # best first
    originals: tuple[np.ndarray, ...] = ()  # the images tried, uint8 (H, W, C)
