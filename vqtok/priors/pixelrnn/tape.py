"""The places of the sampler on a CPU, as lists of NumPy and BLAS calls that are
made once and then only run.

A row's start stays with `Cache`, in torch; the calls work in its buffers. They are a few more than
torch's, and take 0.3 to 0.9 us each, where a torch call takes 2 to start. sigmoid(a) = (1 +
tanh(a/2)) / 2: one tanh for all gates.
"""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vqtok.priors.calls import Array, Call, product
from vqtok.priors.pixelrnn.cache import Cache, CachedLayer

if TYPE_CHECKING:
    from vqtok.priors.pixelrnn.network import PixelRNN

HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)


class Packed:
    """A prior for n grids with the given labels' rows; the same for all levels."""

    def __init__(self, prior: "PixelRNN", rows: Tensor | None) -> None:
        self.prior, self.rows = prior, rows

    def cursor(self, level: int, n: int, w: int, context: Tensor | None) -> "Tape":
        return Tape(self.prior.cache(level, n, w, self.rows, context))


class Tape:
    """The prior part-way through one level of n grids:
    `next_row`, then for each column `next_column` and, where wanted, `logits`.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache, self.w, self.output = cache, cache.w, cache.readout
        self.embedding = _array(cache.embedding)
        self.slots = [_array(slot) for slot in cache.slots]
        self.x = _array(cache.x)
        self.sigmoids = [_array(layer.told)[:, : layer.sigmoids.shape[1]] for layer in cache.layers]
        n, width = self.x.shape
        self.now, self.gates, self.part = (
            np.zeros((n, size), np.float32) for size in (width, 2 * width, width // 2)
        )
        self.layers = [(_halved(layer.input), _array(layer.out)) for layer in cache.layers]
        self.left_matrix = _array(cache.left_matrix)
        self.scores = np.zeros((n, self.output.out_features), np.float32)
        self.column_calls = [self._column_calls(j) for j in range(self.w)]
        self.score_calls = self._score_calls()

    def next_row(self, above: Array | None) -> None:
        """Moves on to the next row; `above` (n, w) are the indices of the row
        before it, None at the top.
        """
        if above is not None:
            # the rows to come need the states of columns that nobody asked for
            while self.cache.j + 1 < self.w:
                self.next_column(above[:, self.cache.j] if self.cache.j >= 0 else None)
        self.cache.next_row(None if above is None else torch.from_numpy(above))
        for sigmoids in self.sigmoids:
            sigmoids *= HALF

    def next_column(self, left: Array | None) -> None:
        """Moves on to the next column; `left` (n,) are the indices of the column before it."""
        self.cache.j += 1
        if left is not None:
            self.slots[self.cache.j - 1][:] = self.embedding[left]
        for call in self.column_calls[self.cache.j]:
            call()

    def logits(self) -> Array:
        """(n, K), valid until the next call."""
        for call in self.score_calls:
            call()
        return self.output.spread_array(self.scores)

    def _column_calls(self, j: int) -> list[Call]:
        """All layers at one column."""
        cache, now = self.cache, self.now
        entered = [_array(layer.slots[j]) for layer in cache.layers] + [self.x]
        calls: list[Call] = [product(_array(cache.windows[j]), self.left_matrix, now)]
        calls += [partial(np.add, now, _array(cache.from_above[j]), entered[0])]
        for layer, (matrix, out), x, after in zip(
            cache.layers, self.layers, entered, entered[1:], strict=False
        ):
            calls += [
                product(_array(layer.windows[j]), matrix, self.gates),
                *self._cell_calls(layer, j),
            ]
            calls += [
                product(_array(layer.columns[j][2]), out, now),
                partial(np.add, x, now, after),
            ]
        return calls

    def _cell_calls(self, layer: CachedLayer, j: int) -> list[Call]:
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
        cache, now, hidden = self.cache, self.now, np.zeros_like(self.x)
        return [
            partial(np.maximum, self.x, ZERO, out=now),
            product(now, np.ascontiguousarray(_array(cache.head.weight.T)), hidden),
            partial(np.add, hidden, _array(cache.head.bias), hidden),
            partial(np.maximum, hidden, ZERO, out=hidden),
            product(hidden, np.ascontiguousarray(_array(self.output.weight.T)), self.scores),
            partial(np.add, self.scores, _array(self.output.bias), self.scores),
        ]


def _halved(matrix: Tensor) -> Array:
    """A matrix (inputs, 4C) to the gates, with those that are sigmoids halved, exactly."""
    scale = np.repeat(np.array([0.5, 0.5, 0.5, 1], np.float32), matrix.shape[1] // 4)
    return _array(matrix) * scale


def _array(values: Tensor) -> Array:
    return values.detach().numpy()
