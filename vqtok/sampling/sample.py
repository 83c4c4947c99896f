"""New index grids from a prior, and known ones completed;
every position is computed once, from cached activations.

On a CPU a prior's `numpy_backend` runs calls of NumPy and BLAS that were prepared once;
elsewhere its `cursor` does the same in torch.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vqtok.errors import UsageError
from vqtok.priors.base import Cursor, NumpyCursor, Prior, one_thread
from vqtok.sampling.backends import Array
from vqtok.sampling.categorical import sample_categorical, sample_categorical_numpy

FEW_GRIDS = 64
Progress = Callable[[int, int], None]
Values = TypeVar("Values", Tensor, Array)
CategoricalSampler = Callable[[Values, Values], Values]


def sample(
    prior: Prior,
    n: int,
    h: int,
    w: int,
    *,
    labels: Tensor | Sequence[int] | int | None = None,
    seed: int | torch.Generator = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    known: Tensor | None = None,
    levels: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draws n grids of h x w: int64 (n, L, h, w), on the prior's device, or of their
    first `levels` levels only.

    Labels are class numbers, -1 for none, or one number for all. Temperature 0 takes the likeliest
    index; `top_k` keeps the k likeliest; `top_p` keeps the likeliest that together reach that
    probability (after `top_k`). `known` (n, L, h, w) holds indices to keep, and -1 where they are
    to be invented. `progress` gets rows done and in all. A generator is asked for a seed.

    Image i has random numbers of its own, from (seed, i). On a CPU the same call gives the same
    grids; another n gives the same image i, unless a draw lies within rounding (about 1e-6) of
    the border between two indices. Raises UsageError.
    """
    L, K = prior.config.levels if levels is None else levels, prior.config.codebook_size
    device = next(prior.parameters()).device
    _check_options(n, h, w, temperature, top_k, top_p)
    if not 1 <= L <= prior.config.levels:
        raise UsageError(
            f"{L} levels cannot be drawn: the prior has {prior.config.levels}",
            f"choose 1 to {prior.config.levels}",
        )
    if not prior.fits(h, w):
        raise UsageError(
            f"this {prior.config.architecture} prior does not know grids of {h}x{w}",
            "leave the size out",
        )
    known = (
        torch.full((n, L, h, w), -1)
        if known is None
        else _check_known(known.cpu(), (n, L, h, w), K)
    )
    uniform = _uniform(seed, n, L * h * w).view(n, L, h, w)
    # MPS has no float64
    uniform = uniform.to(device, torch.float32 if device.type == "mps" else torch.float64)
    rows = prior.label_rows(_check_labels(labels, n, len(prior.config.labels)), n, device)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    done = itertools.count(1)
    tick = (lambda: None) if progress is None else (lambda: progress(next(done), L * h))
    with torch.inference_mode(), _full_precision(device), one_thread(n < FEW_GRIDS):
        indices = known.clamp(min=0).to(device)
        quick = prior.numpy_backend(rows)
        for level in range(L):
            grid, unknown, chances = indices[:, level], known[:, level] < 0, uniform[:, level]
            if quick is None:
                _fill(
                    prior.cursor(level, n, h, w, rows, indices),
                    grid,
                    unknown,
                    chances,
                    partial(sample_categorical, **options),
                    tick,
                )
            else:
                context = prior.context_of(indices)
                cursor = quick.cursor(level, n, w, None if context is None else context[:, level])
                _fill_numpy(
                    cursor,
                    grid.numpy(),
                    unknown.numpy(),
                    chances.numpy(),
                    _numpy_sampler(**options),
                    tick,
                )
    return indices.clone()  # outside inference mode: an ordinary tensor


def _fill(
    cursor: Cursor,
    grid: Tensor,
    unknown: Tensor,
    uniform: Tensor,
    sampler: CategoricalSampler[Tensor],
    tick: Callable[[], None],
) -> None:
    """Draws the unknown indices of one level, in place;
    grid, unknown (on the CPU) and uniform are (n, h, w).
    """
    for i in range(grid.shape[1]):
        cursor.next_row(grid[:, i - 1] if i else None)
        wanted, missing = unknown[:, i].any(0).tolist(), unknown[:, i].to(grid.device)
        for j in range(_last(wanted) + 1):
            features = cursor.next_column(grid[:, i, j - 1] if j else None)
            if wanted[j]:
                drawn = sampler(cursor.logits(features), uniform[:, i, j])
                grid[:, i, j] = torch.where(missing[:, j], drawn, grid[:, i, j])
        tick()


