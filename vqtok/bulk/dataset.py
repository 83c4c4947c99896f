"""Gives codes shards as a data set: any image's indices, by number, without reading more than
these.

>>> from vqtok import CodesDataset
>>> data = CodesDataset("codes/")
>>> indices, name = data[0]         # int64 (L, h, w), and 'train-000.tar/000000.jpg'
"""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np

from vqtok import codes, files
from vqtok.bulk import shards
from vqtok.bulk.inputs import LOOSE
from vqtok.codes import Codes
from vqtok.codes.checks import require
from vqtok.errors import FormatError, UsageError
from vqtok.tokens.sources import Item, Loaded, Origin

if TYPE_CHECKING:
    from vqtok.codec import EntropyCoder
    from vqtok.codes import Compact
    from vqtok.tokens import Sequences
    from vqtok.tokens.layout import Order

# kept open: each takes a file handle, of which a process has 1024 as a rule, and its names, 0.1 MB
OPEN_SHARDS = 128
OPEN_REMOTE = (
    8  # of a server: these are in memory, 1 MB for 1,000 images of 16x16 codes and 2 levels
)


@dataclass(frozen=True)
class _OpenShard:
    """Holds a shard that is being read."""

    lines: list[shards.ShardRecord]  # of the images that are there
    stacks: dict[tuple[int, int], np.ndarray]  # (n, L, h, w) by grid


