"""The sampler's arithmetic in torch, for any device:
every position is computed once, from cached activations.

The vertical stack needs only the rows above, so it moves on a row at a time and keeps kernel//2 + 1
rows of each layer. What it tells the horizontal stack is computed for the whole row at once. The
horizontal stack then goes from left to right: five calls a layer, on 2-D views that are made once.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.priors.pixelcnn.gated import GatedLayer, gate

if TYPE_CHECKING:
    from vqtok.priors.pixelcnn.network import PixelCNN


class CachedLayer:
    """One layer's weights as matrices, and its activations in the rows and
    columns that are still needed.
    """

    def __init__(
        self, layer: GatedLayer, n: int, w: int, rows: Tensor | None, context: Tensor | None
    ) -> None:
        C, self.reach = layer.out.in_channels, layer.reach
        assert layer.vertical.bias is not None
        assert layer.horizontal.bias is not None
        self.vertical, self.vertical_bias = _matrix(layer.vertical), layer.vertical.bias
        self.horizontal, self.link, self.out = (
            _matrix(layer.horizontal),
            _matrix(layer.link),
            _matrix(layer.out),
        )
        bias = torch.zeros_like(self.horizontal[0]).repeat(2)  # (4C,)
        # (4C,) or (n, 1, 4C)
        self.bias = bias if layer.label is None or rows is None else layer.label(rows)[:, None]
        self.bias_x = layer.horizontal.bias
        self.context = None if layer.context is None or context is None else _matrix(layer.context)
        zeros = self.horizontal.new_zeros
        # the last rows of v, the newest last
        self.above = zeros(n, self.reach + 1, w + 2 * self.reach, C)
        self.row = zeros(n, w, 2 * C)  # what the horizontal stack gets from above, and biases
        # x in this row; the first `reach` columns stay zero
        self.left = zeros(n, (w + self.reach) * C)
        self.gated = zeros(n, 2 * C)
        self.tanh_part = self.gated[:, :C]
        self.from_above = list(self.row.unbind(1))
        self.windows = [self.left[:, j * C : (j + self.reach + 1) * C] for j in range(w)]
        self.slots = [
            self.left[:, (j + self.reach) * C : (j + self.reach + 1) * C] for j in range(w)
        ]

    def next_row(self, v: Tensor, context: Tensor | None) -> Tensor:
        """Takes the next row of v (n, w, C) in, prepares `row`, and returns the next layer's v."""
        n, w, C = v.shape
        r = self.reach
        self.above = torch.cat([self.above[:, 1:], F.pad(v, (0, 0, r, r))[:, None]], dim=1)
        patches = self.above.unfold(2, 2 * r + 1, 1)  # (n, r+1, w, C, 2r+1)
        patches = patches.permute(0, 2, 1, 4, 3).reshape(n * w, -1)  # (n*w, (r+1)*(2r+1)*C)
        down = torch.addmm(self.vertical_bias, patches, self.vertical).view(n, w, 2 * C)
        bias = self.bias
        if self.context is not None and context is not None:
            bias = bias + context @ self.context  # (n, w, 4C)
        down = down + bias[..., : 2 * C]
        self.row.copy_(down @ self.link + (self.bias_x + bias[..., 2 * C :]))
        return v + gate(down.view(n * w, 2 * C)).view(n, w, C)

    def next_column(self, j: int, state: Tensor, x: Tensor) -> None:
        """Adds the residual and skip of column j to `state` (n, 2C), of which `x` is
        a view of the first half.
        """
        self.slots[j].copy_(x)
        torch.addmm(self.from_above[j], self.windows[j], self.horizontal, out=self.gated)
        self.tanh_part.tanh_()
        state.addmm_(F.glu(self.gated, 1), self.out)


class Cache:
    """The prior part-way through one level of n grids."""

    def __init__(
        self,
        prior: "PixelCNN",
        level: int,
        n: int,
        w: int,
        rows: Tensor | None,
        context: Tensor | None,
    ) -> None:
        C, K = prior.config.width, prior.config.codebook_size
        self.embedding = prior.embedding.weight[level * K : (level + 1) * K]
        self.context = None if context is None else context.permute(2, 0, 3, 1)  # (h, n, w, C)
        self.layers = [
            CachedLayer(
                layer,  # type: ignore[arg-type]
                n,
                w,
                rows,
                context,
            )
            for layer in prior.layers
        ]
        self.head, self.readout = prior.head, prior.output(level)
        self.start = self.embedding.new_zeros(n, w, C)
        self.state = self.embedding.new_zeros(n, 2 * C)  # x and the sum of the skips
        self.x, self.skips = self.state[:, :C], self.state[:, C:]
        self.i = self.j = -1

    def next_row(self, above: Tensor | None) -> None:
        """Moves on to the next row; `above` (n, w) are the indices of the row
        before it, None at the top.
        """
        self.i, self.j = self.i + 1, -1
        v = self.start if above is None else F.embedding(above, self.embedding)  # (n, w, C)
        context = None if self.context is None else self.context[self.i]
        for layer in self.layers:
            v = layer.next_row(v, context)

    def next_column(self, left: Tensor | None) -> Tensor:
        """Moves on to the next column; `left` (n,) are the indices of the column before it.

        Features (n, C), a view.
        """
        self.j += 1
        self.state.zero_()
        if left is not None:
            self.x.copy_(F.embedding(left, self.embedding))
        for layer in self.layers:
            layer.next_column(self.j, self.state, self.x)
        return self.skips

    def logits(self, features: Tensor) -> Tensor:
        """(n, C) -> (n, K)."""
        return self.readout(F.relu(self.head(F.relu(features))))


def _matrix(conv: nn.Conv2d) -> Tensor:
    """A convolution's weights as (rows * columns * inputs, outputs)."""
    return conv.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
