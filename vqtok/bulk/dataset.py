"""Codes shards as a data set: any image's indices, by number, without reading more than these.

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

from vqtok import codes
from vqtok.bulk import shards
from vqtok.bulk.inputs import LOOSE
from vqtok.codes.checks import require
from vqtok.errors import FormatError, UsageError

if TYPE_CHECKING:
    from vqtok.codec import EntropyCoder
    from vqtok.codes import Compact

# kept open: each takes a file handle, of which a process has 1024 as a rule, and its names, 0.1 MB
OPEN_SHARDS = 128


@dataclass(frozen=True)
class _OpenShard:
    """A shard that is being read."""

    lines: list[shards.ShardRecord]  # of the images that are there
    stacks: dict[tuple[int, int], np.ndarray]  # (n, L, h, w) by grid


class CodesDataset:
    """The images of a folder of codes shards, in the order of the inputs.

    A map-style data set: torch's DataLoader takes it as it is.

    Plain shards are mapped into memory; compact ones are decoded as a whole, with the
    model's entropy prior. Raises InputError, FormatError; FormatError also where shards are
    missing, unless `partial`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], partial: bool = False, model: str | None = None
    ) -> None:
        """`model` is the name or path of the model, where compact shards need one that
        is not found by its name.
        """
        self.folder, self.model = Path(folder), model
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

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, number: SupportsIndex) -> tuple[np.ndarray, str]: ...

    @overload
    def __getitem__(self, number: slice) -> list[tuple[np.ndarray, str]]: ...

    def __getitem__(
        self, number: SupportsIndex | slice
    ) -> tuple[np.ndarray, str] | list[tuple[np.ndarray, str]]:
        """The indices int64 (L, h, w) of an image, and its name: that of its tar, a slash, and its
        name in the tar. A slice gives a list of these.

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
        """Without what is open: a worker of a DataLoader opens its own."""
        return self.__dict__ | {"_open": OrderedDict()}

    def codes(self, number: SupportsIndex) -> codes.Codes:
        """The same image as Codes: what `Model.decode` takes."""
        _, line, stack = self._at(number)
        m, (W, H) = self.manifest, line.size
        indices = np.array(stack[line.row][None], codes.index_dtype(m.codebook_size))
        return codes.Codes(
            indices, m.model, m.fingerprint, m.codebook_size, m.downsample, m.channels, ((H, W),)
        )

    @cached_property
    def grids(self) -> np.ndarray:
        """(L, h, w) of every image, int64 (N, 3). Reads the manifests of all shards."""
        rows = [(self.manifest.levels, line.grid[1], line.grid[0]) for _, line in self.entries()]
        return np.array(rows, np.int64).reshape(-1, 3)

    def entries(self) -> Iterator[tuple[str, shards.ShardRecord]]:
        """(name, line) of every image, from the manifests alone."""
        for shard in self.shards:
            yield from (
                (_name(shard, line), line) for line in shard.records() if line.error is None
            )

    def verify(self) -> None:
        """Reads all shards, and compares their checksums. Raises FormatError, InputError."""
        for shard in self.shards:
            shard.verify()

    @property
    def failed(self) -> int:
        """How many images could not be encoded."""
        return sum(shard.head.failed for shard in self.shards)

    def _at(self, number: SupportsIndex) -> tuple[shards.Shard, shards.ShardRecord, np.ndarray]:
        """The shard, line and stack (n, L, h, w) of an image."""
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
        stack = opened.stacks.get(line.grid)
        with codes.name_in_errors(self.shards[where].records_path):
            if stack is None or line.row >= len(stack):
                raise FormatError(
                    f"the place of {line.name!r} is not in the shard",
                    "copy or download the file again",
                )
        return self.shards[where], line, stack

    def _opened(self, where: int) -> _OpenShard:
        if where in self._open:
            self._open.move_to_end(where)
            return self._open[where]
        shard = self.shards[where]
        lines = [line for line in shard.records() if line.error is None]
        opened = _OpenShard(
            lines, {stack.grid: self._stack(shard, stack) for stack in shard.head.stacks}
        )
        self._open[where] = opened
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return opened

    def _stack(self, shard: shards.Shard, stack: shards.GridBatch) -> np.ndarray:
        if stack.indices is not None:
            return shards.map_indices(shard, stack, self.manifest)
        found = codes.unpack(shards.read_stack(shard, stack), self._find_coder)
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
        return found.indices

    def _find_coder(self, packed: "Compact") -> "EntropyCoder | None":
        from vqtok.codec import find_coder  # torch, for codes that a prior coded alone

        return find_coder(packed, self.model)


def _name(shard: shards.Shard, line: shards.ShardRecord) -> str:
    return line.name if shard.head.input == LOOSE else f"{shard.head.input}/{line.name}"
