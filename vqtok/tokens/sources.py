"""Where index grids come from: chunks of images, each a codes file or a codes shard.

`CodesDataset` is a source of shards, `CodesFiles` one of codes files.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vqtok import codes, files
from vqtok.codes import Codes, count_levels
from vqtok.codes.checks import require
from vqtok.data.sources import folder_labels
from vqtok.errors import InputError, UsageError

if TYPE_CHECKING:
    from vqtok.codec import EntropyCoder

_SPLITS = {"training": "train", "valid": "val", "validation": "val"} | {
    name: name for name in ("train", "val", "test")
}

Grid = tuple[int, int]  # (h, w)


@dataclass(frozen=True, slots=True)
class Item:
    """What is known of an image beside its grid."""

    name: str
    inner: str  # the name in its input, whose folders may be labels
    size: tuple[int, int]  # (H, W)
    label: int | str | None = None
    caption: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Loaded:
    """The grids of a chunk, and where each image has its own."""

    stacks: list[np.ndarray]  # (n, L, h, w), one for each grid size
    which: np.ndarray  # int64 (n,): the stack of each image
    rows: np.ndarray  # int64 (n,): its place in the stack

    def grid(self, image: int) -> np.ndarray:
        """The grid (L, h, w) of an image."""
        return self.stacks[int(self.which[image])][int(self.rows[image])]


class Chunk(Protocol):
    """Images that are read together."""

    @property
    def origin(self) -> Path: ...
    @property
    def images(self) -> int: ...
    @property
    def grids(self) -> dict[Grid, int]:
        """How many images there are of each grid size, without reading them."""
        ...

    def load(self) -> Loaded: ...
    def items(self) -> list[Item]: ...


@dataclass(frozen=True)
class Origin:
    """The model that made the codes, as in `Codes`."""

    model: str
    fingerprint: str
    codebook_size: int
    downsample: int
    channels: int
    levels: int


class GridSource(Protocol):
    """Chunks of one model's codes."""

    @property
    def origin(self) -> Origin: ...
    @property
    def chunks(self) -> Sequence[Chunk]: ...
    @property
    def pool_chunks(self) -> int:
        """How many chunks may be loaded at a time."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes by number, where the source tells them."""
        ...


@dataclass(frozen=True)
class Fields:
    """Which labels, captions and splits the images of a source have."""

    labels: tuple[str, ...] = ()  # names by number; "" for one without a name
    captions: bool = False
    splits: tuple[str, ...] = ()  # those there are, sorted
    stored: bool = False  # labels are the images' own, not folders
    by_folder: dict[str, int] = field(default_factory=dict)
    by_name: dict[str, int] = field(default_factory=dict)

    def label(self, item: Item) -> int | None:
        """The number of an image's class; None where it has none."""
        if not self.stored:
            return self.by_folder.get(_folder(item.inner))
        return self.by_name[item.label] if isinstance(item.label, str) else item.label

    def split(self, item: Item) -> str | None:
        """The split of an image; None where it has none."""
        return item.split or _split_of(item.name)


def read_fields(source: GridSource) -> Fields:
    """Looks through all images of a source, and numbers their classes.

    Labels are those that the images carry: numbers as they are, names in the order of the source's
    own list, or else sorted. Where no image carries one, the top folders are the labels, as in
    training. Splits are those that the images carry, or else a first folder or tar called train,
    val or test. Raises FormatError.
    """
    names, numbers, folders, splits = set[str](), set[int](), set[str](), set[str | None]()
    captions = stored = False
    for chunk in source.chunks:
        for item in chunk.items():
            if isinstance(item.label, str):
                names.add(item.label)
            elif item.label is not None:
                numbers.add(item.label)
            else:
                folders.add(_folder(item.inner))
            captions |= item.caption is not None
            splits.add(item.split or _split_of(item.name))
    stored = bool(names or numbers)
    require(not (names and numbers), "some labels are names, and some are numbers", "encode again")
    known = sorted(filter(None, splits))
    if not stored:
        labels, by_folder = _number_folders(folders)
        return Fields(labels, captions, tuple(known), False, by_folder)
    listed = source.label_names
    if names:
        unknown = sorted(names - set(listed)) if listed else []
        require(not unknown, f"the label {unknown[:1]} is not in the list of labels")
        labels = listed or tuple(sorted(names))
    else:
        labels = listed + ("",) * (max(numbers) + 1 - len(listed))
    by_name = {name: number for number, name in enumerate(labels)}
    return Fields(labels, captions, tuple(known), True, {}, by_name)


