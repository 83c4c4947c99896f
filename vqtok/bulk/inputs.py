"""What there is to encode, cut into the images of one shard each:
streamed, never listed as a whole.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path, PurePath

from vqtok import files
from vqtok.data import samples
from vqtok.data.foreign import COMPRESSED, refuse_compressed
from vqtok.data.tar import tar_images
from vqtok.errors import InputError, UsageError
from vqtok.images import IMAGE_SUFFIXES, Recognizer

LOOSE = "pictures"  # what the input of all images outside of tars is called
_PACKED = (".tgz", ".gz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zip")
_FOUND = IMAGE_SUFFIXES | {".tar"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: its name in its input, and where its bytes lie; or what is wrong with it."""

    name: str
    path: str
    offset: int = 0
    size: int | None = None  # bytes; None: the whole file
    error: str | None = None


@dataclass(frozen=True)
class Input:
    """A tar, or all images outside of tars."""

    number: int
    name: str
    path: Path | None  # of the tar
    bytes: int | None


@dataclass(frozen=True)
class Chunk:
    """The images of one shard."""

    input: Input
    number: int
    entries: tuple[Entry, ...]
    last: bool  # of its input
    checksum: int  # of the entries: tells on resuming whether the inputs are the same

    @property
    def stem(self) -> str:
        return stem(self.input.number, self.number)


def _checksum(entries: Sequence[Entry]) -> int:
    """CRC-32 of names and places."""
    return zlib.crc32(
        json.dumps([(entry.name, entry.offset, entry.size) for entry in entries]).encode()
    )


def stem(number: int, chunk: int) -> str:
    """The file name, without suffix, of a shard."""
    return f"{number:05}-{chunk:05}"


class Inputs:
    """The tars and loose images that names, folders and globs stand for, one image a sample.

    `member` chooses which of several (see `data.samples`); `left_out` counts the others, by field,
    as far as the inputs have been gone through. Raises InputError, UsageError.
    """

    def __init__(self, words: Sequence[str], member: str = "") -> None:
        self._words, self._member = tuple(words), member
        self.left_out: dict[str, int] = {}
        self.recognizer = Recognizer()  # of what was seen so far
        for word in words:
            _check_word(word)
        tars: dict[str, tuple[str, str]] = {}
        self._loose = False
        for entry in self._found(self.recognizer):
            if _is_tar(entry):
                tars.setdefault(os.path.abspath(entry.path), (entry.path, entry.name))
            else:
                self._loose = True
        found = [
            Input(i, name, files.as_path(path), _size(path))
            for i, (path, name) in enumerate(tars.values())
        ]
        self.tars = len(found)
        self.all = (*found, *([Input(len(found), LOOSE, None, None)] if self._loose else []))
        if not self.all:
            for word in words:
                if packed := _compressed(word):
                    raise refuse_compressed(Path(word), packed)
            passed = self.recognizer.note().partition(":")[0]
            raise InputError(
                f"no images and no tars are in {', '.join(words)}{passed and f'; {passed}'}",
                "name tar shards, or folders of images",
            )

    def chunks(self, source: Input, size: int) -> Iterator[Chunk]:
        """The images of an input, `size` a chunk; at least one chunk, even of no images."""
        entries = self._images() if source.path is None else self._members(source.path)
        here = tuple(islice(entries, size))
        for number in range(1 << 62):
            following = tuple(islice(entries, size))
            yield Chunk(source, number, here, not following, _checksum(here))
            if not following:
                return
            here = following

    def _images(self) -> Iterator[Entry]:
        """Images outside of tars; of a folder's, one a sample."""
        loose = (entry for entry in self._found() if not _is_tar(entry))
        for _, group in groupby(loose, lambda entry: os.path.dirname(entry.path)):
            entries = list(group)
            names = [entry.name for entry in entries if entry.error is None]
            bad = [entry for entry in entries if entry.error is not None]
            if self._member and not any(samples.is_field(name, self._member) for name in names):
                kept, gone = [], samples.count_fields(names)
            else:
                kept, gone = samples.choose(names, self._member)
            self._count(gone)
            wanted = {names[i] for i in kept}
            yield from (e for e in entries if e in bad or e.name in wanted)

    def _members(self, path: Path) -> Iterator[Entry]:
        errors: list[Entry] = []

        def named() -> Iterator[tuple[str, Entry]]:
            for entry in _members(path, self.recognizer):
                if entry.error is None:
                    yield entry.name, entry
                else:  # it comes last
                    errors.append(entry)

        yield from samples.one_by_one(named(), self._member, self.left_out)
        yield from errors

    def note(self) -> str:
        """One line on what was left out so far; empty where nothing was."""
        return samples.Choice([], self.left_out).note()

    def _count(self, gone: dict[str, int]) -> None:
        for field, count in gone.items():
            self.left_out[field] = self.left_out.get(field, 0) + count

    def _found(self, recognizer: Recognizer | None = None) -> Iterator[Entry]:
        """Every image and tar, and every folder that cannot be listed; what is passed over is
        counted in the recognizer that is given.
        """
        recognizer = recognizer or Recognizer()
        several = sum(files.is_folder(word) for word in self._words) > 1
        for word in self._words:
            if os.path.isdir(word):
                yield from _walk(
                    word,
                    os.path.basename(os.path.abspath(word)) + "/" if several else "",
                    recognizer,
                )
            else:
                for source in files.expand([word], _FOUND, recognizer.is_image_file):
                    yield Entry(source.relative.as_posix(), str(source.path))


