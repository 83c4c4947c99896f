"""Works on several images at a time on a CPU, each on threads of its own.

Threads that share one image wait for each other in every convolution, and for whatever reads and
writes files on a core of theirs. Images apart from each other wait for nothing.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

import torch

from vqtok.codec.model import Model
from vqtok.networks.streaming import stream
from vqtok.prefetch import in_parallel
from vqtok.threads import threads

T = TypeVar("T")
R = TypeVar("R")
AT_MOST = 8  # images at a time: each takes up to 32 MiB beside its pixels
FEWEST = 4  # images for which it is worth it
LARGE = 2**22  # pixels of an image that takes all threads, and of which there is one at a time
_CHECKED = (256, 384)  # rows and columns of the image of noise that is compared


class Several:
    """Says how many images are worked on at a time, and does it."""

    def __init__(self, model: Model, images: int) -> None:
        """`images` is how many there are in all."""
        self.all_threads = torch.get_num_threads()
        apart = model.device.type == "cpu" and model.works_in_parts and images >= FEWEST
        self.count = min(self.all_threads, AT_MOST, images) if apart else 1
        self._large = threading.RLock()

    @property
    def threads(self) -> int:
        """Returns how many threads each image has."""
        return self.all_threads // self.count

    def check(self, model: Model) -> None:
        """Goes back to one image at a time where the encoder's numbers depend on the number of
        threads: an image has equal indices alone and beside others.
        """
        if self.count == 1 or model.config.is_pixels:
            return
        f, draw = model.config.downsample, torch.Generator().manual_seed(0)
        size = [-(-side // f) * f for side in _CHECKED]
        noise = torch.rand(1, model.config.channels, *size, generator=draw) * 2 - 1
        found = []
        for count in (self.threads, self.all_threads):
            with torch.inference_mode(), threads(count):
                parts = [noise.contiguous(memory_format=torch.channels_last)]
                found.append(torch.cat(list(stream(model.encoder, parts, 2, size[0])), 2))
        if not torch.equal(*found):
            self.count = 1

    def run(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, Future[R]]]:
        """Yields each item with what `work` makes of it, in order."""
        with threads(self.threads):
            yield from in_parallel(work, items, self.count)

    @contextmanager
    def room(self, pixels: int) -> Iterator[None]:
        """Waits until an image of that size may be read and worked on."""
        if pixels <= LARGE or self.count == 1:
            yield
            return
        with self._large, threads(self.all_threads):
            yield
