"""Binary records of labels and pixels: CIFAR-10, CIFAR-100, and STL-10's pairs of files."""

import gzip
import re
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from vqtok.data import tar
from vqtok.data.arrays import BROKEN, damaged
from vqtok.data.classes import of_integers
from vqtok.data.dataset import ArrayData, DataOptions
from vqtok.data.place import Place
from vqtok.data.splits import NoSplitError, Split
from vqtok.errors import InputError

_PIXELS = 3 * 32 * 32  # the red, green and blue planes
_LIMIT = 2**28  # bytes of all batches together; the real ones have 185 MB
_NAMES_LIMIT = 2**16
_LOOKED_AT = 20  # files in an archive: the real ones have 8
_STL_SIDE = 96
_STL_PIXELS = 3 * _STL_SIDE**2


class _Kind(NamedTuple):
    """One of the two: label bytes in front of each image (the last counts), and its files."""

    name: str
    label_bytes: int
    classes: int
    train: str  # patterns of file names
    test: str
    names: str
    archive: str

    @property
    def record(self) -> int:
        return self.label_bytes + _PIXELS

    def pattern(self, split: Split) -> str:
        return self.train if split == "train" else self.test


_CIFAR10 = _Kind(
    "CIFAR-10", 1, 10, r"data_batch_\d\.bin", r"test_batch\.bin", "batches.meta.txt",
    "cifar-10-binary.tar.gz",
)  # fmt: skip
_CIFAR100 = _Kind(
    "CIFAR-100", 2, 100, r"train\.bin", r"test\.bin", "fine_label_names.txt",
    "cifar-100-binary.tar.gz",
)  # fmt: skip
_KINDS = (_CIFAR10, _CIFAR100)
# of the archives for Python: batches of CIFAR-10; what CIFAR-100 calls its meta.
_PICKLED = re.compile(r"batches\.meta|(data|test)_batch(_\d)?|meta")


def cifar_source(place: Place, split: Split, options: DataOptions) -> ArrayData | None:
    """Opens an unpacked folder, or the archive as it is downloaded."""
    if kind := folder_kind(place.path, place.names):
        return open_folder(place.path, kind, split)
    return open_archive(place.path, split) if is_archive(place.path, place.head) else None


def batch_source(place: Place, split: Split, options: DataOptions) -> ArrayData | None:
    """Opens one batch, known by its ending alone."""
    return open_file(place.path) if place.named(".bin") else None


def stl_source(place: Place, split: Split, options: DataOptions) -> ArrayData | None:
    """Opens an unpacked folder of STL-10, or one of its files of images."""
    if is_stl_archive(place.path, place.head):
        raise InputError(
            f"{place.path} is the archive of STL-10, whose 3 GB are read from files",
            f"unpack it, and give the folder stl10_binary: tar xf {shlex.quote(str(place.path))}",
        )
    if any(is_stl(name) for name in place.names):
        return open_stl_folder(place.path, split)
    return open_stl(place.path) if place.head and is_stl(place.path.name) else None


def folder_kind(folder: Path, names: Sequence[str]) -> _Kind | None:
    """Returns which of the two a folder holds, by the names in it; None for neither."""
    for kind in _KINDS:
        found = [n for n in names if re.fullmatch(f"{kind.train}|{kind.test}", n)]
        if found and (
            kind is _CIFAR10
            or kind.names in names
            or (folder / found[0]).stat().st_size % kind.record == 0
        ):
            return kind
    return None


def is_pickled(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder holds CIFAR's batches for Python, which are pickles."""
    found = [name for name in names if _PICKLED.fullmatch(name)]
    return any((folder / name).is_file() and _starts_pickle(folder / name) for name in found)


def _starts_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2)[:1] == b"\x80"


def refuse_pickled(place: Path, names: Sequence[str] = ()) -> InputError:
    """Returns what to say of CIFAR's batches for Python."""
    hundred = "meta" in names or "100" in place.name
    kind = _CIFAR100 if hundred else _CIFAR10
    return InputError(
        f"{place} holds Python pickles, which vqtok does not read",
        f"use {kind.archive}, the binary version, from the same page",
    )


def open_folder(folder: Path, kind: _Kind, split: Split) -> ArrayData:
    """Opens the folder cifar-10-batches-bin (data_batch_1.bin to 5, test_batch.bin) or
    cifar-100-binary (train.bin, test.bin).
    """
    wanted = kind.pattern(split)
    paths = sorted(path for path in folder.iterdir() if re.fullmatch(wanted, path.name))
    if not paths:
        raise NoSplitError(
            f"{folder} holds no {split} batches of {kind.name}", f"unpack {kind.archive} again"
        )
    return _open(paths, kind, split)


def open_file(path: Path) -> ArrayData:
    """Opens one binary batch: of CIFAR-100 where its size and name say so, else of CIFAR-10."""
    size = path.stat().st_size
    fits = [kind for kind in _KINDS if size and size % kind.record == 0]
    named = re.fullmatch(f"{_CIFAR100.train}|{_CIFAR100.test}", path.name)
    return _open([path], _CIFAR100 if _CIFAR100 in fits and (named or len(fits) == 1) else _CIFAR10)


def _open(paths: Sequence[Path], kind: _Kind, split: Split | None = None) -> ArrayData:
    names = paths[0].parent / kind.names
    text = names.read_text(encoding="utf-8", errors="replace") if names.is_file() else ""
    if sum(path.stat().st_size for path in paths) > _LIMIT:
        raise damaged(paths[0], f"it is too large for a batch of {kind.name}")
    batches = [(path, path.read_bytes()) for path in paths]
    return _cifar(paths[0].absolute().parent.name or kind.name, batches, text, kind, split)


