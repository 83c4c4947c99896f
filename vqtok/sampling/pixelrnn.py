"""The sampler's arithmetic in torch, for any device:
every place is computed once, from the states of the row above and the columns before.

What the rows above tell a row, all of its gates included, is computed for the whole row at once.
Then each layer takes eight calls a place, on 2-D views that are made once.

The places of the sampler on a CPU, as lists of NumPy and BLAS calls that are
made once and then only run.

A row's start stays with `SamplerState`, in torch; the calls work in its buffers. They are a few
more than torch's, and take 0.3 to 0.9 us each, where a torch call takes 2 to start. sigmoid(a) = (1
+ tanh(a/2)) / 2: one tanh for all gates.
"""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.priors.pixelrnn import gather
from vqtok.sampling.backends import Array, Call, matmul_call

if TYPE_CHECKING:
    from vqtok.priors.pixelrnn import PixelRNN, RowLSTM

HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)


class LayerState:
    """One layer's weights as matrices, the states and cells of a row, and what
    enters the layer in that row.
    """

    def __init__(self, layer: "RowLSTM", n: int, w: int) -> None:
        C, r, self.n = layer.out.in_features, layer.reach, n
        assert layer.input.bias is not None
        self.bias, self.state, self.out = (
            layer.input.bias,
            layer.state_matrix(),
            layer.out.weight.T.contiguous(),
        )
        # ((r+1)*2C, 4C)
        self.input = layer.input.weight[..., 0].permute(2, 1, 0).flatten(0, 1).contiguous()
        zeros = self.state.new_zeros
        self.gathered = zeros(w * n, layer.state.kernel_size[0], C)
        self.hidden, self.cells, self.told = zeros(w * n, C), zeros(w * n, C), zeros(w * n, 4 * C)
        self.gates, self.bounded = zeros(n, 4 * C), zeros(n, C)
        self.sigmoids, self.content = self.gates[:, : 3 * C], self.gates[:, 3 * C :]
        self.enter, self.keep, self.leave = self.sigmoids.chunk(3, dim=1)
        # x in this row; the first `reach` columns stay zero
        self.entered = zeros(n, (w + r) * 2 * C)
        self.windows = [self.entered[:, j * 2 * C : (j + r + 1) * 2 * C] for j in range(w)]
        self.slots = [window[:, r * 2 * C :] for window in self.windows]
        self.columns = list(
            zip(*(part.split(n) for part in (self.told, self.cells, self.hidden)), strict=True)
        )

    def next_row(self) -> None:
        """What the states of the row that is done tell the gates of the next."""
        torch.addmm(
            self.bias,
            gather(self.hidden, self.gathered, self.n).flatten(1),
            self.state,
            out=self.told,
        )

    def next_column(self, j: int, x: Tensor) -> None:
        """x (n, 2C) of column j becomes the next layer's."""
        told, cells, hidden = self.columns[j]
        self.slots[j].copy_(x)
        torch.addmm(told, self.windows[j], self.input, out=self.gates)
        self.sigmoids.sigmoid_()
        self.content.tanh_()
        cells.mul_(self.keep).addcmul_(self.enter, self.content)
        torch.tanh(cells, out=self.bounded)
        torch.mul(self.bounded, self.leave, out=hidden)
        x.addmm_(hidden, self.out)


