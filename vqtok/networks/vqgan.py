"""Defines encoder and decoder of the VQGAN family (Esser et al. 2021, arXiv 2012.09841): what
published tokenizers are made of.

Residual blocks with normalization over space, and attention at the coarse stages: each output
depends on the whole image, so that an image cannot be cut into parts as the folded network's can
(`streaming`), and what it takes of memory grows with it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import TokenizerConfig
from vqtok.config.registry import setting_of
from vqtok.networks.whole_image import Limits, WholeImageNetwork

STREAMABLE = False  # one part of an image at a time is not enough
EPSILON = 1e-6  # of the normalization, in all three programs whose models `interop` reads
TENSORS = 5  # of the finest stage's size that are alive at once


class GroupNorm(nn.GroupNorm):
    """Normalizes groups of channels, (B, C, H, W) -> (B, C, H, W); a group of one number, at which
    PyTorch's raises ValueError, becomes 0 before scale and offset.
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class ResnetBlock(nn.Module):
    """Computes x + conv(silu(norm(conv(silu(norm(x)))))), (B, C, H, W) -> (B, D, H, W); a 1x1
    convolution of x where D is not C.
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, inputs, EPSILON)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = GroupNorm(groups, outputs, EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(silu(self.norm1(x)))
        y = self.conv2(silu(self.norm2(y)))
        return y + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class Attention(nn.Module):
    """Adds to x what each position gathers from all others by one attention head, (B, C, h, w) ->
    (B, C, h, w).
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, EPSILON)
        self.query, self.key, self.value, self.out = (
            nn.Linear(channels, channels) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, h*w, C)
        y = F.scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens))
        return x + self.out(y)[:, 0].transpose(1, 2).reshape(x.shape)


class Downsample(nn.Conv2d):
    """Halves the resolution, (B, C, H, W) -> (B, C, H/2, W/2), by a 3x3 convolution, padded at the
    right and at the bottom alone.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Doubles the resolution, (B, C, h, w) -> (B, C, 2*h, 2*w): each position four times, then a
    3x3 convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """Blocks at one resolution, each followed by attention where the stage has it, and the
    change to the next resolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        count: int,
        groups: int,
        attention: bool,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResnetBlock(outputs if i else inputs, outputs, groups) for i in range(count)
        )
        self.attention = nn.ModuleList(
            Attention(outputs, groups) for _ in range(count if attention else 0)
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attention):
                x = self.attention[i](x)
        return x if self.resample is None else self.resample(x)


class MidBlock(nn.Module):
    """Runs blocks at the coarsest resolution, usually two, with attention after the first where the
    network has it.
    """

    def __init__(self, channels: int, groups: int, attention: bool, count: int = 2) -> None:
        super().__init__()
        self.before = ResnetBlock(channels, channels, groups)
        self.attention = Attention(channels, groups) if attention else nn.Identity()
        self.after = ResnetBlock(channels, channels, groups) if count > 1 else nn.Identity()
        self.more = nn.Sequential(
            *(ResnetBlock(channels, channels, groups) for _ in range(count - 2))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self.after(self.attention(self.before(x))))


class Encoder(WholeImageNetwork):
    """Encodes images (B, C, H, W) in [-1, 1] to vectors (B, D, H/f, W/f)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, scale=1, limits=LIMITS)
        stages, groups, last = config.stages, config.groups, len(config.stages) - 1
        middle = setting_of(config, "middle_blocks")
        self.first = nn.Conv2d(config.channels, stages[0], 3, padding=1)
        self.stages = nn.ModuleList(
            Stage(
                stages[max(0, i - 1)],
                n,
                config.encoder_blocks,
                groups,
                i in config.attention,
                Downsample(n) if i < last else None,
            )
            for i, n in enumerate(stages)
        )
        self.middle = MidBlock(stages[-1], groups, len(stages) in config.attention, middle)
        self.norm = GroupNorm(groups, stages[-1], EPSILON)
        self.last = nn.Conv2d(stages[-1], config.z_channels, 3, padding=1)
        self.project = nn.Conv2d(config.z_channels, config.code_dim, 1)

    def run_batch(self, x: Tensor) -> Tensor:
        x = self.first(self.scaled(x))
        for stage in self.stages:
            x = stage(x)
        return self.project(self.last(silu(self.norm(self.middle(x)))))


class Decoder(WholeImageNetwork):
    """Decodes vectors (B, D, h, w) to what the likelihood needs, (B, C, h*f, w*f).

    Its stages stand coarsest first.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, scale=config.downsample, limits=LIMITS)
        stages, groups = config.stages, config.groups
        middle = setting_of(config, "middle_blocks")
        self.project = nn.Conv2d(config.code_dim, config.z_channels, 1)
        self.first = nn.Conv2d(config.z_channels, stages[-1], 3, padding=1)
        self.middle = MidBlock(stages[-1], groups, len(stages) in config.attention, middle)
        self.stages = nn.ModuleList(
            Stage(
                stages[min(i + 1, len(stages) - 1)],
                stages[i],
                config.decoder_blocks,
                groups,
                i in config.attention,
                Upsample(stages[i]) if i else None,
            )
            for i in reversed(range(len(stages)))
        )
        self.norm = GroupNorm(groups, stages[0], EPSILON)
        self.last = nn.Conv2d(stages[0], config.channels, 3, padding=1)

    def run_batch(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(self.project(x)))
        for stage in self.stages:
            x = stage(x)
        return self.unscaled(self.last(silu(self.norm(x))))


def silu(x: Tensor) -> Tensor:
    """Applies silu in place where no gradient needs x: it is what a normalization has just made."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _bytes_per_pixel(config: TokenizerConfig) -> int:
    """Estimates the memory that a pixel of an image takes: TENSORS of the size of the largest one,
    which a change of resolution may have made.
    """
    largest = max(max(config.stages[i : i + 2]) / 4**i for i in range(len(config.stages)))
    return round(4 * TENSORS * largest)


# about 0.16 and 2.6 GB with 128 channels
LIMITS = Limits("classic", _bytes_per_pixel, pixels_at_once=2**16, gpu_pixels_at_once=2**20)
check_size = LIMITS.check_size