def _number_folders(folders: set[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Labels of the folders that images lie in, and the number of each folder's label."""
    if not folders:
        return (), {}
    parts = {folder: PurePosixPath(folder).parts for folder in folders}
    if all(each and each[0].lower() in _SPLITS for each in parts.values()):
        parts = {folder: each[1:] for folder, each in parts.items()}
    labels, targets = folder_labels([(*each, "image") for each in parts.values()])
    return labels, dict(zip(parts, targets, strict=True)) if labels else {}


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _split_of(name: str) -> str | None:
    first, slash, _ = name.partition("/")
    return _SPLITS.get(re.split(r"[-_.\d]", first.lower())[0]) if slash else None


class CodesFiles:
    """Codes files of one model, as a source of grids."""

    label_names: tuple[str, ...] = ()
    pool_chunks = 1 << 20  # they are read whole, and keep no file open

    def __init__(self, inputs: Sequence[str], model: str | None = None) -> None:
        """`inputs` are files, folders and globs; `model` is the name or path of the model, where
        compact files need one that is not found by its name.

        Raises InputError, FormatError; UsageError where the files are of several models or have
        different numbers of levels.
        """
        self.model = model
        self.chunks: list[FileChunk] = []
        first: tuple[Origin, Path] | None = None
        for source in files.expand(inputs, frozenset({".npz"})):
            if source.path is None:
                raise InputError("codes are not read from standard input here", "name the file")
            meta = codes.read_codes_meta(source.path)
            with codes.name_in_errors(source.path):
                origin, shape = _origin_of(meta), tuple(meta["shape"])
            if first is not None:
                _check_same(first, (origin, source.path))
            first = first or (origin, source.path)
            self.chunks.append(
                FileChunk(source.path, source.relative.as_posix(), shape, origin, model)
            )
        assert first is not None  # `expand` raises where there is none
        self.origin = first[0]


def _origin_of(meta: dict[str, object]) -> Origin:
    """The origin in the metadata of a codes file; FormatError where it cannot be."""
    shape = meta["shape"]
    require(isinstance(shape, tuple) and len(shape) == 4, "the indices lack the four axes")
    assert isinstance(shape, tuple)
    names = ("model", "fingerprint", "codebook_size", "downsample", "channels")
    model, fingerprint, K, f, channels = (meta[name] for name in names)
    require(isinstance(model, str) and isinstance(fingerprint, str), "the metadata is damaged")
    require(all(type(n) is int and n > 0 for n in (K, f, channels)), "the metadata is damaged")
    return Origin(model, fingerprint, K, f, channels, int(shape[1]))  # type: ignore[arg-type]


def _check_same(first: tuple[Origin, Path], other: tuple[Origin, Path]) -> None:
    (one, path), (two, another) = first, other
    if one.fingerprint != two.fingerprint:
        raise UsageError(
            f"{path} is of model {one.model} ({one.fingerprint}), {another} of {two.model} "
            f"({two.fingerprint})",
            "export the codes of one model at a time",
        )
    if one.levels != two.levels:
        raise UsageError(
            f"{path} holds {count_levels(one.levels)}, {another} {count_levels(two.levels)}",
            f"give all as many: vqtok truncate --levels {min(one.levels, two.levels)}",
        )


@dataclass(frozen=True)
class FileChunk:
    """The images of a codes file."""

    origin: Path
    name: str
    shape: tuple[int, ...]  # (n, L, h, w)
    made_by: Origin
    model: str | None

    @property
    def images(self) -> int:
        return self.shape[0]

    @property
    def grids(self) -> dict[Grid, int]:
        n, _, h, w = self.shape
        return {(h, w): n}

    def load(self) -> Loaded:
        indices = self._read().indices
        n = len(indices)
        return Loaded([indices], np.zeros(n, np.int64), np.arange(n))

    def items(self) -> list[Item]:
        name = self.name.removesuffix(".npz")
        sizes = self._read().sizes
        if len(sizes) == 1:
            return [Item(name, name, sizes[0])]
        # the folders that the file lies in are labels; the file itself is not
        return [Item(f"{name}/{i}", name, size) for i, size in enumerate(sizes)]

    def _read(self) -> Codes:
        found = codes.read_any_codes(self.origin)
        with codes.name_in_errors(self.origin):
            require(found.shape == self.shape, "the file has changed", "start again")
            if isinstance(found, Codes):
                return found
            return codes.unpack(found, self._find_coder)

    def _find_coder(self, packed: codes.Compact) -> "EntropyCoder | None":
        from vqtok.codec import find_coder  # torch, for codes that a prior coded alone

        return find_coder(packed, self.model)