class SamplerState:
    """The prior part-way through one level of n grids."""

    def __init__(
        self, prior: "PixelRNN", level: int, n: int, w: int, constant: Tensor | None
    ) -> None:
        """`constant` (n, h or 1, w or 1, 2C): what the places know beside their own level."""
        K, C, self.w = prior.config.codebook_size, prior.config.width, w
        self.embedding = prior.embedding.weight[level * K : (level + 1) * K]
        E = self.embedding.shape[1]
        first = prior.first.masked()  # (2C, E, rows, columns)
        self.reach, first_bias = first.shape[2] - 1, prior.first.bias
        assert first_bias is not None
        # (reach * columns * E, 2C)
        self.above_matrix = first[:, :, :-1].permute(2, 3, 1, 0).flatten(0, 2)
        # (reach * E, 2C)
        self.left_matrix = first[:, :, -1, : self.reach].permute(2, 1, 0).flatten(0, 1).contiguous()
        bias = first_bias.expand(1, 1, 1, -1) if constant is None else constant + first_bias
        self.constant = bias.expand(n, -1, w, -1).permute(1, 2, 0, 3)  # (h or 1, w, n, 2C)
        self.layers = [LayerState(layer, n, w) for layer in prior.layers]  # type: ignore[arg-type]
        self.head, self.readout = prior.head, prior.output(level)
        zeros = self.embedding.new_zeros
        # embedded, the newest last, zeros to both sides
        self.rows = zeros(self.reach, w + 2 * self.reach, n, E)
        self.row = zeros(w, n, 2 * C)  # what the first layer sees in the rows above
        # this row embedded, column j holds column j-reach
        self.before = zeros(n, (w + self.reach) * E)
        self.windows = [self.before[:, j * E : (j + self.reach) * E] for j in range(w)]
        self.slots = [
            self.before[:, (j + self.reach) * E : (j + self.reach + 1) * E] for j in range(w)
        ]
        self.from_above = list(self.row.unbind(0))
        self.x = zeros(n, 2 * C)
        self.i = self.j = -1

    def next_row(self, above: Tensor | None) -> None:
        """Moves on to the next row; `above` (n, w) are the indices of the row
        before it, None at the top.

        Columns that nobody asked for are computed now: the rows to come need their states.
        """
        if above is not None:
            while self.j + 1 < self.w:
                self.next_column(above[:, self.j] if self.j >= 0 else None)
            embedded = F.embedding(above.T, self.embedding)  # (w, n, E)
            padded = F.pad(embedded, (0, 0, 0, 0, self.reach, self.reach))
            self.rows = torch.cat([self.rows[1:], padded[None]])
            for layer in self.layers:
                layer.next_row()
        else:
            for layer in self.layers:
                layer.told.copy_(layer.bias.expand_as(layer.told))
        self.i, self.j = self.i + 1, -1
        patches = self.rows.unfold(1, 2 * self.reach + 1, 1)  # (reach, w, n, E, columns)
        patches = patches.permute(1, 2, 0, 4, 3).flatten(2)  # (w, n, reach * columns * E)
        self.row.copy_(
            patches @ self.above_matrix + self.constant[self.i if len(self.constant) > 1 else 0]
        )

    def next_column(self, left: Tensor | None) -> Tensor:
        """Moves on to the next column; `left` (n,) are the indices of the column before it.

        Features (n, 2C), valid until the next call.
        """
        self.j += 1
        if left is not None:
            self.slots[self.j - 1].copy_(F.embedding(left, self.embedding))
        torch.addmm(self.from_above[self.j], self.windows[self.j], self.left_matrix, out=self.x)
        for layer in self.layers:
            layer.next_column(self.j, self.x)
        return self.x

    def logits(self, features: Tensor) -> Tensor:
        """(n, 2C) -> (n, K)."""
        return self.readout(F.relu(self.head(F.relu(features))))


class PreparedWeights:
    """A prior for n grids with the given labels' rows; the same for all levels."""

    def __init__(self, prior: "PixelRNN", rows: Tensor | None) -> None:
        self.prior, self.rows = prior, rows

    def cursor(self, level: int, n: int, w: int, context: Tensor | None) -> "PreparedSampler":
        return PreparedSampler(self.prior.sampler_state(level, n, w, self.rows, context))


