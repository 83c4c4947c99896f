"""The sampler's arithmetic in torch, for any device:
every position is computed once, from cached activations.

The vertical stack needs only the rows above, so it moves on a row at a time and keeps kernel//2 + 1
rows of each layer. What it tells the horizontal stack is computed for the whole row at once. The
horizontal stack then goes from left to right: five calls a layer, on 2-D views that are made once.

The sampler's arithmetic on a CPU, as lists of NumPy and BLAS calls that are
made once and then only run.

At 64 channels a position is some 90,000 multiplications a layer, 1 us of work, and one torch call
takes 2 to start. So all is prepared: weights packed as matrices, views and buffers that never
move, every call bound to them. What is left of a layer is seven calls of 0.3 to 0.9 us: window x
weights, what came from above added, one tanh for the whole gate, the gate's two halves joined, the
residual added. sigmoid(b) = (1 + tanh(b/2)) / 2: the halves are folded into the weights, exactly,
as they are powers of two.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.priors.outputs import OutputLayer
from vqtok.priors.pixelcnn import GatedLayer, gate
from vqtok.sampling.backends import Array, Call, matmul_call

if TYPE_CHECKING:
    from vqtok.priors.pixelcnn import PixelCNN


class LayerState:
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


class SamplerState:
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
            LayerState(
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


class PreparedLayer:
    """One layer's weights as matrices (inputs, outputs), halves folded in; v is kept doubled.

    vertical ((2r+1)*C, (r+1)*2C): from a row of v, what it tells the same row, the next, and so on;
    horizontal ((r+1)*C, 2C).
    """

    def __init__(self, layer: GatedLayer, rows: Tensor | None) -> None:
        C = layer.out.in_channels
        scale = np.repeat(np.array([1, 0.5], np.float32), C)  # of each output
        self.vertical, self.link = (
            _numpy_matrix(layer.vertical, 0.5 * scale),
            _numpy_matrix(layer.link, scale),
        )
        self.link /= scale[:, None]
        self.horizontal = _numpy_matrix(layer.horizontal, scale)
        self.residual, self.skip = (
            _array(part.T) * np.float32(0.5) for part in layer.out.weight[:, :, 0, 0].split(C)
        )
        self.bias_v, self.bias_x = (
            _array(conv.bias)[None] * scale for conv in (layer.vertical, layer.horizontal)
        )  # (1, 2C)
        if layer.label is not None and rows is not None:
            for_v, for_x = _array(layer.label(rows)).reshape(-1, 2, 2 * C).swapaxes(0, 1)  # (n, 2C)
            self.bias_v, self.bias_x = self.bias_v + for_v * scale, self.bias_x + for_x * scale
        # (C, 4C)
        self.context = (
            None if layer.context is None else _numpy_matrix(layer.context, np.tile(scale, 2))
        )


class PreparedWeights:
    """A prior's weights for n grids with the given labels' rows; the same for all levels."""

    def __init__(self, prior: "PixelCNN", rows: Tensor | None) -> None:
        self.config = prior.config
        self.layers = [
            PreparedLayer(
                layer,  # type: ignore[arg-type]
                rows,
            )
            for layer in prior.layers
        ]
        self.skip = np.concatenate([layer.skip for layer in self.layers])  # (layers*C, C)
        self.head, self.head_bias = _array(prior.head.weight.T), _array(prior.head.bias)
        self.embedding = _array(prior.embedding.weight)  # (L*K, C)
        self.outputs = [prior.output(level) for level in range(self.config.levels)]
        self.readout = [(_array(output.weight.T), _array(output.bias)) for output in self.outputs]

    def cursor(self, level: int, n: int, w: int, context: Tensor | None) -> "PreparedSampler":
        return PreparedSampler(self, level, n, w, context)


class PreparedSampler:
    """The prior part-way through one level of n grids:
    `next_row`, then for each column `next_column` and, where wanted, `logits`.
    """

    def __init__(
        self, weights: PreparedWeights, level: int, n: int, w: int, context: Tensor | None
    ) -> None:
        C, K, layers = weights.config.width, weights.config.codebook_size, weights.layers
        self.output: OutputLayer = weights.outputs[level]
        self.reach = r = weights.config.kernel // 2
        self.embedding = weights.embedding[level * K : (level + 1) * K]
        # (h, w, n, C)
        self.context = None if context is None else _array(context.permute(2, 3, 0, 1))
        self.context_row = np.zeros((w, n, C), np.float32)
        # doubled; `reach` columns of zeros to each side
        self.v = np.zeros((w + 2 * r, n, C), np.float32)
        # what each layer gets from the rows above
        self.above = np.zeros((w, len(layers), n, 2 * C), np.float32)
        # x of each layer in the last reach + 1 columns
        self.windows = np.zeros((len(layers), n, (r + 1) * C), np.float32)
        self.column = np.zeros((len(layers), n, 2 * C), np.float32)
        self.gated = np.zeros((n, len(layers) * C), np.float32)
        # what the last linear layer gives
        self.scores = np.zeros((n, self.output.out_features), np.float32)
        self.x = self.windows[0, :, r * C :]
        self.older, self.newer = self.windows[..., : r * C], self.windows[..., C:]
        self.i = self.j = -1
        self.row_calls = self._row_calls(layers)
        self.column_calls = self._column_calls(layers)
        self.score_calls = self._score_calls(weights, *weights.readout[level])

    def next_row(self, above: Array | None) -> None:
        """Moves on to the next row; `above` (n, w) are the indices of the row
        before it, None at the top.
        """
        self.i, self.j = self.i + 1, -1
        inside = self.v[self.reach : len(self.v) - self.reach]
        if above is not None:
            np.multiply(self.embedding[above.T], 2, out=inside)
        if self.context is not None:
            self.context_row[:] = self.context[self.i]
        for call in self.row_calls:
            call()
        self.windows.fill(0)

    def next_column(self, left: Array | None) -> None:
        """Moves on to the next column; `left` (n,) are the indices of the column before it."""
        self.j += 1
        np.copyto(self.column, self.above[self.j])
        np.copyto(self.older, self.newer)
        self.x[:] = 0 if left is None else self.embedding[left]
        for call in self.column_calls:
            call()

    def logits(self) -> Array:
        """(n, K), valid until the next call."""
        for call in self.score_calls:
            call()
        return self.output.expand_array(self.scores)

    def _row_calls(self, layers: Sequence[PreparedLayer]) -> list[Call]:
        """The vertical stack for one row: `v` from layer to layer, and `above` of each."""
        (w, _, n, _), C, k = self.above.shape, self.v.shape[2], 2 * self.reach + 1
        patches = np.zeros((w, n, k, C), np.float32)
        # (w, n, k, C)
        windows = np.lib.stride_tricks.sliding_window_view(self.v, k, 0).transpose(0, 1, 3, 2)
        told = np.zeros((w, n, (self.reach + 1) * 2 * C), np.float32)
        down, linked = np.zeros((2, w, n, 2 * C), np.float32)
        contexts = np.zeros((w, n, 4 * C), np.float32)
        a, b, v = down[..., :C], down[..., C:], self.v[self.reach : self.reach + w]
        calls: list[Call] = []
        for layer, above in zip(layers, self.above.transpose(1, 0, 2, 3), strict=True):
            calls += [
                partial(np.copyto, patches, windows),
                matmul_call(patches.reshape(w * n, -1), layer.vertical, told),
            ]
            calls += _told_calls(told, layer.bias_v, down)
            if layer.context is not None:
                calls += [
                    matmul_call(self.context_row, layer.context, contexts),
                    partial(np.add, down, contexts[..., : 2 * C], down),
                ]
            calls += [
                matmul_call(down, layer.link, linked),
                partial(np.add, linked, layer.bias_x, above),
            ]
            if layer.context is not None:
                calls += [partial(np.add, above, contexts[..., 2 * C :], above)]
            if layer is not layers[-1]:
                calls += [
                    partial(np.tanh, down, down),
                    partial(np.add, v, a, v),
                    partial(np.multiply, a, b, a),
                    partial(np.add, v, a, v),
                ]
        return calls

    def _column_calls(self, layers: Sequence[PreparedLayer]) -> list[Call]:
        """The horizontal stack for one column."""
        n, C = self.x.shape
        now, residual = np.zeros((n, 2 * C), np.float32), np.zeros((n, C), np.float32)
        a, b = now[:, :C], now[:, C:]
        calls: list[Call] = []
        for index, layer in enumerate(layers):
            gated = self.gated[:, index * C : (index + 1) * C]
            calls += [
                matmul_call(self.windows[index], layer.horizontal, now),
                partial(np.add, now, self.column[index], now),
            ]
            calls += [
                partial(np.tanh, now, now),
                partial(np.multiply, a, b, gated),
                partial(np.add, gated, a, gated),
            ]
            if layer is not layers[-1]:
                x, after = self.windows[index : index + 2, :, -C:]
                calls += [
                    matmul_call(gated, layer.residual, residual),
                    partial(np.add, x, residual, after),
                ]
        return calls

    def _score_calls(self, weights: PreparedWeights, readout: Array, bias: Array) -> list[Call]:
        """The logits from the gates of all layers."""
        n, C = self.x.shape
        features, hidden, zero = (
            np.zeros((n, C), np.float32),
            np.zeros((n, 2 * C), np.float32),
            np.zeros((), np.float32),
        )
        return [
            matmul_call(self.gated, weights.skip, features),
            partial(np.maximum, features, zero, out=features),
            matmul_call(features, weights.head, hidden),
            partial(np.add, hidden, weights.head_bias, hidden),
            partial(np.maximum, hidden, zero, out=hidden),
            matmul_call(hidden, readout, self.scores),
            partial(np.add, self.scores, bias, self.scores),
        ]


def _told_calls(told: Array, bias: Array, down: Array) -> list[Call]:
    """Sums what a row was told by the rows before it and by itself, and keeps what those after it
    are told; told is (w, n, (r+1)*2C).
    """
    parts = np.split(told, told.shape[2] // down.shape[2], axis=2)
    later = [np.zeros_like(down) + bias for _ in parts[1:]]  # for the next row, the one after it...
    calls: list[Call] = [partial(np.add, parts[0], later[0], down)]
    calls += [
        partial(np.add, part, following, row)
        for part, row, following in zip(parts[1:], later, later[1:], strict=False)
    ]
    return [*calls, partial(np.add, parts[-1], bias, later[-1])]


def _numpy_matrix(conv: nn.Conv2d, scale: Array) -> Array:
    """A convolution's weights as (columns * inputs, rows * outputs), the last row first,
    each output times its scale.
    """
    outputs, inputs, rows, columns = conv.weight.shape
    matrix = np.ascontiguousarray(conv.weight.detach().numpy()[:, :, ::-1].transpose(3, 1, 2, 0))
    matrix *= scale
    return matrix.reshape(columns * inputs, rows * outputs)


def _array(values: Tensor | None) -> Array:
    assert values is not None
    return values.detach().contiguous().numpy()
