"""The images of a source as token sequences: by number, in batches, and in a shuffled order.

>>> data = CodesDataset("codes/").sequences(order="raster", bos=True, class_tokens=True)
>>> data[0]                     # ids (T,)
>>> data.vocabulary.size
>>> data.inverse(data[0])       # the grid (L, h, w)
"""

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vqtok.errors import UsageError
from vqtok.tokens.reader import SequenceReader
from vqtok.tokens.sources import Grid, Item, split_of

if TYPE_CHECKING:
    from vqtok.tokens.stream import TokenStream


class Sequences(SequenceReader):
    """The token sequences of a source's images; a map-style data set of arrays (T,), int64."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns names of the classes by number."""
        return self.fields.labels

    @cached_property
    def labels(self) -> np.ndarray:
        """Returns the class of each image, int64 (N,); -1 where it has none."""
        found = enumerate(self.fields.classes)
        kept = [classes[np.asarray(self.kept(chunk), np.int64)] for chunk, classes in found]
        return np.concatenate(kept).astype(np.int64)

    @cached_property
    def captions(self) -> list[str | None]:
        """Returns the caption of each image."""
        return [item.caption for item in self._items()]

    @cached_property
    def splits(self) -> list[str | None]:
        """Returns the split of each image."""
        return [split_of(item) for item in self._items()]

    @cached_property
    def names(self) -> list[str]:
        """Returns the name of each image."""
        return [item.name for item in self._items()]

    @property
    def left_out(self) -> int:
        """Returns how many images are smaller than the window, or of another split."""
        return sum(chunk.images for chunk in self.source.chunks) - len(self)

    def inverse(self, sequence: Any, grid: Grid | None = None) -> np.ndarray:
        """Returns the grid (L, h, w), int64, of a sequence (T,), or the grids (n, L, h, w) of
        sequences of one grid (n, T): these are what `Model.codes` takes.

        `grid` is (h, w); by default that of the window, or that of all images where they share one.
        FormatError where an id is in the wrong place.
        """
        tokens = np.asarray(sequence.detach().cpu() if hasattr(sequence, "detach") else sequence)
        if tokens.ndim == 2:
            return np.stack([self.inverse(row, grid) for row in tokens])
        return self.layout.decode(tokens, grid or self.only_grid)[0]

    def stream(
        self,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
    ) -> "TokenStream":
        """Returns a `torch.utils.data.IterableDataset` of these sequences: see `TokenStream`."""
        from vqtok.tokens.stream import TokenStream

        return TokenStream(self, batch_size, shuffle, seed, rank, world_size, drop_last)

    def _items(self) -> Iterator[Item]:
        for number, chunk in enumerate(self.source.chunks):
            items = chunk.items()
            yield from (items[int(image)] for image in self.kept(number))


def check_grid(value: str) -> Grid:
    """Parses (h, w) of '16x24'. Raises UsageError."""
    parts = value.lower().split("x")
    if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
        h, w = int(parts[0]), int(parts[1])
        if 0 < h < 1 << 24 and 0 < w < 1 << 24:
            return h, w
    raise UsageError(f"{value!r} is no grid", "give rows and columns, like 16x16")