def _fill_numpy(
    cursor: NumpyCursor,
    grid: Array,
    unknown: Array,
    uniform: Array,
    sampler: CategoricalSampler[Array],
    tick: Callable[[], None],
) -> None:
    """`_fill` on NumPy arrays."""
    for i in range(grid.shape[1]):
        cursor.next_row(grid[:, i - 1] if i else None)
        wanted: list[bool] = np.any(unknown[:, i], axis=0).tolist()
        for j in range(_last(wanted) + 1):
            cursor.next_column(grid[:, i, j - 1] if j else None)
            if wanted[j]:
                np.copyto(
                    grid[:, i, j],
                    sampler(cursor.logits(), uniform[:, i, j]),
                    where=unknown[:, i, j],
                )
        tick()


def _last(wanted: list[bool]) -> int:
    """The last column that is wanted, -1 if none is:
    nothing needs the horizontal stack to the right of it.
    """
    return max((j for j, want in enumerate(wanted) if want), default=-1)


def _numpy_sampler(
    temperature: float, top_k: int | None, top_p: float | None
) -> CategoricalSampler[Array]:
    """Indices from NumPy logits and uniform numbers;
    with top_k or top_p through torch, whose order among equals is the promise.
    """
    if top_k is None and top_p is None:
        return partial(sample_categorical_numpy, temperature=temperature)
    return lambda logits, uniform: sample_categorical(
        torch.from_numpy(logits), torch.from_numpy(uniform), temperature, top_k, top_p
    ).numpy()


def _full_precision(device: torch.device) -> AbstractContextManager:
    """Autocast off: half of the calls below would leave it, the other half not."""
    return (
        torch.autocast(device.type, enabled=False)
        if device.type in ("cpu", "cuda")
        else nullcontext()
    )


def _uniform(seed: int | torch.Generator, n: int, count: int) -> Tensor:
    """(n, count) numbers in [0, 1), on the CPU: row i depends on the seed and i alone."""
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
    rows = []
    for i in range(n):
        # Hashed, because the CPU generator looks at 32 bits, and seed + i would give neighboring
        # seeds each other's images.
        own = int.from_bytes(hashlib.sha256(f"{seed}/{i}".encode()).digest()[:4], "little")
        rows.append(
            torch.rand(count, generator=torch.Generator().manual_seed(own), dtype=torch.float64)
        )
    return torch.stack(rows)


def _check_options(
    n: int, h: int, w: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if min(n, h, w) < 1:
        raise UsageError(
            f"{n} grids of {h}x{w} cannot be drawn", "ask for at least one, of at least 1x1"
        )
    if not 0 <= temperature < math.inf:
        raise UsageError(
            f"temperature is {temperature}",
            "choose 0 (the likeliest) or more; 1 samples what was learned",
        )
    if top_k is not None and top_k < 1:
        raise UsageError(f"top-k is {top_k}", "choose 1 or more, or leave it out")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top-p is {top_p}", "choose a value above 0 and up to 1, or leave it out")


def _check_labels(
    labels: Tensor | Sequence[int] | int | None, n: int, classes: int
) -> Tensor | None:
    if labels is None:
        return None
    wanted = torch.full((n,), labels) if isinstance(labels, int) else torch.as_tensor(labels)
    if wanted.shape != (n,):
        raise UsageError(
            f"{wanted.numel()} labels for {n} grids", "give one label, or one for each grid"
        )
    low, high = int(wanted.min()), int(wanted.max())
    if high >= 0 and not classes:
        raise UsageError("this prior was trained without labels", "leave the label out")
    if low < -1 or high >= classes:
        wrong = low if low < -1 else high
        raise UsageError(
            f"label {wrong} is not one of the prior's {classes}", f"choose from 0 to {classes - 1}"
        )
    return wanted.long()


def _check_known(known: Tensor, shape: tuple[int, ...], K: int) -> Tensor:
    if known.shape != shape:
        raise UsageError(
            f"known indices are {tuple(known.shape)}, the grids {shape}",
            "give (n, L, h, w), -1 where unknown",
        )
    if int(known.min()) < -1 or int(known.max()) >= K:
        raise UsageError(
            f"known indices lie outside [-1, {K - 1}]",
            "give indices of this prior's codebook, -1 where unknown",
        )
    return known.long()
