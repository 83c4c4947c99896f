"""Reads the images of a source as sequences: one by its place, a batch, or all in a drawn order."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from vqtok import codes
from vqtok.data import counter_rng
from vqtok.errors import UsageError
from vqtok.tokens.layout import Layout, Order, Vocabulary
from vqtok.tokens.sources import (
    Chunk,
    Fields,
    Grid,
    GridSource,
    Item,
    Loaded,
    read_fields,
    split_of,
)

OPEN_CHUNKS = 64  # that reading by number keeps: each takes a file handle
POOL = 1 << 25  # indices that are shuffled together: 64 MB as uint16
BATCH = 1 << 21  # indices that become sequences at once
_CHUNKS, _IMAGES, _WINDOWS = range(0x7E00, 0x7E03)  # streams of random numbers


@dataclass(frozen=True)
class Batch:
    """Sequences one after another."""

    tokens: np.ndarray  # (sum of lengths,), of the vocabulary's dtype
    lengths: np.ndarray  # int64 (n,)
    grids: np.ndarray  # int64 (n, 2): h, w
    images: list[tuple[int, int]]  # chunk, and number in it

    @property
    def rows(self) -> list[np.ndarray]:
        """Returns the sequences (T,), one an image."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1])


class SequenceReader:
    """The token sequences of a source's images, by number."""

    def __init__(
        self,
        source: GridSource,
        order: Order = "raster",
        offset: bool = False,
        bos: bool = False,
        eol: bool = False,
        eos: bool = False,
        class_tokens: bool = False,
        window: int | tuple[int, int] | None = None,
        split: str | None = None,
    ) -> None:
        """Selects and lays out what is read. `window` (h, w) cuts each grid to one size, and leaves
        out those that are smaller: here from its center, in a stream at a random position. `split`
        takes the images of that split only.

        UsageError where class tokens are asked for and the images have no classes, where no image
        is of that split, or where none is as large as the window. FormatError, InputError.
        """
        self.source, self.split = source, split
        self.window = (window, window) if isinstance(window, int) else window
        if self.window is not None and min(self.window) < 1:
            raise UsageError("a window has at least one row and one column", "give a larger one")
        classes = 0
        if class_tokens:
            classes = len(self.fields.labels)
            if not classes:
                raise UsageError(
                    "class tokens need classes, and these images have none",
                    "encode images that have labels (a folder for each class, or .cls members), "
                    "or leave the class tokens out",
                )
        K, L = source.origin.codebook_size, source.origin.levels
        self.vocabulary = Vocabulary.make(K, L, offset, bos, eol, eos, classes)
        self.layout = Layout(self.vocabulary, order)
        if split is not None and split not in self.fields.splits:
            there = " and ".join(self.fields.splits)
            raise UsageError(
                f"no image is of the split {split!r}",
                f"choose {there}" if there else "leave the split out: these images have none",
            )
        self._ends = list(accumulate(len(self.kept(i)) for i in range(len(source.chunks))))
        if not len(self):
            raise UsageError(
                "there is no image to make a sequence of"
                + (
                    ""
                    if self.window is None
                    else f" with at least {self.window[0]} rows and {self.window[1]} columns"
                ),
                "choose a smaller window, or another split",
            )
        self._open: OrderedDict[int, Loaded] = OrderedDict()
        self._known: OrderedDict[int, list[Item]] = OrderedDict()
        self._may_open = OPEN_CHUNKS

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> np.ndarray:
        """Returns the sequence int64 (T,) of an image."""
        chunk, image = self._at(number)
        return self.sequence(chunk, image)[0].astype(np.int64)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out open files: a worker of a DataLoader opens its own."""
        return self.__dict__ | {"_open": OrderedDict(), "_known": OrderedDict()}

    @cached_property
    def fields(self) -> Fields:
        """Returns which labels, captions and splits there are. Reads the names of all images."""
        return read_fields(self.source)

    def kept(self, chunk: int) -> "np.ndarray | range":
        """Returns the numbers of a chunk's images that become sequences."""
        return (
            self._kept[chunk] if self._kept is not None else range(self.source.chunks[chunk].images)
        )

    @cached_property
    def _kept(self) -> "list[np.ndarray | range] | None":
        """Returns the kept images of each chunk; None where all are, for which nothing needs to be
        read.
        """
        if self.window is None and self.split is None:
            return None
        return [self._select(chunk) for chunk in self.source.chunks]

    def _select(self, chunk: Chunk) -> "np.ndarray | range":
        keep = np.ones(chunk.images, bool)
        if self.split is not None:
            keep &= [split_of(item) == self.split for item in chunk.items()]
        if self.window is not None and not all(self._fits(grid) for grid in chunk.grids):
            loaded = chunk.load()
            fitting = np.array([self._fits(stack.shape[2:]) for stack in loaded.stacks])
            keep &= fitting[loaded.which]
        return range(chunk.images) if keep.all() else np.flatnonzero(keep)

    def _fits(self, grid: tuple[int, ...]) -> bool:
        return self.window is None or (grid[0] >= self.window[0] and grid[1] >= self.window[1])

    @cached_property
    def _only_grid(self) -> Grid | None:
        """Returns the grid that all images share, None where they differ."""
        grids = {grid for i in range(len(self.source.chunks)) for grid in self._kept_grids(i)}
        return next(iter(grids)) if len(grids) == 1 else None

    def _kept_grids(self, number: int) -> set[Grid]:
        """Returns the grid sizes of a chunk's images that become sequences."""
        chunk, kept = self.source.chunks[number], self.kept(number)
        if len(kept) == chunk.images or (len(kept) and len(chunk.grids) == 1):
            return set(chunk.grids)
        if not len(kept):
            return set()
        loaded = chunk.load()
        found = np.unique(loaded.which[np.asarray(kept)])
        return {(stack.shape[2], stack.shape[3]) for stack in (loaded.stacks[i] for i in found)}

    @property
    def only_grid(self) -> Grid | None:
        """Returns the grid (h, w) that all sequences share, None where they differ."""
        return self.window or self._only_grid

    @property
    def first(self) -> Item:
        """Returns what is known of the first image that becomes a sequence."""
        return self.item(*self._at(0))

    def item(self, chunk: int, image: int) -> Item:
        """Returns what is known of an image."""
        return self._items_of(chunk)[image]

    def _items_of(self, chunk: int) -> list[Item]:
        if chunk not in self._known:
            while len(self._known) >= self.source.pool_chunks:
                self._known.popitem(last=False)
            self._known[chunk] = self.source.chunks[chunk].items()
        return self._known[chunk]

    def number(self, chunk: int, image: int) -> int:
        """Returns the number of the sequence that an image of a chunk became."""
        before = self._ends[chunk - 1] if chunk else 0
        return before + int(np.searchsorted(np.asarray(self.kept(chunk)), image))

    def sequence(
        self, chunk: int, image: int, place: tuple[float, float] = (0.5, 0.5)
    ) -> tuple[np.ndarray, Grid]:
        """Returns the sequence (T,) of an image, and its grid (h, w); `place` is that of the
        window, from 0 to 1 along each axis.
        """
        grid = self._window(self._loaded(chunk).grid(image), place)
        classes = None
        if self.vocabulary.class_start is not None:
            classes = self._classes(chunk, np.array([image]))
        with codes.name_in_errors(self.source.chunks[chunk].origin):
            made = self.layout.encode(grid[None], classes)[0]
        return made, (grid.shape[1], grid.shape[2])

    def open_pool(self, pool: Sequence[int]) -> None:
        """Lets go of what is not in a pool, so that all of the pool may stay open."""
        for kept in (self._open, self._known):
            for number in set(kept) - set(pool):
                del kept[number]
        self._may_open = max(OPEN_CHUNKS, len(pool))

    def pools(self, shuffle: bool, seed: int, epoch: int) -> Iterator[tuple[list[int], int]]:
        """Yields the chunks that are read together, in order, and how many sequences they give.

        A chunk is a pool of its own where nothing is shuffled. Else the chunks are drawn in random
        order, and joined until they hold POOL indices, or are as many as may be open.
        """
        n = len(self.source.chunks)
        order = counter_rng.permutation(seed, _CHUNKS + 8 * epoch, n) if shuffle else range(n)
        pool, size, most = list[int](), 0, self.source.pool_chunks
        for number in map(int, order):
            pool.append(number)
            size += self._indices(number)
            if not shuffle or size >= POOL or len(pool) == most:
                yield pool, sum(len(self.kept(i)) for i in pool)
                pool, size = [], 0
        if pool:
            yield pool, sum(len(self.kept(i)) for i in pool)

    def _indices(self, number: int) -> int:
        chunk = self.source.chunks[number]
        return self.source.origin.levels * sum(
            h * w * count for (h, w), count in chunk.grids.items()
        )

    def pool_order(
        self, pool: Sequence[int], shuffle: bool, seed: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the chunk (n,) and the number in it (n,) of each image of a pool, in order."""
        chunks = np.concatenate([np.full(len(self.kept(i)), i) for i in pool])
        images = np.concatenate([np.asarray(self.kept(i), np.int64) for i in pool])
        if shuffle:
            drawn = counter_rng.permutation(
                seed, _IMAGES + 8 * epoch + (pool[0] << 32), len(images)
            )
            chunks, images = chunks[drawn], images[drawn]
        return chunks, images

    def batches(self, shuffle: bool = False, seed: int = 0) -> Iterator[Batch]:
        """Yields all sequences in order, some thousands at a time, in bounded memory."""
        for pool, _ in self.pools(shuffle, seed, 0):
            chunks, images = self.pool_order(pool, shuffle, seed, 0)
            if not len(images):
                continue
            self._known.clear()
            loaded = {number: self.source.chunks[number].load() for number in pool}
            step = max(1, BATCH * len(images) // max(1, sum(map(self._indices, pool))))
            for start in range(0, len(images), step):
                part = slice(start, start + step)
                yield self._batch(loaded, chunks[part], images[part])

    def _batch(self, loaded: dict[int, Loaded], chunks: np.ndarray, images: np.ndarray) -> Batch:
        """Makes the sequences of some images of loaded chunks, all images of one grid size at
        once.
        """
        where = {number: np.flatnonzero(chunks == number) for number in map(int, np.unique(chunks))}
        rows: list[np.ndarray] = [np.empty(0)] * len(images)
        lengths, grids = np.empty(len(images), np.int64), np.empty((len(images), 2), np.int64)
        single = None
        for number, places in where.items():
            found = loaded[number]
            of_chunk = images[places]
            for which, stack in enumerate(found.stacks):
                mine = places[found.which[of_chunk] == which]
                if not len(mine):
                    continue
                taken = found.rows[images[mine]]
                made = self._encode(number, _take(stack, taken), images[mine])
                lengths[mine], grids[mine] = made.shape[1], self.window or stack.shape[2:]
                if len(mine) == len(images):
                    single = made
                else:
                    for place, row in zip(mine.tolist(), made, strict=True):
                        rows[place] = row
        tokens = single.reshape(-1) if single is not None else np.concatenate(rows)
        return Batch(
            tokens, lengths, grids, list(zip(chunks.tolist(), images.tolist(), strict=True))
        )

    def _encode(self, chunk: int, grids: np.ndarray, images: np.ndarray) -> np.ndarray:
        classes = None
        if self.vocabulary.class_start is not None:
            classes = self._classes(chunk, images)
        with codes.name_in_errors(self.source.chunks[chunk].origin):
            return self.layout.encode(self._window(grids, (0.5, 0.5)), classes)

    def _classes(self, chunk: int, images: np.ndarray) -> np.ndarray:
        found = self.fields.classes[chunk][images]
        if found.min() < 0:
            name = self.item(chunk, int(images[found.argmin()])).name
            raise UsageError(f"{name} has no class", "leave the class tokens out")
        return found

    def _window(self, grids: np.ndarray, place: tuple[float, float]) -> np.ndarray:
        """Returns the window of grids (..., h, w) at a place from 0 to 1 along each axis."""
        if self.window is None:
            return grids
        (h, w), (rows, columns) = grids.shape[-2:], self.window
        y = min(int(place[0] * (h - rows + 1)), h - rows)
        x = min(int(place[1] * (w - columns + 1)), w - columns)
        return grids[..., y : y + rows, x : x + columns]

    def window_place(self, seed: int, epoch: int, number: int) -> tuple[float, float]:
        """Returns where a stream cuts the window of the number-th sample of an epoch."""
        if self.window is None:
            return 0.5, 0.5
        drawn = counter_rng.uniform(
            seed, _WINDOWS + 8 * epoch, np.array([2 * number, 2 * number + 1])
        )
        return float(drawn[0]), float(drawn[1])

    def _at(self, number: int) -> tuple[int, int]:
        """Returns the chunk of a sequence, and the number of its image there."""
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(f"sequence {number} of {len(self)}")
        chunk = bisect_right(self._ends, number)
        before = self._ends[chunk - 1] if chunk else 0
        return chunk, int(self.kept(chunk)[number - before])

    def _loaded(self, chunk: int) -> Loaded:
        if chunk in self._open:
            self._open.move_to_end(chunk)
            return self._open[chunk]
        self._open[chunk] = loaded = self.source.chunks[chunk].load()
        if len(self._open) > self._may_open:
            self._open.popitem(last=False)
        return loaded


def _take(stack: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns rows of a stack: without a copy where they follow one another."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) and (np.diff(rows) == 1).all():
        return stack[first : last + 1]
    return stack[rows]
