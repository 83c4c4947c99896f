"""Encodes inputs into a folder of codes shards:
decode ahead, batch by grid, write a shard, go on.
"""

import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from vqtok import distributed, files, images
from vqtok.bulk import shards
from vqtok.bulk.inputs import Chunk, Entry, Inputs, WorkSlice
from vqtok.bulk.pool import Pool
from vqtok.bulk.shards import MANIFEST, Manifest, Shard, ShardRecord
from vqtok.codec import Model
from vqtok.codes import Codes, Compact
from vqtok.errors import OutputError, VqtokError

PENDING_PIXELS = 2**23  # decoded and waiting for others of their grid: 25 MB
WORKERS_MAX = 16


@dataclass(frozen=True)
class BulkSettings:
    """How to encode."""

    levels: int | None = None  # None: all
    compact: bool = False
    background: str = "white"
    shard_size: int = 1000  # images
    range: images.Range | None = None  # of deep images; None: by the type of each


@dataclass(frozen=True)
class ShardReport:
    """A shard that is finished."""

    shard: Shard
    seconds: float  # 0: it was before
    failed: tuple[ShardRecord, ...] = ()  # images, where they were found to be bad just now
    narrow: images.Range | None = None  # values in use of images that use little of their range
    narrow_images: int = 0  # how many those are

    @property
    def new(self) -> bool:
        return self.seconds > 0


def default_workers() -> int:
    """A process for each processor, divided among the ranks that torchrun starts on
    this machine; at most 16.
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
) -> Generator[ShardReport, None, None]:
    """Encodes this part of the inputs into a folder of codes shards, and tells of each shard
    when it is whole on the disk.

    With `resume` what is finished stays, and is told, too. Raises OutputError where the folder
    holds shards and neither `resume` nor `force` (anew) is given, or where they were made
    otherwise; VqtokError where a worker died. Closing the iterator ends all work.
    """
    if force and work_slice.count > 1:
        raise OutputError(
            "-f would take away what other parts have written",
            "remove the folder, and leave -f out",
        )
    prepare_folder(out, make_manifest(model, inputs, settings), work_slice, resume, force)
    distributed.local_device(model.device)
    color = images.parse_color(settings.background)
    with Pool(workers, model.config.channels, color, settings.range) as pool:
        shard = _ShardWriter(model, settings)
        for item, image in pool.map(_work(inputs, out, settings, work_slice, resume)):
            if isinstance(item, Shard):
                yield ShardReport(item, 0.0)
            elif isinstance(item, Entry):
                assert image is not None
                shard.add(item, image)
            else:
                yield shard.finish(item, out)
                shard = _ShardWriter(model, settings)


# a shard that is finished already; an image; the shard of the images before it
Work = Shard | Entry | Chunk


def _work(
    inputs: Inputs, out: Path, settings: BulkSettings, work_slice: WorkSlice, resume: bool
) -> Iterator[tuple[Work, Entry | None]]:
    """What there is to do for one part, in order, each with the image to decode for it."""
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
    """All shards of a tar where all are finished, else none: it need not be looked into again.

    Its size is in the manifest.
    """
    done: list[Shard] = []
    while (found := shards.find_shard(out, number, len(done))) is not None and found.is_complete():
        done.append(found)
        if found.head.last:
            return done
    return []


def _finished(out: Path, chunk: Chunk, resume: bool) -> Shard | None:
    """The finished shard of these images; OutputError where it is one of other images, or
    where it may not be there.
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
    """What the manifest of such a run says."""
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
    )


def prepare_folder(
    out: Path, manifest: Manifest, work_slice: WorkSlice, resume: bool, force: bool
) -> None:
    """Writes the manifest, or checks that the one that is there is the same. Errors as `encode`."""
    path = out / MANIFEST
    if force and path.exists():
        _remove(out, list(shards.stale_files(out)))
    if not path.exists():
        try:
            files.write_bytes(path, manifest.to_bytes())
        except OutputError:
            if work_slice.count == 1 or not path.exists():
                raise  # else another part was faster
    elif work_slice.count == 1 and not resume:
        raise OutputError(
            f"{out} holds codes shards already",
            "go on with --resume, start anew with -f, or choose another -o",
        )
    _check_same(shards.read_manifest(out), manifest, out)
    _remove(
        out,
        [
            p
            for p in shards.stale_files(out)
            if p.name.startswith(".") and (work_slice.count == 1 or _is_old(p))
        ],
    )