class CodesDataset:
    """Gives the images of a folder of codes shards, in the order of the inputs.

    A map-style data set: torch's DataLoader takes it as it is.

    Plain shards are mapped into memory; compact ones are decoded as a whole, with the
    model's entropy prior. Raises InputError, FormatError; FormatError also where shards are
    missing, unless `partial`.
    """

    @property
    def pool_chunks(self) -> int:
        """That a shuffled stream may have open."""
        return 2 * self._most_open

    def __init__(
        self, folder: str | os.PathLike[str], partial: bool = False, model: str | None = None
    ) -> None:
        """Takes as `model` the name or path of the model, where compact shards need one that is not
        found by its name.
        """
        self.folder, self.model = files.as_path(folder), model
        self.manifest = shards.read_manifest(self.folder)
        self.shards = shards.find_shards(self.folder)
        if not partial and (lacking := shards.count_missing(self.manifest, self.shards)):
            raise FormatError(
                f"{folder} is not finished: "
                f"shards of {lacking} of {len(self.manifest.inputs)} inputs are missing",
                "finish it with vqtok encode --resume, or take what is there: "
                "CodesDataset(folder, partial=True)",
            )
        self._ends = list(accumulate(shard.head.pictures for shard in self.shards))
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        # as `tokens` reads them
        self.chunks = [ShardChunk(self, shard) for shard in self.shards if shard.head.pictures]
        self._coder: EntropyCoder | None = None

    @property
    def _most_open(self) -> int:
        return OPEN_REMOTE if files.is_url(self.folder) else OPEN_SHARDS

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, number: SupportsIndex) -> tuple[np.ndarray, str]: ...

    @overload
    def __getitem__(self, number: slice) -> list[tuple[np.ndarray, str]]: ...

    def __getitem__(
        self, number: SupportsIndex | slice
    ) -> tuple[np.ndarray, str] | list[tuple[np.ndarray, str]]:
        """Returns the indices int64 (L, h, w) of an image, and its name: that of its tar, a slash,
        and its name in the tar. A slice gives a list of these.

        int64, although files hold uint8 or uint16: PyTorch (2.13) neither adds nor compares uint16
        and takes no index of it, and `embedding` and `cross_entropy` ask for int64.
        IndexError past the end; UsageError for what is no number.
        """
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        shard, line, stack = self._at(number)
        indices = stack[line.row].astype(np.int64)
        with codes.name_in_errors(shard.path):
            require(int(indices.max()) < self.manifest.codebook_size, "an index is out of range")
        return indices, _name(shard, line)

    def __iter__(self) -> Iterator[tuple[np.ndarray, str]]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what is open: a worker of a DataLoader opens its own."""
        return self.__dict__ | {"_open": OrderedDict(), "_coder": None}

    def codes(self, number: SupportsIndex) -> Codes:
        """Returns the same image as Codes: what `Model.decode` takes."""
        _, line, stack = self._at(number)
        return self._codes(stack[line.row], line)

    def _codes(self, grid: np.ndarray, line: shards.ShardRecord) -> Codes:
        """Makes Codes of one image from its grid (L, h, w)."""
        m, (W, H) = self.manifest, line.size
        indices = np.array(grid[None], codes.index_dtype(m.codebook_size))
        return Codes(
            indices, m.model, m.fingerprint, m.codebook_size, m.downsample, m.channels, ((H, W),)
        )

    @cached_property
    def grids(self) -> np.ndarray:
        """Returns (L, h, w) of every image, int64 (N, 3). Reads the manifests of all shards."""
        rows = [(self.manifest.levels, line.grid[1], line.grid[0]) for _, line in self.entries()]
        return np.array(rows, np.int64).reshape(-1, 3)

    def entries(self) -> Iterator[tuple[str, shards.ShardRecord]]:
        """Yields (name, record) of every image, from the manifests alone."""
        for shard in self.shards:
            yield from (
                (_name(shard, line), line) for line in shard.records() if line.error is None
            )

    def sequences(
        self,
        order: "Order" = "raster",
        offset: bool = False,
        bos: bool = False,
        eol: bool = False,
        eos: bool = False,
        class_tokens: bool = False,
        window: int | tuple[int, int] | None = None,
        split: str | None = None,
    ) -> "Sequences":
        """Returns the images as token sequences: see `vqtok.tokens.Sequences`."""
        from vqtok.tokens import Sequences

        return Sequences(self, order, offset, bos, eol, eos, class_tokens, window, split)

    @property
    def origin(self) -> Origin:
        """Returns the model that made the codes."""
        m = self.manifest
        return Origin(m.model, m.fingerprint, m.codebook_size, m.downsample, m.channels, m.levels)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names the classes by number, where the manifest lists them."""
        return shards.read_labels(self.folder)

    def images(self, shard: shards.Shard) -> Iterator[tuple[str, Codes]]:
        """Yields name and codes of each image of one shard, in order. The shard is not kept open.

        FormatError, InputError: before the first image.
        """
        opened = self._read(shard)
        return (
            (_name(shard, line), self._codes(self._row(shard, opened, line), line))
            for line in opened.lines
        )

    def use_coder(self, coder: "EntropyCoder | None") -> None:
        """Decodes compact shards with this coder, of a model that is loaded already."""
        self._coder = coder

    def name(self, number: int) -> str:
        """Returns the name of an image, as in `data[number]`."""
        shard, line, _ = self._at(number)
        return _name(shard, line)

    def verify(self) -> None:
        """Reads all shards, and compares their checksums. Raises FormatError, InputError."""
        for shard in self.shards:
            shard.verify()

    @property
    def failed(self) -> int:
        """Counts the images that could not be encoded."""
        return sum(shard.head.failed for shard in self.shards)

    def _at(self, number: SupportsIndex) -> tuple[shards.Shard, shards.ShardRecord, np.ndarray]:
        """Finds the shard, record and stack (n, L, h, w) of an image."""
        try:
            number = index(number)
        except TypeError:
            raise UsageError(
                f"a {type(number).__name__} is no number of an image",
                f"give an integer from 0 to {len(self) - 1}, or a slice",
            ) from None
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        where = bisect_right(self._ends, number)
        opened = self._opened(where)
        line = opened.lines[number - self._ends[where]]  # counted from the end
        self._row(self.shards[where], opened, line)
        return self.shards[where], line, opened.stacks[line.grid]

    @staticmethod
    def _row(shard: shards.Shard, opened: _OpenShard, line: shards.ShardRecord) -> np.ndarray:
        """Reads the grid (L, h, w) of an image; FormatError where the shard does not hold it."""
        stack = opened.stacks.get(line.grid)
        with codes.name_in_errors(shard.records_path):
            if stack is None or line.row >= len(stack):
                raise FormatError(
                    f"the place of {line.name!r} is not in the shard",
                    "copy or download the file again",
                )
        return stack[line.row]

    def _opened(self, where: int) -> _OpenShard:
        if where in self._open:
            self._open.move_to_end(where)
            return self._open[where]
        self._open[where] = opened = self._read(self.shards[where])
        if len(self._open) > self._most_open:
            self._open.popitem(last=False)
        return opened

    def _read(self, shard: shards.Shard) -> _OpenShard:
        lines = [line for line in shard.records() if line.error is None]
        return _OpenShard(
            lines, {stack.grid: self._stack(shard, stack) for stack in shard.head.stacks}
        )

    def _stack(self, shard: shards.Shard, stack: shards.GridBatch) -> np.ndarray:
        if stack.indices is not None:
            return shards.map_indices(shard, stack, self.manifest)
        return codes.unpack(self.stack(shard, stack), self._find_coder).indices

    def stack(self, shard: shards.Shard, stack: shards.GridBatch) -> "Codes | Compact":
        """Reads the codes file of a stack as it is. FormatError where it is not as the manifests
        say.
        """
        found = shards.read_stack(shard, stack)
        with codes.name_in_errors(shard.path):
            w, h = stack.grid
            require(
                found.shape == (stack.pictures, self.manifest.levels, h, w),
                f"the codes file of {w}x{h} is not as its manifest tells",
            )
            require(
                (found.model, found.fingerprint)
                == (self.manifest.model, self.manifest.fingerprint),
                "the codes are of another model",
            )
        return found

    def _find_coder(self, packed: "Compact") -> "EntropyCoder | None":
        from vqtok.codec import find_coder

        if self._coder is None:  # all shards are of one model
            self._coder = find_coder(packed, self.model)
        return self._coder


