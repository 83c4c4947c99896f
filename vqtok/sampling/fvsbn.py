"""The sampler of the belief network: it keeps sums over the positions that are known."""

import torch.nn.functional as F
from torch import Tensor

from vqtok.priors.fvsbn import FVSBN
from vqtok.sampling.base import Sampler


class FVSBNSampler(Sampler[FVSBN]):
    def start_level(self, level: int, indices: Tensor) -> "FVSBNCursor":
        return FVSBNCursor(self.prior, level, self.rows, indices)


class FVSBNCursor:
    """A `Cursor` that keeps, for all positions of its level, the sums over those that are known."""

    def __init__(self, prior: FVSBN, level: int, rows: Tensor | None, indices: Tensor) -> None:
        self.prior, self.w = prior, prior.config.columns
        self.first, last = level * prior.size, (level + 1) * prior.size
        K = prior.config.codebook_size
        self.table = prior.embedding.weight[level * K : (level + 1) * K]  # (K, E)
        # within the level; [t, t'] asked with t < t'
        self.pairs = prior.pairs[:, self.first : last, :, self.first : last]
        below = prior.embedded(indices[:, :level]).flatten(1)  # (n, E*first)
        start = prior.initial_sums(rows, last)[..., self.first :]
        from_below = below @ prior.pairs[:, : self.first, :, self.first : last].flatten(
            0, 1
        ).flatten(1)
        # (n, E, h*w): of the rows above
        self.sums = from_below.unflatten(1, (prior.width, prior.size)) + start
        self.row = self.sums[..., : self.w]  # (n, E, w): and of this one
        self.features = self.row  # of the position, (n, E + PLACE)
        self.i = self.j = -1

    def next_row(self, above: Tensor | None) -> None:
        self.i, self.j = self.i + 1, -1
        start = self.i * self.w
        if above is not None:
            embedded = F.embedding(above, self.table).transpose(1, 2).flatten(1)  # (n, E*w)
            pairs = self.pairs[:, start - self.w : start, :, start:]
            self.sums[..., start:] += (embedded @ pairs.flatten(0, 1).flatten(1)).unflatten(
                1, (self.prior.width, -1)
            )
        self.row = self.sums[..., start : start + self.w].clone()

    def next_column(self, left: Tensor | None) -> None:
        self.j += 1
        here, end = self.i * self.w + self.j, (self.i + 1) * self.w
        if left is not None:
            pairs = self.pairs[:, here - 1, :, here:end].flatten(1)  # (E, E*(w-j))
            self.row[..., self.j :] += (F.embedding(left, self.table) @ pairs).unflatten(
                1, (self.prior.width, -1)
            )
        position = self.first + here
        sums = self.row[..., self.j : self.j + 1]
        self.features = self.prior.features(sums, position, position + 1)[:, 0]

    def logits(self) -> Tensor:
        return self.prior.output(self.first // self.prior.size)(self.features)
