"""Builds, reads and checks the files in a folder of codes shards. See the package."""

import io
import json
import math
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from vqtok import codes, files
from vqtok.bulk.inputs import Input, stem
from vqtok.codes.checks import COPY_AGAIN, FORMAT, is_int, require
from vqtok.errors import FormatError, InputError

MANIFEST = "manifest.json"
KIND = "codes shards"
LINES_LIMIT = 1 << 30  # bytes of a shard's manifest
_SUFFIXES = (".npz", ".tar", ".jsonl")
_OPTIONAL = ("range", "crops", "labels")  # of a manifest: those that say nothing are left out
_RECORD_KEYS = ("name", "error", "notes", "size", "grid", "row", "label", "caption", "split")
STEM = re.compile(r"(\d{5,12})-(\d{5,12})", re.ASCII)


@dataclass(frozen=True)
class Manifest:
    """Values that are equal in all shards of a folder."""

    model: str
    fingerprint: str
    codebook_size: int
    downsample: int
    channels: int
    levels: int
    compact: bool
    precision: str
    background: str
    shard_size: int
    inputs: tuple[tuple[str, int | None], ...]  # name, and bytes of a tar
    range: str = ""  # of deep images, LOW:HIGH; "": by the type of each
    crops: str = ""  # what was made of the images (see `Crops.describe`); "": nothing
    labels: tuple[str, ...] = ()  # names of the classes by number; none where labels tell all

    def __post_init__(self) -> None:
        """Raises FormatError where a value cannot be."""
        kinds = {
            "range": str,
            "model": str,
            "fingerprint": str,
            "precision": str,
            "background": str,
            "crops": str,
            "compact": bool,
        }
        require(
            all(type(getattr(self, name)) is kind for name, kind in kinds.items()),
            "the manifest is damaged",
        )
        least = {"codebook_size": 2, "downsample": 1, "channels": 1, "levels": 1, "shard_size": 1}
        require(
            all(is_int(getattr(self, name), low, 1 << 32) for name, low in least.items()),
            "the manifest is damaged",
        )

    def to_bytes(self) -> bytes:
        inputs = [
            {"name": name} if size is None else {"name": name, "bytes": size}
            for name, size in self.inputs
        ]
        values = {"format": FORMAT, "kind": KIND, **asdict(self), "inputs": inputs}
        for name in _OPTIONAL:
            if not values[name]:
                del values[name]
        return (json.dumps(values, indent=1) + "\n").encode()


def is_shards(folder: Path) -> bool:
    """Whether a folder holds codes shards: by the kind in its manifest, or, where that is damaged,
    by the names of the files beside it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return False
    try:
        return json.loads(path.read_bytes())["kind"] == KIND
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return any(p.suffix == ".jsonl" and STEM.fullmatch(p.stem) for p in folder.iterdir())


def read_manifest(folder: Path) -> Manifest:
    """Raises InputError where there is none, FormatError where it is damaged or newer."""
    path = folder / MANIFEST
    data = files.read_bytes(path, LINES_LIMIT)
    with codes.name_in_errors(path):
        values = _parse(data)
        require(
            values.pop("kind", None) == KIND,
            "not the manifest of codes shards",
            "give a folder that vqtok encode --bulk wrote",
        )
        inputs = values.pop("inputs", None)
        require(
            isinstance(inputs, list) and all(isinstance(entry, dict) for entry in inputs),
            "the manifest is damaged",
        )
        pairs = tuple((entry.get("name"), entry.get("bytes")) for entry in inputs)
        require(
            all(
                isinstance(name, str) and (size is None or is_int(size, 0, 1 << 62))
                for name, size in pairs
            ),
            "the manifest is damaged",
        )
        known = {name: values[name] for name in Manifest.__dataclass_fields__ if name in values}
        needed = set(Manifest.__dataclass_fields__) - {"inputs", *_OPTIONAL}
        require(needed <= set(known), "the manifest is damaged")
        known["labels"] = _labels(values)
        return Manifest(**known, inputs=pairs)


def read_labels(folder: Path) -> tuple[str, ...]:
    """Reads the names of the classes by number, () where the manifest lists none.

    Errors as `read_manifest`.
    """
    return read_manifest(folder).labels


def _labels(values: dict[str, Any]) -> tuple[str, ...]:
    labels = values.get("labels", [])
    require(
        isinstance(labels, list) and all(isinstance(label, str) for label in labels),
        "the manifest is damaged",
    )
    return tuple(labels)


@dataclass(frozen=True)
class GridBatch:
    """The codes of the images of one grid size in a shard:
    a codes file of its own, or a part of the tar.
    """

    grid: tuple[int, int]  # (w, h)
    pictures: int
    start: int  # of the codes file in the shard's file, in bytes
    bytes: int
    # where in the shard's file the plain indices begin; None: a compact codes file
    indices: int | None

    @classmethod
    def from_json(cls, value: Any) -> "GridBatch":
        require(
            isinstance(value, dict) and isinstance(value.get("grid"), list), "a stack is damaged"
        )
        keys = ("grid", "pictures", "start", "bytes", "indices")
        grid, n, start, size, at = cast(tuple[Any, ...], tuple(value.get(key) for key in keys))
        require(
            len(grid) == 2 and all(is_int(side, 1, 1 << 24) for side in grid),
            "the grid of a stack is damaged",
        )
        require(
            is_int(n, 1, 1 << 32) and is_int(start, 0, 1 << 62) and is_int(size, 1, 1 << 62),
            "a stack is damaged",
        )
        require(at is None or is_int(at, 0, 1 << 62), "a stack is damaged")
        return cls((grid[0], grid[1]), n, start, size, at)


@dataclass(frozen=True)
class ShardHeader:
    """The first line of a shard's manifest."""

    input: str  # name of the tar, or `pictures`
    pictures: int  # encoded
    failed: int
    last: bool  # shard of its input
    names: int  # CRC-32 of the names of the images, and of their places in the tar
    bytes: int  # of the shard's file; 0: there is none, as no image could be encoded
    crc32: int  # of the same
    stacks: tuple[GridBatch, ...]

    @property
    def suffix(self) -> str:
        """Returns the suffix of the shard's file."""
        return ".npz" if len(self.stacks) == 1 else ".tar"

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))


