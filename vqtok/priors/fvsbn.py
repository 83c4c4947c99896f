"""Defines a fully visible sigmoid belief network over index grids: the plainest autoregressive
model, without any hidden unit.

In the original every binary place is a logistic regression on all places before it (Neal 1992;
Frey, Hinton and Dayan 1996). Here a place holds one of K codes, so that the logistic becomes a
softmax (or a mixture of logistics, `outputs`), and a pair of places would need K x K weights. They
are factored: a code is embedded in E dimensions, each pair of places has E x E weights, and the
last layer reads all K out of E. At K = 2 that is the original, for any E. A place has weights of
its own, so that one network knows grids of one size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import PriorConfig
from vqtok.errors import UsageError
from vqtok.priors.base import Prior, offset

PLACE = 16  # dimensions that a place has to itself, for what it holds whatever came before
WEIGHTS = 2**24  # of all pairs of places, where E is to be chosen: 64 MiB
PLACES = 8192  # more, and one dimension alone takes 256 MiB


class FVSBN(Prior):
    """Predicts each position's code by a regression on those of all positions before it, level by
    level and in raster order.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        L, K, self.size = config.levels, config.codebook_size, config.rows * config.columns
        T = L * self.size
        if not 1 <= T <= PLACES:
            fix = "choose smaller grids (--set data.prior_size=32), or another --prior"
            raise UsageError(
                "fvsbn has a weight for each pair of places, "
                f"and this grid has {T}, outside [1, {PLACES}]",
                fix,
            )
        self.width = E = max(1, min(config.width, math.isqrt(WEIGHTS) // T))
        self.embedding = nn.Embedding(L * K, E)
        # [e, t, e', t']: from place t, which comes before, to place t'
        self.pairs = nn.Parameter(torch.zeros(E, T, E, T))
        self.bias = nn.Parameter(torch.zeros(E, T))
        self.place = nn.Parameter(0.1 * torch.randn(T, PLACE))
        self.label = nn.Embedding(len(config.labels) + 1, E * T) if config.labels else None
        self.readout = self._readouts(E + PLACE)
        # the first dimension starts as the code's number:
        # all there is at K = 2, and right for gray levels
        with torch.no_grad():
            self.embedding.weight[:, 0] = torch.linspace(-1, 1, K).repeat(L)

    def fits(self, h: int, w: int) -> bool:
        return (h, w) == (self.config.rows, self.config.columns)

    def hidden(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns features (B, L, h, w, E + PLACE)."""
        B, L, h, w = indices.shape
        assert self.fits(h, w), f"grids of {h}x{w} for {self.config.rows}x{self.config.columns}"
        T = L * self.size
        # (B, E, T)
        embedded = F.dropout(self.embedded(indices), self.config.dropout, self.training)
        # [t, t']: t comes before t'
        before = torch.ones(T, T, dtype=torch.bool, device=indices.device).triu(1)
        pairs = (self.pairs[:, :T, :, :T] * before[:, None]).flatten(0, 1).flatten(1)  # (E*T, E*T)
        start = self.initial_sums(self.label_rows(labels, B, indices.device), T)
        sums = (embedded.flatten(1) @ pairs).unflatten(1, (-1, T)) + start  # (B, E, T)
        return self.features(sums, 0, T).view(B, L, h, w, -1)

    def embedded(self, indices: Tensor) -> Tensor:
        """Embeds (B, L, h, w) to (B, E, T)."""
        return (
            self.embedding(offset(indices, self.config.codebook_size)).flatten(1, 3).transpose(1, 2)
        )

    def initial_sums(self, rows: Tensor | None, T: int) -> Tensor:
        """Returns what the sums of the first T positions start from: (E, T), or with labels (B, E,
        T).
        """
        bias = self.bias[:, :T]
        return (
            bias
            if self.label is None or rows is None
            else bias + self.label(rows).unflatten(1, self.bias.shape)[..., :T]
        )

    def features(self, sums: Tensor, first: int, last: int) -> Tensor:
        """Returns (B, T', E + PLACE) of the sums (B, E, T') of the positions from first to last."""
        position = self.place[first:last].expand(len(sums), -1, -1)
        return torch.cat([sums.transpose(1, 2), position.to(sums.dtype)], dim=2)
