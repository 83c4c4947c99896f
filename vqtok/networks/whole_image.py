"""Runs networks that need an image whole, never a part of it, in bounded memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqtok import files
from vqtok.config import TokenizerConfig
from vqtok.config.paper import pixel_scale
from vqtok.errors import InputError

MEMORY_LIMIT = 8 << 30  # bytes that one image may take


@dataclass(frozen=True)
class Limits:
    """The memory that a network takes, and the number of pixels that it is given at once."""

    network: str  # what errors call it
    bytes_per_pixel: Callable[[TokenizerConfig], int]
    pixels_at_once: int  # of several images, without gradients, on a CPU
    gpu_pixels_at_once: int

    def check_size(self, config: TokenizerConfig, H: int, W: int) -> None:
        """Raises InputError where an image of H x W pixels takes more than MEMORY_LIMIT."""
        each = self.bytes_per_pixel(config)
        if H * W * each > MEMORY_LIMIT:
            need, most = files.human_bytes(H * W * each), MEMORY_LIMIT / each // 1e5 / 10
            smaller = f"make it smaller, at most {most:.1f} megapixels, or choose another"
            raise InputError(
                f"an image of {W}x{H} takes about {need} of memory: "
                f"the {self.network} network needs all of it at once",
                f"{smaller} model",
                f"{smaller} --model",
            )


class WholeImageNetwork(nn.Module):
    """Runs images whole, as many at once as memory allows: the base of an encoder or a decoder.

    `scale` is the number of pixels along each axis for one position of the input.
    """

    def __init__(self, config: TokenizerConfig, scale: int, limits: Limits) -> None:
        super().__init__()
        self.config, self.scale, self.limits = config, scale, limits

    def run_batch(self, x: Tensor) -> Tensor:
        """Computes the output for one or a few inputs."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Computes the output (B, ...) of x (B, ..., H, W).

        InputError where one image takes more than MEMORY_LIMIT.
        """
        H, W = (side * self.scale for side in x.shape[2:])
        self.limits.check_size(self.config, H, W)
        if torch.is_grad_enabled() or len(x) == 1:
            return self.run_batch(x)
        on_cpu = x.device.type == "cpu"
        most = self.limits.pixels_at_once if on_cpu else self.limits.gpu_pixels_at_once
        return torch.cat([self.run_batch(part) for part in x.split(max(1, most // (H * W)))])

    def scaled(self, x: Tensor) -> Tensor:
        """Scales pixels in [-1, 1] to the network's range: one number, or one a channel."""
        scale, shift = pixel_scale(self.config)
        return x * _per_channel(scale, x) + _per_channel(shift, x) if scale else x

    def unscaled(self, y: Tensor) -> Tensor:
        """Inverts `scaled`."""
        scale, shift = pixel_scale(self.config)
        return (y - _per_channel(shift, y)) / _per_channel(scale, y) if scale else y


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Returns one number a channel, or one for all, as (1, C or 1, 1, 1)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
