"""Quantizers with one codebook of K vectors: trained by gradient (`vq`) or by moving averages (`ema`)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import TokenizerConfig
from vqtok.quantizers.base import Quantized, Quantizer

CHUNK = 2**19       # scores held at a time: 2 MiB of float32 stay in a processor's cache, whatever K and the number of vectors
GPU_CHUNK = 2**22
BLOCK = 32                  # entries among which the best is looked for in a second round


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index (N,) of the entry of codebook (K, D) that is nearest to each of vectors (N, D) in Euclidean distance.

    |x - e|^2 is smallest where 2 x.e - |e|^2 is largest; ties go to the lower index.
    """
    indices = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    for _ in _search(vectors, codebook, indices):
        pass
    return indices


def _search(vectors: Tensor, codebook: Tensor, indices: Tensor) -> Iterator[slice]:
    """Writes the nearest entry of each of vectors (N, D) into indices (N,), and yields the part that is done, chunk by chunk.

    torch's argmax takes twice as long as the products themselves where D is 8. Maxima alone are 10 times as fast: so first
    that of each block of neighboring entries, then the best block, then the best entry in it. For that the products' columns are
    laid out with place i of block j at i * blocks + j. Both rounds prefer the lower index.
    """
    K, D = codebook.shape
    size = BLOCK if K >= 4 * BLOCK else 1
    blocks = -(-K // size)
    weights = torch.zeros(blocks * size, D + 1, dtype=codebook.dtype, device=codebook.device)
    weights[:K, :D] = 2 * codebook
    weights[:K, D] = -codebook.square().sum(1)
    weights[K:, D] = -torch.inf                 # fills up the last block
    weights = weights.view(blocks, size, D + 1).transpose(0, 1).reshape(blocks * size, D + 1).T.contiguous()
    rows = max(1, (CHUNK if vectors.device.type == "cpu" else GPU_CHUNK) // (blocks * size))
    scores = vectors.new_empty(min(rows, len(vectors)), blocks * size)
    best = vectors.new_empty(len(scores), blocks)
    for start in range(0, len(vectors), rows):
        part = vectors[start : start + rows]
        n = len(part)
        torch.addmm(weights[D], part, weights[:D], out=scores[:n])
        if size == 1:
            torch.argmax(scores[:n], 1, out=indices[start : start + n])
        else:
            by_block = scores[:n].view(n, size, blocks)
            block = torch.amax(by_block, 1, out=best[:n]).argmax(1)                             # (n,)
            inside = by_block.gather(2, block[:, None, None].expand(-1, size, -1))[:, :, 0]     # (n, size)
            torch.add(inside.argmax(1), block, alpha=size, out=indices[start : start + n])
        yield slice(start, start + n)


class StraightThrough(torch.autograd.Function):
    """Vectors (N, D) to their nearest entries, with the gradient passed straight through, and the terms of the loss.

    Written out because autograd would keep every step on the way. Chunk by chunk, in cache, it needs what it returns and 16 MiB at
    most, for any N and K.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, entries: Tensor, beta: float, learns: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(entries chosen (N, D), indices (N,), loss): beta || x - sg[e] ||^2 and, where the entries learn by it, || sg[x] - e ||^2."""
        vectors = vectors.contiguous()
        chosen, indices = torch.empty_like(vectors), torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        total = vectors.new_zeros(())
        for part in _search(vectors, entries, indices):
            torch.index_select(entries, 0, indices[part], out=chosen[part])
            total += F.mse_loss(vectors[part], chosen[part], reduction="sum")
        ctx.save_for_backward(vectors, indices, chosen)
        ctx.mark_non_differentiable(indices)
        ctx.beta, ctx.learns, ctx.size = beta, learns, len(entries)
        return chosen, indices, total * ((beta + learns) / max(1, vectors.numel()))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, None, None]:
        passed, _, for_loss = gradients
        vectors, indices, chosen = ctx.saved_tensors
        difference = torch.sub(vectors, chosen).mul_(for_loss * (2 / vectors.numel()))      # (N, D)
        for_entries = None
        if ctx.learns:
            for_entries = vectors.new_zeros(ctx.size, vectors.shape[1]).index_add_(0, indices, difference, alpha=-1)
        return difference.mul_(ctx.beta).add_(passed), for_entries, None, None


def sums_by_code(vectors: Tensor, indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many of vectors (N, D) chose each of `size` codes, (K,), and their sums, (K, D)."""
    counts = torch.bincount(indices, minlength=size).to(vectors.dtype)
    sums = vectors.new_zeros(size, vectors.shape[1]).index_add_(0, indices, vectors)
    return counts, sums


def draw(vectors: Tensor, count: int) -> Tensor:
    """`count` of vectors (N, D), drawn without replacement while there are enough."""
    if count <= len(vectors):
        return vectors[torch.randperm(len(vectors), device=vectors.device)[:count]]
    return vectors[torch.randint(len(vectors), (count,), device=vectors.device)]


def kmeans(vectors: Tensor, size: int, rounds: int = 10) -> Tensor:
    """Lloyd's algorithm: `size` centers (K, D) of vectors (N, D), from a random start; empty centers are drawn anew."""
    centers = draw(vectors, size)
    for _ in range(rounds):
        counts, sums = sums_by_code(vectors, nearest(vectors, centers), size)
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), draw(vectors, size))
    return centers


