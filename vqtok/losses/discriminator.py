"""Scores images by a patch discriminator, and turns scores into its loss and the tokenizer's.

It distinguishes images from reconstructions patch by patch (Isola et al. 2017, arXiv
1611.07004, section 3.2.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok import distributed

FOLD = 4
SIDE = 4 * FOLD  # pixels that a score stands for, along each axis
SLOPE = 0.2  # of the leaky units
EPSILON = 1e-6


@dataclass(frozen=True)
class DiscriminatorOutput:
    """Holds a discriminator's scores and features."""

    # float32 (B, 1, ceil(H/16), ceil(W/16)); above 0: an image, below: a reconstruction
    scores: Tensor
    features: list[Tensor]  # of each layer before


class PatchDiscriminator(nn.Module):
    """Scores every 16 x 16 pixels of images (B, C, H, W) in [-1, 1]; each score sees 80 x 80.

    It folds 4 x 4 pixels into channels first: cheap, and each place in the decoder's last pixel
    shuffle has weights of its own, so that a pattern of that period is seen at once. No batch norm,
    which would make a score depend on the rest of the batch, and on how images and
    reconstructions are mixed in it.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(channels * FOLD**2, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
            ]
        )
        self.head = nn.Conv2d(4 * width, 1, 3, padding=1)

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        bottom, right = (-side % SIDE for side in images.shape[2:])
        x = F.pixel_unshuffle(F.pad(images, (0, right, 0, bottom), mode="replicate"), FOLD)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return DiscriminatorOutput(self.head(x).float(), features)


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Computes the discriminator's loss from its scores (Lim and Ye 2017, arXiv 1705.02894): 2
    where it distinguishes none, 0 where all.
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_hinge(fake: Tensor) -> Tensor:
    """Computes the tokenizer's loss from the scores of its reconstructions."""
    return -fake.mean()


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Computes the distance of the features of reconstructions from those of their images, mean
    over layers (Larsen et al. 2016, section 2.3).

    Each layer's is relative to the size of the real features, which nothing else bounds (Défossez
    et al. 2022, arXiv 2210.13438, eq. 2): 0 for equal ones, 1 for features of 0. `real` gets no
    gradient. Its size is that in the batch of all processes.
    """
    ratios, real = [], [r.detach().float() for r in real]
    sizes = [r.abs().mean() for r in real]
    distributed.all_reduce_mean(*sizes)
    for f, r, size in zip(fake, real, sizes, strict=True):
        ratios.append((f.float() - r).abs().mean() / (size + EPSILON))
    return torch.stack(ratios).mean()


def lecam(real: Tensor, fake: Tensor, averages: Tensor) -> Tensor:
    """Computes the squared distance of each score from the average of the other kind (Tseng et al.
    2021, arXiv 2104.03310, eq. 3).

    averages (2,) are the moving ones of real and of fake scores.
    It holds back a discriminator that has become too sure.
    """
    average_real, average_fake = averages
    return (real - average_fake).square().mean() + (fake - average_real).square().mean()
