"""Quantizers with one codebook of K vectors: trained by gradient (`vq`) or by moving averages (`ema`)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import TokenizerConfig
from vqtok.quantizers.base import Quantized, Quantizer

CHUNK = 2**22       # scores held at a time: 16 MiB of float32, whatever K and the number of vectors


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index (N,) of the entry of codebook (K, D) that is nearest to each of vectors (N, D) in Euclidean distance.

    |x - e|^2 is smallest where 2 x.e - |e|^2 is largest; ties go to the lower index.
    """
    squares = codebook.square().sum(1)      # (K,)
    rows = max(1, CHUNK // len(codebook))
    parts = [torch.addmm(squares, part, codebook.T, beta=-1, alpha=2).argmax(1) for part in vectors.split(rows)]
    return torch.cat(parts)


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
            entries = self._entries()
            indices = nearest(flat.detach(), entries.detach())                       # (B*h*w,)
            chosen = F.embedding(indices, entries)                                   # (B*h*w, D)
            loss = self.beta * F.mse_loss(flat, chosen.detach()) + self._codebook_loss(flat, chosen)
            passed = flat + (chosen - flat).detach()                                 # straight through
            self._see(flat, indices)
        vectors = passed.reshape(batch, height, width, dim).permute(0, 3, 1, 2)      # (B, D, h, w)
        return Quantized(vectors, indices.reshape(batch, 1, height, width), loss)

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices[:, 0], self._entries()).permute(0, 3, 1, 2)       # (B, D, h, w)

    def _codebook_loss(self, flat: Tensor, chosen: Tensor) -> Tensor | float:
        """|| sg[z_e] - e ||^2, or 0 where the entries do not learn by gradient."""
        return F.mse_loss(chosen, flat.detach())

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

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.register_buffer("codebook", torch.randn(config.codebook_size, config.code_dim))

    def _codebook_loss(self, flat: Tensor, chosen: Tensor) -> float:
        return 0.0

    def _follow(self) -> None:
        counts = self.average.counts[:, None]       # (K, 1)
        means = self._project(self.average.sums / counts.clamp(min=1e-6))
        # A code that nothing chooses stays where it is: as its averages fade, their quotient would pull it to 0.
        self.codebook.copy_(torch.where(counts > 1e-6, means, self.codebook))
