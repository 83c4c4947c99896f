"""How many threads PyTorch's operations take."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

_SMALL_STEP = 2e9  # parameters times places


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Limits torch to one thread in the `with` block if `wanted`: for products too small to share.

    Two threads on two busy cores waited for each other at every call:
    16 ms a sampled place at n = 1, where one thread took 1.2.
    """
    with threads(1) if wanted else nullcontext():
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Makes the operations that this thread of Python starts take so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_small(network: nn.Module, places: int) -> bool:
    """Whether a training step of a prior, over that many places of grids, is too small to share.

    Of a PixelCNN and grids of 8x8 in batches of 32, on two idle cores: .079 s a step by one thread
    and .105 by two for 0.6 M parameters, .166 and .152 for 1.3 M.
    """
    return sum(parameter.numel() for parameter in network.parameters()) * places < _SMALL_STEP
