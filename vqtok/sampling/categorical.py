"""Draws an index from logits and a uniform number."""

import numpy as np
import torch
from torch import Tensor

BELOW_ONE = 1 - float(np.finfo(np.float64).eps)


def sample_categorical(
    logits: Tensor,
    uniform: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Draws one index (n,) for each row of logits (n, K): the one where its uniform number (n,)
    falls in the cumulative distribution.
    """
    if temperature == 0 or top_k == 1:
        return logits.argmax(1)
    # the largest is 0: no overflow
    logits = (logits - logits.amax(1, keepdim=True)).to(uniform.dtype) / temperature
    order = None
    if top_k is not None and top_k < logits.shape[1]:
        logits, order = logits.topk(top_k, dim=1)
    elif top_p is not None and top_p < 1:
        logits, order = logits.sort(dim=1, descending=True, stable=True)
    odds = logits.softmax(1)
    if top_p is not None and top_p < 1:
        # what comes before falls short of top_p: the first always stays
        odds = odds * (odds.cumsum(1) - odds < top_p)
    reached = odds.cumsum(1)
    # 1 would reach past the last with odds
    below_one = uniform[:, None].clamp(max=1 - torch.finfo(uniform.dtype).eps)
    position = torch.searchsorted(reached, below_one * reached[:, -1:], right=True)
    return (position if order is None else order.gather(1, position)).squeeze(1)


def sample_categorical_numpy(
    logits: np.ndarray, uniform: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """Draws as `sample_categorical`, on NumPy arrays, without top_k and top_p: 6 us for one row of
    512, where torch takes 22.
    """
    if temperature == 0:
        return logits.argmax(1)
    if len(logits) == 1:
        logits, uniform = logits[0], uniform[0]  # a row alone: a third less time
    # the largest is 0: no overflow
    odds = (logits - logits.max(-1, keepdims=True)).astype(np.float64)
    if temperature != 1:
        with np.errstate(over="ignore"):  # at 1e-320 all but the largest become -inf
            odds /= temperature
    reached = np.add.accumulate(np.exp(odds, odds), -1)
    if reached.ndim == 1:
        return np.array([reached.searchsorted(min(uniform, BELOW_ONE) * reached[-1], "right")])
    border = np.minimum(uniform, BELOW_ONE) * reached[:, -1]
    return (reached <= border[:, None]).sum(1)
