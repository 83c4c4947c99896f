"""Encoder and decoder of Open-MAGVIT2 (Luo et al. 2024, arXiv 2409.04410): VQGAN's blocks without
attention, and a decoder that takes mean and spread of all codes of the image into account.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok import losses
from vqtok.config import TokenizerConfig
from vqtok.networks import vqgan
from vqtok.networks.vqgan import EPSILON, LIMITS, ResnetBlock, Stage
from vqtok.networks.whole_image import WholeImageNetwork

STREAMABLE = False  # normalization is over the whole image
check_size = LIMITS.check_size


class Downsample(nn.Conv2d):
    """Halves the resolution, (B, C, H, W) -> (B, C, H/2, W/2), by a 3x3 convolution that is padded
    on all sides.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """Doubles the resolution, (B, C, h, w) -> (B, C, 2*h, 2*w): a 3x3 convolution to four channels
    for each, which become 2x2 positions.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 4 * channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(input), 2)


class AdaptiveNorm(nn.Module):
    """Normalizes x (B, C, h, w) in groups, then scales and shifts it by linear layers of the codes'
    standard deviation and mean over the image.
    """

    def __init__(self, code_dim: int, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.scale = nn.Linear(code_dim, channels)
        self.shift = nn.Linear(code_dim, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """x (B, C, h, w); codes (B, D, H, W), those that the image is decoded from."""
        flat = codes.flatten(2)  # (B, D, H*W)
        n = flat.shape[2]
        mean = flat.mean(2)
        # one position alone has no spread
        variance = (flat - mean[:, :, None]).square().sum(2) / max(1, n - 1)
        scale = self.scale((variance + EPSILON).sqrt())
        normal = torch.group_norm(x, self.groups, eps=EPSILON)
        return scale[:, :, None, None] * normal + self.shift(mean)[:, :, None, None]


def _middle(config: TokenizerConfig, count: int) -> nn.Sequential:
    channels = config.stages[-1]
    return nn.Sequential(*(ResnetBlock(channels, channels, config.groups) for _ in range(count)))


class Encoder(WholeImageNetwork):
    """Encodes images (B, C, H, W) in [-1, 1] to vectors (B, D, H/f, W/f)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, scale=1, limits=LIMITS)
        stages, last = config.stages, len(config.stages) - 1
        self.first = nn.Conv2d(config.channels, stages[0], 3, padding=1)
        self.stages = nn.ModuleList(
            Stage(
                stages[max(0, i - 1)],
                n,
                config.encoder_blocks,
                config.groups,
                False,
                Downsample(n) if i < last else None,
            )
            for i, n in enumerate(stages)
        )
        self.middle = _middle(config, config.encoder_blocks)
        self.norm = vqgan.GroupNorm(config.groups, stages[-1], EPSILON)
        self.last = nn.Conv2d(stages[-1], config.code_dim, 1)

    def run_batch(self, x: Tensor) -> Tensor:
        x = self.first(self.scaled(x))
        for stage in self.stages:
            x = stage(x)
        return self.last(vqgan.silu(self.norm(self.middle(x))))


class Decoder(WholeImageNetwork):
    """Decodes vectors (B, D, h, w) to what the likelihood needs, (B, n*C, h*f, w*f).

    Its stages stand coarsest first.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, scale=config.downsample, limits=LIMITS)
        stages, dim = config.stages, config.code_dim
        self.first = nn.Conv2d(dim, stages[-1], 3, padding=1)
        self.middle = _middle(config, config.decoder_blocks)
        inputs = [*stages[1:], stages[-1]]  # channels that each stage gets, finest first
        order = list(reversed(range(len(stages))))
        # before each stage
        self.adapt = nn.ModuleList(AdaptiveNorm(dim, inputs[i], config.groups) for i in order)
        self.stages = nn.ModuleList(
            Stage(
                inputs[i],
                stages[i],
                config.decoder_blocks,
                config.groups,
                False,
                Upsample(stages[i]) if i else None,
            )
            for i in order
        )
        self.norm = vqgan.GroupNorm(config.groups, stages[0], EPSILON)
        self.last = nn.Conv2d(stages[0], losses.output_channels(config), 3, padding=1)

    def run_batch(self, x: Tensor) -> Tensor:
        codes = x
        x = self.middle(self.first(x))
        for adapt, stage in zip(self.adapt, self.stages, strict=True):
            x = stage(adapt(x, codes))
        return self.unscaled(self.last(vqgan.silu(self.norm(x))))
