"""Quantizes at several levels: each takes what the levels before it have left, or a part of the
vector of its own.
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
    """Zero, with the gradient at z of beta * mse_loss(z, z - rest): keeps nothing but `rest`."""

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
    """Joins L quantizers of one kind; the sum of the first n of their vectors is an image at n
    levels, for any n.

    With level dropout (Zeghidour et al. 2021, arXiv 2107.03312, section III-C), part of the images
    is decoded from fewer levels in training: that makes the decoder good at every n.
    """

    def __init__(self, config: TokenizerConfig, levels: list[Quantizer]) -> None:
        super().__init__()
        self.codebook_size, self.levels = config.codebook_size, len(levels)
        self.beta, self.dropout = config.beta, config.level_dropout
        self.quantizers = nn.ModuleList(levels)
        # How many levels there are is worth knowing to the decoder:
        # a few tell less about fine detail than their vectors claim.
        self.depth = nn.Parameter(torch.zeros(self.levels, config.code_dim))

    def forward(self, z: Tensor, depths: Tensor | None = None) -> Quantized:
        """Quantizes as Quantizer.forward does.

        `depths` are `draw_depths`' (B,); without them, training draws them by
        torch's global generator.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if depths is None and self.training:
                depths = self.draw_depths(len(z))
            depths = depths if depths is None else depths.to(z.device)
            vectors, indices, losses = self._quantize(z, depths)
            # The mark of the depth that each image is decoded from.
            depth = self.depth[-1:] if depths is None else self._marks(depths)  # (B, D)
            vectors = vectors + depth[:, :, None, None]
        return Quantized(vectors, torch.cat(indices, 1), torch.stack(losses).mean())

    def _quantize(
        self, z: Tensor, depths: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns the sum of the levels (B, D, h, w), and the indices and losses of each."""
        raise NotImplementedError

    def _level(self, level: int) -> Quantizer:
        quantizer = self.quantizers[level]
        assert isinstance(quantizer, Quantizer)
        return quantizer

    def _marks(self, depths: Tensor) -> Tensor:
        """Returns marks (B, D) of depths (B,): a product, as the gradient of a look-up is a sum in
        no fixed order on a GPU.
        """
        chosen = depths[:, None] == torch.arange(1, self.levels + 1, device=depths.device)
        return chosen.to(self.depth.dtype) @ self.depth

    def draw_depths(self, images: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Draws how many levels each image is decoded from, int64 (images,); None for all.

        Drawn so that log n is uniform: the first levels matter at every rate, the last one at one
        rate only. Each process draws for the whole batch, of which it has every n-th image.
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
    """Chains quantizers, each of what the levels before it have left.

    Residual vector quantization as in Zeghidour et al. 2021 (SoundStream, arXiv 2107.03312, section
    III-C), for any quantizer.
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
                # The gradient that reaches z through `residual` is zero after a level that
                # passes it straight through, so the commitment of a later level, whose value
                # is in its loss, gets its gradient here: z should lie near what all levels
                # up to this one make of it.
                losses[-1] = losses[-1] + _pull(z, residual.detach(), self.beta)
        return vectors, indices, losses

    def _is_chain(self, z: Tensor) -> bool:
        """Whether the levels are codebooks that `Chain` takes, on a device where it is quicker."""
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
        """Gives each level what it would have seen by itself."""
        taken: tuple[tuple[Tensor, Tensor], ...] = ()
        for level, which, *sums in zip(
            self.quantizers, made.indices, made.losses, made.counts, made.sums, strict=True
        ):
            assert isinstance(level, Codebook)
            level.observe(Rest(vectors, taken), Assignment(vectors, which, *sums))
            if self.training:  # an optimizer's step changes the entries before they are asked for
                taken += ((level.entries().clone(), which),)

    def lookup(self, indices: Tensor) -> Tensor:
        """Returns vectors (B, D, h, w) for the indices (B, n, h, w) of the first n levels, n from 1
        to L.
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
    """Cuts a vector into L equal parts, and quantizes each by itself (Jegou et al. 2011, product
    quantization).

    An entry of level l is the vector that has the code in part l and zeros elsewhere: sums of
    entries, and of the mark of their number, are vectors as with residual levels.
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
        """Returns vectors (B, D, h, w) for the indices (B, n, h, w) of the first n levels, n from 1
        to L; the parts of the others are the mark's.
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
