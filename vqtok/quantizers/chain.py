"""Runs a chain of residual codebooks in the memory of one: the backward pass does not store the
residuals, but computes them again from the indices.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.quantizers.codebook import NearestSearch, row_chunks


class Chained(NamedTuple):
    """Holds what `Chain` returns; N vectors, L levels of K entries."""

    vectors: Tensor  # (N, D), the sum of the levels, with the gradient passed straight through
    indices: Tensor  # (L, N)
    losses: Tensor  # (L,)
    counts: Tensor  # (L, K), how many vectors chose each entry
    sums: Tensor  # (L, K, D), of the residuals that chose each entry


class Chain(torch.autograd.Function):
    """Maps vectors (N, D) to the sums of the entries that L codebooks choose for them.

    Let r_l be the residual after level l. The loss of a level is beta || r_l ||^2, and
    || r_l ||^2 more where its entries learn by gradient. The sums pass their gradient straight
    through to the vectors z, and each level adds the gradient of its commitment,
    beta || z - sg[z - r_l] ||^2, which pulls z toward the sum of the levels up to this one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        depths: Tensor | None,
        beta: float,
        learns: bool,
        dot: bool,
        *entries: Tensor,
    ) -> tuple[Tensor, ...]:
        """Returns the fields of a `Chained`. depths (N,) says how many levels are summed for each
        vector; None means all.
        """
        (N, D), L = vectors.shape, len(entries)
        made = torch.empty_like(vectors)
        indices = torch.empty(L, N, dtype=torch.int64, device=vectors.device)
        totals, sums = vectors.new_zeros(L), torch.stack([torch.zeros_like(e) for e in entries])
        searches = [NearestSearch(each, dot) for each in entries]
        for part in row_chunks(N, D, vectors.device):
            left, total, out = vectors[part], torch.zeros_like(vectors[part]), made[part]
            for level, search in enumerate(searches):
                which = indices[level, part]
                search.write(left, which)
                near = entries[level].index_select(0, which)
                totals[level] += F.mse_loss(left, near, reduction="sum")
                sums[level].index_add_(0, which, left)
                left, total = left - near, total + near
                if depths is None:
                    continue
                deeper = (depths[part] > level)[:, None]
                out.copy_(torch.where(deeper, total, out if level else 0.0))
            if depths is None:
                out.copy_(total)
        counts = torch.stack([torch.bincount(each, minlength=len(entries[0])) for each in indices])
        counts = counts.to(vectors.dtype)
        ctx.save_for_backward(vectors, indices, counts, sums, *entries)
        ctx.mark_non_differentiable(indices, counts, sums)
        ctx.beta, ctx.learns = beta, learns
        losses = totals * ((beta + learns) / max(1, vectors.numel()))
        return made, indices, losses, counts, sums

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        passed, _, for_losses, *_ = gradients
        vectors, indices, counts, sums, *entries = ctx.saved_tensors
        scales = for_losses * (2 / max(1, vectors.numel()))  # (L,)
        for_vectors = torch.empty_like(vectors)
        for part in row_chunks(len(vectors), vectors.shape[1], vectors.device):
            left, out = vectors[part], passed[part]
            for level, each in enumerate(entries):
                left = left - each.index_select(0, indices[level, part])
                out = torch.addcmul(out, left, scales[level], value=ctx.beta)
            for_vectors[part] = out
        for_entries = (
            [
                (counts[level][:, None] * each - sums[level]) * scales[level]
                for level, each in enumerate(entries)
            ]
            if ctx.learns
            else [None] * len(entries)
        )
        return for_vectors, None, None, None, None, *for_entries
