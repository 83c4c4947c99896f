"""Class, caption and split of an image, from names and small files beside it.

As training finds them out (`vqtok.data`), but without a list of all images: what the folders of
loose images mean is told by some names of each folder.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from vqtok import files, remote
from vqtok.data import classes, samples, splits
from vqtok.data.listing import TEXTS, caption_in
from vqtok.errors import InputError
from vqtok.gzipped import is_packed, read_part

TEXT_LIMIT = 1 << 16  # bytes of a caption: a shard's manifest holds thousands
_LABEL_LIMIT = 1000
_NAMES_KEPT = 500  # of a folder, from its beginning, and as many from its end
_NUMBER = re.compile(r"0|[1-9]\d{0,6}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Text:
    """A file beside an image, KEY.cls, KEY.txt or KEY.json, or a part of a tar."""

    suffix: str
    path: str
    offset: int = 0
    size: int | None = None  # bytes; None: the whole file

    def read(self) -> str | None:
        """Reads the text. Returns None where it is too large or cannot be read: the image does
        without.
        """
        if self.size is not None and self.size > TEXT_LIMIT:
            return None
        path = files.as_path(self.path)
        try:
            if isinstance(path, files.RemotePath) and not is_packed(path):
                return self._read_remote(path)
            size = TEXT_LIMIT + 1 if self.size is None else self.size
            data = read_part(path, self.offset, size)
        except files.RemoteError as error:
            raise files.server_error(path, error) from None
        except (InputError, OSError):
            return None
        return None if len(data) > TEXT_LIMIT else data.decode("utf-8", "replace")

    def _read_remote(self, path: files.RemotePath) -> str | None:
        """A part of a tar comes with its neighbors; of a file, its size is asked first."""
        if self.size is not None:
            data = remote.read_near(path, self.offset, self.offset + self.size)
        else:
            size = path.stat().st_size
            if size > TEXT_LIMIT:
                return None
            data = remote.read(path, 0, size)
        return data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Facts:
    """Class, caption and split of an image, as in `ShardRecord`."""

    label: int | str | None = None
    caption: str | None = None
    split: str | None = None
    notes: tuple[str, ...] = ()


def text_suffix(name: str) -> str:
    """Returns the suffix of a name that ends in `.cls`, `.txt` or `.json`; else ''."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if suffix in TEXTS else ""


def read_texts(texts: Iterable[Text]) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Reads class and caption from the files beside an image; returns them with notes on files that
    say nothing.
    """
    found = {text.suffix: text.read() for text in texts}
    lost = [suffix for suffix, text in found.items() if text is None]
    notes = tuple(f"{suffix} left out: over 64 KiB, or unreadable" for suffix in lost)
    label = (found.get(".cls") or "").strip()[:_LABEL_LIMIT] or None
    if found.get(".txt") is not None:
        return label, (found[".txt"] or "").strip(), notes
    return label, caption_in(found.get(".json") or "null"), notes


def number_or_name(label: str) -> int | str | None:
    """Returns a class in the form of `ShardRecord`; None for a number below 0, which means no
    class.
    """
    if _NUMBER.fullmatch(label):
        return int(label)
    return None if re.fullmatch(r"-\d+", label) else label


class SomeNames:
    """Keeps the first and last names of each folder, of names that come one after another."""

    def __init__(self) -> None:
        self._folders: dict[str, tuple[list[str], deque[str]]] = {}

    def add(self, name: str) -> None:
        folder = name.rpartition("/")[0]
        if folder not in self._folders:
            self._folders[folder] = [], deque(maxlen=_NAMES_KEPT)
        first, last = self._folders[folder]
        (first if len(first) < _NAMES_KEPT else last).append(name)

    def __iter__(self) -> Iterator[str]:
        return (name for first, last in self._folders.values() for name in (*first, *last))


class NameFacts:
    """Tells the split and class of images by their folders, or by the files' own names."""

    def __init__(self, names: Iterable[str]) -> None:
        parts = [PurePosixPath(name).parts for name in names]
        self.classes: tuple[str, ...] = ()
        self._level: splits.SplitLevel | None = None
        self._root = self._inner = 0
        if not parts:
            return
        rooted = classes.without_root(parts)
        self._root = len(parts[0]) - len(rooted[0])
        self._level = splits.find_level(rooted)
        left = [self._without_split(part) for part in rooted]
        inner = classes.without_root(left)
        self._inner = len(left[0]) - len(inner[0])
        self.classes = classes.of_folders(inner).labels

    def split(self, name: str) -> str | None:
        """Returns train, val or test; None where the name does not tell."""
        if self._level is None:
            return None
        part, level = self._rooted(name), self._level
        if not level.is_folder:
            mark = splits.split_word(part[-1].partition(".")[0])
            return splits.part_of(mark[0], part[-1].partition(".")[0]) if mark else None
        text = part[level.depth] if len(part) > level.depth + 1 else ""
        kind = level.kinds.get(text)
        # what lies beside test images alone is for training
        rest = None if "train" in level.kinds.values() else "train"
        return splits.part_of(kind, text) if kind else rest

    def label(self, name: str) -> str | None:
        """Returns the name of its class; None where it has none."""
        if not self.classes:
            return None
        part = self._without_split(self._rooted(name))[self._inner :]
        return part[0] if len(part) > 1 else None

    def _rooted(self, name: str) -> splits.Parts:
        return PurePosixPath(name).parts[self._root :]

    def _without_split(self, part: splits.Parts) -> splits.Parts:
        level = self._level
        if level is None or not level.is_folder or len(part) <= level.depth + 1:
            return part
        return part[: level.depth] + part[level.depth + 1 :]


def splits_of_tars(names: Sequence[str]) -> list[str | None]:
    """Returns the split that the name of each tar tells."""
    kinds = splits.shard_kinds([PurePosixPath(name).parts for name in names])
    return [
        splits.part_of(kind, name) if kind else None
        for kind, name in zip(kinds, names, strict=True)
    ]


def key_of(name: str) -> str:
    """Returns what the names of an image and of the files beside it have in common."""
    return samples.take_apart(name).key