@dataclass(frozen=True, eq=False)
class ShardChunk:
    """Holds the images of a shard, read together."""

    data: CodesDataset
    shard: shards.Shard

    @property
    def origin(self) -> Path:
        return self.shard.path

    @property
    def images(self) -> int:
        return self.shard.head.pictures

    @property
    def grids(self) -> dict[tuple[int, int], int]:
        return {(s.grid[1], s.grid[0]): s.pictures for s in self.shard.head.stacks}

    def load(self) -> Loaded:
        """Reads the grids, and the shard's manifest where it alone says which image has which."""
        stacks = self.shard.head.stacks
        loaded = [self.data._stack(self.shard, stack) for stack in stacks]
        if len(stacks) == 1:
            return Loaded(loaded, np.zeros(self.images, np.int64), np.arange(self.images))
        number = {stack.grid: i for i, stack in enumerate(stacks)}
        lines = [line for line in self.shard.records() if line.error is None]
        with codes.name_in_errors(self.shard.records_path):
            for line in lines:
                require(
                    line.grid in number and line.row < len(loaded[number[line.grid]]),
                    f"the place of {line.name!r} is not in the shard",
                )
        which = np.array([number[line.grid] for line in lines], np.int64)
        return Loaded(loaded, which, np.array([line.row for line in lines], np.int64))

    def items(self) -> list[Item]:
        """Returns what the shard's manifest says of each image."""
        return [
            Item(
                _name(self.shard, line),
                line.name,
                (line.size[1], line.size[0]),
                line.label,
                line.caption,
                line.split,
            )
            for line in self.shard.records()
            if line.error is None
        ]


def _name(shard: shards.Shard, line: shards.ShardRecord) -> str:
    return line.name if shard.head.input == LOOSE else f"{shard.head.input}/{line.name}"
