"""Writes files beside the steps of a GPU: a step takes a hundredth of the time that a disk needs
for a state.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class Saver:
    """Writes files one after another, on a GPU in a thread of its own. What fails there is raised
    by the next call."""

    def __init__(self, device: torch.device, beside: bool) -> None:
        self._device = device
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vqtok-save") if beside else None
        self._waiting: list[Future[None]] = []

    def write(self, call: Callable[[], None]) -> None:
        """Writes a file by `call`, now or soon."""
        if self._pool is None:
            call()
            return
        self._check()
        self._waiting.append(self._pool.submit(call))

    def snapshot(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies the tensors as they are now, for a call to write: those of a GPU go on changing
        meanwhile.
        """
        return (
            tensors
            if self._pool is None
            else {name: value.detach().clone() for name, value in tensors.items()}
        )

    def finish(self) -> None:
        """Waits until all is written."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._check()

    def _check(self) -> None:
        done = [future for future in self._waiting if future.done()]
        self._waiting = [future for future in self._waiting if not future.done()]
        for future in done:
            future.result()
