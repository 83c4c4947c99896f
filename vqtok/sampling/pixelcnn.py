"""The sampler of the gated PixelCNN: computes every position once, from kept activations.

The vertical stack needs only the rows above, so it moves on a row at a time. What it adds to the
horizontal stack is computed for the whole row at once. The horizontal stack then goes from left to
right.

At 64 channels a position is some 90,000 multiplications a layer, 1 us of work. So all is prepared:
weights packed as matrices, views and buffers that never move, every operation bound to them
(`backends`). What is left of a layer is seven NumPy calls: window x weights, the part from above
added, one tanh for the whole gate, its two halves joined, the residual added; in torch they are
four. sigmoid(b) = (1 + tanh(b/2)) / 2: the halves are folded into the weights, exactly, as they
are powers of two.
"""

from copy import copy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vqtok.priors.pixelcnn import GatedLayer, PixelCNN
from vqtok.sampling.backends import Backend, Calls, pick_backend, run
from vqtok.sampling.base import Sampler, Values


class PackedLayer:
    """One layer's weights as matrices (inputs, outputs), halves folded in; v is kept doubled.

    vertical ((2r+1)*C, (r+1)*2C) gives what a row of v adds to the same row, the next, and so on;
    horizontal is ((r+1)*C, 2C).
    """

    def __init__(self, layer: GatedLayer) -> None:
        C = layer.out.in_channels
        # of each output
        scale = layer.out.weight.new_tensor([1, 0.5]).repeat_interleave(C)  # (2C,)
        self.layer, self.scale = layer, scale
        self.vertical = _matrix(layer.vertical, 0.5 * scale)
        self.link = _matrix(layer.link, scale) / scale[:, None]
        self.horizontal = _matrix(layer.horizontal, scale)
        self.residual, self.skip = (
            0.5 * part.T.contiguous() for part in layer.out.weight.detach()[:, :, 0, 0].split(C)
        )
        self.bias_v, self.bias_x = (
            _bias(conv)[None] * scale for conv in (layer.vertical, layer.horizontal)
        )  # (1, 2C)
        # (C, 4C)
        self.context = None if layer.context is None else _matrix(layer.context, scale.repeat(2))

    def with_labels(self, rows: Tensor | None) -> "PackedLayer":
        """Returns the layer for grids of these labels' rows (n,): biases (n, 2C)."""
        if self.layer.label is None or rows is None:
            return self
        labeled = copy(self)
        for_v, for_x = self.layer.label(rows).detach().chunk(2, dim=1)  # (n, 2C)
        labeled.bias_v = self.bias_v + for_v * self.scale
        labeled.bias_x = self.bias_x + for_x * self.scale
        return labeled


class PackedWeights:
    """A prior's weights as matrices, packed once for all that is sampled from them."""

    def __init__(self, prior: PixelCNN) -> None:
        self.layers = [
            PackedLayer(layer)  # type: ignore[arg-type]
            for layer in prior.layers
        ]
        self.skip = torch.cat([layer.skip for layer in self.layers])  # (layers*C, C)
        self.head = _linear(prior.head)
        self.embedding = prior.embedding.weight.detach().contiguous()  # (L*K, C)


_packed: "WeakKeyDictionary[PixelCNN, tuple[object, PackedWeights]]" = WeakKeyDictionary()


def packed_weights(prior: PixelCNN) -> PackedWeights:
    """Returns the prior's weights, packed at the first call and again whenever they have changed:
    packing takes as long as 100 places of a grid.
    """
    weights = list(prior.parameters())
    if any(weight.is_inference() for weight in weights):
        return PackedWeights(prior)  # whether these change is not known
    state = tuple((weight.data_ptr(), weight._version, weight.dtype) for weight in weights)
    known = _packed.get(prior)
    if known is None or known[0] != state:
        known = _packed[prior] = state, PackedWeights(prior)
    return known[1]


