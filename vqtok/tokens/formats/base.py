"""The interface between an export and the writer of each format."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vqtok.tokens.reader import Batch
from vqtok.tokens.sequences import Sequences
from vqtok.tokens.sources import split_of

SHARD_BYTES = 1 << 26  # of the formats that have shards, as their own writers have it


@dataclass(frozen=True)
class Job:
    """The target of an export, and its content."""

    folder: Path
    name: str  # of the files, without a suffix
    sequences: Sequences
    header: int | None = None  # `bin`: int32 words in front
    block: int | None = None  # `litdata`: tokens of a block


@dataclass(frozen=True)
class Record:
    """An image's sequence, and the facts about the image."""

    tokens: np.ndarray  # (T,)
    grid: tuple[int, int]  # (h, w)
    size: tuple[int, int]  # (H, W)
    name: str
    label: int | None
    caption: str | None
    split: str | None


class Writer:
    """Writes batches in one format, in bounded memory.

    A subclass gives `add` and `close`. UsageError from `__init__` where the format cannot hold the
    sequences.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()  # of the files that carry the job's name
    # whether the format holds a file for each export, so that a folder may take several
    single: ClassVar[bool] = False
    tells_grids: ClassVar[bool] = False  # whether h and w stand beside the tokens

    def __init__(self, job: Job) -> None:
        self.job, self.sequences = job, job.sequences
        self.size: tuple[int, int] | None = None  # (H, W) of all images, where they share one
        self.sizes_differ = False

    def add(self, batch: Batch) -> None:
        raise NotImplementedError

    def close(self) -> dict[str, Any]:
        """Ends the files; what meta.json should say of them."""
        raise NotImplementedError

    def abort(self) -> None:
        """Lets go of open files after an error."""

    @property
    def dtype(self) -> np.dtype:
        """Returns the type of the ids, little-endian."""
        return self.sequences.vocabulary.dtype.newbyteorder("<")

    def records(self, batch: Batch) -> Iterator[Record]:
        """Yields the sequences of a batch one by one."""
        fields = self.sequences.fields
        rows = zip(batch.rows, batch.grids.tolist(), batch.images, strict=True)
        for tokens, (h, w), (chunk, image) in rows:
            item = self.sequences.item(chunk, image)
            self._note_size(item.size)
            label = int(fields.classes[chunk][image])
            known = label if label >= 0 else None
            yield Record(tokens, (h, w), item.size, item.name, known, item.caption, split_of(item))

    def _note_size(self, size: tuple[int, int]) -> None:
        if self.size is None and not self.sizes_differ:
            self.size = size
        elif self.size != size:
            self.size, self.sizes_differ = None, True