def parse_head(line: bytes) -> ShardHeader:
    """Parses what `ShardHeader.to_json` wrote. Raises FormatError where it is damaged."""
    values = _parse(line)
    counts = [values.get(name) for name in ("pictures", "failed", "bytes", "names", "crc32")]
    require(all(is_int(count, 0, 1 << 62) for count in counts), "the first line is damaged")
    require(
        type(values.get("last")) is bool and type(values.get("input")) is str,
        "the first line is damaged",
    )
    require(isinstance(values.get("stacks"), list), "the first line is damaged")
    stacks = tuple(GridBatch.from_json(value) for value in values["stacks"])
    require(
        sum(stack.pictures for stack in stacks) == values["pictures"],
        "the stacks do not hold that many images",
    )
    require(len({stack.grid for stack in stacks}) == len(stacks), "a grid stands twice")
    require(
        all(stack.start + stack.bytes <= values["bytes"] for stack in stacks),
        "a stack reaches past the end of its shard",
    )
    return ShardHeader(
        **{name: values[name] for name in ShardHeader.__dataclass_fields__ if name != "stacks"},
        stacks=stacks,
    )


@dataclass(frozen=True)
class ShardRecord:
    """An image in a shard's manifest: where it is, or why it is not there."""

    name: str
    size: tuple[int, int] = (0, 0)  # (W, H)
    grid: tuple[int, int] = (0, 0)  # (w, h)
    row: int = 0
    error: str | None = None
    notes: tuple[str, ...] = ()
    label: int | str | None = None  # the number of its class, or the class's name
    caption: str | None = None
    split: str | None = None

    def to_json(self) -> str:
        position = (
            {"error": self.error}
            if self.error is not None
            else {"size": self.size, "grid": self.grid, "row": self.row}
        )
        more = {name: getattr(self, name) for name in ("notes", "label", "caption", "split")}
        present = {name: value for name, value in more.items() if value not in (None, ())}
        return json.dumps({"name": self.name, **position, **present}, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: bytes) -> "ShardRecord":
        value = _object(line)
        found = cast(tuple[Any, ...], tuple(map(value.get, _RECORD_KEYS)))
        name, error, notes, size, grid, row, label, caption, split = found
        require(isinstance(name, str) and isinstance(notes or [], list), "a line is damaged")
        if error is not None:
            require(isinstance(error, str), "a line is damaged")
            return cls(name, error=error)
        require(_is_pair(size) and _is_pair(grid) and is_int(row, 0, 1 << 32), "a line is damaged")
        require(
            (label is None or isinstance(label, str) or is_int(label, 0, 1 << 31))
            and (caption is None or isinstance(caption, str))
            and (split is None or isinstance(split, str)),
            "a line is damaged",
        )
        return cls(
            name,
            (size[0], size[1]),
            (grid[0], grid[1]),
            row,
            None,
            tuple(map(str, notes)) if notes else (),
            label,
            caption,
            split,
        )


