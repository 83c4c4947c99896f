"""The network of the VQ-VAE paper (van den Oord et al. 2017, arXiv 1711.00937, section 4.1), and
those of its many copies.

Strided 4x4 convolutions, residual blocks of 3x3 and 1x1, transposed 4x4 convolutions, ReLU. The
copies differ in where a ReLU stands and which convolution is left out, so `encoder_layers` and
`decoder_layers` list the layers one by one; where they are empty, the paper's own are made from
`width`, the numbers of blocks and `downsample`.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from vqtok import losses
from vqtok.config import TokenizerConfig
from vqtok.config.paper import layers_of, parse_layer
from vqtok.networks.whole_image import Limits, WholeImageNetwork

STREAMABLE = False  # it is given the image whole
TENSORS = 3  # of the largest layer's size that are alive at once


class ResidualBlock(nn.Module):
    """Computes x + second(relu(first(relu(x)))), (B, C, H, W) -> (B, C, H, W); `first` is a 3x3
    convolution, `second` one of 1x1 or 3x3.

    In programs whose first ReLU works in place, the block computes relu(x) + ... instead: a layer
    "relu" before the block gives the same.
    """

    def __init__(self, channels: int, hidden: int, kernel: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def build_layers(specs: tuple[str, ...], channels: int) -> list[nn.Module]:
    """Makes the layers that specs like "down 64" name, for an input of so many channels."""
    layers: list[nn.Module] = []
    for spec in specs:
        kind, size = parse_layer(spec)
        if kind == "down":
            layers.append(nn.Conv2d(channels, size, 4, stride=2, padding=1))
        elif kind == "up":
            layers.append(nn.ConvTranspose2d(channels, size, 4, stride=2, padding=1))
        elif kind == "conv":
            layers.append(nn.Conv2d(channels, size, 3, padding=1))
        elif kind == "point":
            layers.append(nn.Conv2d(channels, size, 1))
        elif kind in ("block", "block3"):
            layers.append(ResidualBlock(channels, size, 3 if kind == "block3" else 1))
        else:
            layers.append({"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[kind]())
        channels = size if kind in ("down", "up", "conv", "point") else channels
    return layers


class Encoder(WholeImageNetwork):
    """Maps images (B, C, H, W) in [-1, 1] to vectors (B, D, H/f, W/f)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, scale=1, limits=LIMITS)
        specs, _ = layers_of(config)
        self.layers = nn.Sequential(*build_layers(specs, config.channels))

    def run_batch(self, x: Tensor) -> Tensor:
        return self.layers(self.scaled(x))


class Decoder(WholeImageNetwork):
    """Maps vectors (B, D, h, w) to what the likelihood needs, (B, n*C, h*f, w*f)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, scale=config.downsample, limits=LIMITS)
        _, specs = layers_of(config)
        specs = specs or (*_paper_decoder(config),)
        self.layers = nn.Sequential(*build_layers(specs, config.code_dim))

    def run_batch(self, x: Tensor) -> Tensor:
        return self.unscaled(self.layers(x))


def _paper_decoder(config: TokenizerConfig) -> list[str]:
    """Returns the layers of the paper's encoder in reverse; the last one gives what the likelihood
    needs.
    """
    count = int(math.log2(config.downsample))
    half = max(4, config.width // 2)
    finest = losses.output_channels(config)
    specs = [f"conv {config.width}", *[f"block {config.width}"] * config.decoder_blocks, "relu"]
    for stage in range(count):
        last = stage == count - 1
        specs += [f"up {finest if last else half if stage == count - 2 else config.width}"]
        specs += [] if last else ["relu"]
    return specs


def _bytes_per_pixel(config: TokenizerConfig) -> int:
    """Returns the memory that a pixel of an image takes: TENSORS of the size of the largest
    layer.
    """
    largest, area = float(config.channels), 1.0
    for spec in layers_of(config)[0]:
        kind, size = parse_layer(spec)
        area = area / 4 if kind == "down" else area
        largest = max(largest, size * area)
    return max(1, round(4 * TENSORS * largest))


LIMITS = Limits("paper's", _bytes_per_pixel, pixels_at_once=2**18, gpu_pixels_at_once=2**22)
check_size = LIMITS.check_size
