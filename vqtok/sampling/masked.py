"""The sampler of the masked transformer: all places of a level in a few steps.

In each step every hidden place is drawn, and those whose draws the network finds likeliest become
known (Chang et al. 2022, arXiv 2202.04200, section 3.2): few at first, while little is known, then
more. What was known at the start stays.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vqtok.priors.masked import MaskedTransformer
from vqtok.sampling.base import Draws, ParallelSampler

STEPS = 10
# Of the noise on the confidence at the first step; it falls evenly to 0. Without it the likeliest
# places always come first, and images become plain.
NOISE = 4.5


class MaskedSampler(ParallelSampler[MaskedTransformer]):
    def fill_level(
        self,
        level: int,
        indices: Tensor,
        unknown: Tensor,
        draws: Draws,
        tick: Callable[[], None],
    ) -> None:
        grid = indices[:, level].flatten(1)  # (n, h*w)
        masked = unknown.to(grid.device).view(grid.shape).clone()
        wanted, ticks = masked.sum(1), 0
        chances, noise = draws.chances.flatten(), _gumbel(draws.order).view(grid.shape)
        for step in range(1, STEPS + 1):
            if bool(masked.any()):
                logits = self._logits(level, indices, masked.view(-1, self.h, self.w), draws)
                drawn = draws.draw(logits, chances)
                odds = logits.log_softmax(-1).gather(1, drawn[:, None]).view(grid.shape)
                if not draws.greedy:
                    odds = odds + NOISE * (1 - step / STEPS) * noise
                left = (wanted * math.cos(math.pi / 2 * step / STEPS)).floor()
                chosen = surest(odds, masked, left if step < STEPS else torch.zeros_like(wanted))
                grid = torch.where(chosen, drawn.view(grid.shape), grid)
                indices[:, level] = grid.view(-1, self.h, self.w)
                masked &= ~chosen
            while ticks < step * self.h // STEPS:
                tick()
                ticks += 1

    def _logits(self, level: int, indices: Tensor, masked: Tensor, draws: Draws) -> Tensor:
        """Computes (n*h*w, K) for all places of one level, masked (n, h, w) hidden."""
        n, below = len(indices), indices[:, : level + 1]
        hidden = torch.zeros_like(below, dtype=torch.bool)
        hidden[:, level] = masked
        both = 1 if draws.guidance is None else 2
        below, hidden = below.repeat(both, 1, 1, 1), hidden.repeat(both, 1, 1, 1)
        labels = None if self.rows is None else self.rows - 1
        features = self.prior.hidden(below, labels, hidden)[:, level]
        logits = self.prior.output(level)(features).flatten(0, 2)
        if draws.guidance is None:
            return logits
        with_label, without = logits.view(2, n * self.h * self.w, -1)
        return without + draws.guidance * (with_label - without)


def surest(odds: Tensor, masked: Tensor, left: Tensor) -> Tensor:
    """Chooses the masked places (n, T) with the highest odds, so that `left` (n,) of each row stay
    masked; one at least where any is masked.
    """
    count = masked.sum(1)
    wanted = (count - left).clamp(min=1).minimum(count)
    order = odds.masked_fill(~masked, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return masked & (rank < wanted[:, None])


def _gumbel(uniform: Tensor) -> Tensor:
    return -(-uniform.clamp(min=1e-12).log()).clamp(min=1e-12).log()