def _is_old(path: Path) -> bool:
    """Whether a temporary file is of a run that was killed:
    other parts may be writing theirs, which takes seconds.
    """
    try:
        return time.time() - path.stat().st_mtime > 3600
    except OSError:  # it is gone
        return False


def _check_same(before: Manifest, now: Manifest, out: Path) -> None:
    changed = [f.name for f in fields(Manifest) if getattr(before, f.name) != getattr(now, f.name)]
    if changed:
        names = ", ".join(name.replace("_", " ") for name in changed)
        raise OutputError(
            f"the shards in {out} were made with another {names}",
            "give the same, start anew with -f, or choose another -o",
        )


def _remove(out: Path, paths: list[Path]) -> None:
    try:
        # it goes last: it tells whose files these are
        for path in sorted(paths, key=lambda p: p.name == MANIFEST):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot empty {out}: {error.strerror}", "choose another folder with -o"
        ) from None


@dataclass
class _Bucket:
    """Images of one grid size that wait to be encoded together."""

    positions: list[int] = field(default_factory=list)  # among the shard's lines
    images: list[np.ndarray] = field(default_factory=list)
    pixels: int = 0


class _ShardWriter:
    """A shard in the making.

    What is encoded together depends on the images before it alone, not on time.
    """

    def __init__(self, model: Model, settings: BulkSettings) -> None:
        self.model, self.settings, self.began = model, settings, time.perf_counter()
        self.lines: list[ShardRecord] = []
        self.grids: dict[int, np.ndarray] = {}  # (L, h, w) of each line that has one
        self.waiting: dict[tuple[int, int], _Bucket] = {}  # by (w, h)
        # places of the images of each grid, in order
        self.ranges: list[images.Range | None] = []  # of each line
        self.narrow: list[images.Range] = []
        self.rows: dict[tuple[int, int], list[int]] = {}

    def add(self, entry: Entry, image: images.DecodedImage | VqtokError) -> None:
        """The next image, or why it could not be read."""
        if not isinstance(image, VqtokError):
            try:
                self.model.check_size(*image.pixels.shape[:2])
            except VqtokError as error:
                image = error
        if isinstance(image, VqtokError):
            self.lines.append(ShardRecord(entry.name, error=str(image)))
            self.ranges.append(None)
            return
        f, (H, W) = self.model.config.downsample, image.pixels.shape[:2]
        grid = -(-W // f), -(-H // f)
        position, rows, bucket = (
            len(self.lines),
            self.rows.setdefault(grid, []),
            self.waiting.setdefault(grid, _Bucket()),
        )
        self.lines.append(ShardRecord(entry.name, (W, H), grid, len(rows), notes=image.notes))
        self.ranges.append(image.range)
        self.narrow += [] if image.narrow is None else [image.narrow]
        rows.append(position)
        bucket.positions.append(position)
        bucket.images.append(image.pixels)
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
        data, lines = shards.build_shard(
            chunk.input, chunk.last, chunk.checksum, self.lines, stacks
        )
        found = Shard(
            out, chunk.input.number, chunk.number, shards.parse_head(lines.split(b"\n", 1)[0])
        )
        if data:
            files.write_bytes(found.path, data, force=True)
        files.write_bytes(found.records_path, lines, force=True)
        failed = tuple(line for line in self.lines if line.error is not None)
        narrow = images.suggest(self.narrow) if self.narrow else None
        seconds = time.perf_counter() - self.began
        return ShardReport(found, seconds, failed, narrow, len(self.narrow))

    def _stack(self, positions: list[int]) -> Codes | Compact:
        """The codes of the images at these places, all of one grid."""
        sizes = tuple((H, W) for W, H in (self.lines[position].size for position in positions))
        stack = self.model.codes(np.stack([self.grids[position] for position in positions]), sizes)
        ranges = {self.ranges[position] for position in positions}
        stack = replace(stack, range=ranges.pop() if len(ranges) == 1 else None)
        return self.model.pack(stack) if self.settings.compact else stack
