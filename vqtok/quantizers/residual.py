"""Quantizes at several levels. Each level codes the residual that the levels before it leave, or,
in a product quantizer, its own slice of the vector.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok import distributed
from vqtok.config import TokenizerConfig
from vqtok.quantizers.base import Quantized, Quantizer
from vqtok.quantizers.chain import Chain, Chained
from vqtok.quantizers.codebook import Assignment, AveragedCodebook, Codebook, Rest, in_chunks
from vqtok.quantizers.update import update_codebooks


class _Pull(torch.autograd.Function):
    """Returns zero; its gradient at z is that of beta * mse_loss(z, z - rest). For the backward
    pass it stores `rest` alone.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, rest: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(rest)
        ctx.beta = beta
        return z.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (rest,) = ctx.saved_tensors
        return rest * (gradients[0] * (2 * ctx.beta / max(1, rest.numel()))), None, None


def _pull(z: Tensor, rest: Tensor, beta: float) -> Tensor:
    if not torch.compiler.is_compiling():
        return _Pull.apply(z, rest, beta)  # type: ignore[no-any-return]
    commitment = beta * F.mse_loss(z, (z - rest).detach())
    return commitment - commitment.detach()


class LevelQuantizer(Quantizer):
    """Joins L quantizers of one kind. For any n, the sum of the vectors of the first n can be
    decoded: it gives the image at n levels.

    With level dropout (Zeghidour et al. 2021, arXiv 2107.03312, section III-C), training decodes
    some images from fewer levels, so that the decoder learns every n.
    """

    def __init__(self, config: TokenizerConfig, levels: list[Quantizer]) -> None:
        super().__init__()
        self.codebook_size, self.levels = config.codebook_size, len(levels)
        self.beta, self.dropout = config.beta, config.level_dropout
        self.quantizers = nn.ModuleList(levels)
        # Added to the sum of n levels, row n - 1 tells the decoder n: the fewer levels, the less
        # the vectors can be trusted in fine detail.
        self.depth = nn.Parameter(torch.zeros(self.levels, config.code_dim))

    def forward(self, z: Tensor, depths: Tensor | None = None) -> Quantized:
        """Quantizes vectors (B, D, h, w), as `Quantizer.forward` does.

        `depths` (B,) says how many levels each image is decoded from. Without it, training calls
        `draw_depths`, which then uses PyTorch's global generator.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if depths is None and self.training:
                depths = self.draw_depths(len(z))
            depths = depths if depths is None else depths.to(z.device)
            vectors, indices, losses = self._quantize(z, depths)
            depth = self.depth[-1:] if depths is None else self._marks(depths)  # (1 or B, D)
            vectors = vectors + depth[:, :, None, None]
        return Quantized(vectors, torch.cat(indices, 1), torch.stack(losses).mean())

    def _quantize(
        self, z: Tensor, depths: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns the sum of the levels (B, D, h, w), and the indices (B, 1, h, w) and the loss of
        each level.
        """
        raise NotImplementedError

    def _level(self, level: int) -> Quantizer:
        quantizer = self.quantizers[level]
        assert isinstance(quantizer, Quantizer)
        return quantizer

    def _marks(self, depths: Tensor) -> Tensor:
        """Looks up the rows of `self.depth` for depths (B,): (B, D).

        It multiplies by a one-hot matrix, because on a GPU the gradient of indexing is summed in
        no fixed order.
        """
        chosen = depths[:, None] == torch.arange(1, self.levels + 1, device=depths.device)
        return chosen.to(self.depth.dtype) @ self.depth

    def draw_depths(self, images: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Draws how many levels each image is decoded from, int64 (images,); None means all of
        them.

        Where an image is decoded from fewer, log n is uniform: the first levels serve every rate,
        the last one serves one. Of P processes each draws for the whole batch and takes every P-th
        draw.
        """
        if self.dropout == 0:
            return None
        total = images * distributed.world_size()
        drawn = (
            torch.exp(torch.rand(total, generator=generator) * math.log(self.levels + 1))
            .long()
            .clamp(1, self.levels)
        )
        every = torch.where(
            torch.rand(total, generator=generator) < self.dropout, drawn, self.levels
        )
        return every[distributed.rank() :: distributed.world_size()]

    def draw_rows(self, vectors: int, generator: torch.Generator | None = None) -> Tensor | None:
        drawn = [self._level(level).draw_rows(vectors, generator) for level in range(self.levels)]
        some = [rows for rows in drawn if rows is not None]
        return torch.cat(some) if some else None

    def needs_init(self) -> bool:
        return any(self._level(level).needs_init() for level in range(self.levels))

    def adopt_codebook(self) -> None:
        for level in range(self.levels):
            self._level(level).adopt_codebook()

    def update_codebook(self, rows: Tensor | None = None, ok: Tensor | None = None) -> Tensor:
        levels = [level for level in self.quantizers if isinstance(level, AveragedCodebook)]
        return update_codebooks(levels, rows, ok) if levels else super().update_codebook()


class ResidualQuantizer(LevelQuantizer):
    """Quantizes the residual of the levels before, level by level.

    This is the residual vector quantization of Zeghidour et al. 2021 (SoundStream, arXiv
    2107.03312, section III-C), with any quantizer in place of the codebook.
    """

    def _quantize(
        self, z: Tensor, depths: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        if self._is_chain(z):
            return self._quantize_chain(z, depths)
        residual, total, vectors = z, torch.zeros_like(z), torch.zeros_like(z)
        indices, losses = [], []
        for level in range(self.levels):
            part = self._level(level)(residual)
            residual, total = residual - part.vectors, total + part.vectors
            vectors = (
                total
                if depths is None
                else torch.where((depths > level)[:, None, None, None], total, vectors)
            )
            indices.append(part.indices)
            losses.append(part.loss)
            if level:
                # A straight-through level passes no gradient to z through `residual`. The
                # commitment of a later level is in its loss as a value, and gets its gradient
                # here: it pulls z toward the sum of all levels up to this one.
                losses[-1] = losses[-1] + _pull(z, residual.detach(), self.beta)
        return vectors, indices, losses

    def _is_chain(self, z: Tensor) -> bool:
        """Returns whether all levels are codebooks, as `Chain` needs, and the device is one where
        `Chain` is faster.
        """
        return (
            in_chunks(z.device)
            and not torch.compiler.is_compiling()
            and all(isinstance(level, Codebook) for level in self.quantizers)
        )

    def _quantize_chain(
        self, z: Tensor, depths: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        levels = [cast("Codebook", level) for level in self.quantizers]
        (B, D, h, w), first = z.shape, levels[0]
        flat = z.permute(0, 2, 3, 1).reshape(-1, D)  # (B*h*w, D)
        made = Chained(
            *Chain.apply(
                flat,
                None if depths is None else depths.repeat_interleave(h * w),
                first.beta,
                first.learned_by_gradient,
                first.dot,
                *(level.entries() for level in levels),
            )
        )  # type: ignore[misc]
        self._observe(flat.detach().view(B, -1, D), made)
        vectors = made.vectors.reshape(B, h, w, D).permute(0, 3, 1, 2)
        indices = [each.reshape(B, 1, h, w) for each in made.indices]
        return vectors, indices, list(made.losses)

    @torch.no_grad()
    def _observe(self, vectors: Tensor, made: Chained) -> None:
        """Reports to each level the residual and the choices that it would have seen in a loop
        over levels.
        """
        taken: tuple[tuple[Tensor, Tensor], ...] = ()
        for level, which, *sums in zip(
            self.quantizers, made.indices, made.losses, made.counts, made.sums, strict=True
        ):
            assert isinstance(level, Codebook)
            level.observe(Rest(vectors, taken), Assignment(vectors, which, *sums))
            if self.training:  # a copy: the optimizer changes the entries before `Rest` reads them
                taken += ((level.entries().clone(), which),)

    def lookup(self, indices: Tensor) -> Tensor:
        """Returns vectors (B, D, h, w) for the indices (B, n, h, w) of the first n levels, where
        1 <= n <= L.
        """
        count = indices.shape[1]
        parts = [self._level(level).lookup(indices[:, level : level + 1]) for level in range(count)]
        return torch.stack(parts).sum(0) + self.depth[count - 1][:, None, None]

    def codebooks(self) -> Tensor:
        return torch.cat([self._level(level).codebooks() for level in range(self.levels)])

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        residual = vectors.float()
        for level in range(self.levels):
            quantizer = self._level(level)
            if quantizer.needs_init():
                quantizer.initialize(residual)
            training = quantizer.training
            indices = quantizer.eval()(residual.T[None, :, :, None]).indices  # (1, 1, N, 1)
            quantizer.train(training)
            residual = residual - quantizer.lookup(indices)[0, :, :, 0].T


class ProductQuantizer(LevelQuantizer):
    """Cuts a vector into L slices of equal length and quantizes each by itself: product
    quantization (Jegou et al. 2011).

    An entry of level l is a vector of D numbers: the code in slice l, zeros elsewhere. So entries
    of several levels add up to a vector, as in a residual quantizer.
    """

    def _quantize(
        self, z: Tensor, depths: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        parts = [self._level(level)(part) for level, part in enumerate(z.chunk(self.levels, 1))]
        vectors = [part.vectors for part in parts]
        if depths is not None:
            vectors = [
                torch.where((depths > level)[:, None, None, None], part, 0.0)
                for level, part in enumerate(vectors)
            ]
        return torch.cat(vectors, 1), [part.indices for part in parts], [p.loss for p in parts]

    def lookup(self, indices: Tensor) -> Tensor:
        """Returns vectors (B, D, h, w) for the indices (B, n, h, w) of the first n levels, where
        1 <= n <= L. The other slices are those of row n - 1 of `self.depth`.
        """
        B, count, h, w = indices.shape
        parts = [self._level(level).lookup(indices[:, level : level + 1]) for level in range(count)]
        size = self.depth.shape[1] // self.levels
        parts.append(parts[0].new_zeros(B, (self.levels - count) * size, h, w))
        return torch.cat(parts, 1) + self.depth[count - 1][:, None, None]

    def codebooks(self) -> Tensor:
        entries = [self._level(level).codebooks()[0] for level in range(self.levels)]
        size = entries[0].shape[1]
        return torch.stack(
            [
                F.pad(part, (level * size, (self.levels - 1 - level) * size))
                for level, part in enumerate(entries)
            ]
        )

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        for level, part in enumerate(vectors.float().chunk(self.levels, 1)):
            if self._level(level).needs_init():
                self._level(level).initialize(part)
