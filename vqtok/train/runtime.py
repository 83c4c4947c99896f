"""Whether a training step may wait for its device: one that never looks at a number on the way
keeps a GPU busy."""

import ctypes
from contextlib import suppress
from functools import cache
from typing import Any

import torch

foreach: Any = torch  # as what its _foreach functions are called by, which are not declared
READ_EVERY = 50  # steps between two looks at a GPU's figures: a wait empties its queue of work


@cache
def keep_memory() -> None:
    """Makes glibc keep what training frees: giving 64 MB back to the system at every operation took
    half the time of a step.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap, too
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and the heap does not shrink


def sync_free(device: torch.device) -> bool:
    """Whether steps on this device run without looking at any of their numbers. On a CPU a look
    costs nothing, and `where` does."""
    return device.type == "cuda"


class DeviceScalar:
    """Holds a number that changes with the step: a float on a CPU; on a GPU a tensor, which kernels
    in a CUDA graph read anew each time.
    """

    def __init__(self, device: torch.device, value: float = 0.0) -> None:
        self.value: float | torch.Tensor = (
            torch.tensor(value, device=device) if sync_free(device) else value
        )

    def set(self, value: float) -> None:
        if isinstance(self.value, torch.Tensor):
            self.value.fill_(value)
        else:
            self.value = value


def where(ok: torch.Tensor | None, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Returns `new` after a step that may change something, else `old`; `ok` is None where the host
    has decided.
    """
    return new if ok is None else torch.where(ok, new, old)


def step_if(optimizer: torch.optim.Optimizer, ok: torch.Tensor | None) -> None:
    """Takes a step, which changes nothing, not even the count of steps, where `ok` is false.

    Fused Adam and AdamW look at an attribute for that, and so may others; the `step` of an
    optimizer with `takes_ok` is called with it.
    """
    if getattr(optimizer, "takes_ok", False):
        optimizer.step(ok=ok)  # type: ignore[call-arg]
        return
    if ok is not None:
        optimizer.found_inf = 1.0 - ok.float()  # type: ignore[attr-defined]
        # torch warns of steps outside of a graph by an optimizer made for one: here the first few.
        optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]
    optimizer.step()


def set_rate(optimizer: torch.optim.Optimizer, rate: DeviceScalar) -> None:
    """Gives all of an optimizer's parameters that learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate.value


def fused(device: torch.device) -> dict[str, bool]:
    """Returns the options with which torch's optimizers are fastest on a device."""
    return {"fused": device.type in ("cpu", "cuda"), "capturable": sync_free(device)}
