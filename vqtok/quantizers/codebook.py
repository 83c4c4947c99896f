"""Quantizes by one codebook of K vectors, trained by gradient (`vq`) or moving averages (`ema`)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import TokenizerConfig
from vqtok.quantizers.base import Quantized, Quantizer
from vqtok.quantizers.onednn import has_onednn, onednn_linear
from vqtok.quantizers.update import update_codebooks

# scores held at a time: 1 MiB of float32 stays in a core's cache;
# half or twice as many take 1.1 times as long
CHUNK = 2**18
GPU_CHUNK = 2**24
ROWS_MIN = 16  # of vectors, also where K is large: one by one, each would read all codes
ELEMENTS = 2**17  # numbers of vectors that several operations go over while they are in cache


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Finds the indices (N,) of the entries of codebook (K, D) nearest to vectors (N, D) in
    Euclidean distance; ties go to the lower index.
    """
    indices = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    NearestSearch(codebook).write(vectors, indices)
    return indices


class NearestSearch:
    """Finds nearest codes by one product, of [x, 1] and a codebook's [2 e, -|e|^2]: |x - e|^2 is
    smallest where 2 x.e - |e|^2 is largest.

    It works on a few rows at a time, in one buffer that it uses again: there is never a whole
    (N, K) matrix.
    """

    def __init__(self, codebook: Tensor, dot: bool = False) -> None:
        """`dot`: the entry of the largest inner product in place of the nearest one."""
        K, D = codebook.shape
        squares = torch.linalg.vecdot(codebook, codebook)
        self.offset = torch.zeros_like(squares) if dot else -squares  # (K,)
        self.onednn = has_onednn(codebook)
        if self.onednn:
            self.weights = 2 * codebook.contiguous()
        else:
            self.weights = torch.cat([2 * codebook.T, self.offset[None]])  # (D + 1, K)
        self.rows = max(ROWS_MIN, (CHUNK if codebook.device.type == "cpu" else GPU_CHUNK) // K)
        self.extended, self.scores = codebook.new_empty(0, D + 1), codebook.new_empty(0, K)

    def write(self, vectors: Tensor, indices: Tensor) -> None:
        """Writes the nearest entry of each of vectors (N, D) into indices (N,)."""
        for part, out in zip(vectors.split(self.rows), indices.split(self.rows), strict=True):
            _largest(self._by_onednn(part) if self.onednn else self._by_mm(part), out)

    def _by_onednn(self, part: Tensor) -> Tensor:
        """Computes the scores (n, K) of vectors (n, D)."""
        # it sums a single row in another order than several, and that could move a near tie
        rows = part.expand(2, -1) if len(part) == 1 else part
        return onednn_linear(rows.contiguous(), self.weights, self.offset)[: len(part)]

    def _by_mm(self, part: Tensor) -> Tensor:
        """Computes the same in a buffer that the next call overwrites."""
        n, D = part.shape
        if n != len(self.scores):
            self.extended, self.scores = (
                part.new_ones(n, D + 1),
                part.new_empty(n, self.weights.shape[1]),
            )
        self.extended[:, :D] = part
        return torch.mm(self.extended, self.weights, out=self.scores)


def _largest(scores: Tensor, out: Tensor) -> None:
    """Writes each row's argmax of scores (n, K) into out (n,); the first of equals.

    By NumPy: torch's argmax takes 20 times as long on a CPU, which is several times the products
    themselves where D is small.
    """
    if scores.device.type == "cpu":
        np.argmax(scores.numpy(), 1, out=out.numpy())
    else:
        torch.argmax(scores, 1, out=out)


class Rest:
    """Computes rows of the residual (N, D) that levels leave of vectors (B, h*w, D), when they are
    asked for.
    """

    def __init__(self, vectors: Tensor, taken: tuple[tuple[Tensor, Tensor], ...] = ()) -> None:
        """Takes, in `taken`, the entries (K, D) and indices (N,) of each level before."""
        self.vectors, self.taken = vectors, taken

    def __len__(self) -> int:
        return self.vectors.shape[0] * self.vectors.shape[1]

    @property
    def block(self) -> int:
        """Returns h*w, the number of vectors of an image."""
        return self.vectors.shape[1]

    def __getitem__(self, rows: Tensor) -> Tensor:
        left = self.vectors.flatten(0, 1)[rows]
        for entries, indices in self.taken:
            left = left - entries[indices[rows]]
        return left


class Assignment(NamedTuple):
    """Holds what `StraightThrough` returns; N vectors, K entries."""

    entries: Tensor  # (N, D), those chosen, with the gradient passed straight through
    indices: Tensor  # (N,)
    loss: Tensor  # scalar
    counts: Tensor  # (K,), how many vectors chose each entry
    sums: Tensor  # (K, D), their sums


class StraightThrough(torch.autograd.Function):
    """Maps vectors (N, D) to their nearest entries, with the gradient passed straight through, and
    computes the terms of the loss.

    Forward and backward are written out because autograd would keep every intermediate result: this
    keeps what it returns and a few MiB, for any N and K. All passes over the vectors are made
    chunk by chunk, while a chunk is in cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        entries: Tensor,
        beta: float,
        learns: bool,
        dot: bool = False,
    ) -> tuple[Tensor, ...]:
        """Returns an `Assignment`; its loss is beta || x - sg[e] ||^2 and, where the entries learn
        by it, || sg[x] - e ||^2.
        """
        indices = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        assignment, total, sums, search = (
            torch.empty_like(vectors),
            vectors.new_zeros(()),
            torch.zeros_like(entries),
            NearestSearch(entries, dot),
        )
        for part in row_chunks(len(vectors), vectors.shape[1], vectors.device):
            some, which, near = vectors[part], indices[part], assignment[part]
            search.write(some, which)
            torch.index_select(entries, 0, which, out=near)
            total += F.mse_loss(some, near, reduction="sum")
            sums.index_add_(0, which, some)
        counts = torch.bincount(indices, minlength=len(entries)).to(vectors.dtype)
        ctx.save_for_backward(vectors, indices, entries, counts, sums)
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
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, None, None, None]:
        passed, _, for_loss, *_ = gradients
        vectors, indices, entries, counts, sums = ctx.saved_tensors
        scale = for_loss * (2 / max(1, vectors.numel()))
        for_vectors, difference = torch.empty_like(vectors), vectors.new_empty(0)
        for part in row_chunks(len(vectors), vectors.shape[1], vectors.device):
            # looked up again, from a codebook in cache: no second (N, D) is kept for it
            near = entries.index_select(0, indices[part])
            difference = torch.sub(vectors[part], near, out=difference.resize_(0))
            torch.addcmul(passed[part], difference, scale, value=ctx.beta, out=for_vectors[part])
        for_entries = (counts[:, None] * entries - sums) * scale if ctx.learns else None
        return for_vectors, for_entries, None, None, None


def choose(
    vectors: Tensor, entries: Tensor, beta: float, learns: bool, dot: bool = False
) -> Assignment:
    """Computes what `StraightThrough` does, in operations on whole tensors that a compiler can
    fuse: no shape depends on what is chosen, so nothing waits for the device.

    On a CPU, chunks that stay in cache and NumPy's argmax are quicker.
    """
    fixed = vectors.detach()
    half, codes = -entries.detach().square().sum(1), entries.detach().T  # (K,), (D, K)
    half = half * 0 if dot else half
    rows = max(1, GPU_CHUNK // len(entries))
    indices = torch.cat(
        [torch.addmm(half, part, codes, alpha=2).argmax(1) for part in fixed.split(rows)]
    )
    near = entries.index_select(0, indices)  # (N, D)
    loss = beta * F.mse_loss(vectors, near.detach())
    loss = loss + F.mse_loss(near, fixed) if learns else loss
    counts = fixed.new_zeros(len(entries)).scatter_add_(0, indices, torch.ones_like(fixed[:, 0]))
    sums = torch.zeros_like(entries).detach().index_add_(0, indices, fixed)
    return Assignment(near.detach() + (vectors - fixed), indices, loss, counts, sums)


def in_chunks(device: torch.device) -> bool:
    """Whether vectors are searched a part at a time, in memory that is used again:
    everywhere but on GPUs, whose cache is too small.
    """
    return device.type != "cuda"


def row_chunks(N: int, D: int, device: torch.device, elements: int = ELEMENTS) -> Iterator[slice]:
    """Cuts vectors (N, D) into slices that stay in a core's cache while several operations go over
    them; all at once on a GPU.
    """
    rows = max(1, elements // max(1, D) if device.type == "cpu" else N)
    return (slice(start, start + rows) for start in range(0, N, rows))


def sums_by_code(vectors: Tensor, indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Counts how many of vectors (N, D) chose each of `size` codes, (K,), and sums those vectors,
    (K, D).
    """
    counts = torch.bincount(indices, minlength=size).to(vectors.dtype)
    sums = vectors.new_zeros(size, vectors.shape[1]).index_add_(0, indices, vectors)
    return counts, sums


def sample_vectors(vectors: Tensor, count: int) -> Tensor:
    """Draws `count` of vectors (N, D), without replacement while there are enough."""
    return vectors[_sample_positions(len(vectors), count, vectors.device)]


def _sample_positions(total: int, count: int, device: torch.device) -> Tensor:
    """Draws (count,) of the numbers below `total`, without replacement while there are enough; on
    the host, alike for all devices.
    """
    drawn = torch.randperm(total)[:count] if count <= total else torch.randint(total, (count,))
    return drawn.to(device)


def kmeans(vectors: Tensor, size: int, rounds: int = 10) -> Tensor:
    """Runs Lloyd's algorithm: `size` centers (K, D) of vectors (N, D), from a random start; empty
    centers are drawn anew.
    """
    centers = sample_vectors(vectors, size)
    for _ in range(rounds):
        counts, sums = sums_by_code(vectors, nearest(vectors, centers), size)
        centers = torch.where(
            counts[:, None] > 0, sums / counts[:, None].clamp(min=1), sample_vectors(vectors, size)
        )
    return centers


class InitFlag(nn.Module):
    """Says whether a codebook has been initialized from vectors; saved with the training state."""

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A saved buffer: a plain attribute would run k-means again on resume
        # and throw the codebook away.
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))


