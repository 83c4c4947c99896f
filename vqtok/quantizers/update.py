"""Updates codebooks that follow averages, all levels at once and without waiting for the device."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vqtok import distributed


class Averaged(Protocol):
    """Holds what is updated: a codebook (K, D) beside moving averages of how often each code is
    chosen, and of what chooses it.
    """

    codebook_size: int
    decay: float
    dead_code_threshold: float
    codebook: Tensor  # (K, D)
    average: Any  # its counts (K,) and sums (K, D)

    def seen(self) -> tuple[Any, Any]: ...  # a `Rest` and an `Assignment`

    def draw_rows(
        self, vectors: int, generator: torch.Generator | None = None
    ) -> Tensor | None: ...

    def follow(self, codebooks: Tensor, counts: Tensor, sums: Tensor) -> Tensor: ...


@torch.no_grad()
def update_codebooks(levels: Sequence[Averaged], rows: Tensor | None, ok: Tensor | None) -> Tensor:
    """Updates averages and codebooks from the last forward of each level, and moves dead codes onto
    vectors of that batch. Returns how many it moved, a scalar.

    Counts are in units of the mean use N/K, so that one threshold serves any batch size and K. The
    batch is that of all processes. All levels are of one kind, with the same settings. `rows` and
    `ok` are as in `Quantizer.update_codebook`.
    """
    first = levels[0]
    seen = [level.seen() for level in levels]
    vectors = [some for some, _ in seen]  # rows of (N, D) each
    total = distributed.world_size() * len(vectors[0])
    new_counts = torch.stack([chosen.counts for _, chosen in seen])  # (L, K)
    new_sums = torch.stack([chosen.sums for _, chosen in seen])  # (L, K, D)
    distributed.all_reduce_sum(new_counts, new_sums)

    kept = [(level.average.counts, level.average.sums, level.codebook) for level in levels]
    counts, sums, books = (torch.stack(part) for part in zip(*kept, strict=True))
    unit = first.codebook_size / total
    counts.lerp_(new_counts.mul_(unit), 1 - first.decay)
    sums.lerp_(new_sums.mul_(unit), 1 - first.decay)
    books = first.follow(books, counts, sums)
    dead = counts < first.dead_code_threshold
    revived = dead.sum()
    if rows is None and revived:  # who gives none may wait
        rows = torch.cat([some for level in levels if (some := level.draw_rows(total)) is not None])
    if rows is not None:
        number = dead.cumsum(1)  # (L, K): from 1
        dead &= number <= rows.shape[1]
        revived = dead.sum()
        # among several processes each restart is an exchange
        if distributed.world_size() == 1 or revived:
            # (L, K)
            which = rows.to(counts.device).gather(1, (number - 1).clamp(0, rows.shape[1] - 1))
            fresh = torch.stack(
                [
                    distributed.gather_rows(some, each, some.block)
                    for some, each in zip(vectors, which, strict=True)
                ]
            )
            books, sums = (torch.where(dead[..., None], fresh, value) for value in (books, sums))
            counts = counts.masked_fill(dead, 1.0)
    for old, new in zip(zip(*kept, strict=True), (counts, sums, books), strict=True):
        for target, value in zip(old, new, strict=True):
            target.copy_(value if ok is None else torch.where(ok, value, target))
    return revived if ok is None else revived * ok
