"""Takes the gray values themselves as indices (`pixels`), one level for each channel."""

import torch
from torch import Tensor

from vqtok.config import TokenizerConfig
from vqtok.quantizers.base import Quantized, Quantizer


class PixelQuantizer(Quantizer):
    """Rounds each channel's gray values to K evenly spaced ones: level l is channel l, and nothing
    is learned.

    With K = 256 an index is the byte itself; with K = 2 it says whether the value is above one
    half. A byte b never lies halfway between two of the K values: 2 b (K - 1) is even and
    255 (2 k + 1) odd. Where only the first few channels are given, their mean stands in for the
    others. The palette is saved, so that models of another K have another fingerprint.
    """

    palette: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.codebook_size, self.levels = config.codebook_size, config.levels
        values = torch.linspace(0, 255, config.codebook_size).round()
        # (C, K), bytes: float16 holds them exactly
        self.register_buffer("palette", values.repeat(config.levels, 1))

    def forward(self, z: Tensor) -> Quantized:
        """Quantizes z (B, C, H, W) in [-1, 1]."""
        # (B, C, H, W)
        indices = z.float().clamp(-1, 1).add(1).mul((self.codebook_size - 1) / 2).round().long()
        return Quantized(self.lookup(indices), indices, z.new_zeros(()))

    def lookup(self, indices: Tensor) -> Tensor:
        """Returns gray values (B, C, H, W) in [-1, 1] for indices (B, n, H, W), the very floats
        that bytes become.
        """
        count = indices.shape[1]
        known = (
            torch.stack([self.palette[level][indices[:, level]] for level in range(count)], 1)
            / 127.5
            - 1
        )
        if count == self.levels:
            return known
        return torch.cat(
            [known, known.mean(1, keepdim=True).expand(-1, self.levels - count, -1, -1)], 1
        )

    def codebooks(self) -> Tensor:
        """Returns (C, K, C): an entry says something of its own channel alone."""
        return torch.diag_embed((self.palette / 127.5 - 1).T).transpose(0, 1)

    def needs_init(self) -> bool:
        return False

    def initialize(self, vectors: Tensor) -> None:
        pass

    def adopt_codebook(self) -> None:
        pass
