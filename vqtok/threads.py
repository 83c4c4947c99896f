"""How many threads PyTorch's operations take."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


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
