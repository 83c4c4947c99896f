"""Data sets that are one file, or a folder of arrays, as inputs: CIFAR, STL-10, IDX, .npy, .npz
and zips, read as training reads them.
"""

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vqtok import files, images
from vqtok.bulk.facts import TEXT_LIMIT, NameFacts, key_of, number_or_name, text_suffix
from vqtok.data import arrays, cifar, foreign, idx, samples, splits
from vqtok.data.archives import zip_files
from vqtok.data.dataset import ArrayData, DataOptions, Dataset, convert_channels
from vqtok.data.listing import caption_in
from vqtok.data.sources import open_data, open_splits
from vqtok.errors import InputError, UsageError

_PAIRS = re.compile(r"(imgs|images)\.np[yz]$")
_ARRAYS = (".npz", ".npy")
_FOUND = images.IMAGE_SUFFIXES | files.TAR_SUFFIXES  # by globs that end in *, which name no kind


class Reader(Protocol):
    """Images by number, and what is known of each."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Returns names of the classes."""
        ...

    @property
    def left_out(self) -> dict[str, int]:
        """Returns how many further images of samples are left out, by field."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns what was guessed or left out, a line each."""
        ...

    @property
    def is_array(self) -> bool:
        """Whether images are pixels in memory."""
        ...

    def __len__(self) -> int: ...
    def digest(self) -> str:
        """Differs for other images."""
        ...

    def name(self, index: int) -> str: ...
    def size(self, index: int) -> int | None:
        """Returns the size of its file, in bytes."""
        ...

    def label(self, index: int) -> str | None: ...
    def caption(self, index: int) -> str | None: ...
    def split(self, index: int) -> str | None: ...
    def read(self, index: int, channels: int, background: images.Color) -> images.DecodedImage: ...


def is_data_set(word: str) -> bool:
    """Whether a path is such a data set: by its name and first bytes alone."""
    path = Path(word)
    try:
        if path.is_dir():
            return _is_folder_of_arrays(path)
        if not path.is_file() or path.suffix.lower() in (".tar", *images.IMAGE_SUFFIXES):
            return False
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    if head.startswith(b"PK"):
        return not _holds_codes(path)
    return (
        head.startswith(b"\x93NUMPY")
        or idx.is_idx(path, head)
        or path.suffix == ".bin"
        or cifar.is_archive(path, head)
        or cifar.is_stl_archive(path, head)
    )


def _holds_codes(path: Path) -> bool:
    """Whether a zip is a codes file, which is for `vqtok decode`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (*arrays.BROKEN, OSError):
        return False
    return "meta.npy" in names and bool(names & {"indices.npy", "stream.npy"})


def find_data_sets(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates the data sets among paths and globs from the rest."""
    sets, rest = dict[str, None](), list[str]()
    for word in words:
        paths = [word]
        if not os.path.exists(word) and any(letter in word for letter in "*?[{"):
            try:
                paths = [str(s.path) for s in files.expand([word], _FOUND)]
            except InputError:
                paths = [word]
        found = [path for path in paths if is_data_set(path)]
        sets |= dict.fromkeys(found)
        rest += [path for path in paths if path not in sets] if found else [word]
    return list(sets), rest


def _is_folder_of_arrays(folder: Path) -> bool:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    known = any(cifar.is_stl(n) or idx.IDX_NAME.search(n) or _PAIRS.search(n) for n in names)
    if known or cifar.folder_kind(folder, names) or cifar.is_pickled(folder, names):
        return True
    if sum(name.endswith(_ARRAYS) for name in names) == 1:
        return not any(files.has_suffix(name, _FOUND) or (folder / name).is_dir() for name in names)
    inner = [folder / name for name in names if (folder / name).is_dir()]
    return len(inner) == 1 and len(names) == 1 and _is_folder_of_arrays(inner[0])


def open_reader(word: str, member: str = "", value_range: images.Range | None = None) -> Reader:
    """Opens the images of such a data set; `value_range` is that of deep ones. Raises InputError as
    `open_data`; UsageError where `member` is given and it has none.
    """
    path = Path(word)
    try:
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(4)
            if head.startswith(b"PK") and not arrays.is_npz(path):
                if refused := foreign.refuse_file(path):
                    raise refused
                return ZipReader(path, member, value_range)
        parts = _named(_parts(path, value_range), path)
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename or path}: {error.strerror or error}",
            "check the path and its permissions",
        ) from None
    if member:
        raise UsageError(f"--member does not go with {word}", "leave it out: it has no names")
    return ArrayReader([(name, data) for name, data in parts if isinstance(data, ArrayData)])


def _parts(path: Path, value_range: images.Range | None) -> list[tuple[str | None, Dataset]]:
    """Returns the parts of a data set with their splits; of an .npz, val apart from test."""
    shown = "" if value_range is None else images.show_range(value_range)
    options, lone = DataOptions(range=shown), path
    while lone.is_dir() and len(names := os.listdir(lone)) == 1:
        lone = lone / names[0]
    if lone.is_file() and arrays.is_npz(lone):
        if found := arrays.npz_splits(lone):
            return _parts_of_npz(lone, found, value_range)
        return [(None, open_data(lone, options=options))]
    return [(split, data) for split, data in open_splits(path, options).items()]


