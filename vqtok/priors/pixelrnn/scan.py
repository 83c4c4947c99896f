"""The recurrence of a Row LSTM over the rows of a grid, written out: all columns of all pictures take a step together.

Autograd would keep each step's intermediate results, and add up the weights' gradient in as many small pieces.
"""

from typing import Any

import torch
from torch import Tensor


def scan(gates: Tensor, weight: Tensor, w: int) -> Tensor:
    """Hidden states (h, w*N, C) from what the input tells the gates (h, w*N, 4C), column by column; eq. 3 of the paper. `gates` is overwritten.

    The gates are input, forget, output and content. weight (k*C, 4C) takes the states of the row above from k columns, the leftmost
    first. At the sides and at the top those are zero. The cells are float32 where the gates are bfloat16.
    """
    return _Scan.apply(gates, weight, w)     # type: ignore[no-any-return]


def gather(states: Tensor, out: Tensor, n: int) -> Tensor:
    """Copies the states (w*n, C) of a row next to those of the columns beside them: `out` (w*n, k, C), zero where there is no column."""
    size, k, _ = out.shape
    for tap in range(k):
        shift = (tap - k // 2) * n
        if abs(shift) < size:
            out[max(0, -shift) : size - max(0, shift), tap] = states[max(0, shift) : size + min(0, shift)]
    return out


def scatter(gathered: Tensor, out: Tensor, n: int) -> None:
    """The transpose of `gather`: adds each state's copies, (w*n, k, C), to `out` (w*n, C)."""
    size, k, _ = gathered.shape
    for tap in range(k):
        shift = (tap - k // 2) * n
        if abs(shift) < size:
            out[max(0, shift) : size + min(0, shift)] += gathered[max(0, -shift) : size - max(0, shift), tap]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, w: int) -> Tensor:
        h, size, C = gates.shape[0], gates.shape[1], gates.shape[2] // 4
        matrix, n = weight.to(gates.dtype), size // w
        hidden = gates.new_empty(h, size, C)
        cells = gates.new_empty(h, size, C, dtype=_wide(gates.dtype))
        gathered = gates.new_zeros(size, len(weight) // C, C)
        for i in range(h):
            if i:
                gates[i].addmm_(gather(hidden[i - 1], gathered, n).flatten(1), matrix)
            gates[i, :, : 3 * C].sigmoid_()
            gates[i, :, 3 * C :].tanh_()
            enter, keep, leave, content = gates[i].to(cells.dtype).split(C, dim=1)
            torch.mul(enter, content, out=cells[i])
            if i:
                cells[i].addcmul_(keep, cells[i - 1])
            hidden[i] = cells[i].tanh().mul_(leave)
        ctx.save_for_backward(gates, weight, hidden, cells)
        ctx.n = n
        return hidden

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gates, weight, hidden, cells = ctx.saved_tensors     # the gradient of the gates takes their place
        h, size, C = hidden.shape
        matrix = weight.to(gates.dtype).T.contiguous()
        for_weight = torch.zeros_like(weight)
        gathered = hidden.new_zeros(size, len(weight) // C, C)
        for_cell = torch.zeros_like(cells[0])
        for i in range(h - 1, -1, -1):
            for_hidden = gradients[0][i].to(cells.dtype)
            if i + 1 < h:
                for_hidden = for_hidden.clone() if for_hidden.dtype == gates.dtype else for_hidden
                scatter((gates[i + 1] @ matrix).view_as(gathered), for_hidden, ctx.n)
            _step_back(gates[i], cells[i], cells[i - 1] if i else None, for_hidden, for_cell)
            if i:
                for_weight += gather(hidden[i - 1], gathered, ctx.n).flatten(1).T @ gates[i]
        return gates, for_weight, None


def _step_back(gates: Tensor, cells: Tensor, before: Tensor | None, for_hidden: Tensor, for_cell: Tensor) -> None:
    """One row, in place: `gates` (w*N, 4C) become their inputs' gradient, `for_cell` that of the cells of the row before."""
    C = cells.shape[1]
    wide = gates.to(cells.dtype)
    enter, keep, leave, content = wide.split(C, dim=1)
    bounded = cells.tanh()
    for_cell += torch.ops.aten.tanh_backward(for_hidden * leave, bounded)
    gradient = torch.empty_like(wide)
    torch.mul(for_cell, content, out=gradient[:, :C])
    if before is None:
        gradient[:, C : 2 * C] = 0
    else:
        torch.mul(for_cell, before, out=gradient[:, C : 2 * C])
    torch.mul(for_hidden, bounded, out=gradient[:, 2 * C : 3 * C])
    torch.mul(for_cell, enter, out=gradient[:, 3 * C :])
    for_cell *= keep
    gates[:, : 3 * C] = torch.ops.aten.sigmoid_backward(gradient[:, : 3 * C], wide[:, : 3 * C])
    gates[:, 3 * C :] = torch.ops.aten.tanh_backward(gradient[:, 3 * C :], wide[:, 3 * C :])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
