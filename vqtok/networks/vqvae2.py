"""Encoder and decoder of VQ-VAE-2 with two grids of codes (Razavi et al. 2019, arXiv 1906.00446).

The bottom grid has twice the rows and columns of the top one, and its vectors depend on the codes
of the top. A position of the top and the four of the bottom below it are one position of vqtok's
grid, with five levels: the top, then the bottom's row by row. Each is a part of the vector of its
own (`product` levels).
"""

import torch
from torch import Tensor, nn

from vqtok import losses
from vqtok.config import TokenizerConfig
from vqtok.config.registry import setting_of
from vqtok.networks.paper import build_layers
from vqtok.networks.whole_image import Limits, WholeImageNetwork
from vqtok.quantizers import LevelQuantizer, Quantizer

STREAMABLE = False  # it is given the image whole
PLACES = 4  # of the bottom grid below one of the top
TENSORS = 3  # of the largest layer's size that are alive at once


def fold(bottom: Tensor) -> Tensor:
    """Joins the vectors of 2x2 positions: (B, D, 2*h, 2*w) -> (B, 4*D, h, w)."""
    B, D, H, W = bottom.shape
    x = bottom.view(B, D, H // 2, 2, W // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(B, PLACES * D, H // 2, W // 2)


def unfold(folded: Tensor) -> Tensor:
    """Inverts `fold`: (B, 4*D, h, w) -> (B, D, 2*h, 2*w)."""
    B, channels, h, w = folded.shape
    D = channels // PLACES
    return folded.view(B, 2, 2, D, h, w).permute(0, 3, 4, 1, 5, 2).reshape(B, D, 2 * h, 2 * w)


def _sequence(specs: list[str], channels: int) -> nn.Sequential:
    return nn.Sequential(*build_layers(tuple(specs), channels))


class Encoder(WholeImageNetwork):
    """Encodes images (B, C, H, W) in [-1, 1] to vectors (B, 5*D, H/8, W/8): the top's, and the
    four of the bottom.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, scale=1, limits=LIMITS)
        width, dim = config.width, config.part_dim
        half = max(1, width // 2)
        blocks = [f"block {setting_of(config, 'hidden')}"] * config.encoder_blocks
        down = [f"down {half}", "relu"]
        end = [f"conv {width}", *blocks, "relu"]
        self.bottom = _sequence([*down, f"down {width}", "relu", *end], config.channels)
        self.top = _sequence([*down, *end], width)
        self.top_vectors = nn.Conv2d(width, dim, 1)
        self.from_top = _sequence([f"conv {width}", *blocks, "relu", f"up {dim}"], dim)
        self.bottom_vectors = nn.Conv2d(dim + width, dim, 1)
        # outside of the modules, which would name its tensors twice
        self._codes: tuple[Quantizer, ...] = ()

    def use_codes(self, quantizer: Quantizer) -> None:
        """Looks the top's codes up in this quantizer, which stays the owner of them."""
        assert isinstance(quantizer, LevelQuantizer)
        top = quantizer.quantizers[0]
        assert isinstance(top, Quantizer)
        self._codes = (top,)

    @property
    def top_quantizer(self) -> Quantizer:
        """Quantizes the top's vectors."""
        return self._codes[0]

    def run_batch(self, x: Tensor) -> Tensor:
        bottom = self.bottom(self.scaled(x))
        top = self.top_vectors(self.top(bottom))
        codes = self.top_quantizer
        training = codes.training  # where it counts what it sees, which is to count once
        quantized = codes.eval()(top).vectors
        codes.train(training)
        joined = torch.cat([self.from_top(quantized.to(bottom.dtype)), bottom], 1)
        return torch.cat([top, fold(self.bottom_vectors(joined))], 1)


class Decoder(WholeImageNetwork):
    """Decodes vectors (B, 5*D, h, w) to what the likelihood needs, (B, n*C, 8*h, 8*w)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, scale=config.downsample, limits=LIMITS)
        width, dim = config.width, config.part_dim
        blocks = [f"block {setting_of(config, 'hidden')}"] * config.decoder_blocks
        self.widen_top = nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1)
        specs = [f"conv {width}", *blocks, "relu", f"up {max(1, width // 2)}", "relu"]
        self.layers = _sequence([*specs, f"up {losses.output_channels(config)}"], 2 * dim)

    def run_batch(self, x: Tensor) -> Tensor:
        dim = self.config.part_dim
        top, bottom = x[:, :dim].contiguous(), unfold(x[:, dim:].contiguous())
        return self.unscaled(self.layers(torch.cat([self.widen_top(top), bottom], 1)))


def _bytes_per_pixel(config: TokenizerConfig) -> int:
    """Returns the memory that a pixel of an image takes: TENSORS of the size of the largest
    layer.
    """
    largest = max(config.channels, config.width / 8, (config.part_dim + config.width) / 16)
    return max(1, round(4 * TENSORS * largest))


LIMITS = Limits("VQ-VAE-2", _bytes_per_pixel, pixels_at_once=2**18, gpu_pixels_at_once=2**22)
check_size = LIMITS.check_size
