"""Defines a PixelRNN with Row LSTM layers over index grids (van den Oord et al. 2016, arXiv
1601.06759, sections 3.1, 3.3 and 3.4).

The recurrence runs down the rows: the states of a row follow from those of the row above, through a
convolution along the row. So all columns of all images take a step together. A position sees the
rows above it in a triangle that widens by kernel // 2 columns a row, and nothing outside.

The recurrence has a backward pass of its own: autograd would store the intermediate results of each
step, and sum the gradient of the weights over one small product for each row.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import PriorConfig
from vqtok.priors.base import Context, Prior, code_embedding, drop, offset

# g y (1 - y), g (1 - y^2)
sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward

FIRST_REACH = 3  # of the first layer: 7 columns, three rows up (table 1 of the paper)


def scan(gates: Tensor, weight: Tensor, w: int) -> Tensor:
    """Computes hidden states (h, w*N, C) from the input's part of the gates (h, w*N, 4C); eq. 3 of
    the paper. In both, the N images of a column lie together.

    The gates are input, forget, output and content, and are overwritten. weight (k*C, 4C)
    multiplies the states of k columns of the row above, the leftmost first; outside the grid they
    are zero.
    Cells and gates are computed in float32, or in float64 where they are given so.
    """
    return _Scan.apply(gates, weight, w)  # type: ignore[no-any-return]


def gather(states: Tensor, out: Tensor, n: int) -> Tensor:
    """Copies the states (..., w*n, C) of k neighboring columns into `out` (..., w*n, k, C), which
    must be zero: it stays so where there is no column.
    """
    size, k = out.shape[-3:-1]
    for tap, here, there in _taps(size, k, n):
        out[..., here, tap, :] = states[..., there, :]
    return out


def scatter(gathered: Tensor, out: Tensor, n: int) -> None:
    """Adds all copies (w*n, k, C) of a state up into `out` (w*n, C): the transpose of `gather`."""
    size, k, _ = gathered.shape
    for tap, here, there in _taps(size, k, n):
        out[there] += gathered[here, tap]


def _taps(size: int, k: int, n: int) -> list[tuple[int, slice, slice]]:
    """Lists, for each of k neighboring columns, its number, the positions that have this neighbor,
    and the positions of the neighbors.
    """
    shifts = [(tap, (tap - k // 2) * n) for tap in range(k)]
    return [
        (
            tap,
            slice(max(0, -shift), size - max(0, shift)),
            slice(max(0, shift), size + min(0, shift)),
        )
        for tap, shift in shifts
        if abs(shift) < size
    ]


class _Scan(torch.autograd.Function):
    """Runs the recurrence and its gradient. Between the matrix products it computes in float32, in
    buffers of one row, for bfloat16 gates too: tanh in bfloat16 takes six times as long.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, w: int) -> Tensor:
        h, size, C = gates.shape[0], gates.shape[1], gates.shape[2] // 4
        matrix, n = weight.to(gates.dtype), size // w
        hidden = gates.new_empty(h, size, C)
        cells = gates.new_empty(h, size, C, dtype=torch.promote_types(gates.dtype, torch.float32))
        gathered = gates.new_zeros(size, len(weight) // C, C)
        wide, bounded = cells.new_empty(size, 4 * C), cells.new_empty(size, C)
        enter, keep, leave, content = wide.split(C, dim=1)
        for i in range(h):
            if i:
                gates[i].addmm_(gather(hidden[i - 1], gathered, n).flatten(1), matrix)
            wide.copy_(gates[i])
            wide[:, : 3 * C].sigmoid_()
            content.tanh_()
            gates[i].copy_(wide)
            torch.mul(enter, content, out=cells[i])
            if i:
                cells[i].addcmul_(keep, cells[i - 1])
            torch.tanh(cells[i], out=bounded)
            hidden[i] = bounded.mul_(leave)
        ctx.save_for_backward(gates, weight, hidden, cells)
        ctx.n = n
        return hidden

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gates, weight, hidden, cells = ctx.saved_tensors  # the gates' gradient takes their place
        (h, size, C), n = hidden.shape, ctx.n
        matrix = weight.to(gates.dtype).T.contiguous()
        step = _StepBack(cells[0])
        told = gates.new_empty(size, len(weight))
        for i in range(h - 1, -1, -1):
            step.for_hidden.copy_(gradients[0][i])
            if i + 1 < h:
                scatter(
                    torch.mm(gates[i + 1], matrix, out=told).view(size, -1, C), step.for_hidden, n
                )
            step(gates[i], cells[i], cells[i - 1] if i else None)
        gathered = gather(hidden[:-1], hidden.new_zeros(h - 1, size, len(weight) // C, C), n)
        for_weight = gathered.view(-1, len(weight)).T @ gates[1:].flatten(0, 1)
        return gates.detach(), for_weight.to(weight.dtype), None


class _StepBack:
    """Computes the gradient of one row at a time, from the last to the first, in buffers that are
    made once.
    """

    def __init__(self, like: Tensor) -> None:
        size, C = like.shape
        self.for_hidden, self.bounded = like.new_empty(2, size, C)
        self.for_cell = like.new_zeros(size, C)
        self.wide, self.gradient = like.new_empty(2, size, 4 * C)
        self.C = C

    def __call__(self, gates: Tensor, cells: Tensor, before: Tensor | None) -> None:
        """Overwrites `gates` (w*N, 4C) with their gradient, and turns `for_cell`, the gradient of
        `cells`, into that of `before`, the cells of the row above.
        """
        sigmoids, bounded, for_hidden, for_cell = (
            3 * self.C,
            self.bounded,
            self.for_hidden,
            self.for_cell,
        )
        self.wide.copy_(gates)
        enter, keep, leave, content = self.wide.split(self.C, dim=1)
        for_enter, for_keep, for_leave, for_content = self.gradient.split(self.C, dim=1)
        torch.tanh(cells, out=bounded)
        torch.mul(for_hidden, bounded, out=for_leave)
        for_cell += tanh_backward(for_hidden.mul_(leave), bounded)
        torch.mul(for_cell, content, out=for_enter)
        torch.mul(for_cell, enter, out=for_content)
        if before is None:
            for_keep.zero_()
        else:
            torch.mul(for_cell, before, out=for_keep)
        for_cell.mul_(keep)
        gates[:, :sigmoids] = sigmoid_backward(self.gradient[:, :sigmoids], self.wide[:, :sigmoids])
        gates[:, sigmoids:] = tanh_backward(for_content, content)


class MaskedConv2d(nn.Conv2d):
    """Convolves over the rows above, and over the same row to the left: mask A of the paper's
    section 3.4, in a kernel without the rows below.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (FIRST_REACH + 1, 2 * FIRST_REACH + 1))

    def masked(self) -> Tensor:
        """Returns the weights (outputs, inputs, rows, columns), with zeros at the position itself
        and right of it.
        """
        seen = torch.ones_like(self.weight[0, 0])
        seen[-1, FIRST_REACH:] = 0
        return self.weight * seen

    def forward(self, input: Tensor) -> Tensor:
        r = FIRST_REACH
        return F.conv2d(F.pad(input, (r, r, r, 0)), self.masked(), self.bias)


class RowLSTM(nn.Module):
    """Runs one layer: C hidden units between residual connections of 2C features (figure 5 of the
    paper).
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        C, reach = config.width, config.kernel // 2
        self.reach, self.dropout = reach, config.dropout
        # its own column and those to the left: mask B
        self.input = nn.Conv2d(2 * C, 4 * C, (reach + 1, 1))
        self.state = nn.Conv1d(C, 4 * C, config.kernel, bias=False)
        self.out = nn.Linear(C, 2 * C, bias=False)
        assert self.input.bias is not None
        nn.init.zeros_(self.input.bias)
        # the forget gates: at first, cells keep what they hold
        nn.init.ones_(self.input.bias[C : 2 * C])

    def state_matrix(self) -> Tensor:
        """Returns the matrix (k*C, 4C) that takes the states of k columns of the row above to the
        gates.
        """
        return self.state.weight.permute(2, 1, 0).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (h, w, N, 2C) of rows, columns and images to as many."""
        h, w, N, _ = x.shape
        # (h, 2C, w + reach, N), channels last
        padded = F.pad(x, (0, 0, 0, 0, self.reach, 0)).permute(0, 3, 1, 2)
        gates = self.input(padded).permute(0, 2, 3, 1).reshape(h, w * N, -1)
        hidden = scan(gates, self.state_matrix(), w).view(h, w, N, -1)
        return x + self.out(
            drop(hidden, self.dropout) if self.training and self.dropout else hidden
        )


class PixelRNN(Prior):
    """Predicts each index from the rows above it, by a recurrence, and from its own row to the
    left.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        C, L = config.width, config.levels
        # C / 2, as the first layer sees 28 positions: with C channels a step takes 13 % longer
        self.embedding = code_embedding(config, C // 2, L)
        self.first = MaskedConv2d(C // 2, 2 * C)
        self.label = nn.Embedding(len(config.labels) + 1, 2 * C) if config.labels else None
        self.context = Context(config) if L > 1 else None
        self.from_context = nn.Linear(C, 2 * C, bias=False) if L > 1 else None
        self.layers = nn.ModuleList(RowLSTM(config) for _ in range(config.layers))
        self.head = nn.Linear(2 * C, 2 * C)
        self.readout = self._readouts(2 * C)

    def hidden(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns features (B, L, h, w, 2C)."""
        B, L, h, w = indices.shape
        assert self.config.levels >= L, f"{L} levels in, {self.config.levels} in the prior"
        # (B*L, h, w, C/2)
        embedded = self.embedding(offset(indices, self.config.codebook_size)).flatten(0, 1)
        x = self.first(embedded.permute(0, 3, 1, 2)).permute(2, 3, 0, 1)  # (h, w, B*L, 2C)
        constant = self.constant(
            self.label_rows(labels, B, indices.device), self.context_of(indices)
        )
        if constant is not None:
            x = x + constant.expand(-1, L, -1, -1, -1).flatten(0, 1).permute(1, 2, 0, 3)
        x = x.contiguous()
        for layer in self.layers:
            x = layer(x)
        features = F.relu(self.head(F.relu(x)))
        return features.view(h, w, B, L, -1).permute(2, 3, 0, 1, 4)

    def constant(self, rows: Tensor | None, context: Tensor | None) -> Tensor | None:
        """Returns the features of label and lower levels, (B, L or 1, h or 1, w or 1, 2C), from the
        rows of the labels (B,) and the context (B, L, C, h, w); None where there is neither.
        """
        parts = []
        if self.label is not None and rows is not None:
            parts.append(self.label(rows)[:, None, None, None])
        if self.from_context is not None and context is not None:
            parts.append(self.from_context(context.permute(0, 1, 3, 4, 2)))
        return sum(parts[1:], parts[0]) if parts else None
