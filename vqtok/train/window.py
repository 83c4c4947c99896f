"""Sums figures of a GPU's steps on the device and reads them now and then: each read would empty
the GPU's queue of work.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Read:
    """Holds what has been added since the last read."""

    figures: dict[str, float]  # sums over the steps that have taught something
    learned: int  # how many those are
    skipped: int  # how many have not: a figure was not finite
    in_a_row: int  # of these, the last ones without one in between
    longest: int  # the most in a row
    spoiled: dict[str, float]  # all figures of the last of them; {} where there is none


class DeviceWindow:
    """Sums figures on a device. What is added has the same names until it is read."""

    def __init__(self, device: torch.device, in_a_row: int = 0) -> None:
        """Takes `in_a_row`, the number of steps just before that were skipped."""
        self._shown: tuple[str, ...] = ()
        self._checked: tuple[str, ...] = ()
        self._sums = self._spoiled = torch.zeros(0, dtype=torch.float64, device=device)
        # learned, skipped, in a row, longest
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._counts[2] = in_a_row

    def add(self, shown: dict[str, Tensor], checked: dict[str, Tensor], ok: Tensor) -> None:
        """Adds a step's figures; `checked` are those that decided whether the step may teach
        anything, which `ok` (bool, scalar) says.
        """
        if (tuple(shown), tuple(checked)) != (self._shown, self._checked):
            self._shown, self._checked = tuple(shown), tuple(checked)
            self._sums, self._spoiled = (
                self._sums.new_zeros(len(names)) for names in (shown, checked)
            )
        values = stacked(shown.values())
        self._sums.add_(torch.where(ok, values, torch.zeros_like(values)))  # in float64
        every = stacked(checked.values())
        self._spoiled.copy_(torch.where(ok, self._spoiled, every.double()))
        learned, skipped, in_a_row, longest = self._counts.unbind()
        in_a_row = (in_a_row + 1) * ~ok
        self._counts.copy_(
            torch.stack([learned + ok, skipped + ~ok, in_a_row, torch.maximum(longest, in_a_row)])
        )

    def read(self) -> Read:
        """Returns the sums since the last read, which start again at 0. Waits for the device."""
        learned, skipped, in_a_row, longest = (int(n) for n in self._counts.tolist())
        figures = dict(zip(self._shown, self._sums.tolist(), strict=True)) if learned else {}
        spoiled = dict(zip(self._checked, self._spoiled.tolist(), strict=True)) if skipped else {}
        self._sums.zero_()
        self._counts.mul_(self._counts.new_tensor([0, 0, 1, 0]))
        return Read(figures, learned, skipped, in_a_row, longest, spoiled)


def stacked(figures: Iterable[Tensor]) -> Tensor:
    """Scalars of any type as one float32 vector."""
    return torch.stack([figure.detach().float() for figure in figures])