def is_archive(path: Path, head: bytes) -> bool:
    """Whether a file is such an archive, or a damaged one: by its name and the first files in it.

    Others of that name hold image files.
    """
    if not head.startswith(b"\x1f\x8b") or "cifar" not in path.name.lower():
        return False
    try:
        with gzip.open(path) as file:
            for member in islice(tar.index_tar_stream(file, _LIMIT, path), _LOOKED_AT):
                name = PurePosixPath(member.name).name
                if _PICKLED.fullmatch(name) or any(
                    re.fullmatch(f"{kind.train}|{kind.test}|{re.escape(kind.names)}", name)
                    for kind in _KINDS
                ):
                    return True
    except (*BROKEN, InputError):
        return True
    return False


def open_archive(path: Path, split: Split) -> ArrayData:
    """Reads cifar-10-binary.tar.gz or cifar-100-binary.tar.gz in one pass, without unpacking it."""
    batches = dict[_Kind, list[tuple[Path, bytes]]]()
    texts: dict[str, str] = {}
    try:
        with gzip.open(path) as file:
            for member in tar.index_tar_stream(file, _LIMIT, path):
                name = PurePosixPath(member.name).name
                kind = next((k for k in _KINDS if re.fullmatch(k.pattern(split), name)), None)
                is_names = any(name == k.names for k in _KINDS)
                if not (kind or is_names or _PICKLED.fullmatch(name)):
                    continue
                file.seek(member.offset)
                if _PICKLED.fullmatch(name):
                    if file.read(1) == b"\x80":
                        raise refuse_pickled(path, [name])
                    continue
                data = file.read(min(member.size, _LIMIT - member.offset))
                if kind:
                    batches.setdefault(kind, []).append((Path(name), data))
                else:
                    texts[name] = data[:_NAMES_LIMIT].decode("utf-8", "replace")
    except BROKEN as error:
        raise damaged(path, error) from None
    if not batches:
        raise NoSplitError(f"{path} holds no {split} batches of CIFAR", f"use {_CIFAR10.archive}")
    kind = next(iter(batches))
    return _cifar(path.name, sorted(batches[kind]), texts.get(kind.names, ""), kind, split)


def _cifar(
    name: str,
    batches: Sequence[tuple[Path, bytes]],
    names: str,
    kind: _Kind,
    split: Split | None,
) -> ArrayData:
    for path, data in batches:
        if not data or len(data) % kind.record:
            raise InputError(
                f"{path} is no batch of {kind.name}: {len(data)} bytes",
                f"it must hold records of {kind.record} bytes",
            )
    records = np.concatenate(
        [np.frombuffer(data, np.uint8).reshape(-1, kind.record) for _, data in batches]
    )
    targets = records[:, kind.label_bytes - 1].astype(np.int64)
    if targets.max() >= kind.classes:
        raise InputError(
            f"{name} has the label {targets.max()}, {kind.name} has 0 to {kind.classes - 1}",
            f"give the binary batches of {kind.name}",
        )
    pixels = records[:, kind.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = names.split()
    return ArrayData(
        name,
        np.ascontiguousarray(pixels),  # (N, H, W, C)
        targets,
        labels if len(labels) == kind.classes else [str(i) for i in range(kind.classes)],
        split=split,
    )


# STL-10


def is_stl_archive(path: Path, head: bytes) -> bool:
    """Whether a file is stl10_binary.tar.gz, by its name."""
    return head.startswith(b"\x1f\x8b") and path.name.lower().startswith("stl10_binary")


def is_stl(name: str) -> bool:
    """True for train_X.bin, test_X.bin and unlabeled_X.bin."""
    return re.fullmatch(r"(train|test|unlabeled)_X\.bin", name) is not None


def open_stl_folder(folder: Path, split: Split) -> ArrayData:
    """Opens the folder stl10_binary: train_X.bin or test_X.bin; unlabeled_X.bin by its own name."""
    path = folder / f"{split}_X.bin"
    if not path.is_file():
        raise NoSplitError(
            f"{folder} holds no {split}_X.bin of STL-10", "unpack stl10_binary.tar.gz again"
        )
    data = open_stl(path)
    data.split = split
    if split == "train" and (folder / "unlabeled_X.bin").is_file():
        data.notes += ("unlabeled_X.bin is left out; name it to train on it.",)
    return data


def open_stl(path: Path) -> ArrayData:
    """Opens images of 96x96, memory-mapped, column by column in the file; labels 1 to 10 beside
    them.
    """
    size = path.stat().st_size
    if not size or size % _STL_PIXELS:
        raise damaged(path, f"it must hold images of {_STL_PIXELS} bytes, and has {size} bytes")
    planes = np.memmap(path, np.uint8, "r", 0, (size // _STL_PIXELS, 3, _STL_SIDE, _STL_SIDE))
    data = ArrayData(path.absolute().parent.name, planes.transpose(0, 3, 2, 1))  # (N, H, W, C)
    beside = path.with_name(path.name.replace("_X", "_y"))
    if not beside.is_file():
        return data
    if beside.stat().st_size != len(data):
        raise InputError(
            f"{path} has {len(data)} images and {beside.stat().st_size} labels",
            "unpack stl10_binary.tar.gz again",
        )
    targets = np.frombuffer(beside.read_bytes(), np.uint8)
    classes = of_integers(targets)
    names = path.with_name("class_names.txt")
    text = names.read_text(encoding="utf-8", errors="replace") if names.is_file() else ""
    if len(known := text.split()) == 10 and targets.min() >= 1 and targets.max() <= 10:
        classes = classes._replace(labels=tuple(known), targets=targets.astype(np.int64) - 1)
    return data.relabelled(classes)