def _parts_of_npz(
    path: Path, names: Sequence[str], value_range: images.Range | None
) -> list[tuple[str | None, Dataset]]:
    """Returns the splits in an .npz that hold images. Raises InputError where none does."""
    found, empty = list[tuple[str | None, Dataset]](), None
    for name in names:
        part = "train" if name == "train" else "test"
        try:
            found.append((name, arrays.open_npz(path, part, value_range, (name,))))
        except splits.NoSplitError as error:
            empty = error
    if not found and empty is not None:
        raise empty
    return found


def _named(parts: list[tuple[str | None, Dataset]], path: Path) -> list[tuple[str | None, Dataset]]:
    """Gives a lone part the split that the file's name tells."""
    if len(parts) > 1 or parts[0][0] is not None:
        return parts
    stem = path.name.partition(".")[0]
    mark = splits.split_word(stem)
    return [(splits.part_of(mark[0], stem) if mark else None, parts[0][1])]


class ArrayReader:
    """Arrays of images, one for each split."""

    is_array = True

    def __init__(self, parts: list[tuple[str | None, ArrayData]]) -> None:
        self._parts, self.left_out = parts, dict[str, int]()
        self.notes = tuple(dict.fromkeys(note for _, data in parts for note in data.notes))
        self._starts = [sum(len(d) for _, d in parts[:i]) for i in range(len(parts))]
        self.classes = tuple(dict.fromkeys(label for _, data in parts for label in data.labels))

    def __len__(self) -> int:
        return sum(len(data) for _, data in self._parts)

    def _find(self, index: int) -> tuple[str | None, ArrayData, int]:
        part = max(i for i, start in enumerate(self._starts) if start <= index)
        split, data = self._parts[part]
        return split, data, index - self._starts[part]

    def digest(self) -> str:
        return " ".join(data.digest() for _, data in self._parts)

    def name(self, index: int) -> str:
        split, data, at = self._find(index)
        return data.image_name(at) if split is None else f"{split}/{data.image_name(at)}"

    def size(self, index: int) -> int | None:
        return None

    def label(self, index: int) -> str | None:
        _, data, at = self._find(index)
        number = data.label(at)
        return data.labels[number] if number >= 0 else None

    def caption(self, index: int) -> str | None:
        return None

    def split(self, index: int) -> str | None:
        return self._find(index)[0]

    def read(self, index: int, channels: int, background: images.Color) -> images.DecodedImage:
        _, data, at = self._find(index)
        return images.DecodedImage(convert_channels(data.image(at), channels))


class ZipReader:
    """Image files in a zip, and the texts beside them."""

    is_array = False

    def __init__(self, path: Path, member: str, value_range: images.Range | None) -> None:
        self._files, self._range = zip_files(path), value_range
        names = self._files.names
        places = [i for i, name in enumerate(names) if not text_suffix(name)]
        if not places:
            raise InputError(f"{path} holds no images", "give one with files like .png or .jpg")
        choice = samples.choose([names[i] for i in places], member)
        self._places, self.left_out = [places[i] for i in choice.kept], choice.left_out
        self.notes = self._files.notes
        self._facts = NameFacts([names[i] for i in self._places])
        self._texts: dict[str, dict[str, int]] = {}
        for i, name in enumerate(names):
            if suffix := text_suffix(name):
                self._texts.setdefault(key_of(name), {})[suffix] = i
        self._has_cls = any(".cls" in texts for texts in self._texts.values())
        large = sum(
            self._files.size(i) > TEXT_LIMIT for t in self._texts.values() for i in t.values()
        )
        if large:
            self.notes += (f"{large:,} .cls, .txt and .json left out: over 64 KiB",)
        self.classes = self._of_members() if self._has_cls else self._facts.classes

    def _of_members(self) -> tuple[str, ...]:
        """Returns the classes that .cls members name; () where they are numbers."""
        found = {self.label(i) for i in range(len(self))} - {None}
        names = sorted(label for label in found if label is not None)
        return () if all(isinstance(number_or_name(n), int) for n in names) else tuple(names)

    def __len__(self) -> int:
        return len(self._places)

    def digest(self) -> str:
        return ""  # names and sizes are in the checksum already

    def name(self, index: int) -> str:
        return self._files.names[self._places[index]]

    def size(self, index: int) -> int | None:
        return self._files.size(self._places[index])

    def _text(self, index: int, suffix: str) -> str | None:
        at = self._texts.get(key_of(self.name(index)), {}).get(suffix)
        if at is None or self._files.size(at) > TEXT_LIMIT:
            return None
        try:
            found = self._files.fetch(at)
        except (InputError, OSError):
            return None
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else None

    def label(self, index: int) -> str | None:
        if self._has_cls:
            return (self._text(index, ".cls") or "").strip() or None
        return self._facts.label(self.name(index))

    def caption(self, index: int) -> str | None:
        text = self._text(index, ".txt")
        return text.strip() if text is not None else caption_in(self._text(index, ".json") or "0")

    def split(self, index: int) -> str | None:
        return self._facts.split(self.name(index))

    def read(self, index: int, channels: int, background: images.Color) -> images.DecodedImage:
        data = self._files.fetch(self._places[index])
        assert isinstance(data, bytes)
        return images.read_image(data, channels, background, value_range=self._range)
