"""Defines the last layer of a prior: from features to a distribution over K codes.

A softmax has a logit for each code and sees no kinship between 99 and 100, which suits a codebook.
Where the codes are gray levels they have an order, and a mixture of logistics knows it (Salimans et
al. 2017, PixelCNN++, arXiv 1701.05517, section 2.1).
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import OUTPUTS, PriorConfig
from vqtok.losses.likelihood import log_bin_probability

# narrower than e^-9 a bin holds all there is, wider than e^9 none; float32 knows the edges of both
LOG_SCALES = (-9.0, 9.0)


class OutputLayer(nn.Linear, ABC):
    """Maps features (N, F) to the distributions of N codes."""

    @abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """Returns logits (..., K) of features (..., F)."""

    @abstractmethod
    def nats(self, features: Tensor, wanted: Tensor) -> Tensor:
        """Computes -ln p in float32 of the codes `wanted` (N,), from features (N, F)."""

    @abstractmethod
    def expand(self, values: Tensor) -> Tensor:
        """Returns logits (..., K) of what the linear layer alone gives."""


class Softmax(OutputLayer):
    """Gives each code a logit."""

    def __init__(self, config: PriorConfig, features: int) -> None:
        super().__init__(features, config.codebook_size)
        nn.init.normal_(self.weight, std=0.02)  # nearly uniform at first: the loss starts at ln K
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def nats(self, features: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(self(features).float(), wanted, reduction="none")

    def expand(self, values: Tensor) -> Tensor:
        return values


class LogisticMixture(OutputLayer):
    """Gives weights, means and scales of a few logistic distributions over the K gray levels, which
    lie evenly in [-1, 1].

    Each level's probability is the density's integral over its bin; the lowest and the highest
    take the tails. The three color channels are levels of the grid here, and each knows those
    below it through the network: the linear coefficients between channels of the paper's
    section 2.2 are not needed.
    """

    def __init__(self, config: PriorConfig, features: int) -> None:
        self.codebook_size, self.mixtures = config.codebook_size, config.mixtures
        super().__init__(features, 3 * config.mixtures)
        nn.init.normal_(self.weight, std=0.02)
        # at first the means stand evenly, each as wide as the distance to the next: nearly uniform
        with torch.no_grad():
            M = self.mixtures
            means = (torch.arange(M) + 0.5) * (2 / M) - 1
            self.bias.copy_(torch.cat([torch.zeros(M), means, torch.full((M,), math.log(1 / M))]))

    def forward(self, input: Tensor) -> Tensor:
        return self.expand(F.linear(input, self.weight, self.bias))

    def nats(self, features: Tensor, wanted: Tensor) -> Tensor:
        return -self._log_probability(F.linear(features, self.weight, self.bias).float(), wanted)

    def expand(self, values: Tensor) -> Tensor:
        """Computes ln p of each of the K gray levels; values are (..., 3M).

        Each edge between two bins is looked at once.
        """
        weights, means, log_scales = values.float()[..., None].chunk(3, dim=-2)  # (..., M, 1)
        half = 1 / (self.codebook_size - 1)
        edges = torch.arange(1, self.codebook_size, device=values.device) * (2 * half) - (1 + half)
        inverse = torch.exp(-log_scales.clamp(*LOG_SCALES))
        scaled = (edges - means) * inverse  # (..., M, K-1)
        below = F.logsigmoid(scaled)  # of the mass below each edge
        above = below - scaled  # and above it: log sigmoid(-x) = log sigmoid(x) - x
        within = torch.log(-torch.expm1(-2 * half * inverse))
        each = torch.cat(
            [below[..., :1], below[..., 1:] + above[..., :-1] + within, above[..., -1:]], dim=-1
        )  # (..., M, K)
        return torch.logsumexp(weights.log_softmax(-2) + each, dim=-2)

    def _log_probability(self, values: Tensor, wanted: Tensor) -> Tensor:
        """Computes ln p of gray levels (N,) under values (N, 3M); leading axes broadcast."""
        weights, means, log_scales = values.chunk(3, dim=-1)  # (..., M)
        half = 1 / (self.codebook_size - 1)  # of a bin in [-1, 1]
        level = wanted[..., None]
        inverse = torch.exp(-log_scales.clamp(*LOG_SCALES))
        centered = level * (2 * half) - 1 - means
        lowest, highest = level == 0, level == self.codebook_size - 1
        each = log_bin_probability(centered, inverse, half, lowest, highest)
        return torch.logsumexp(weights.log_softmax(-1) + each, dim=-1)


def build_output(config: PriorConfig, features: int) -> OutputLayer:
    """Builds the output layer that a prior's config names."""
    return OUTPUTS[config.output].load()(config, features)