def is_folder_of_tars(word: str) -> bool:
    """Whether a folder holds tars, at any depth, and no images: looks no further than the first.

    So do compressed ones, which `Inputs` then refuses by name.
    """
    if files.is_url(word):
        found = files.expand([word], _FOUND) if files.is_folder(word) else []
        return bool(found) and all(source.relative.suffix.lower() == ".tar" for source in found)
    tars = bool(_compressed(word))
    for entry in _walk(word, "", Recognizer()) if os.path.isdir(word) else ():
        if entry.error is None and not _is_tar(entry):
            return False
        tars = tars or _is_tar(entry)
    return tars


def _compressed(word: str) -> list[str]:
    """The compressed tars that lie in a folder."""
    try:
        names = sorted(os.listdir(word)) if os.path.isdir(word) else []
    except OSError:
        return []
    return [name for name in names if name.lower().endswith(COMPRESSED)]


def _check_word(word: str) -> None:
    if word == "-":
        raise UsageError(
            "standard input does not go into codes shards", "name tar shards or folders"
        )
    if word.lower().endswith(_PACKED) and os.path.isfile(word):
        raise InputError(
            f"{word} is compressed; images in it cannot be reached one by one",
            "unpack it, and give the plain .tar",
        )


def _is_tar(entry: Entry) -> bool:
    return entry.error is None and files.without_query(entry.path).lower().endswith(".tar")


def _size(path: str) -> int:
    try:
        return files.as_path(path).stat().st_size
    except files.RemoteError as error:
        raise files.unreadable(path, error) from None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", "check the name and the disk"
        ) from None


def _members(path: Path, recognizer: Recognizer) -> Iterator[Entry]:
    """The images in a tar; damage becomes a last entry that says so."""
    try:
        for name, offset, size in tar_images(path, recognizer):
            yield Entry(name, str(path), offset, size)
    except files.RemoteError as error:
        raise files.server_error(path, error) from None
    except (InputError, OSError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) else str(error).replace(str(path), "it")
        )
        yield Entry(path.name, str(path), error=f"the rest of the tar cannot be read: {reason}")


def _walk(root: str, prefix: str, recognizer: Recognizer) -> Iterator[Entry]:
    """The images and tars below a folder: in each folder sorted by name, before
    those of its sub-folders.

    Only the names of one folder are held at a time. Hidden ones are left out; links are followed,
    each folder once. A folder that cannot be listed stands for itself, as an error.
    """
    seen, waiting = set(), [("", root)]
    while waiting:
        below, folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        names, folders = _listed(folder, recognizer)
        if names is None:
            yield Entry(prefix + below, folder, error="the folder cannot be listed")
            continue
        yield from (Entry(prefix + below + name, os.path.join(folder, name)) for name in names)
        waiting += [(f"{below}{name}/", os.path.join(folder, name)) for name in reversed(folders)]


def _listed(folder: str, recognizer: Recognizer) -> tuple[list[str] | None, list[str]]:
    """Wanted files, and folders, each sorted by name; None for a folder that cannot be listed."""
    names, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
                    folders.append(entry.name)
                elif _readable_kind(entry) and (
                    PurePath(entry.name).suffix.lower() == ".tar"
                    or recognizer.is_image_file(Path(entry.path))
                ):
                    names.append(entry.name)
    except OSError:
        return None, []
    return sorted(names), sorted(folders)


def _readable_kind(entry: os.DirEntry[str]) -> bool:
    """A file, or a link to nothing, which is reported when it is read;
    no pipes or devices: reading one could wait for ever.
    """
    return os.path.isfile(entry) or (entry.is_symlink() and not os.path.exists(entry))


@dataclass(frozen=True)
class WorkSlice:
    """Part `index` of `count` equal parts of the work."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> "WorkSlice":
        """From `i/n`, counted from 0; None: from RANK and WORLD_SIZE, which torchrun sets, else all
        of the work. Raises UsageError.
        """
        rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        source, given = "--shard", text
        if text is None and rank is not None and world is not None:
            source, given = "RANK/WORLD_SIZE", f"{rank}/{world}"
        if given is None:
            return cls()
        index, _, count = given.partition("/")
        if not (
            index.isdecimal() and count.isdecimal() and len(given) < 20 and int(index) < int(count)
        ):
            raise UsageError(
                f"{source} is {given!r}", "write it like 0/4, 1/4, 2/4, 3/4: counted from 0"
            )
        return cls(int(index), int(count))

    def takes_input(self, source: Input, tars: int) -> bool | None:
        """Whether all of an input's shards are this part's;
        None where they are dealt out one by one.

        Tars go whole where there are as many as parts:
        then nobody needs to look into a tar of another's.
        """
        if source.path is None or tars < self.count:
            return True if self.count == 1 else None
        return source.number % self.count == self.index

    def takes(self, source: Input, chunk: int) -> bool:
        """Whether that shard is this part's, where shards are dealt out one by one."""
        return (source.number + chunk) % self.count == self.index
