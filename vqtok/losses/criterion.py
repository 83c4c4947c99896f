"""What a recipe wants of a reconstruction besides its likelihood."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vqtok import distributed
from vqtok.config import LossConfig
from vqtok.errors import UsageError
from vqtok.losses import lpips as losses_lpips
from vqtok.losses.ms_ssim import WINDOW, ms_ssim


class Criterion(nn.Module):
    """The terms that a LossConfig gives a weight. It learns nothing."""

    def __init__(self, config: LossConfig, file: Path | None, size: int) -> None:
        """`file` holds the perceptual weights, needed where config asks for them;
        `size` is the side of the images to come.

        UsageError where both do not go with the config; errors as `lpips.load_lpips`.
        """
        super().__init__()
        self.config = config
        if config.perceptual and file is None:
            fix = (
                "give --perceptual FILE (LPIPS weights as safetensors), or leave it out: "
                "--set losses.perceptual=0"
            )
            raise UsageError(
                "the recipe wants the perceptual distance, which needs the weights of its network",
                fix,
            )
        if config.ms_ssim and size < WINDOW:
            raise UsageError(
                f"MS-SSIM needs images of {WINDOW} pixels, these have {size}",
                "choose a larger --size",
            )
        self.lpips = (
            losses_lpips.load_lpips(file) if config.perceptual and file is not None else None
        )

    def keep_cast(self, dtype: torch.dtype) -> None:
        """As LPIPS.keep_cast, where that is among the terms. Once the network is on its device."""
        if self.lpips is not None:
            self.lpips.keep_cast(dtype)

    def forward(
        self,
        reconstruction: Tensor,
        images: Tensor,
        shared: bool = False,
        perceptual: bool = True,
    ) -> dict[str, Tensor]:
        """Each term by name, a scalar that bears its weight; images are (B, C, H, W) in [-1, 1].

        `shared`: they are this process's part of a batch, for which the means of the terms over all
        processes hold. Without `perceptual`, the perceptual distance is left out.
        """
        terms = {}
        if self.config.ms_ssim:
            terms["ms_ssim"] = self.config.ms_ssim * (1 - ms_ssim(reconstruction, images))
        if self.lpips is not None and perceptual:
            terms["perceptual"] = self.config.perceptual * self._distance(
                self.lpips, reconstruction, images, shared
            )
        return terms

    def _distance(
        self, lpips: nn.Module, reconstruction: Tensor, images: Tensor, shared: bool
    ) -> Tensor:
        """The mean LPIPS of the first part of the images;
        of a shared batch, this process's share of that mean times their number.
        """
        processes = distributed.world_size() if shared else 1
        count = max(1, round(self.config.perceptual_part * processes * len(images)))
        mine = distributed.local_count(count) if shared else count
        if not mine:
            return reconstruction.new_zeros(())
        x, y = (_color(part[:mine]) for part in (reconstruction, images))
        return lpips(x, y).mean() * (mine * processes / count)


def _color(images: Tensor) -> Tensor:
    """(B, 3, H, W) also of gray images."""
    return images.expand(-1, 3, -1, -1)