class PreparedSampler:
    """The prior part-way through one level of n grids:
    `next_row`, then for each column `next_column` and, where wanted, `logits`.
    """

    def __init__(self, state: SamplerState) -> None:
        self.state, self.w, self.output = state, state.w, state.readout
        self.embedding = _array(state.embedding)
        self.slots = [_array(slot) for slot in state.slots]
        self.x = _array(state.x)
        self.sigmoids = [_array(layer.told)[:, : layer.sigmoids.shape[1]] for layer in state.layers]
        n, width = self.x.shape
        self.now, self.gates, self.part = (
            np.zeros((n, size), np.float32) for size in (width, 2 * width, width // 2)
        )
        self.layers = [(_halved(layer.input), _array(layer.out)) for layer in state.layers]
        self.left_matrix = _array(state.left_matrix)
        self.scores = np.zeros((n, self.output.out_features), np.float32)
        self.column_calls = [self._column_calls(j) for j in range(self.w)]
        self.score_calls = self._score_calls()

    def next_row(self, above: Array | None) -> None:
        """Moves on to the next row; `above` (n, w) are the indices of the row
        before it, None at the top.
        """
        if above is not None:
            # the rows to come need the states of columns that nobody asked for
            while self.state.j + 1 < self.w:
                self.next_column(above[:, self.state.j] if self.state.j >= 0 else None)
        self.state.next_row(None if above is None else torch.from_numpy(above))
        for sigmoids in self.sigmoids:
            sigmoids *= HALF

    def next_column(self, left: Array | None) -> None:
        """Moves on to the next column; `left` (n,) are the indices of the column before it."""
        self.state.j += 1
        if left is not None:
            self.slots[self.state.j - 1][:] = self.embedding[left]
        for call in self.column_calls[self.state.j]:
            call()

    def logits(self) -> Array:
        """(n, K), valid until the next call."""
        for call in self.score_calls:
            call()
        return self.output.expand_array(self.scores)

    def _column_calls(self, j: int) -> list[Call]:
        """All layers at one column."""
        state, now = self.state, self.now
        entered = [_array(layer.slots[j]) for layer in state.layers] + [self.x]
        calls: list[Call] = [matmul_call(_array(state.windows[j]), self.left_matrix, now)]
        calls += [partial(np.add, now, _array(state.from_above[j]), entered[0])]
        for layer, (matrix, out), x, after in zip(
            state.layers, self.layers, entered, entered[1:], strict=False
        ):
            calls += [
                matmul_call(_array(layer.windows[j]), matrix, self.gates),
                *self._cell_calls(layer, j),
            ]
            calls += [
                matmul_call(_array(layer.columns[j][2]), out, now),
                partial(np.add, x, now, after),
            ]
        return calls

    def _cell_calls(self, layer: LayerState, j: int) -> list[Call]:
        """One layer's gates, cells and states at one column, from what
        its own row tells the gates.
        """
        told, cells, hidden = (_array(part) for part in layer.columns[j])
        gates, part, C = self.gates, self.part, cells.shape[1]
        sigmoids, (enter, keep, leave, content) = gates[:, : 3 * C], np.split(gates, 4, axis=1)
        return [
            partial(np.add, gates, told, gates),
            partial(np.tanh, gates, gates),
            partial(np.add, sigmoids, ONE, sigmoids),  # twice the sigmoids
            partial(np.multiply, cells, keep, cells),
            partial(np.multiply, enter, content, part),
            partial(np.add, cells, part, cells),
            partial(np.multiply, cells, HALF, cells),
            partial(np.tanh, cells, part),
            partial(np.multiply, part, leave, hidden),
            partial(np.multiply, hidden, HALF, hidden),
        ]

    def _score_calls(self) -> list[Call]:
        """The logits of what the last layer gave."""
        state, now, hidden = self.state, self.now, np.zeros_like(self.x)
        return [
            partial(np.maximum, self.x, ZERO, out=now),
            matmul_call(now, np.ascontiguousarray(_array(state.head.weight.T)), hidden),
            partial(np.add, hidden, _array(state.head.bias), hidden),
            partial(np.maximum, hidden, ZERO, out=hidden),
            matmul_call(hidden, np.ascontiguousarray(_array(self.output.weight.T)), self.scores),
            partial(np.add, self.scores, _array(self.output.bias), self.scores),
        ]


def _halved(matrix: Tensor) -> Array:
    """A matrix (inputs, 4C) to the gates, with those that are sigmoids halved, exactly."""
    scale = np.repeat(np.array([0.5, 0.5, 0.5, 1], np.float32), matrix.shape[1] // 4)
    return _array(matrix) * scale


def _array(values: Tensor) -> Array:
    return values.detach().numpy()
