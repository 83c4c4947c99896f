"""Declares what `Criterion` knows of a loss term beside the likelihood."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vqtok.config import LossConfig


class LossTerm(nn.Module):
    """Compares reconstructions with their originals. It learns nothing."""

    def __init__(self, config: LossConfig, file: Path | None, size: int) -> None:
        """Takes the `file` that `--perceptual` names, and `size`, the side of the images to come.

        Raises UsageError where the term cannot work with them.
        """
        super().__init__()

    def keep_cast(self, dtype: torch.dtype) -> None:
        """Prepares for autocast to `dtype`. To be called once the term is on its device."""

    def forward(self, reconstruction: Tensor, images: Tensor, shared: bool) -> Tensor:
        """Returns the term without its weight, a scalar; images are (B, C, H, W) in [-1, 1].

        `shared`: they are this process's part of a batch. The mean of what the processes return
        is then the term of the whole batch.
        """
        raise NotImplementedError
