"""Captures a training step as one CUDA graph, which replaces thousands of kernel launches."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

WARM = 3  # steps before the capture: they make what lasts (moments, plans of cuDNN, compiled code)


class GraphedStep:
    """Runs a step on batches of one shape: WARM times as usual, then from a captured CUDA graph.

    The step must not read a number back from the device. All that changes between steps must be in
    tensors: the batch, and those that the caller fills beforehand. `phase` is what the Python code
    of the step depends on; when it changes, the step is captured again. Where the capture fails,
    `note` gets the reason, `forget` drops what the attempt left in Python objects, and the step
    runs kernel by kernel from then on.
    """

    def __init__(
        self,
        step: Callable[[Any], None],
        device: torch.device,
        note: Callable[[str], None],
        forget: Callable[[], None],
    ) -> None:
        self._step, self._device, self._note, self._forget = step, device, note, forget
        self._phase: Hashable = None
        self._batch: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(device)
        self._warm, self._captures = 0, True

    def __call__(self, batch: Any, phase: Hashable) -> None:
        """Runs one step on a batch: a named tuple of tensors on the host, and of numbers that the
        step does not use.
        """
        if self._batch is None or phase != self._phase:
            self._phase, self._graph, self._warm = phase, None, 0
        self._batch = batch = _fill(self._batch, batch, self._device)
        if self._warm >= WARM and self._captures and self._graph is None:
            self._graph = self._captured(batch)
        if self._graph is not None:
            self._graph.replay()
            return
        self._warm += 1
        if not self._captures:
            self._step(batch)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._step(batch)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _captured(self, batch: Any) -> torch.cuda.CUDAGraph | None:
        """Captures the graph of a step on this batch; computes nothing."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        try:
            # Only this thread's calls count: another one may write a file meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._step(batch)
        except RuntimeError as error:  # also torch.AcceleratorError
            self._captures = False
            self._forget()
            torch.cuda.synchronize(self._device)
            self._note(
                f"The step cannot be captured as a CUDA graph: {str(error).strip().splitlines()[0]}"
            )
            return None
        return graph


def _fill(held: Any, batch: Any, device: torch.device) -> Any:
    """Copies the batch to the device, into the tensors of the previous batch where there is one."""
    if held is None:
        return to_device(batch, device)
    fields = []
    for there, here in zip(held, batch, strict=True):
        fields.append(
            there.copy_(_pinned(here), non_blocking=True) if isinstance(here, Tensor) else here
        )
    return type(batch)(*fields)


def to_device(batch: Any, device: torch.device) -> Any:
    """Moves a named tuple's tensors to the device without waiting; returns other batches as they
    are.
    """
    if device.type == "cpu" or not hasattr(batch, "_fields"):
        return batch
    return type(batch)(
        *(_pinned(f).to(device, non_blocking=True) if isinstance(f, Tensor) else f for f in batch)
    )


def _pinned(tensor: Tensor) -> Tensor:
    """Copies a tensor to page-locked memory, which a GPU reads by itself."""
    return tensor if tensor.is_cuda else tensor.pin_memory()