class PixelCNNSampler(Sampler[PixelCNN]):
    """The prior's weights for n grids with the given labels' rows; the same for all levels."""

    def __init__(self, prior: PixelCNN, n: int, h: int, w: int, rows: Tensor | None) -> None:
        super().__init__(prior, n, h, w, rows)
        self.backend = pick_backend(prior)
        packed = packed_weights(prior)
        self.layers = [layer.with_labels(rows) for layer in packed.layers]
        self.skip, self.head, self.embedding = packed.skip, packed.head, packed.embedding

    def start_level(self, level: int, indices: Tensor) -> "PixelCNNCursor":
        context = self.prior.context_of(indices)
        return PixelCNNCursor(self, level, None if context is None else context[:, level])


class PixelCNNCursor:
    """A `Cursor` in buffers that never move: a row, a column and the logits are lists of calls."""

    def __init__(self, sampler: PixelCNNSampler, level: int, context: Tensor | None) -> None:
        """Prepares the buffers and calls. `context` (n, C, h, w) is what is known of the levels
        below.
        """
        config, n, w = sampler.prior.config, sampler.n, sampler.w
        C, K, r = config.width, config.codebook_size, config.kernel // 2
        self.layers, self.backend, self.reach = sampler.layers, sampler.backend, r
        self.output = sampler.prior.output(level)
        zeros = sampler.embedding.new_zeros
        # doubled; `reach` columns of zeros to each side
        self.v = zeros(w + 2 * r, n, C)
        self.context_row = zeros(w, n, C)
        # what each layer gets from the rows above
        self.above = zeros(w, len(self.layers), n, 2 * C)
        # x of each layer in the last reach + 1 columns
        self.windows = zeros(len(self.layers), n, (r + 1) * C)
        self.column = zeros(len(self.layers), n, 2 * C)
        self.gated = zeros(n, len(self.layers) * C)
        self.scores = zeros(n, self.output.out_features)  # what the last linear layer gives
        self.row_calls = self._row_calls()
        self.column_calls = self._column_calls()
        self.score_calls = self._score_calls(sampler)
        native = self.backend.native
        self._embedding = native(sampler.embedding[level * K : (level + 1) * K])
        self._entered, self._x = native(self.v[r : r + w]), native(self.windows[0, :, r * C :])
        self._windows, self._scores = native(self.windows), native(self.scores)
        self._above, self._column = native(self.above), native(self.column)
        # (h, w, n, C)
        self._context = (
            None if context is None else native(context.detach().permute(2, 3, 0, 1).contiguous())
        )
        self._context_row = native(self.context_row)
        self.i = self.j = -1

    def next_row(self, above: Values | None) -> None:
        self.i, self.j = self.i + 1, -1
        if above is not None:
            self._entered[:] = self._embedding[above.T]
            self._entered *= 2
        if self._context is not None:
            self._context_row[:] = self._context[self.i]
        run(self.row_calls)
        self._windows[:] = 0

    def next_column(self, left: Values | None) -> None:
        self.j += 1
        self._column[:] = self._above[self.j]
        self._x[:] = 0 if left is None else self._embedding[left]
        run(self.column_calls)

    def logits(self) -> Values:
        run(self.score_calls)
        logits = self.output.expand(self.scores)
        # a softmax's are the buffer itself: making an array of it again took 7 us of 125 at n = 1
        return self._scores if logits is self.scores else self.backend.native(logits)

    def _row_calls(self) -> Calls:
        """Prepares the vertical stack for one row: `v` from layer to layer, and `above` of each."""
        do, r, (w, _, n, _), C = self.backend, self.reach, self.above.shape, self.v.shape[2]
        zeros, k = self.v.new_zeros, 2 * r + 1
        windows, patches = self.v.unfold(0, k, 1).permute(0, 1, 3, 2), zeros(w, n, k, C)
        sums = zeros(w, n, (r + 1) * 2 * C)
        down, linked, contexts = zeros(w, n, 2 * C), zeros(w, n, 2 * C), zeros(w, n, 4 * C)
        (a, b), v = down.chunk(2, dim=2), self.v[r : r + w]
        context_v, context_x = contexts.chunk(2, dim=2)
        calls: Calls = []
        for layer, above in zip(self.layers, self.above.unbind(1), strict=True):
            calls += do.copy(windows, patches)
            calls += do.matmul(patches.view(w * n, -1), layer.vertical, sums)
            calls += _down_calls(do, sums, layer.bias_v, down)
            if layer.context is not None:
                calls += do.matmul(self.context_row, layer.context, contexts)
                calls += do.add(down, context_v, down)
            calls += do.matmul(down, layer.link, linked)
            calls += do.add(linked, layer.bias_x, above)
            if layer.context is not None:
                calls += do.add(above, context_x, above)
            if layer is not self.layers[-1]:
                calls += do.tanh(down, down)
                calls += do.add(v, a, v)
                calls += do.multiply(a, b, a)
                calls += do.add(v, a, v)
        return calls

    def _column_calls(self) -> Calls:
        """Prepares the horizontal stack for one column; the windows then move on."""
        do, (n, size), C = self.backend, self.windows.shape[1:], self.v.shape[2]
        now, product = self.v.new_zeros(n, 2 * C), self.v.new_zeros(n, C)
        entered, gates = self.windows[..., -C:], self.gated.split(C, dim=1)
        calls: Calls = []
        for index, (layer, gated) in enumerate(zip(self.layers, gates, strict=True)):
            calls += do.matmul_add(
                self.windows[index], layer.horizontal, self.column[index], now, now
            )
            calls += do.gate(now, gated)
            if layer is not self.layers[-1]:
                x, after = entered[index : index + 2]
                calls += do.matmul_add(gated, layer.residual, x, after, product)
        for start in range(0, size - C, C):  # one column at a time: together they would overlap
            newer = self.windows[..., start + C : start + 2 * C]
            calls += do.copy(newer, self.windows[..., start : start + C])
        return calls

    def _score_calls(self, sampler: PixelCNNSampler) -> Calls:
        """Prepares the logits from the gates of all layers."""
        do, n, C = self.backend, len(self.gated), self.v.shape[2]
        features, hidden = self.v.new_zeros(n, C), self.v.new_zeros(n, 2 * C)
        return [
            *do.matmul(self.gated, sampler.skip, features),
            *do.relu(features, features),
            *do.matmul_add(features, *sampler.head, hidden, hidden),
            *do.relu(hidden, hidden),
            *do.matmul_add(hidden, *_linear(self.output), self.scores, self.scores),
        ]


def _down_calls(do: Backend, sums: Tensor, bias: Tensor, down: Tensor) -> Calls:
    """Adds this row's vertical contributions to those of earlier rows, and stores its contributions
    to later rows; sums are (w, n, (r+1)*2C).
    """
    own, *parts = sums.split(down.shape[2], dim=2)
    later = [torch.zeros_like(down) + bias for _ in parts]  # for the next row, the one after it...
    calls = do.add(own, later[0], down)
    for part, row, following in zip(parts, later, [*later[1:], bias], strict=True):
        calls += do.add(part, following, row)
    return calls


def _matrix(conv: nn.Conv2d, scale: Tensor) -> Tensor:
    """Reshapes a convolution's weights to (columns * inputs, rows * outputs), the last row first,
    each output times its scale.
    """
    outputs, inputs, rows, columns = conv.weight.shape
    matrix = conv.weight.detach().flip(2).permute(3, 1, 2, 0).contiguous() * scale
    return matrix.view(columns * inputs, rows * outputs)


def _linear(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Returns a layer's weights (inputs, outputs), and its bias."""
    return layer.weight.detach().T.contiguous(), layer.bias.detach()


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach()