class _MovingAverages(InitFlag):
    """Holds moving averages of how often each code is chosen and of the vectors that choose it.

    Training state.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", torch.zeros(size, dim))


class Codebook(Quantizer):
    """Searches and looks up a list of entries, and computes the terms of the loss, for the
    quantizers below.
    """

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
        self.dot = config.distance == "dot"

    def _project(self, vectors: Tensor) -> Tensor:
        """Projects (..., D) onto the unit sphere where the config says so."""
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def entries(self) -> Tensor:
        return self._project(self.codebook)  # (K, D)

    def forward(self, z: Tensor) -> Quantized:
        batch, dim, height, width = z.shape
        with torch.autocast(z.device.type, enabled=False):  # distances in bf16 choose wrong codes
            flat = self._project(z.float().permute(0, 2, 3, 1).reshape(-1, dim))  # (B*h*w, D)
            if in_chunks(z.device):
                assignment = Assignment(
                    *StraightThrough.apply(
                        flat, self.entries(), self.beta, self.learned_by_gradient, self.dot
                    )
                )  # type: ignore[misc]
            else:
                assignment = choose(
                    flat, self.entries(), self.beta, self.learned_by_gradient, self.dot
                )
            self.observe(Rest(flat.detach().view(batch, -1, dim)), assignment)
        # (B, D, h, w)
        vectors = assignment.entries.reshape(batch, height, width, dim).permute(0, 3, 1, 2)
        return Quantized(
            vectors, assignment.indices.reshape(batch, 1, height, width), assignment.loss
        )

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices[:, 0], self.entries()).permute(0, 3, 1, 2)  # (B, D, h, w)

    def observe(self, vectors: Rest, assignment: Assignment) -> None:
        """Records what `update_codebook` needs: the vectors, without gradient, and what they chose.
        Nothing unless overridden.
        """


class AveragedCodebook(Codebook):
    """Adds to `vq` and `ema` the k-means start, moving averages, and the restart of dead codes."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.decay, self.dead_code_threshold = config.decay, config.restart
        self.average = _MovingAverages(config.codebook_size, config.code_dim)
        self._last_batch: tuple[Rest, Assignment] | None = None

    def observe(self, vectors: Rest, assignment: Assignment) -> None:
        if self.training:
            # without what was chosen: (N, D) that nobody asks for
            nothing = vectors.vectors.new_empty(0, vectors.vectors.shape[-1])
            self._last_batch = vectors, assignment._replace(entries=nothing)

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

    def draw_rows(self, vectors: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Draws without replacement, at most a quarter of the vectors: otherwise many dead codes
        would move to the same few vectors.
        """
        most = min(self.codebook_size, max(1, vectors // 4))
        return (
            torch.randperm(vectors, generator=generator)[None, :most]
            if self.dead_code_threshold
            else None
        )

    def update_codebook(self, rows: Tensor | None = None, ok: Tensor | None = None) -> Tensor:
        return update_codebooks([self], rows, ok)

    def seen(self) -> tuple[Rest, Assignment]:
        """Returns the vectors of the last forward in training mode and their assignment, once."""
        assert self._last_batch is not None, "update_codebook() follows a forward in training mode"
        seen, self._last_batch = self._last_batch, None
        return seen

    def follow(self, codebooks: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """Returns the codebooks (L, K, D) after a step, given the averages of counts (L, K) and of
        sums (L, K, D).
        """
        return codebooks


class VectorQuantizer(AveragedCodebook):
    """Trains its codebook by gradient: || sg[z_e] - e ||^2 + beta || z_e - sg[e] ||^2 (van den Oord
    et al. 2017, eq. 3).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))


class EMAQuantizer(AveragedCodebook):
    """Moves its codebook to the moving averages of the vectors that choose each code (van den Oord
    et al. 2017, appendix A.1).
    """

    learned_by_gradient = False

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.register_buffer("codebook", torch.randn(config.codebook_size, config.code_dim))

    def follow(self, codebooks: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        counts = counts[..., None]  # (L, K, 1)
        means = self._project(sums / counts.clamp(min=1e-6))
        # A code that nothing chooses stays where it is:
        # as its averages fade, their quotient would pull it to 0.
        return torch.where(counts > 1e-6, means, codebooks)