def _is_pair(value: Any) -> bool:
    """Whether a value is [width, height]; a comprehension takes four times as long."""
    return (
        type(value) is list
        and len(value) == 2
        and is_int(value[0], 1, 1 << 32)
        and is_int(value[1], 1, 1 << 32)
    )


@dataclass(frozen=True)
class Shard:
    """A finished shard in a folder."""

    folder: Path
    number: int  # of its input
    chunk: int
    head: ShardHeader

    @property
    def records_path(self) -> Path:
        return self.folder / f"{stem(self.number, self.chunk)}.jsonl"

    @property
    def path(self) -> Path:
        """Returns the path of the shard's file."""
        return self.records_path.with_suffix(self.head.suffix)

    def is_complete(self) -> bool:
        """Whether its file is there at its size."""
        try:
            return self.head.bytes == 0 or self.path.stat().st_size == self.head.bytes
        except OSError:
            return False

    def verify(self) -> None:
        """Reads the file and compares its checksum.

        FormatError where it is another, InputError where it cannot be read.
        """
        crc, size = 0, 0
        try:
            if self.head.bytes:
                with self.path.open("rb") as file:
                    while piece := file.read(1 << 20):
                        crc, size = zlib.crc32(piece, crc), size + len(piece)
        except OSError as error:
            raise InputError(
                f"cannot read {self.path}: {error.strerror}", "check the disk and its permissions"
            ) from None
        with codes.name_in_errors(self.path):
            require(
                (crc, size) == (self.head.crc32, self.head.bytes),
                "the file does not match its checksum",
            )

    def records(self) -> list[ShardRecord]:
        """Reads the records of all its images, also of those that failed."""
        data = files.read_bytes(self.records_path, LINES_LIMIT)
        with codes.name_in_errors(self.records_path):
            lines = [ShardRecord.from_json(line) for line in data.splitlines()[1:]]
            failed = sum(line.error is not None for line in lines)
            require(
                (len(lines) - failed, failed) == (self.head.pictures, self.head.failed),
                "lines are missing",
            )
            return lines


def find_shard(folder: Path, number: int, chunk: int) -> Shard | None:
    """Returns the shard of that input and number; None where it is not finished.

    FormatError where its manifest is damaged.
    """
    path = folder / f"{stem(number, chunk)}.jsonl"
    try:
        with path.open("rb") as file:
            line = file.readline(LINES_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", "check the disk and its permissions"
        ) from None
    with codes.name_in_errors(path):
        return Shard(folder, number, chunk, parse_head(line))


def find_shards(folder: Path) -> list[Shard]:
    """Returns all finished shards, in the order of the inputs. Raises InputError, FormatError."""
    try:
        names = [path.stem for path in folder.iterdir() if path.suffix == ".jsonl"]
    except OSError as error:
        raise InputError(
            f"cannot read {folder}: {error.strerror}", "check the name and its permissions"
        ) from None
    matches = [match for match in map(STEM.fullmatch, names) if match]
    positions = sorted((int(match[1]), int(match[2])) for match in matches)
    return [found for position in positions if (found := find_shard(folder, *position))]


def count_missing(manifest: Manifest, found: Sequence[Shard]) -> int:
    """Counts the inputs of a folder whose shards are not all finished."""
    chunks: dict[int, list[Shard]] = {}
    for shard in found:
        chunks.setdefault(shard.number, []).append(shard)
    whole = [
        number
        for number, parts in chunks.items()
        if parts[-1].head.last and parts[-1].chunk == len(parts) - 1
    ]
    return len(set(range(len(manifest.inputs))) - set(whole))


