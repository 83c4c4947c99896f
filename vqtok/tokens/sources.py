"""Sources of index grids: chunks of images, each a codes file or a codes shard.

`CodesDataset` is a source of shards, `CodesFiles` one of codes files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from vqtok import codes, files
from vqtok.codes import Codes, count_levels
from vqtok.codes.checks import require
from vqtok.data import classes, splits
from vqtok.errors import InputError, UsageError

if TYPE_CHECKING:
    from vqtok.codec import EntropyCoder

_CLASSES_MAX = 1 << 24  # each has a place in a list

Grid = tuple[int, int]  # (h, w)


@dataclass(frozen=True, slots=True)
class Item:
    """The facts about an image beside its grid."""

    name: str
    inner: str  # the name in its input, whose folders may be labels
    size: tuple[int, int]  # (H, W)
    label: int | str | None = None
    caption: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Loaded:
    """The grids of a chunk, and the position of each image's own."""

    stacks: list[np.ndarray]  # (n, L, h, w), one for each grid size
    which: np.ndarray  # int64 (n,): the stack of each image
    rows: np.ndarray  # int64 (n,): its place in the stack

    def grid(self, image: int) -> np.ndarray:
        """Returns the grid (L, h, w) of an image."""
        return self.stacks[int(self.which[image])][int(self.rows[image])]


class Chunk(Protocol):
    """Images that are read together."""

    @property
    def origin(self) -> Path: ...
    @property
    def images(self) -> int: ...
    @property
    def grids(self) -> dict[Grid, int]:
        """Counts the images of each grid size, without reading them."""
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
        """Returns how many chunks may be loaded at a time."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Returns names of the classes by number, where the source has them."""
        ...


@dataclass(frozen=True)
class Fields:
    """The labels, captions and splits that the images of a source have."""

    labels: tuple[str, ...]  # names by number; "" for one without a name
    classes: list[np.ndarray]  # int32 (n,) for each chunk: the class of each image, -1 for none
    captions: bool  # whether there are any
    splits: tuple[str, ...]  # those there are, sorted


class Named(Protocol):
    """What tells the split of an image: a record of a shard, or an `Item`."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str | None: ...


def split_of(item: Named) -> str | None:
    """Returns the split of an image: its own, or else that of the folder or tar in its name. None
    where neither tells.
    """
    return item.split or splits.split_of_name(item.name)


# a label as an image has it, or else its folder
_Key = tuple[Literal["name", "number", "folder"], str | int]


def read_fields(source: GridSource) -> Fields:
    """Looks through all images of a source, and numbers their classes.

    Labels are those that the images carry: numbers as they are, names in the order of the source's
    own list, or else sorted. Where no image carries one, the top folders are the labels, as in
    training. Splits are those that the images carry, or else those that folders or tars name.
    Raises FormatError.
    """
    keys, parts, captions = dict[_Key, int](), set[str | None](), False
    chunks = list[np.ndarray]()  # the number of the key of each image: 4 bytes an image
    for chunk in source.chunks:
        found = list[int]()
        for item in chunk.items():
            found.append(keys.setdefault(_key(item), len(keys)))
            captions |= item.caption is not None
            parts.add(split_of(item))
        chunks.append(np.array(found, np.int32))
    labels, numbers = _number(list(keys), source.label_names)
    classes = [np.array(numbers, np.int32)[each] for each in chunks]
    return Fields(labels, classes, captions, tuple(sorted(filter(None, parts))))


def _key(item: Item) -> _Key:
    if item.label is None:
        return "folder", item.inner.rpartition("/")[0]
    return ("name" if isinstance(item.label, str) else "number"), item.label


def _number(keys: list[_Key], listed: tuple[str, ...]) -> tuple[tuple[str, ...], list[int]]:
    """Numbers the classes: returns their names, and the class of each key, -1 for none."""
    names = {str(value) for kind, value in keys if kind == "name"}
    numbers = [int(value) for kind, value in keys if kind == "number"]
    if not names and not numbers:
        labels, by_folder = _number_folders({str(value) for _, value in keys})
        return labels, [by_folder.get(str(value), -1) for _, value in keys]
    if numbers and not names:
        highest = max(numbers)
        require(highest < _CLASSES_MAX, f"the label {highest} is no class", "encode again")
        labels = listed + ("",) * (highest + 1 - len(listed))
        return labels, [int(value) if kind == "number" else -1 for kind, value in keys]
    # a number among names is one, too: that of the list, or else its digits
    called = {n: listed[n] if n < len(listed) else str(n) for n in numbers}
    unknown = (names | set(called.values())) - set(listed)
    labels = (*listed, *sorted(unknown))
    by_name = {name: number for number, name in enumerate(labels)}
    return labels, [
        -1 if kind == "folder" else by_name[str(value) if kind == "name" else called[int(value)]]
        for kind, value in keys
    ]


def _number_folders(folders: set[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Labels of the folders that images lie in, and the number of each folder's label."""
    if not folders:
        return (), {}
    parts = {folder: PurePosixPath(folder).parts for folder in folders}
    places = {folder: splits.split_folder(each) for folder, each in parts.items()}
    if all(places.values()):
        parts = {folder: parts[folder][place[0] + 1 :] for folder, place in places.items() if place}
    found = classes.of_folders(classes.without_root([(*each, "image") for each in parts.values()]))
    return found.labels, dict(zip(parts, found.targets, strict=True)) if found.labels else {}


class CodesFiles:
    """Codes files of one model, as a source of grids."""

    label_names: tuple[str, ...] = ()
    pool_chunks = 1 << 20  # they are read whole, and keep no file open

    def __init__(self, inputs: Sequence[str], model: str | None = None) -> None:
        """Lists the codes files. `inputs` are files, folders and globs; `model` is the name or path
        of the model, where compact files need one that is not found by its name.

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
            self.chunks.append(FileChunk(source.path, source.relative.as_posix(), shape, model))
        assert first is not None  # `expand` raises where there is none
        self.origin = first[0]


def _origin_of(meta: dict[str, object]) -> Origin:
    """Parses the origin in the metadata of a codes file. Raises FormatError where it cannot be."""
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
        from vqtok.codec import find_coder

        return find_coder(packed, self.model)
