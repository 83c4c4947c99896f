"""Combines the loss terms that a recipe asks for beside the likelihood."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vqtok.config import LOSSES, LossConfig


class Criterion(nn.Module):
    """Adds up the terms that a LossConfig gives a weight. It learns nothing."""

    def __init__(self, config: LossConfig, file: Path | None, size: int) -> None:
        """Takes the `file` of the perceptual weights, needed where config asks for them, and
        `size`, the side of the images to come.

        UsageError where both do not go with the config; errors as `lpips.load_lpips`.
        """
        super().__init__()
        self.weights = {name: getattr(config, name) for name in LOSSES if getattr(config, name)}
        self.terms = nn.ModuleDict(
            {name: LOSSES[name].load()(config, file, size) for name in self.weights}
        )

    def keep_cast(self, dtype: torch.dtype) -> None:
        """Prepares the terms for autocast to `dtype`, once they are on their device."""
        for term in self.terms.values():
            term.keep_cast(dtype)  # type: ignore[operator]

    def forward(
        self,
        reconstruction: Tensor,
        images: Tensor,
        shared: bool = False,
        perceptual: bool = True,
    ) -> dict[str, Tensor]:
        """Returns each term by name, a scalar that bears its weight; images are (B, C, H, W) in
        [-1, 1].

        `shared`: they are this process's part of a batch, for which the means of the terms over all
        processes hold. Without `perceptual`, the perceptual distance is left out.
        """
        return {
            name: self.weights[name] * term(reconstruction, images, shared)
            for name, term in self.terms.items()
            if perceptual or name != "perceptual"
        }