class Started(nn.Module):
    """Whether a quantizer has been set from vectors. Training state."""

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A saved buffer: a plain attribute would run k-means again on resume and throw the codebook away.
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))


class _Average(Started):
    """Moving averages of how often each code is chosen and of the vectors that choose it. Training state."""

    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", torch.zeros(size, dim))


class Codebook(Quantizer):
    """What quantizers with a list of entries share: search, lookup, and the terms of the loss."""

    codebook: Tensor        # (K, D)
    levels = 1
    gradual = True          # whether the entries learn by gradient, from || sg[z_e] - e ||^2

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.codebook_size, self.normalize, self.beta = config.codebook_size, config.normalize, config.beta

    def _project(self, vectors: Tensor) -> Tensor:
        """Onto the unit sphere where the config says so: (..., D) -> (..., D)."""
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def _entries(self) -> Tensor:
        return self._project(self.codebook)     # (K, D)

    def forward(self, z: Tensor) -> Quantized:
        batch, dim, height, width = z.shape
        with torch.autocast(z.device.type, enabled=False):      # distances in bf16 choose wrong codes
            flat = self._project(z.float().permute(0, 2, 3, 1).reshape(-1, dim))     # (B*h*w, D)
            chosen, indices, loss = StraightThrough.apply(flat, self._entries(), self.beta, self.gradual)      # type: ignore[misc]
            self._see(flat, indices)
        vectors = chosen.reshape(batch, height, width, dim).permute(0, 3, 1, 2)      # (B, D, h, w)
        return Quantized(vectors, indices.reshape(batch, 1, height, width), loss)

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices[:, 0], self._entries()).permute(0, 3, 1, 2)       # (B, D, h, w)

    def _see(self, flat: Tensor, indices: Tensor) -> None:
        """Hook for what `learn` wants to know: vectors (N, D) and the indices (N,) of their entries."""


class AveragedCodebook(Codebook):
    """What `vq` and `ema` share: k-means start, averages, restart of dead codes."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.decay, self.restart = config.decay, config.restart
        self.average = _Average(config.codebook_size, config.code_dim)
        self._seen: tuple[Tensor, Tensor] | None = None

    def _see(self, flat: Tensor, indices: Tensor) -> None:
        if self.training:
            self._seen = flat.detach(), indices

    def needs_vectors(self) -> bool:
        return not bool(self.average.initialized)

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        vectors = self._project(vectors.float())
        self.codebook.copy_(self._project(kmeans(vectors, self.codebook_size)))
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        self.average.counts.fill_(1.0)
        self.average.sums.copy_(self.codebook)
        self.average.initialized.fill_(True)

    @torch.no_grad()
    def learn(self) -> int:
        """Updates the averages, and moves dead codes onto vectors of the last batch; returns how many it moved.

        Counts are kept in units of the mean use N/K, so that the threshold `restart` holds for any batch size and K.
        """
        assert self._seen is not None, "learn() follows a forward in training mode"
        flat, indices = self._seen
        self._seen = None
        counts, sums = sums_by_code(flat, indices, self.codebook_size)
        unit = self.codebook_size / len(flat)
        self.average.counts.lerp_(counts * unit, 1 - self.decay)
        self.average.sums.lerp_(sums * unit, 1 - self.decay)
        self._follow()
        dead = (self.average.counts < self.restart).nonzero()[:, 0]
        # At most a quarter of the batch's vectors, or dead codes would crowd on the same few.
        dead = dead[: max(1, len(flat) // 4)]
        if len(dead):
            fresh = draw(flat, len(dead))
            self.codebook[dead] = fresh
            self.average.counts[dead] = 1.0
            self.average.sums[dead] = fresh
        return len(dead)

    def _follow(self) -> None:
        """Hook for codebooks that follow the averages."""


class VectorQuantizer(AveragedCodebook):
    """Codebook trained by gradient: || sg[z_e] - e ||^2 + beta || z_e - sg[e] ||^2 (van den Oord et al. 2017, eq. 3)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))


class EMAQuantizer(AveragedCodebook):
    """Codebook that follows moving averages of the vectors that choose each code (van den Oord et al. 2017, appendix A.1)."""

    gradual = False

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.register_buffer("codebook", torch.randn(config.codebook_size, config.code_dim))

    def _follow(self) -> None:
        counts = self.average.counts[:, None]       # (K, 1)
        means = self._project(self.average.sums / counts.clamp(min=1e-6))
        # A code that nothing chooses stays where it is: as its averages fade, their quotient would pull it to 0.
        self.codebook.copy_(torch.where(counts > 1e-6, means, self.codebook))
