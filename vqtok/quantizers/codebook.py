"""Quantizers with one codebook of K vectors:
trained by gradient (`vq`) or by moving averages (`ema`).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok import distributed
from vqtok.config import TokenizerConfig
from vqtok.quantizers.base import Quantized, Quantizer

# scores held at a time: 1 MiB of float32 stays in a core's cache;
# half or twice as many take 1.1 times as long
CHUNK = 2**18
GPU_CHUNK = 2**24
ELEMENTS = 2**17  # numbers of vectors that several operations go over while they are in cache


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Indices (N,) of the entries of codebook (K, D) nearest to vectors (N, D) in Euclidean
    distance; ties go to the lower index.
    """
    indices = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    _NearestSearch(codebook).write(vectors, indices)
    return indices


class _NearestSearch:
    """|x - e|^2 is smallest where 2 x.e - |e|^2 is largest:
    one product, of [x, 1] and a codebook's [2 e, -|e|^2].

    It is written to the same few rows again and again: no (N, K) matrix, whatever N and K.
    """

    def __init__(self, codebook: Tensor) -> None:
        K, D = codebook.shape
        self.weights = codebook.new_empty(D + 1, K)
        torch.mul(codebook.T, 2, out=self.weights[:D])
        torch.mul(torch.linalg.vecdot(codebook, codebook), -1, out=self.weights[D])
        self.rows = max(1, (CHUNK if codebook.device.type == "cpu" else GPU_CHUNK) // K)
        self.extended, self.scores = codebook.new_empty(0, D + 1), codebook.new_empty(0, K)

    def write(self, vectors: Tensor, indices: Tensor) -> None:
        """Writes the nearest entry of each of vectors (N, D) into indices (N,)."""
        D = vectors.shape[1]
        for part, out in zip(vectors.split(self.rows), indices.split(self.rows), strict=True):
            if len(part) != len(self.scores):
                self.extended, self.scores = (
                    vectors.new_ones(len(part), D + 1),
                    vectors.new_empty(len(part), self.weights.shape[1]),
                )
            self.extended[:, :D] = part
            torch.mm(self.extended, self.weights, out=self.scores)
            _largest(self.scores, out)


def _largest(scores: Tensor, out: Tensor) -> None:
    """Writes each row's argmax of scores (n, K) into out (n,); the first of equals.

    torch's takes 20 times as long as NumPy's on a CPU, several times as long as the products
    themselves where D is small.
    """
    if scores.device.type == "cpu":
        np.argmax(scores.numpy(), 1, out=out.numpy())
    else:
        torch.argmax(scores, 1, out=out)


class Assignment(NamedTuple):
    """What `StraightThrough` gives; N vectors, K entries."""

    entries: Tensor  # (N, D), those chosen, with the gradient passed straight through
    indices: Tensor  # (N,)
    loss: Tensor  # scalar
    counts: Tensor  # (K,), how many vectors chose each entry
    sums: Tensor  # (K, D), their sums


class StraightThrough(torch.autograd.Function):
    """Vectors (N, D) to their nearest entries, with the gradient passed straight through,
    and the terms of the loss.

    Written out because autograd would keep every step on the way: this needs what it returns and a
    few MiB, for any N and K. What goes over the vectors does so while a chunk of them is in cache.
    """

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, entries: Tensor, beta: float, learns: bool
    ) -> tuple[Tensor, ...]:
        """`Assignment`; its loss is beta || x - sg[e] ||^2 and, where the entries learn
        by it, || sg[x] - e ||^2.
        """
        indices = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        assignment, total, sums, search = (
            torch.empty_like(vectors),
            vectors.new_zeros(()),
            torch.zeros_like(entries),
            _NearestSearch(entries),
        )
        for part in _chunks(vectors):
            some, which, near = vectors[part], indices[part], assignment[part]
            search.write(some, which)
            torch.index_select(entries, 0, which, out=near)
            total += F.mse_loss(some, near, reduction="sum")
            sums.index_add_(0, which, some)
        counts = torch.bincount(indices, minlength=len(entries)).to(vectors.dtype)
        ctx.save_for_backward(vectors, assignment, entries, counts, sums)
        ctx.mark_non_differentiable(indices, counts, sums)
        ctx.beta, ctx.learns = beta, learns
        return (
            assignment,
            indices,
            total * ((beta + learns) / max(1, vectors.numel())),
            counts,
            sums,
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, None, None]:
        passed, _, for_loss, *_ = gradients
        vectors, assignment, entries, counts, sums = ctx.saved_tensors
        scale = for_loss * (2 / max(1, vectors.numel()))
        for_vectors, difference = torch.empty_like(vectors), vectors.new_empty(0)
        for part in _chunks(vectors):
            difference = torch.sub(vectors[part], assignment[part], out=difference.resize_(0))
            torch.addcmul(passed[part], difference, scale, value=ctx.beta, out=for_vectors[part])
        for_entries = (counts[:, None] * entries - sums) * scale if ctx.learns else None
        return for_vectors, for_entries, None, None


