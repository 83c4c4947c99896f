"""Encodes inputs into a folder of codes shards:
decode ahead, batch by grid, write a shard, go on.
"""

import ctypes
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vqtok import distributed, images
from vqtok.bulk import shards
from vqtok.bulk.crops import AS_THEY_ARE, Crops
from vqtok.bulk.folder import ShardReport, prepare_folder
from vqtok.bulk.inputs import Chunk, Entry, Inputs, WorkSlice
from vqtok.bulk.pool import Pool
from vqtok.bulk.shards import Manifest, Shard, ShardRecord
from vqtok.codec import Model
from vqtok.codes import Codes, Compact
from vqtok.errors import OutputError, VqtokError

PENDING_PIXELS = 2**23  # decoded and waiting for others of their grid: 25 MB
WORKERS_MAX = 16


@dataclass(frozen=True)
class BulkSettings:
    """Settings for encoding images to shards."""

    levels: int | None = None  # None: all
    compact: bool = False
    background: str = "white"
    shard_size: int = 1000  # images of the inputs; with crops there are more grids
    range: images.Range | None = None  # of deep images; None: by the type of each
    crops: Crops = AS_THEY_ARE


def default_workers() -> int:
    """Returns one process for each processor, divided among the ranks that torchrun starts on this
    machine; at most 16.
    """
    return max(1, min(WORKERS_MAX, (os.cpu_count() or 1) // distributed.local_world_size()))


def encode(
    model: Model,
    inputs: Inputs,
    out: Path,
    settings: BulkSettings,
    work_slice: WorkSlice,
    workers: int,
    resume: bool = False,
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Generator[ShardReport, None, None]:
    """Encodes this part of the inputs into a folder of codes shards, and yields each shard
    when it is whole on the disk. `progress` gets the images done and, where it is known, how many
    there are about.

    With `resume` what is finished stays, and is yielded, too. Raises OutputError where the folder
    holds shards and neither `resume` nor `force` (anew) is given, or where they were made
    otherwise; VqtokError where a worker died. Closing the iterator ends all work.
    """
    if force and work_slice.count > 1:
        raise OutputError(
            "-f would take away what other parts have written",
            "remove the folder, and leave -f out",
        )
    wanted = make_manifest(model, inputs, settings)
    inputs.number_labels(prepare_folder(out, wanted, work_slice, resume, force).labels)
    distributed.local_device(model.device)
    color = images.parse_color(settings.background)
    files_to_read = any(source.reader is None for source in inputs.all)
    channels = model.config.channels
    with Pool(workers, channels, color, settings.range, settings.crops, files_to_read) as pool:
        shard = _ShardWriter(model, inputs, settings)
        count = None if progress is None else _Count(inputs, work_slice, settings.crops.copies)
        for item, image in pool.map(_work(inputs, out, settings, work_slice, resume)):
            if isinstance(item, Shard):
                if count is not None:
                    count.skip(item)
                yield ShardReport(item, 0.0)
            elif isinstance(item, Entry):
                assert image is not None
                shard.add(item, image)
                if count is not None and progress is not None:
                    progress(*count.add(item))
            else:
                _give_memory_back()  # images were decoded
                yield shard.finish(item, out)
                shard = _ShardWriter(model, inputs, settings)
                _give_memory_back()  # and encoded


def _give_memory_back() -> None:
    """Makes glibc give what is free to the system: batches of many sizes leave gaps."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class _Count:
    """Counts the images that are done, and estimates how many there are: of tars, which are not
    listed beforehand, by the part of their bytes that is read.
    """

    def __init__(self, inputs: Inputs, work_slice: WorkSlice, copies: int) -> None:
        self.whole, self.copies = work_slice.count == 1, copies
        self.done = self.of_loose = self.of_tars = self.loose = 0
        self.starts: dict[str, int] = {}
        self.bytes = 0
        for source in inputs.all:
            if source.path is not None:
                self.starts[str(source.path)] = self.bytes
                self.bytes += source.bytes or 0
            elif self.whole:
                self.loose += (
                    sum(len(chunk.entries) for chunk in inputs.chunks(source, 1 << 12))
                    if source.reader is None
                    else len(source.reader)
                )

    def skip(self, shard: Shard) -> None:
        """Counts a shard that is finished already."""
        self.done += round(shard.head.pictures / self.copies) + shard.head.failed

    def add(self, entry: Entry) -> tuple[int, int | None]:
        """Counts an image that was just read; returns how many are done, and of how many."""
        self.done += 1
        start = self.starts.get(entry.path)
        if start is not None and entry.size is not None:
            read = start + entry.offset + entry.size
            self.of_tars = max(self.done, round(self.done * self.bytes / read))
        else:  # the tars are behind
            self.of_loose += 1
            self.of_tars = self.done - self.of_loose if self.of_tars else 0
        total = max(self.done, self.of_tars + self.loose)
        return self.done, total if self.whole and (self.of_tars or not self.bytes) else None


# a shard that is finished already; an image; the shard of the images before it
Work = Shard | Entry | Chunk


def _work(
    inputs: Inputs, out: Path, settings: BulkSettings, work_slice: WorkSlice, resume: bool
) -> Iterator[tuple[Work, Entry | None]]:
    """Yields what there is to do for one part, in order, each with the image to decode for it."""
    for source in inputs.all:
        whole = work_slice.takes_input(source, inputs.tars)
        if whole is False:
            continue
        if (
            whole
            and resume
            and source.path is not None
            and (done := _finished_input(out, source.number))
        ):
            yield from ((found, None) for found in done)
            continue
        for chunk in inputs.chunks(source, settings.shard_size):
            if not (whole or work_slice.takes(source, chunk.number)):
                continue
            found = _finished(out, chunk, resume)
            if found is not None:
                yield found, None
                continue
            yield from ((entry, entry) for entry in chunk.entries)
            yield replace(chunk, entries=()), None


def _finished_input(out: Path, number: int) -> list[Shard]:
    """Returns all shards of a tar if all are finished, else none. A finished tar is not read again.

    Its size is in the manifest.
    """
    done: list[Shard] = []
    while (found := shards.find_shard(out, number, len(done))) is not None and found.is_complete():
        done.append(found)
        if found.head.last:
            return done
    return []


def _finished(out: Path, chunk: Chunk, resume: bool) -> Shard | None:
    """Returns the finished shard of these images. Raises OutputError where it is one of other
    images, or where none may be there.
    """
    found = shards.find_shard(out, chunk.input.number, chunk.number)
    if found is None or not found.is_complete():
        return None
    if not resume:
        raise OutputError(
            f"{found.records_path} exists", "go on with --resume, or choose another -o"
        )
    if (found.head.names, found.head.last) != (chunk.checksum, chunk.last):
        raise OutputError(
            f"{chunk.input.name} has changed since {found.path.name} was made",
            "start anew with -f, or choose another -o",
        )
    return found


def make_manifest(model: Model, inputs: Inputs, settings: BulkSettings) -> Manifest:
    """Makes the manifest of such a run."""
    config, levels = model.config, settings.levels or model.config.levels
    return Manifest(
        model.name,
        model.fingerprint,
        config.codebook_size,
        config.downsample,
        config.channels,
        levels,
        settings.compact,
        model.precision,
        settings.background,
        settings.shard_size,
        tuple((source.name, source.bytes) for source in inputs.all),
        "" if settings.range is None else images.show_range(settings.range),
        settings.crops.describe(),
        inputs.labels,
    )


@dataclass
class _Bucket:
    """Images of one grid size that wait to be encoded together."""

    positions: list[int] = field(default_factory=list)  # among the shard's lines
    images: list[np.ndarray] = field(default_factory=list)
    pixels: int = 0


class _ShardWriter:
    """Collects the images of one shard and writes it.

    What is encoded together depends on the images before it alone, not on time.
    """

    def __init__(self, model: Model, inputs: Inputs, settings: BulkSettings) -> None:
        self.model, self.settings, self.began = model, settings, time.perf_counter()
        self.inputs = inputs
        self.lines: list[ShardRecord] = []
        self.grids: dict[int, np.ndarray] = {}  # (L, h, w) of each line that has one
        self.waiting: dict[tuple[int, int], _Bucket] = {}  # by (w, h)
        self.ranges: list[images.Range | None] = []  # of each line
        self.narrow: list[images.Range] = []
        self.nan_images = 0
        # positions of the images of each grid, in order
        self.rows: dict[tuple[int, int], list[int]] = {}

    def add(self, entry: Entry, image: images.DecodedImage | VqtokError) -> None:
        """Adds the next image, with all copies that were made of it, or the reason why it could not
        be read.
        """
        if isinstance(image, VqtokError):
            self.lines.append(ShardRecord(entry.name, error=str(image)))
            self.ranges.append(None)
            return
        copies = image.pixels[None] if image.pixels.ndim == 3 else image.pixels
        try:
            self.model.check_size(*copies.shape[1:3])
        except VqtokError as error:
            self.lines.append(ShardRecord(entry.name, error=str(error)))
            self.ranges.append(None)
            return
        found = self.inputs.facts(entry)
        record = ShardRecord(
            entry.name,
            notes=(*image.notes, *found.notes),
            label=found.label,
            caption=found.caption,
            split=found.split,
        )
        self.narrow += [] if image.narrow is None else [image.narrow]
        self.nan_images += image.nan > 0
        for pixels in copies:
            self._add_one(record, pixels, image.range)

    def _add_one(
        self, record: ShardRecord, pixels: np.ndarray, value_range: images.Range | None
    ) -> None:
        f, (H, W) = self.model.config.downsample, pixels.shape[:2]
        grid = -(-W // f), -(-H // f)
        position, rows, bucket = (
            len(self.lines),
            self.rows.setdefault(grid, []),
            self.waiting.setdefault(grid, _Bucket()),
        )
        self.lines.append(replace(record, size=(W, H), grid=grid, row=len(rows)))
        self.ranges.append(value_range)
        rows.append(position)
        bucket.positions.append(position)
        bucket.images.append(pixels)
        bucket.pixels += grid[0] * grid[1] * f * f
        # 4 images of 432x320 on a CPU, where more are no faster
        if bucket.pixels >= self.model.pixels_at_once:
            self._encode(grid)
        elif sum(each.pixels for each in self.waiting.values()) > PENDING_PIXELS:
            self._encode(max(self.waiting, key=lambda key: self.waiting[key].pixels))

    def _encode(self, grid: tuple[int, int]) -> None:
        bucket = self.waiting.pop(grid)
        # (n, L, h, w)
        encoded = self.model.encode_batch(bucket.images, self.settings.levels).indices
        self.grids.update(zip(bucket.positions, encoded, strict=True))

    def finish(self, chunk: Chunk, out: Path) -> ShardReport:
        """Writes the shard, and then its manifest."""
        for grid in list(self.waiting):
            self._encode(grid)
        stacks = [self._stack(positions) for positions in self.rows.values()]
        found = shards.write_shard(
            out, chunk.number, chunk.input, chunk.last, chunk.checksum, self.lines, stacks
        )
        failed = tuple(line for line in self.lines if line.error is not None)
        narrow = images.suggest(self.narrow) if self.narrow else None
        seconds = time.perf_counter() - self.began
        return ShardReport(found, seconds, failed, narrow, len(self.narrow), self.nan_images)

    def _stack(self, positions: list[int]) -> Codes | Compact:
        """Joins the codes of the images at these positions, all of one grid."""
        sizes = tuple((H, W) for W, H in (self.lines[position].size for position in positions))
        stack = self.model.codes(np.stack([self.grids[position] for position in positions]), sizes)
        ranges = {self.ranges[position] for position in positions}
        stack = replace(stack, range=ranges.pop() if len(ranges) == 1 else None)
        return self.model.pack(stack) if self.settings.compact else stack