def build_shard(
    source: Input,
    last: bool,
    names: int,
    lines: Sequence[ShardRecord],
    stacks: Sequence[codes.Codes | codes.Compact],
) -> tuple[bytes, bytes]:
    """Returns the bytes of a shard's file (none where no image could be encoded), and those of its
    manifest. Equal input gives equal bytes.
    """
    parts = [
        (
            _grid(stack),
            len(stack),
            codes.to_bytes(stack, deflate=False),
            isinstance(stack, codes.Codes),
        )
        for stack in stacks
    ]
    data, starts = (
        (parts[0][2], [0])
        if len(parts) == 1
        else _tar({_member(grid): content for grid, _, content, _ in parts})
    )
    placed = tuple(
        GridBatch(
            grid,
            n,
            start,
            len(content),
            start + codes.data_offset(content, "indices") if plain else None,
        )
        for (grid, n, content, plain), start in zip(parts, starts, strict=True)
    )
    failed = sum(line.error is not None for line in lines)
    head = ShardHeader(
        source.name, len(lines) - failed, failed, last, names, len(data), zlib.crc32(data), placed
    )
    return data, ("\n".join([head.to_json(), *(line.to_json() for line in lines)]) + "\n").encode()


def write_shard(
    out: Path,
    chunk: int,
    source: Input,
    last: bool,
    names: int,
    lines: Sequence[ShardRecord],
    stacks: Sequence[codes.Codes | codes.Compact],
) -> Shard:
    """Writes the shard as `build_shard` makes it, and then its manifest. Raises OutputError."""
    data, text = build_shard(source, last, names, lines, stacks)
    found = Shard(out, source.number, chunk, parse_head(text.split(b"\n", 1)[0]))
    if data:
        files.write_bytes(found.path, data, force=True)
    files.write_bytes(found.records_path, text, force=True)
    return found


def _grid(stack: codes.Codes | codes.Compact) -> tuple[int, int]:
    _, _, h, w = stack.shape
    return w, h


def _member(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}.npz"


def _tar(members: dict[str, bytes]) -> tuple[bytes, list[int]]:
    """Makes a tar of these, without dates or owners; returns it and where each member begins.
    Nothing for no members.
    """
    if not members:
        return b"", []
    buffer, starts = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            starts.append(buffer.tell() + tarfile.BLOCKSIZE)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue(), starts


def map_indices(shard: Shard, stack: GridBatch, manifest: Manifest) -> np.ndarray:
    """Maps the plain indices (n, L, h, w) of a stack into memory: only what is used is read.

    FormatError where the file is too short.
    """
    assert stack.indices is not None
    (w, h), dtype = stack.grid, codes.index_dtype(manifest.codebook_size).newbyteorder("<")
    shape = stack.pictures, manifest.levels, h, w
    with codes.name_in_errors(shard.path):
        require(
            stack.start <= stack.indices
            and math.prod(shape) * dtype.itemsize <= stack.start + stack.bytes - stack.indices,
            "damaged",
        )
        require(shard.is_complete(), f"not the {shard.head.bytes} bytes that its manifest tells of")
    if isinstance(shard.path, files.RemotePath):
        data = _read_part(shard.path, stack.indices, math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)
    try:
        return np.memmap(shard.path, dtype, "r", stack.indices, shape)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {shard.path}: {error}", "check the disk and its permissions"
        ) from None


def read_stack(shard: Shard, stack: GridBatch) -> codes.Codes | codes.Compact:
    """Reads the codes file of a stack. Raises InputError, FormatError."""
    with codes.name_in_errors(shard.path):
        require(shard.is_complete(), f"not the {shard.head.bytes} bytes that its manifest tells of")
        require(stack.bytes <= codes.FILE_LIMIT, "too large")
        return codes.read_any_codes(_read_part(shard.path, stack.start, stack.bytes))


def _read_part(path: Path, start: int, size: int) -> bytes:
    with files.open_input(path) as file:
        file.seek(start)
        return file.read(size)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        return codes.parse_meta(data.decode("ascii"))
    except UnicodeDecodeError:
        raise FormatError("damaged", COPY_AGAIN) from None


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise FormatError("a line is damaged", COPY_AGAIN) from None
    require(isinstance(value, dict), "a line is damaged")
    return value


def stale_files(folder: Path) -> Iterator[Path]:
    """Yields all files in a folder that a run made, or was making when it was killed."""
    for path in folder.iterdir():
        ours = path.suffix in _SUFFIXES and STEM.fullmatch(path.stem)
        if (
            ours
            or path.name == MANIFEST
            or (path.suffix in (*_SUFFIXES, ".json") and files.is_temporary(path.name))
        ):
            yield path
