"""Draws new index grids from a prior, and completes known ones.

The prior's sampler, found by the name of its architecture, computes every position once.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from vqtok.config.registry import SAMPLERS
from vqtok.errors import UsageError
from vqtok.integer_prior import blas
from vqtok.priors.base import Prior
from vqtok.sampling.base import Draws, ParallelSampler, Sampler
from vqtok.sampling.guidance import GUIDANCE_MAX, GuidedCursor
from vqtok.threads import one_thread

FEW_GRIDS = 64
ORDER_SEED = 2**61  # away from the seed of the indices: no candidate or chunk has it
_Value = TypeVar("_Value", bound=float | None)
Progress = Callable[[int, int], None]


def sample_grids(
    prior: Prior,
    n: int,
    size: tuple[int, int],
    *,
    labels: Tensor | Sequence[int] | int | None = None,
    seed: int | torch.Generator = 0,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | Sequence[float] | None = None,
    guidance: float = 1.0,
    known: Tensor | None = None,
    levels: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draws n grids of size (h, w): int64 (n, L, h, w), on the prior's device, or of their
    first `levels` levels only.

    Labels are class numbers, -1 for none, or one number for all. Temperature 0 takes the likeliest
    index; `top_k` keeps the k likeliest; `top_p` keeps the likeliest that together reach that
    probability (after `top_k`). Temperature and `top_p` may be sequences: one a level, the last of
    them for all further levels. `guidance` W takes the logits u + W (c - u), of c with the label
    and u without. `known` (n, L, h, w) holds indices to keep, and -1 where they are
    to be invented. `progress` gets rows done and in all. A generator is asked for a seed.

    Image i has random numbers of its own, from (seed, i). On a CPU the same call gives the same
    grids; another n gives the same image i, unless a draw lies within rounding (about 1e-6) of
    the border between two indices. Raises UsageError.
    """
    h, w = size
    L, K = prior.config.levels if levels is None else levels, prior.config.codebook_size
    device = next(prior.parameters()).device
    temperatures, top_ps = by_level(temperature, L), by_level(top_p, L)
    for t, p in zip(temperatures, top_ps, strict=True):
        _check_options(n, h, w, t, top_k, p)
    guided = _is_guided(guidance, labels)
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
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
    uniform = _uniform(seed, n, L * h * w).view(n, L, h, w)
    # MPS has no float64
    uniform = uniform.to(device, torch.float32 if device.type == "mps" else torch.float64)
    rows = prior.label_rows(_check_labels(labels, n, len(prior.config.labels)), n, device)
    done = itertools.count(1)
    tick = (lambda: None) if progress is None else (lambda: progress(next(done), L * h))
    few = n < FEW_GRIDS
    with (
        torch.inference_mode(),
        _full_precision(device),
        one_thread(few),
        blas.one_thread() if few else nullcontext(),
    ):
        indices = known.clamp(min=0).to(device)
        make = SAMPLERS[prior.config.architecture].load()
        if guided and rows is not None:
            rows = torch.cat([rows, torch.zeros_like(rows)])
        sampler: Sampler | ParallelSampler = make(prior, 2 * n if guided else n, h, w, rows)
        order = (
            _uniform(seed + ORDER_SEED, n, L * h * w).view(n, L, h, w).to(uniform)
            if isinstance(sampler, ParallelSampler)
            else uniform
        )
        for level in range(L):
            draws = Draws(
                draw=sampler.backend.categorical(temperatures[level], top_k, top_ps[level]),
                chances=uniform[:, level],
                order=order[:, level],
                greedy=temperatures[level] == 0 or top_k == 1,
                guidance=guidance if guided else None,
            )
            if isinstance(sampler, ParallelSampler):
                sampler.fill_level(level, indices, known[:, level] < 0, draws, tick)
            else:
                _fill_level(sampler, level, indices, known[:, level] < 0, draws, tick)
    return indices.clone()  # outside inference mode: an ordinary tensor


def _fill_level(
    sampler: Sampler,
    level: int,
    grids: Tensor,
    unknown: Tensor,
    draws: Draws,
    tick: Callable[[], None],
) -> None:
    """Draws the unknown indices (n, h, w), a tensor on the CPU, of one level of `grids` (n, L, h,
    w) in raster order, in place.
    """
    backend, guided = sampler.backend, draws.guidance is not None
    cursor = sampler.start_level(level, grids.repeat(2, 1, 1, 1) if guided else grids)
    if draws.guidance is not None:
        cursor = GuidedCursor(cursor, backend, draws.guidance)
    grid = grids[:, level]
    missing, columns = backend.native(unknown.to(grid.device)), unknown.any(0).tolist()
    indices, chances = backend.native(grid), backend.native(draws.chances)
    for i, wanted in enumerate(columns):
        cursor.next_row(indices[:, i - 1] if i else None)
        for j in range(_last(wanted) + 1):
            cursor.next_column(indices[:, i, j - 1] if j else None)
            if wanted[j]:
                drawn = draws.draw(cursor.logits(), chances[:, i, j])
                backend.put(drawn, indices[:, i, j], missing[:, i, j])
        tick()


def by_level(value: _Value | Sequence[_Value], levels: int) -> list[_Value]:
    """Returns one value for each level: of fewer, the last stands for all further levels.

    UsageError where there are none, or more than levels.
    """
    given = list(value) if isinstance(value, Sequence) else [value]
    if not 1 <= len(given) <= levels:
        raise UsageError(
            f"{len(given)} values for {levels} level{'s' if levels > 1 else ''}",
            "give one for all, or up to one a level",
        )
    return given + given[-1:] * (levels - len(given))


def _is_guided(guidance: float, labels: object) -> bool:
    """Whether there is anything to guide: a label, and a weight that is not 1."""
    if not 0 <= guidance <= GUIDANCE_MAX:  # nan neither
        raise UsageError(
            f"guidance is {guidance:g}, and must be 0 to {GUIDANCE_MAX:g}",
            "choose 1 (none) or more, such as 1.5; 0 forgets the label",
        )
    return guidance != 1 and labels is not None


def _last(wanted: list[bool]) -> int:
    """Returns the last column that is wanted, -1 if none is. Nothing needs the horizontal stack to
    the right of it.
    """
    return max((j for j, want in enumerate(wanted) if want), default=-1)


def _full_precision(device: torch.device) -> AbstractContextManager:
    """Turns autocast off: half of the calls below would ignore it, the other half not."""
    return (
        torch.autocast(device.type, enabled=False)
        if device.type in ("cpu", "cuda")
        else nullcontext()
    )


def _uniform(seed: int, n: int, count: int) -> Tensor:
    """Draws (n, count) numbers in [0, 1), on the CPU: row i depends on the seed and i alone."""
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
