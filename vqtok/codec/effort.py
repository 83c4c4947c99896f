"""Searches indices whose decoded image is nearer to the given one: better codes for more time.

An encoder names the nearest entry of each codebook in turn. Two things do better, and any decoder
reads what they give. A beam search keeps several partial sums of entries (as in additive
quantization, Babenko and Lempitsky 2014), since the nearest first entry is often not part of the
nearest sum. And what is near in the encoder's space is not what the decoder makes look near: a few
steps of gradient descent on the vectors, through decoder and straight-through quantizer, follow the
image itself (as in Campos et al. 2019, arXiv 1905.08482).

What is followed matters: the squared error alone gains the most PSNR, but loses to blur (LPIPS gets
27 % worse at 4 levels). The goal `looks` counts the error of local contrast beside it, which gains
in both.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok import ticks
from vqtok.codec.rate_aware import PricedChoice
from vqtok.errors import UsageError
from vqtok.quantizers import Quantizer

if TYPE_CHECKING:
    from vqtok.integer_prior import IntegerInference

ROWS = 4096  # vectors that a beam is searched for at once
WINDOW, CONTEXT = 32, 6  # cells: of a window that is searched at once, and around it
SEEN = 2  # cells around a window whose pixels its codes answer for, too
GOALS = {"looks": 0.75, "psnr": 0.0}  # weight of the error of contrast beside the squared error
PATCH = 5  # pixels: side of the surroundings whose deviation is a pixel's contrast
PRICES = {"looks": 1.0, "psnr": 1.0}  # of bits in a compact file: see `PricedChoice`
PASSES = 2  # of choosing by price, before any gradient descent
RATE = 0.05  # first step of gradient descent, in standard deviations of the vectors


@dataclass(frozen=True)
class Effort:
    """Limits of the search."""

    width: int  # of the beam; 1 takes the nearest entry of each level
    steps: int  # of gradient descent through the decoder


EFFORTS = (
    Effort(1, 0),
    Effort(2, 0),
    Effort(4, 0),
    Effort(8, 0),
    Effort(4, 4),
    Effort(4, 8),
    Effort(4, 12),
    Effort(4, 16),
    Effort(4, 24),
    Effort(4, 40),
)


def parse_effort(effort: int, goal: str) -> Effort | None:
    """Looks up an effort from 0 to 9; None for 0. UsageError for others, and unknown goals."""
    if goal not in GOALS:
        raise UsageError(f"goal is {goal!r}", f"choose {' or '.join(GOALS)}")
    if not isinstance(effort, int) or effort not in range(len(EFFORTS)):
        raise UsageError(f"effort is {effort!r}", f"choose 0 to {len(EFFORTS) - 1}")
    return EFFORTS[effort] if effort else None


def beam_search(codebooks: Tensor, z: Tensor, width: int) -> Tensor:
    """Searches entries whose sum is near each vector: indices (n, L, h, w), int64, for z (n, D, h,
    w).

    codebooks are (L, K, D). At each level the `width` best partial sums go on.
    """
    n, D, h, w = z.shape
    rows = z.float().permute(0, 2, 3, 1).reshape(-1, D)
    found = [_beam_rows(codebooks, part, width) for part in rows.split(ROWS)]
    return torch.cat(found).reshape(n, h, w, -1).permute(0, 3, 1, 2).contiguous()


def _beam_rows(codebooks: Tensor, vectors: Tensor, width: int) -> Tensor:
    """Returns indices (N, L) for vectors (N, D)."""
    rest = vectors[:, None]  # (N, beam, D): what is left of each after its entries so far
    chosen = torch.empty(len(vectors), 1, 0, dtype=torch.int64, device=vectors.device)
    for codebook in codebooks:
        # (N, beam, K): squared distances
        distances = torch.addmm(
            codebook.square().sum(1), rest.flatten(0, 1), codebook.T, alpha=-2
        ).unflatten(0, rest.shape[:2])
        distances += rest.square().sum(2, keepdim=True)
        flat = distances.flatten(1)
        place = flat.topk(min(width, flat.shape[1]), largest=False).indices  # (N, new beam)
        parent, entry = place // len(codebook), place % len(codebook)
        chosen = torch.cat([_take(chosen, parent), entry[:, :, None]], 2)
        rest = _take(rest, parent) - F.embedding(entry, codebook)
    return chosen[:, 0]  # the nearest sum comes first


def _take(beam: Tensor, parent: Tensor) -> Tensor:
    """Selects the rows (N, new beam, d) of a beam (N, beam, d) that `parent` (N, new beam)
    names.
    """
    return beam.gather(1, parent[:, :, None].expand(-1, -1, beam.shape[2]))


def contrast(images: Tensor) -> Tensor:
    """Computes the deviation of each pixel's surroundings, (n, C, H, W), in the images' own
    units.
    """

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, PATCH, 1, PATCH // 2, count_include_pad=False)

    return (mean((images - mean(images)).square()) + 1e-4).sqrt()


class CodeSearch:
    """Searches indices for vectors with more effort than the quantizer."""

    def __init__(
        self,
        quantizer: Quantizer,
        levels: int,
        effort: Effort,
        goal: str = "looks",
        prior: "IntegerInference | None" = None,
    ) -> None:
        """Searches the first `levels` levels. A beam is of use only to a sum of codebooks.

        With the prior of compact files, indices are chosen by the bits that they take in one, too.
        """
        self.quantizer, self.levels, self.effort = quantizer, levels, effort
        self.contrast = GOALS[goal]
        self.codebooks = (
            quantizer.codebooks()[:levels].float() if effort.width > 1 and levels > 1 else None
        )
        self.priced: PricedChoice | None = None
        if prior is not None and quantizer.levels > 1:
            books = quantizer.codebooks()[:levels].float()
            self.priced = PricedChoice(prior, books, PRICES[goal])

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Returns indices (n, L, h, w) whose vectors are near z (n, D, h, w)."""
        if self.codebooks is None:
            return self.quantizer(z).indices[:, : self.levels]
        return beam_search(self.codebooks, z, self.effort.width)

    def improve(
        self, z: Tensor, images: Tensor, decode: Callable[[Tensor], Tensor], whole: bool
    ) -> Tensor:
        """Returns indices (n, L, h, w) that decode to something nearer to the images.

        z (n, D, h, w) are the encoder's vectors; images (n, C, H, W) in [-1, 1], H and W at most
        h*f and w*f, are what counts; `decode` gives (n, C, h*f, w*f) for vectors and passes the
        gradient. Works on windows of the grid one after the other, or on all of it (`whole`),
        for a network that sees all of it.
        """
        indices = self.nearest(z)
        if not self.effort.steps and self.priced is None:
            return indices
        scale = float(z.std()) or 1.0
        side = max(z.shape[2:]) if whole else WINDOW
        windows = list(_windows(z.shape[2], z.shape[3], side))
        if self.priced is not None:
            self.price = self.priced.price(z, indices)
            for window in windows * PASSES:
                part = z[:, :, *window.cells]
                indices[:, :, *window.cells] = self._choose(window, part, indices)[0]
        if not self.effort.steps:
            return indices
        for done, window in enumerate(windows, 1):
            self._improve(window, indices, z, images, decode, scale)
            ticks.tell(done, len(windows))
        return indices

    def _choose(self, window: "_Window", z: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns indices for vectors z of a window's cells, and what their bits count beside the
        relative error, (n,).
        """
        if self.priced is None:
            return self.nearest(z), z.new_zeros(len(z))
        known = indices[:, :, *window.around]
        found, bits = self.priced.choose(z, known, window.inside, self.price)
        return found, bits * (self.priced.value / math.prod(z.shape[2:]))

    def _improve(
        self,
        window: "_Window",
        indices: Tensor,
        z: Tensor,
        images: Tensor,
        decode: Callable[[Tensor], Tensor],
        scale: float,
    ) -> None:
        """Writes the best indices found for a window; those around it stay as they are."""
        around, inside = window.around, window.inside
        mine = indices[:, :, *window.cells]
        context = self.quantizer.lookup(indices[:, :, *around])
        f = decode(context[:1, :, :1, :1]).shape[-1]
        target = images[:, :, *(slice(s.start * f, s.stop * f) for s in around)]
        seen = [slice(s.start * f, s.stop * f) for s in window.seen]
        vectors = z[:, :, *window.cells].clone().requires_grad_()
        optimizer = torch.optim.Adam([vectors], RATE * scale, betas=(0.9, 0.99))
        best = torch.full((len(z),), math.inf, device=z.device)
        first: list[Tensor] = []  # the errors to begin with, each (n,)
        for step in range(self.effort.steps + 1):
            found, bits = self._choose(window, vectors.detach(), indices)
            quantized = self.quantizer.lookup(found)
            with torch.enable_grad():
                put = context.clone()
                put[:, :, *inside] = vectors + (quantized - vectors).detach()
                shown = decode(put)[:, :, : target.shape[2], : target.shape[3]]
                errors = [(shown - target)[:, :, *seen].square().mean((1, 2, 3))]
                if self.contrast:
                    apart = (contrast(shown) - contrast(target))[:, :, *seen]
                    errors.append(apart.abs().mean((1, 2, 3)))
                first = first or [error.detach().clamp(min=1e-8) for error in errors]
                loss = errors[0] / first[0]  # (n,)
                if self.contrast:
                    loss = loss + self.contrast * errors[1] / first[1]
                loss = loss + bits
                (vectors.grad,) = torch.autograd.grad(loss.sum(), [vectors])
            better = loss.detach() < best
            best = torch.where(better, loss.detach(), best)
            mine[:] = torch.where(better[:, None, None, None], found, mine)
            optimizer.param_groups[0]["lr"] = (
                RATE * scale * (0.5 + 0.5 * math.cos(math.pi * step / (self.effort.steps + 1)))
            )
            optimizer.step()


@dataclass(frozen=True)
class _Window:
    """Rows and columns of a grid, as slices."""

    cells: tuple[slice, slice]  # of the grid: what is searched
    around: tuple[slice, slice]  # of the grid: with what is around it
    inside: tuple[slice, slice]  # of `around`: the cells
    seen: tuple[slice, slice]  # of `around`: the cells and those that they answer for


def _windows(h: int, w: int, side: int) -> Iterator[_Window]:
    for top in range(0, h, side):
        for left in range(0, w, side):
            parts = [_along(top, h, side), _along(left, w, side)]
            yield _Window(*((rows, columns) for rows, columns in zip(*parts, strict=True)))


def _along(start: int, length: int, side: int) -> tuple[slice, slice, slice, slice]:
    """Returns the four slices of a window along one axis."""
    stop = min(start + side, length)
    low, high = max(0, start - CONTEXT), min(length, stop + CONTEXT)
    return (
        slice(start, stop),
        slice(low, high),
        slice(start - low, stop - low),
        slice(max(low, start - SEEN) - low, min(high, stop + SEEN) - low),
    )
