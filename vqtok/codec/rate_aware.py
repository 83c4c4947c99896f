"""Chooses indices by what they cost in a compact file, too: distance plus price times bits.

The integer prior makes some indices cheap: of two entries that are about as near, the one that it
expects takes several bits less. Each level weighs the distance that is left against the bits so far
(rate-distortion optimized quantization; the beam is that of `effort.beam_search`). A place's
neighbors count as they were chosen before, its own levels as the beam has them; so a second pass
gains a little more. Of the bits that a choice makes its neighbors take nothing is known here.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from vqtok.integer_prior import IntegerInference
    from vqtok.integer_prior.inference import ContextSums

ROWS = 2048  # places of the beam that go through the prior at once
WIDTH = 4  # of the beam


class PricedChoice:
    """Chooses indices near vectors that the integer prior codes in few bits."""

    def __init__(self, prior: "IntegerInference", codebooks: Tensor, factor: float) -> None:
        """Takes codebooks (L, K, D) of the first levels.

        A price of `factor` 1 is what a bit is worth where error falls by a factor 2^(-2 / D) a
        bit, as it does for D independent dimensions at a high rate.
        """
        self.prior, self.codebooks = prior, codebooks.cpu().numpy()
        self.squares = np.square(self.codebooks).sum(2)
        self.value = factor * 2 * math.log(2) / codebooks.shape[2]  # of a bit, in error / error

    def price(self, z: Tensor, indices: Tensor) -> float:
        """Returns what a bit is worth in squared distance, where `indices` (n, L, h, w) were chosen
        for vectors (n, D, h, w).
        """
        return self.value * float(np.square(self._left(_rows(z), indices)).sum(1).mean())

    def choose(
        self, z: Tensor, known: Tensor, inside: Sequence[slice], price: float
    ) -> tuple[Tensor, Tensor]:
        """Returns indices (n, L, h, w) for vectors z (n, D, h, w), and the bits an image (n,) that
        they take.

        `known` (n, L, ...) are the indices so far of these places and of those around them, among
        which `inside` tells their rows and columns.
        """
        rows, (n, _, h, w) = _rows(z), z.shape
        given = known.cpu().numpy()
        levels = given.shape[1]
        sums = self.prior.context(given)
        left = rows[:, None]  # (N, beam, D): what is left of each vector
        own = np.zeros((len(rows), 1, sums.table.shape[-1]), sums.table.dtype)
        bits = np.zeros((len(rows), 1), np.float32)
        chosen = np.zeros((len(rows), 1, 0), np.int64)
        for level in range(levels):
            inputs = self._seen(sums, level, inside)
            spent = bits[:, :, None] + self._bits(level, inputs, own)  # (N, beam, K)
            score = left @ self.codebooks[level].T
            score *= -2
            score += self.squares[level] + np.square(left).sum(2, keepdims=True) + price * spent
            flat = score.reshape(len(rows), -1)
            best = np.argpartition(flat, min(WIDTH, flat.shape[1]) - 1, 1)[:, :WIDTH]
            best = np.take_along_axis(best, np.take_along_axis(flat, best, 1).argsort(1), 1)
            parent, entry = np.divmod(best, score.shape[2])
            each = np.arange(len(rows))[:, None]
            left = left[each, parent] - self.codebooks[level][entry]
            own = own[each, parent] + sums.table[level][entry]
            bits = spent[each, parent, entry]
            chosen = np.concatenate([chosen[each, parent], entry[:, :, None]], 2)
        found = torch.from_numpy(chosen[:, 0]).to(z.device).reshape(n, h, w, levels)
        total = torch.from_numpy(bits[:, 0]).to(z.device).reshape(n, -1).sum(1)
        return found.permute(0, 3, 1, 2), total

    def _seen(self, sums: "ContextSums", level: int, inside: Sequence[slice]) -> np.ndarray:
        """Returns what the prior sees at each place inside, (N, positions * E)."""
        sides = [part.stop - part.start for part in inside]
        places = np.indices(sides).reshape(2, -1)
        places += np.array([part.start for part in inside])[:, None]
        step = np.concatenate([np.full((1, places.shape[1]), level), places])
        return sums.seen(step)

    def _bits(self, level: int, inputs: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Computes the bits of each index (N, beam, K), for embeddings `own` (N, beam, E) of the
        levels below at the place itself.
        """
        near, (n, beam, E) = self.prior.neighborhood, own.shape
        center = E * (len(near.causal) + near.around.index((0,) * len(near.around[0])))
        found = np.empty((n, beam, self.codebooks.shape[1]), np.float32)
        for start in range(0, n, ROWS // beam):
            part = slice(start, start + ROWS // beam)
            rows = inputs[part].repeat(beam, axis=0)
            rows[:, center : center + E] = own[part].reshape(-1, E)
            found[part] = self.prior.costs(rows, level).reshape(-1, *found.shape[1:])
        return found

    def _left(self, rows: np.ndarray, indices: Tensor) -> np.ndarray:
        """Returns what is left of vectors (N, D) after their indices (n, L, h, w)."""
        each = indices.permute(1, 0, 2, 3).flatten(1).cpu().numpy()  # (L, N)
        parts = [self.codebooks[level][part] for level, part in enumerate(each)]
        return rows - np.sum(parts, 0)


def _rows(z: Tensor) -> np.ndarray:
    """Turns vectors (n, D, h, w) to rows (n * h * w, D)."""
    return z.detach().float().permute(0, 2, 3, 1).flatten(0, 2).cpu().numpy()