def _chunks(vectors: Tensor) -> Iterator[slice]:
    """Slices of vectors (N, D) that stay in a core's cache while several operations go over them;
    all at once on a GPU.
    """
    N, D = vectors.shape
    rows = max(1, ELEMENTS // max(1, D) if vectors.device.type == "cpu" else N)
    return (slice(start, start + rows) for start in range(0, N, rows))


def sums_by_code(vectors: Tensor, indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many of vectors (N, D) chose each of `size` codes, (K,), and their sums, (K, D)."""
    counts = torch.bincount(indices, minlength=size).to(vectors.dtype)
    sums = vectors.new_zeros(size, vectors.shape[1]).index_add_(0, indices, vectors)
    return counts, sums


def sample_vectors(vectors: Tensor, count: int) -> Tensor:
    """`count` of vectors (N, D), drawn without replacement while there are enough."""
    return vectors[_sample_positions(len(vectors), count, vectors.device)]


def _sample_positions(total: int, count: int, device: torch.device) -> Tensor:
    """(count,) of the numbers below `total`, drawn without replacement while there are enough."""
    return (
        torch.randperm(total, device=device)[:count]
        if count <= total
        else torch.randint(total, (count,), device=device)
    )


def kmeans(vectors: Tensor, size: int, rounds: int = 10) -> Tensor:
    """Lloyd's algorithm: `size` centers (K, D) of vectors (N, D), from a random start;
    empty centers are drawn anew.
    """
    centers = sample_vectors(vectors, size)
    for _ in range(rounds):
        counts, sums = sums_by_code(vectors, nearest(vectors, centers), size)
        centers = torch.where(
            counts[:, None] > 0, sums / counts[:, None].clamp(min=1), sample_vectors(vectors, size)
        )
    return centers


class InitFlag(nn.Module):
    """Whether a quantizer has been set from vectors. Training state."""

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A saved buffer: a plain attribute would run k-means again on resume
        # and throw the codebook away.
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))


class _MovingAverages(InitFlag):
    """Moving averages of how often each code is chosen and of the vectors that choose it.

    Training state.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", torch.zeros(size, dim))


class Codebook(Quantizer):
    """What quantizers with a list of entries share: search, lookup, and the terms of the loss."""

    codebook: Tensor  # (K, D)
    levels = 1
    learned_by_gradient = True  # whether the entries learn by gradient, from || sg[z_e] - e ||^2

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.codebook_size, self.normalize, self.beta = (
            config.codebook_size,
            config.normalize,
            config.beta,
        )

    def _project(self, vectors: Tensor) -> Tensor:
        """Onto the unit sphere where the config says so: (..., D) -> (..., D)."""
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def _entries(self) -> Tensor:
        return self._project(self.codebook)  # (K, D)

    def forward(self, z: Tensor) -> Quantized:
        batch, dim, height, width = z.shape
        with torch.autocast(z.device.type, enabled=False):  # distances in bf16 choose wrong codes
            flat = self._project(z.float().permute(0, 2, 3, 1).reshape(-1, dim))  # (B*h*w, D)
            assignment = Assignment(  # type: ignore[misc]
                *StraightThrough.apply(flat, self._entries(), self.beta, self.learned_by_gradient)
            )
            self._observe(flat.detach().view(batch, -1, dim), assignment)
        # (B, D, h, w)
        vectors = assignment.entries.reshape(batch, height, width, dim).permute(0, 3, 1, 2)
        return Quantized(
            vectors, assignment.indices.reshape(batch, 1, height, width), assignment.loss
        )

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices[:, 0], self._entries()).permute(0, 3, 1, 2)  # (B, D, h, w)

    def _observe(self, vectors: Tensor, assignment: Assignment) -> None:
        """Hook for what `update_codebook` wants to know:
        vectors (B, h*w, D), without gradient, and what they chose.
        """


class AveragedCodebook(Codebook):
    """What `vq` and `ema` share: k-means start, averages, restart of dead codes."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.decay, self.dead_code_threshold = config.decay, config.restart
        self.average = _MovingAverages(config.codebook_size, config.code_dim)
        self._last_batch: tuple[Tensor, Assignment] | None = None

    def _observe(self, vectors: Tensor, assignment: Assignment) -> None:
        if self.training:
            self._last_batch = vectors, assignment

    def needs_init(self) -> bool:
        return not bool(self.average.initialized)

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        vectors = self._project(vectors.float())
        self.codebook.copy_(self._project(kmeans(vectors, self.codebook_size)))
        self.adopt_codebook()

    @torch.no_grad()
    def adopt_codebook(self) -> None:
        self.average.counts.fill_(1.0)
        self.average.sums.copy_(self.codebook)
        self.average.initialized.fill_(True)

    @torch.no_grad()
    def update_codebook(self) -> int:
        """Updates the averages, and moves dead codes onto vectors of the last batch;
        returns how many it moved.

        Counts are kept in units of the mean use N/K, so that the threshold
        `dead_code_threshold` holds for any batch size and K. The batch is that of all
        processes, and so are the vectors drawn.
        """
        assert self._last_batch is not None, "update_codebook() follows a forward in training mode"
        vectors, assignment = self._last_batch
        self._last_batch = None
        distributed.all_reduce_sum(assignment.counts, assignment.sums)
        total = distributed.world_size() * vectors.shape[0] * vectors.shape[1]
        unit = self.codebook_size / total
        self.average.counts.lerp_(assignment.counts * unit, 1 - self.decay)
        self.average.sums.lerp_(assignment.sums * unit, 1 - self.decay)
        self._follow_averages()
        dead = (self.average.counts < self.dead_code_threshold).nonzero()[:, 0]
        # At most a quarter of the batch's vectors, or dead codes would crowd on the same few.
        dead = dead[: max(1, total // 4)]
        if len(dead):
            which = _sample_positions(total, len(dead), vectors.device)
            fresh = distributed.gather_rows(vectors.flatten(0, 1), which, vectors.shape[1])
            self.codebook[dead] = fresh
            self.average.counts[dead] = 1.0
            self.average.sums[dead] = fresh
        return len(dead)

    def _follow_averages(self) -> None:
        """Hook for codebooks that follow the averages."""


class VectorQuantizer(AveragedCodebook):
    """Codebook trained by gradient: || sg[z_e] - e ||^2 + beta || z_e - sg[e] ||^2 (van den
    Oord et al. 2017, eq. 3).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))


class EMAQuantizer(AveragedCodebook):
    """Codebook that follows moving averages of the vectors that choose each code (van den Oord
    et al. 2017, appendix A.1).
    """

    learned_by_gradient = False

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.register_buffer("codebook", torch.randn(config.codebook_size, config.code_dim))

    def _follow_averages(self) -> None:
        counts = self.average.counts[:, None]  # (K, 1)
        means = self._project(self.average.sums / counts.clamp(min=1e-6))
        # A code that nothing chooses stays where it is:
        # as its averages fade, their quotient would pull it to 0.
        self.codebook.copy_(torch.where(counts > 1e-6, means, self.codebook))
