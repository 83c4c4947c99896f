"""Shuffled, cropped batches in which every batch is a pure function of its step:
resuming needs the step and nothing else.
"""

import os
import threading
from collections.abc import Generator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from vqtok.data import counter_rng
from vqtok.data.dataset import Dataset, ImageFiles, convert_channels
from vqtok.data.decoded_cache import DecodedCache, cache_budget
from vqtok.errors import InputError

_SPLIT, _SHUFFLE, _SCALE, _TOP, _LEFT, _FLIP, _REPLACE = range(1, 8)  # streams of random numbers
# random replacements for an unreadable image: all bad by chance in < 1e-4 runs where 90 % are
_TRIES = 100


class Batch(NamedTuple):
    """pixels uint8 (B, C, size, size); labels int64 (B,), -1 where there are none."""

    pixels: np.ndarray
    labels: np.ndarray


@runtime_checkable
class OneSize(Protocol):
    """A data set that can give many images at once, because all have the same size."""

    @property
    def size(self) -> tuple[int, int]: ...

    def images(self, indices: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class Copies(Protocol):
    """A data set that may hold several copies of an image: crops, mirror images."""

    @property
    def sources(self) -> np.ndarray:
        """Returns int64 (N,): the number of the image that each entry was made of, from 0."""
        ...


def split_indices(
    dataset: Sized, part: float, maximum: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (training, validation) indices, each int64 and sorted; the same for the same data,
    part, maximum and seed.

    Validation gets `part` of the images, at most `maximum`, at least one when part > 0.
    A data set of one image is both: there is nothing to set aside.
    Where there are several copies of images (`Copies`), images are split, not copies: validation
    gets the first copy of each of its images, and training none of theirs.
    """
    n = len(dataset)
    if isinstance(dataset, Copies) and (different := int(dataset.sources.max()) + 1) < n:
        aside = _draw_aside(different, part, maximum, seed)
        return _split_by_source(dataset.sources, aside)
    aside = _draw_aside(n, part, maximum, seed)
    if n == 1:
        return np.zeros(1, np.int64), aside
    return np.setdiff1d(np.arange(n), aside), aside


def _draw_aside(n: int, part: float, maximum: int, seed: int) -> np.ndarray:
    """Returns which of n images are for validation, int64, sorted; image 0 where it is alone."""
    if n == 1:
        return np.zeros(1, np.int64)
    wanted = min(max(round(n * part), 1), maximum, n - 1) if part > 0 else 0
    return np.sort(counter_rng.permutation(seed, _SPLIT, n)[:wanted])


def _split_by_source(sources: np.ndarray, aside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (training, validation) indices where the source images `aside` are for validation."""
    firsts = np.unique(sources, return_index=True)[1]
    if len(firsts) == 1:
        return np.arange(len(sources)), firsts
    return np.flatnonzero(~np.isin(sources, aside)), np.sort(firsts[aside])


class Batches:
    """Random crops of the images `indices` of a data set, shuffled anew in each epoch.

    Position p = step * batch + j lies in epoch p // N and shows the image that the epoch's
    permutation has at p % N. Scale, place and flip are drawn from (seed, p). A crop is taken from
    the image shrunk by a factor between `min_scale` and 1; an image whose short side is less
    than `size` is enlarged until it fits. An image that cannot be read is replaced by another one,
    chosen by (seed, p) too, and counted in `dataset.skipped`. Of `count` processes, number `rank`
    gets the positions with j % count == rank: `share` is (rank, count).

    Decoded files stay in memory up to `keep` bytes (by default an eighth of the machine's memory, 4
    GiB at most). A JPEG whose crop is shrunk to half or less is decoded at 1/2, 1/4 or 1/8: which,
    (seed, p) gives, so what is in memory changes no batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: np.ndarray,
        batch: int,
        size: int,
        seed: int = 0,
        flip: bool = False,
        min_scale: float = 1.0,
        channels: int = 3,
        share: tuple[int, int] = (0, 1),
        keep: int | None = None,
    ) -> None:
        assert batch % share[1] == 0
        assert min(len(indices), batch, size) > 0
        assert 0 < min_scale <= 1
        assert channels in (1, 3)
        self.dataset, self.indices = dataset, np.asarray(indices, np.int64)
        self.size, self.min_scale = size, min_scale
        self._batch, self._seed, self._share = batch, seed, share
        self._flip, self._channels = flip, channels
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self._kept = DecodedCache(cache_budget() if keep is None else keep)

    def batch(self, step: int) -> Batch:
        """Makes batch number `step`, from 0 without end. Safe to call from several threads."""
        positions = self.positions(step)
        chosen = self.indices[self._choose(positions)]
        if isinstance(self.dataset, OneSize) and self.dataset.size == (self.size, self.size):
            pixels = convert_channels(self.dataset.images(chosen), self._channels)
        else:
            factors, down, across = self.draws(positions)
            drawn = zip(chosen, positions, factors, down, across, strict=True)
            pairs = [
                self._crop(int(index), int(p), float(f), float(y), float(x))
                for index, p, f, y, x in drawn
            ]
            chosen, pixels = (
                np.array([index for index, _ in pairs]),
                np.stack([crop for _, crop in pairs]),
            )
        if self._flip:
            mirrored = self.mirrored(positions)
            pixels[mirrored] = pixels[mirrored, :, ::-1]
        labels = np.array([self.dataset.label(int(index)) for index in chosen], np.int64)
        # (B, C, size, size)
        return Batch(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels)

    def prefetch(
        self, start: int, stop: int | None = None, workers: int | None = None
    ) -> Generator[Batch, None, None]:
        """Yields batches start, start + 1, ... up to stop, in order, made ahead of time by threads,
        which end when it is closed.

        There are as many as processors, up to 16:
        one reads some 300 photographs a second, and a GPU wants thousands.
        """
        workers = workers or max(2, min(16, os.cpu_count() or 2))
        pool = ThreadPoolExecutor(workers, thread_name_prefix="vqtok-data")
        waiting: list[Future[Batch]] = []
        step = start
        try:
            while True:
                while len(waiting) < 2 * workers and (stop is None or step < stop):
                    waiting.append(pool.submit(self.batch, step))
                    step += 1
                if not waiting:
                    return
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def positions(self, step: int) -> np.ndarray:
        """Returns the positions of a step's batch that are this process's."""
        rank, count = self._share
        return np.arange(step * self._batch + rank, (step + 1) * self._batch, count)

    def draws(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws by how much each image is shrunk, and where its crop lies along both axes, from 0
        to 1: float64 of that shape.
        """
        scale, top, left = (
            counter_rng.uniform(self._seed, stream, positions) for stream in (_SCALE, _TOP, _LEFT)
        )
        return self.min_scale + (1 - self.min_scale) * scale, top, left

    def mirrored(self, positions: np.ndarray) -> np.ndarray:
        """Draws which crops are mirrored, bool."""
        drawn = counter_rng.bits(self._seed, _FLIP, positions) >> np.uint64(63) == 1
        return drawn if self._flip else np.zeros_like(drawn)

    def boxes(
        self, factor: Any, down: Any, across: Any, H: Any, W: Any, reduced: int = 1
    ) -> tuple[Any, Any, Any]:
        """Returns top, left and side of the squares that become crops, of images H x W: floats, or
        arrays of one shape, by what `draws` gives.

        `reduced`: how many pixels of the file one of the image stands for along each axis.
        A square of the crop's own size lies on whole pixels: it is copied.
        """
        side = np.minimum(self.size / factor / reduced, np.minimum(H, W))
        copied = side == self.size
        top = np.where(copied, np.floor(down * (H - side + 1)), down * (H - side))
        left = np.where(copied, np.floor(across * (W - side + 1)), across * (W - side))
        return top, left, side

    def images(self, positions: np.ndarray, readable: np.ndarray) -> np.ndarray:
        """Returns the position in `indices` of the image at each position; `readable` (N,) says
        whose file can be read, others are replaced.
        """
        chosen = self._choose(positions)
        for number in np.flatnonzero(~readable[chosen]):
            position, attempt = int(positions[number]), 0
            while not readable[chosen[number]]:
                chosen[number], attempt = self._replacement(position, attempt), attempt + 1
        return chosen

    def _choose(self, positions: np.ndarray) -> np.ndarray:
        """Returns the position in `indices` of the image at each position; a batch may span
        epochs.
        """
        N = len(self.indices)
        epochs = positions // N
        chosen = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = self._order(int(epoch))[positions[here] % N]
        return chosen

    def _replacement(self, position: int, attempt: int) -> int:
        """Returns the position in `indices` of another image for a position whose own cannot be
        read.
        """
        if attempt == _TRIES:
            raise InputError(
                f"{self.dataset.skipped} of {len(self.dataset)} images in "
                f"{self.dataset.name} cannot be read",
                "check that the files are whole and are images",
            )
        draw = counter_rng.bits(self._seed, _REPLACE + (attempt << 8), np.array([position]))[0]
        return int(draw) % len(self.indices)

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                # prefetching looks at two epochs at most, unless they are tiny
                if len(self._orders) >= 4:
                    self._orders.pop(next(iter(self._orders)))
                self._orders[epoch] = counter_rng.permutation(
                    self._seed, _SHUFFLE + (epoch << 8), len(self.indices)
                )
            return self._orders[epoch]

    def _crop(
        self, index: int, position: int, factor: float, down: float, across: float
    ) -> tuple[int, np.ndarray]:
        """Returns (index used, uint8 (size, size, C))."""
        index, image, reduced = self._read(
            index, position, next(d for d in (8, 4, 2, 1) if factor * d <= 1)
        )
        H, W = image.shape[:2]
        top, left, side = (
            float(number) for number in self.boxes(factor, down, across, H, W, reduced)
        )
        if side == self.size:
            y, x = int(top), int(left)
            return index, image[y : y + self.size, x : x + self.size]
        return index, _resize(image, self.size, (left, top, left + side, top + side))

    def _read(self, index: int, position: int, shrink: int) -> tuple[int, np.ndarray, int]:
        """Reads (index used, uint8 (H, W, C), how many of the file's pixels became one along each
        axis: at most `shrink`).
        """
        attempt = 0
        while True:
            try:
                return index, *self._decoded(index, shrink)
            except InputError:
                index = int(self.indices[self._replacement(position, attempt)])
                attempt += 1

    def _decoded(self, index: int, shrink: int) -> tuple[np.ndarray, int]:
        if not isinstance(self.dataset, ImageFiles):
            return convert_channels(self.dataset.image(index), self._channels), 1
        found = self._kept.get((index, shrink))
        if found is None:
            pixels, reduced = self.dataset.reduced(index, shrink, self.size)
            found = convert_channels(pixels, self._channels), reduced
            self._kept.put((index, shrink), found)
        return found


def _resize(pixels: np.ndarray, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """Resizes the part `box` (left, top, right, bottom; fractions of pixels allowed) of an image to
    uint8 (size, size, C).
    """
    C = pixels.shape[2]
    image = Image.fromarray(np.ascontiguousarray(pixels if C == 3 else pixels[..., 0]))
    small = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    return np.asarray(small).reshape(size, size, C)
