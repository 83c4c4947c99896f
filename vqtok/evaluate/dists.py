"""Computes DISTS: the distance of two images by the structure and the texture of their features
(Ding et al. 2020, arXiv 2004.07728).

The features are those of VGG-16 at LPIPS's five places, and the image itself; poolings take the
root of a weighted mean of squares. The weights of its 1,475 channels, `alpha` for texture and
`beta` for structure, are a safetensors file that the user gives.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok import weights
from vqtok.errors import UsageError
from vqtok.losses import LPIPS
from vqtok.losses.lpips import VGG

STABLE = 1e-6  # keeps the quotients finite where features are 0; in both, as published
ROOT = 1e-12  # under the root of the pooling
CHANNELS = (3, *(part[-1].outputs for part in VGG.slices))  # by place: 1,475 in all


class DISTS(nn.Module):
    """Computes the distance of images (B, 3, H, W) in [-1, 1]; (B,), 0 for equal ones.

    Images keep their size: the authors' program first scales the shorter side to 256 pixels, their
    network does not.
    """

    kernel: Tensor
    texture: Tensor
    structure: Tensor

    def __init__(self, vgg: LPIPS, texture: Tensor, structure: Tensor) -> None:
        super().__init__()
        self.vgg = vgg
        total = texture.sum() + structure.sum()
        self.register_buffer("texture", texture / total)
        self.register_buffer("structure", structure / total)
        hann = torch.tensor([0.5, 1.0, 0.5])
        kernel = hann[:, None] * hann
        self.register_buffer("kernel", kernel / kernel.sum())

    def features(self, images: Tensor) -> list[Tensor]:
        """Computes the image in [0, 1] and five features, (B, C, h, w) each."""
        return [(images + 1) / 2, *self.vgg.slices(images, self._pool)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.between(self.features(x), self.features(y))

    def between(self, x: list[Tensor], y: list[Tensor]) -> Tensor:
        """Distances (B,) of features: 1 less the weighed mean of the likeness of their means, and
        of their covariances.
        """
        likeness = x[0].new_zeros(len(x[0]))
        parts = self.texture.split(CHANNELS), self.structure.split(CHANNELS)
        for a, b, texture, structure in zip(x, y, *parts, strict=True):
            mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))  # (B, C)
            off_a, off_b = a - mean_a[..., None, None], b - mean_b[..., None, None]
            variances = off_a.square().mean((2, 3)) + off_b.square().mean((2, 3))
            covariance = (off_a * off_b).mean((2, 3))
            means = (2 * mean_a * mean_b + STABLE) / (mean_a**2 + mean_b**2 + STABLE)
            likeness += means @ texture
            likeness += (2 * covariance + STABLE) / (variances + STABLE) @ structure
        return 1 - likeness

    def _pool(self, x: Tensor) -> Tensor:
        """Halves the sides: roots of weighted means of squares over 3x3 places, 0 outside."""
        C = x.shape[1]
        kernel = self.kernel.expand(C, 1, 3, 3)
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=C) + ROOT).sqrt()


def load_dists(path: Path, vgg: LPIPS | None) -> DISTS:
    """Loads the distance: its channels' weights from a safetensors file, its features from `vgg`.

    UsageError: no VGG-16. InputError: not readable. FormatError: no such weights, or damaged.
    """
    if vgg is None or vgg.backbone is not VGG:
        raise UsageError(
            "DISTS looks at the features of VGG-16, whose weights are not given",
            "add --vgg FILE, LPIPS's weights on VGG-16 as safetensors",
        )
    tensors = weights.read_tensors(path)
    tensors = {name: array.reshape(-1) for name, array in tensors.items()}
    size = (sum(CHANNELS),)
    weights.check_tensors(tensors, {"alpha": size, "beta": size}, f"{path}, taken for DISTS,")
    texture, structure = (torch.from_numpy(tensors[name]).float() for name in ("alpha", "beta"))
    return DISTS(vgg, texture, structure).requires_grad_(False).eval()
