"""The recurrence of a Row LSTM over the rows of a grid, written out:
all columns of all pictures take a step together.

Autograd would keep each step's intermediate results, and add up the weights' gradient from as many
small pieces as there are rows.
"""

from typing import Any

import torch
from torch import Tensor

# g y (1 - y), g (1 - y^2)
sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward


def scan(gates: Tensor, weight: Tensor, w: int) -> Tensor:
    """Hidden states (h, w*N, C) of what the input tells the gates, (h, w*N, 4C), column by
    column; eq. 3 of the paper.

    The gates are input, forget, output and content; they are overwritten. weight (k*C, 4C) takes
    the states of the row above from k columns, the leftmost first; at the sides and at the top they
    are zero. Cells and gates are computed in float32 at least.
    """
    return _Scan.apply(gates, weight, w)  # type: ignore[no-any-return]


def gather(states: Tensor, out: Tensor, n: int) -> Tensor:
    """Copies states (..., w*n, C) next to those of the columns beside them:
    `out` (..., w*n, k, C), still zero where there is no column.
    """
    size, k = out.shape[-3:-1]
    for tap, here, there in _taps(size, k, n):
        out[..., here, tap, :] = states[..., there, :]
    return out


def scatter(gathered: Tensor, out: Tensor, n: int) -> None:
    """The transpose of `gather`: adds the copies (w*n, k, C) of each state to `out` (w*n, C)."""
    size, k, _ = gathered.shape
    for tap, here, there in _taps(size, k, n):
        out[there] += gathered[here, tap]


def _taps(size: int, k: int, n: int) -> list[tuple[int, slice, slice]]:
    """For each of k columns side by side: its number, the places that have a neighbor
    there, and those neighbors.
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
    """Between the products all is float32, in buffers of one row, for bfloat16 gates too:
    their own tanh takes six times as long.
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
    """The gradient of one row, from the last to the first, in buffers that are made once."""

    def __init__(self, like: Tensor) -> None:
        size, C = like.shape
        self.for_hidden, self.bounded = like.new_empty(2, size, C)
        self.for_cell = like.new_zeros(size, C)
        self.wide, self.gradient = like.new_empty(2, size, 4 * C)
        self.C = C

    def __call__(self, gates: Tensor, cells: Tensor, before: Tensor | None) -> None:
        """`gates` (w*N, 4C) become their own gradient, that of `cells` that of `before`,
        the cells of the row above.
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
