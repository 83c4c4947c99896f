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
from vqtok.bulk.inputs import Chunk, Entry, Inputs, Share
from vqtok.bulk.pool import Pool
from vqtok.bulk.shards import MANIFEST, Found, Line, Manifest
from vqtok.codec import Model
from vqtok.codes import Codes, Compact
from vqtok.errors import OutputError, VqtokError

PENDING_PIXELS = 2**23  # decoded and waiting for others of their grid: 25 MB
WORKERS_MAX = 16


@dataclass(frozen=True)
class Settings:
    """How to encode."""

    levels: int | None = None  # None: all
    compact: bool = False
    background: str = "white"
    shard_size: int = 1000  # pictures


@dataclass(frozen=True)
class Report:
    """A shard that is finished."""

    shard: Found
    seconds: float  # 0: it was before
    failed: tuple[Line, ...] = ()  # pictures, where they were found to be bad just now

    @property
    def new(self) -> bool:
        return self.seconds > 0


def default_workers() -> int:
    """A process for each processor, divided among the ranks that torchrun starts on
    this machine; at most 16.
    """
    return max(1, min(WORKERS_MAX, (os.cpu_count() or 1) // distributed.in_machine()))


def encode(
    model: Model,
    inputs: Inputs,
    out: Path,
    settings: Settings,
    share: Share,
    workers: int,
    resume: bool = False,
    force: bool = False,
) -> Generator[Report, None, None]:
    """Encodes this part of the inputs into a folder of codes shards, and tells of each shard
    when it is whole on the disk.

    With `resume` what is finished stays, and is told, too. Raises OutputError where the folder
    holds shards and neither `resume` nor `force` (anew) is given, or where they were made
    otherwise; VqtokError where a worker died. Closing the iterator ends all work.
    """
    if force and share.count > 1:
        raise OutputError(
            "-f would take away what other parts have written",
            "remove the folder, and leave -f out",
        )
    begin(out, manifest_of(model, inputs, settings), share, resume, force)
    distributed.local(model.device)
    with Pool(workers, model.config.channels, images.parse_color(settings.background)) as pool:
        shard = _Shard(model, settings)
        for item, picture in pool.map(_work(inputs, out, settings, share, resume)):
            if isinstance(item, Found):
                yield Report(item, 0.0)
            elif isinstance(item, Entry):
                assert picture is not None
                shard.add(item, picture)
            else:
                yield shard.finish(item, out)
                shard = _Shard(model, settings)


# a shard that is finished already; a picture; the shard of the pictures before it
Work = Found | Entry | Chunk


def _work(
    inputs: Inputs, out: Path, settings: Settings, share: Share, resume: bool
) -> Iterator[tuple[Work, Entry | None]]:
    """What there is to do for one part, in order, each with the picture to decode for it."""
    for source in inputs.all:
        whole = share.takes_input(source, inputs.tars)
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
            if not (whole or share.takes(source, chunk.number)):
                continue
            found = _finished(out, chunk, resume)
            if found is not None:
                yield found, None
                continue
            yield from ((entry, entry) for entry in chunk.entries)
            yield replace(chunk, entries=()), None


def _finished_input(out: Path, number: int) -> list[Found]:
    """All shards of a tar where all are finished, else none: it need not be looked into again.

    Its size is in the manifest.
    """
    done: list[Found] = []
    while (found := shards.find(out, number, len(done))) is not None and found.whole():
        done.append(found)
        if found.head.last:
            return done
    return []


def _finished(out: Path, chunk: Chunk, resume: bool) -> Found | None:
    """The finished shard of these pictures; OutputError where it is one of other pictures, or
    where it may not be there.
    """
    found = shards.find(out, chunk.input.number, chunk.number)
    if found is None or not found.whole():
        return None
    if not resume:
        raise OutputError(f"{found.lines_path} exists", "go on with --resume, or choose another -o")
    if (found.head.names, found.head.last) != (chunk.checksum, chunk.last):
        raise OutputError(
            f"{chunk.input.name} has changed since {found.path.name} was made",
            "start anew with -f, or choose another -o",
        )
    return found


def manifest_of(model: Model, inputs: Inputs, settings: Settings) -> Manifest:
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
    )


def begin(out: Path, manifest: Manifest, share: Share, resume: bool, force: bool) -> None:
    """Writes the manifest, or checks that the one that is there is the same. Errors as `encode`."""
    path = out / MANIFEST
    if force and path.exists():
        _remove(out, list(shards.stale(out)))
    if not path.exists():
        try:
            files.write_bytes(path, manifest.to_bytes())
        except OutputError:
            if share.count == 1 or not path.exists():
                raise  # else another part was faster
    elif share.count == 1 and not resume:
        raise OutputError(
            f"{out} holds codes shards already",
            "go on with --resume, start anew with -f, or choose another -o",
        )
    _check_same(shards.read_manifest(out), manifest, out)
    _remove(
        out,
        [
            p
            for p in shards.stale(out)
            if p.name.startswith(".") and (share.count == 1 or _is_old(p))
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
    """Pictures of one grid size that wait to be encoded together."""

    places: list[int] = field(default_factory=list)  # among the shard's lines
    pictures: list[np.ndarray] = field(default_factory=list)
    pixels: int = 0


class _Shard:
    """A shard in the making.

    What is encoded together depends on the pictures before it alone, not on time.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings, self.began = model, settings, time.perf_counter()
        self.lines: list[Line] = []
        self.grids: dict[int, np.ndarray] = {}  # (L, h, w) of each line that has one
        self.waiting: dict[tuple[int, int], _Bucket] = {}  # by (w, h)
        # places of the pictures of each grid, in order
        self.rows: dict[tuple[int, int], list[int]] = {}

    def add(self, entry: Entry, picture: images.Picture | VqtokError) -> None:
        """The next picture, or why it could not be read."""
        if not isinstance(picture, VqtokError):
            try:
                self.model.check_size(*picture.pixels.shape[:2])
            except VqtokError as error:
                picture = error
        if isinstance(picture, VqtokError):
            self.lines.append(Line(entry.name, error=str(picture)))
            return
        f, (H, W) = self.model.config.downsample, picture.pixels.shape[:2]
        grid = -(-W // f), -(-H // f)
        place, rows, bucket = (
            len(self.lines),
            self.rows.setdefault(grid, []),
            self.waiting.setdefault(grid, _Bucket()),
        )
        self.lines.append(Line(entry.name, (W, H), grid, len(rows), notes=picture.notes))
        rows.append(place)
        bucket.places.append(place)
        bucket.pictures.append(picture.pixels)
        bucket.pixels += grid[0] * grid[1] * f * f
        # 4 pictures of 432x320 on a CPU, where more are no faster
        if bucket.pixels >= self.model.pixels_at_once:
            self._encode(grid)
        elif sum(each.pixels for each in self.waiting.values()) > PENDING_PIXELS:
            self._encode(max(self.waiting, key=lambda key: self.waiting[key].pixels))

    def _encode(self, grid: tuple[int, int]) -> None:
        bucket = self.waiting.pop(grid)
        # (n, L, h, w)
        encoded = self.model.encode_batch(bucket.pictures, self.settings.levels).indices
        self.grids.update(zip(bucket.places, encoded, strict=True))

    def finish(self, chunk: Chunk, out: Path) -> Report:
        """Writes the shard, and then its manifest."""
        for grid in list(self.waiting):
            self._encode(grid)
        stacks = [self._stack(places) for places in self.rows.values()]
        data, lines = shards.build(chunk.input, chunk.last, chunk.checksum, self.lines, stacks)
        found = Found(
            out, chunk.input.number, chunk.number, shards.parse_head(lines.split(b"\n", 1)[0])
        )
        if data:
            files.write_bytes(found.path, data, force=True)
        files.write_bytes(found.lines_path, lines, force=True)
        failed = tuple(line for line in self.lines if line.error is not None)
        return Report(found, time.perf_counter() - self.began, failed)

    def _stack(self, places: list[int]) -> Codes | Compact:
        """The codes of the pictures at these places, all of one grid."""
        sizes = tuple((H, W) for W, H in (self.lines[place].size for place in places))
        stack = self.model.codes(np.stack([self.grids[place] for place in places]), sizes)
        return self.model.pack(stack) if self.settings.compact else stack
