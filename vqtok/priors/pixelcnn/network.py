"""A gated PixelCNN over index grids: which grids are likely (van den Oord et
al. 2016, arXiv 1606.05328).

Two stacks run side by side. The vertical one sees the rows above, in a full rectangle; the
horizontal one sees its own row to the left, and is fed by the vertical one at every layer. Together
they leave no blind spot. Both start from the embedded grid, shifted by one row or one column, so
that every later convolution may include its own position and needs no masked weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import PriorConfig
from vqtok.priors.base import Context, Prior, code_embedding, offset
from vqtok.priors.pixelcnn.cache import Cache
from vqtok.priors.pixelcnn.gated import GatedLayer
from vqtok.priors.pixelcnn.tape import Packed


def receptive_field(config: PriorConfig) -> tuple[int, int]:
    """How far a prediction looks back: rows up, and columns to the left in its own row.

    In the rows above it sees one column fewer, to each side.
    At L > 1 it sees the levels below beyond its own position too.
    """
    reach = 1 + config.layers * (config.kernel // 2)
    return reach, reach


class PixelCNN(Prior):
    """The gated PixelCNN."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        C, L = config.width, config.levels
        self.embedding = code_embedding(config, C, L)
        self.context = Context(config) if L > 1 else None
        self.layers = nn.ModuleList(GatedLayer(config) for _ in range(config.layers))
        self.head = nn.Linear(C, 2 * C)
        self.readout = self._readouts(2 * C)

    def hidden(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, L, h, w, 2C)."""
        B, L, h, w = indices.shape
        assert self.config.levels >= L, f"{L} levels in, {self.config.levels} in the prior"
        embedded = self.embedding(offset(indices, self.config.codebook_size))  # (B, L, h, w, C)
        # (B*L, C, h, w), channels last
        embedded = embedded.reshape(B * L, h, w, -1).permute(0, 3, 1, 2)
        context = None if self.context is None else self.context(indices).flatten(0, 1)
        rows = self.label_rows(labels, B, indices.device)
        rows = None if rows is None else rows.repeat_interleave(L)
        v = F.pad(embedded, (0, 0, 1, -1))  # row i holds row i-1
        x = F.pad(embedded, (1, -1, 0, 0))  # column j holds column j-1
        total = torch.zeros_like(x)
        for layer in self.layers:
            v, x, skip = layer(v, x, rows, context)
            total = total + skip
        features = total.permute(0, 2, 3, 1).reshape(B, L, h, w, -1)
        return F.relu(self.head(F.relu(features)))

    def cursor(
        self, level: int, n: int, h: int, w: int, rows: Tensor | None, indices: Tensor
    ) -> Cache:
        context = self.context_of(indices)
        return Cache(self, level, n, w, rows, None if context is None else context[:, level])

    def quick(self, rows: Tensor | None) -> Packed | None:
        """On the CPU, in float32: NumPy does the arithmetic then."""
        fits = all(
            weights.device.type == "cpu" and weights.dtype == torch.float32
            for weights in self.parameters()
        )
        return Packed(self, rows) if fits else None
