"""Lists what there is to encode, cut into the images of one shard each. The list is streamed, never
held as a whole.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

from vqtok import files
from vqtok.bulk import facts
from vqtok.bulk.datasets import Reader, find_data_sets, open_reader
from vqtok.bulk.facts import Facts, NameFacts, SomeNames, Text
from vqtok.data import samples, splits
from vqtok.data.foreign import COMPRESSED, refuse_compressed, refuse_words
from vqtok.data.listing import TEXTS
from vqtok.data.tar import TarMember, has_end, index_tar, is_hidden, is_image_member, plain_name
from vqtok.errors import InputError, UsageError
from vqtok.images import IMAGE_SUFFIXES, Range, Recognizer

LOOSE = "pictures"  # what the input of all images outside of tars is called
_PACKED = (".bz2", ".tbz2", ".xz", ".txz", ".zst")
_FOUND = IMAGE_SUFFIXES | files.TAR_SUFFIXES
_SAMPLE_MAX = 10_000  # members of one key of a tar that are held


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: its name in its input, and where its bytes lie; or what is wrong with it."""

    name: str
    path: str
    offset: int = 0  # of its bytes; in a data set its number
    size: int | None = None  # bytes; None: the whole file
    error: str | None = None
    texts: tuple[Text, ...] = field(default=(), compare=False)  # files beside it
    input: "Input | None" = field(default=None, compare=False)  # None: loose

    @property
    def full_name(self) -> str:
        """Returns its name among all inputs."""
        return self.name if self.input is None else f"{self.input.name}/{self.name}"


@dataclass(frozen=True)
class Input:
    """A tar, a data set, or all images outside of these."""

    number: int
    name: str
    path: Path | None  # of the tar
    bytes: int | None
    reader: Reader | None = None  # of the data set


@dataclass(frozen=True)
class Chunk:
    """The images of one shard."""

    input: Input
    number: int
    entries: tuple[Entry, ...]
    last: bool  # of its input
    checksum: int  # of the entries: shows on resuming whether the inputs are the same

    @property
    def stem(self) -> str:
        return stem(self.input.number, self.number)


def _checksum(entries: Sequence[Entry], origin: str = "") -> int:
    """Computes the CRC-32 of names and positions, and of what identifies a data set."""
    places = [(entry.name, entry.offset, entry.size) for entry in entries]
    return zlib.crc32(json.dumps(places).encode(), zlib.crc32(origin.encode()))


def stem(number: int, chunk: int) -> str:
    """Returns the file name, without suffix, of a shard."""
    return f"{number:05}-{chunk:05}"


class Inputs:
    """The tars, data sets and loose images that names, folders and globs stand for, one image a
    sample.

    `member` chooses which of several (see `data.samples`); `left_out` counts the others, by field,
    as far as the inputs have been gone through. Raises InputError, UsageError.
    """

    def __init__(
        self, words: Sequence[str], member: str = "", value_range: Range | None = None
    ) -> None:
        self._member, self._listed, self._range = member, True, value_range
        self.left_out: dict[str, int] = {}
        self.recognizer = Recognizer()  # of what was seen so far
        self.endless = list[str]()  # tars without an end mark
        self.stray_texts = 0  # .cls, .txt and .json of tars that do not stand at their image
        sets, self._words = find_data_sets(words)
        for word in self._words:
            _check_word(word)
        tars: dict[str, tuple[str, str]] = {}
        self._loose, self._has_cls, names = False, False, SomeNames()
        for entry in self._found(self.recognizer):
            if _is_tar(entry):
                tars.setdefault(os.path.abspath(entry.path), (entry.path, entry.name))
                continue
            self._loose = True
            if entry.error is None:
                self._has_cls |= any(text.suffix == ".cls" for text in entry.texts)
                names.add(entry.name)
        found = [
            Input(i, name, files.as_path(path), _size(path))
            for i, (path, name) in enumerate(tars.values())
        ]
        self.tars = len(found)
        self._tar_splits = facts.splits_of_tars([source.name for source in found])
        found += self._open_sets(sets, len(found))
        self.all = (*found, *([Input(len(found), LOOSE, None, None)] if self._loose else []))
        if not self.all:
            for word in words:
                if packed := _compressed(word):
                    raise refuse_compressed(Path(word), packed)
            if refused := refuse_words(words):
                raise refused
            passed = self.recognizer.note().partition(":")[0]
            raise InputError(
                f"no images and no tars are in {', '.join(words)}{passed and f'; {passed}'}",
                "name tar shards, folders of images, or a data set like CIFAR, IDX, .npz or a zip",
            )
        self._names = NameFacts(names)
        self._set_labels(found)

    def _open_sets(self, words: Sequence[str], first: int) -> list[Input]:
        """Opens the data sets, each as an input with a name of its own."""
        found, taken = list[Input](), dict[str, int]()
        for number, word in enumerate(words, first):
            name = os.path.basename(os.path.abspath(word))
            taken[name] = taken.get(name, 0) + 1
            name = name if taken[name] == 1 else f"{name}-{taken[name]}"
            reader = open_reader(word, self._member, self._range)
            self._count(reader.left_out)
            found.append(Input(number, name, None, None, reader))
        return found

    def _set_labels(self, found: Sequence[Input]) -> None:
        """Numbers the classes. Numbers stay as they are; a name gets its position in `labels`."""
        lists = [source.reader.classes for source in found if source.reader is not None]
        if self._loose and not self._has_cls:
            lists.append(self._names.classes)
        names = tuple(dict.fromkeys(name for each in lists for name in each))
        numeric = all(isinstance(facts.number_or_name(name), int) for name in names)
        self.labels: tuple[str, ...] = () if numeric else names
        self._places = {name: place for place, name in enumerate(self.labels)}

    def number_labels(self, labels: tuple[str, ...]) -> None:
        """Numbers the classes by the list in a manifest. A manifest of an earlier version has no
        list; then no image gets a label that needs one.
        """
        self._places = {name: place for place, name in enumerate(labels)}
        self._listed = bool(labels) or not self.labels

    def facts(self, entry: Entry) -> Facts:
        """Returns the class, caption and split of an image; reads the files beside it."""
        source = entry.input
        if source is not None and source.reader is not None:
            reader, at = source.reader, entry.offset
            return Facts(self._number(reader.label(at)), reader.caption(at), reader.split(at))
        label, caption, notes = facts.read_texts(entry.texts) if entry.texts else (None, None, ())
        if source is not None:
            split = self._tar_splits[source.number] or splits.split_of_name(entry.name)
        else:
            label = label if self._has_cls else self._names.label(entry.name)
            split = self._names.split(entry.name)
        return Facts(self._number(label), caption, split, notes)

    def _number(self, label: str | None) -> int | str | None:
        if label is None:
            return None
        if label in self._places:
            return self._places[label]
        if label in self.labels and not self._listed:
            return None
        found = facts.number_or_name(label)
        return label if self._places and found is not None else found

    def chunks(self, source: Input, size: int) -> Iterator[Chunk]:
        """Yields the images of an input, `size` a chunk; at least one chunk, even of no images."""
        entries = self._entries(source)
        origin = "" if source.reader is None else source.reader.digest()
        here = tuple(islice(entries, size))
        for number in range(1 << 62):
            following = tuple(islice(entries, size))
            yield Chunk(source, number, here, not following, _checksum(here, origin))
            if not following:
                return
            here = following

    def _entries(self, source: Input) -> Iterator[Entry]:
        if source.reader is not None:
            reader = source.reader
            return (
                Entry(reader.name(i), "", i, reader.size(i), input=source)
                for i in range(len(reader))
            )
        return self._images() if source.path is None else self._members(source, source.path)

    def _images(self) -> Iterator[Entry]:
        """Yields images outside of tars; of a folder's, one a sample."""
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

    def _members(self, source: Input, path: Path) -> Iterator[Entry]:
        errors: list[Entry] = []

        def named() -> Iterator[tuple[str, Entry]]:
            for entry in self._tar_entries(source, path):
                if entry.error is None:
                    yield entry.name, entry
                else:  # it comes last
                    errors.append(entry)

        yield from samples.one_by_one(named(), self._member, self.left_out)
        yield from errors

    def _tar_entries(self, source: Input, path: Path) -> Iterator[Entry]:
        """Yields the images in a tar, each with the texts of its sample; damage becomes a last
        entry that says so.
        """
        members, error = _wanted(path, self.recognizer), None
        for _, group in groupby(members, lambda member: facts.key_of(member.name)):
            found, texts = list[TarMember](), list[Text]()
            for member in group:
                if isinstance(member, _Damage):
                    error = Entry(path.name, str(path), error=member.reason, input=source)
                elif suffix := facts.text_suffix(member.name):
                    texts.append(Text(suffix, str(path), member.offset, member.size))
                else:
                    found.append(member)
                if len(found) + len(texts) >= _SAMPLE_MAX:  # so many are no sample
                    yield from _tar_images(source, path, found, ())
                    self.stray_texts += len(texts)
                    found, texts = [], []
            self.stray_texts += 0 if found else len(texts)
            yield from _tar_images(source, path, found, tuple(texts))
        if error is not None:
            yield error
        elif path.name not in self.endless and not _has_end(path):
            self.endless.append(path.name)

    def note(self) -> str:
        """Returns what was left out so far, a line each; empty where nothing was."""
        readers = [source.reader for source in self.all if source.reader is not None]
        lines = [samples.Choice([], self.left_out).note()]
        lines += [note for reader in readers for note in reader.notes]
        if self.endless:
            several = f" and {len(self.endless) - 1:,} more" if len(self.endless) > 1 else ""
            lines.append(
                f"{self.endless[0]}{several}: no end mark. If it was cut off, images are missing: "
                "compare its size, or download it again."
            )
        if self.stray_texts:
            lines.append(
                f"{self.stray_texts:,} .cls, .txt and .json stand apart from their image: "
                "left out; a tar that is sorted by name keeps them."
            )
        return "\n".join(filter(None, lines))

    def _count(self, gone: dict[str, int]) -> None:
        for kind, count in gone.items():
            self.left_out[kind] = self.left_out.get(kind, 0) + count

    def _found(self, recognizer: Recognizer | None = None) -> Iterator[Entry]:
        """Yields every image and tar, and every folder that cannot be listed; counts in the given
        recognizer what is passed over.
        """
        recognizer = recognizer or Recognizer()
        several = sum(files.is_folder(word) for word in self._words) > 1
        listed = dict[str, set[str]]()
        for word in self._words:
            if os.path.isdir(word):
                yield from _walk(
                    word,
                    os.path.basename(os.path.abspath(word)) + "/" if several else "",
                    recognizer,
                )
            else:
                for source in files.expand([word], _FOUND, recognizer.is_image_file):
                    texts = _texts_beside(files.as_path(str(source.path)), listed)
                    yield Entry(source.relative.as_posix(), str(source.path), texts=texts)


def is_folder_of_tars(word: str) -> bool:
    """Whether a folder holds tars, at any depth, and no images: looks no further than the first.

    So do compressed ones, which `Inputs` then refuses by name.
    """
    if files.is_url(word):
        found = files.expand([word], _FOUND) if files.is_folder(word) else []
        return bool(found) and all(files.is_tar(source.relative) for source in found)
    tars = bool(_compressed(word))
    for entry in _walk(word, "", Recognizer()) if os.path.isdir(word) else ():
        if entry.error is None and not _is_tar(entry):
            return False
        tars = tars or _is_tar(entry)
    return tars


def _compressed(word: str) -> list[str]:
    """Lists the compressed tars that lie in a folder."""
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
            "unpack it, and give the plain .tar, or one that gzip packed",
        )


def _is_tar(entry: Entry) -> bool:
    return entry.error is None and files.is_tar(entry.path)


def _size(path: str) -> int:
    try:
        return files.as_path(path).stat().st_size
    except files.RemoteError as error:
        raise files.unreadable(path, error) from None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", "check the name and the disk"
        ) from None


def _has_end(path: Path) -> bool:
    """As `has_end`; True where that cannot be known any more."""
    try:
        return has_end(path)
    except files.RemoteError as error:
        raise files.server_error(path, error) from None
    except OSError:
        return True


class _Damage(NamedTuple):
    """The reason why the rest of a tar cannot be read."""

    name: str
    reason: str


def _wanted(path: Path, recognizer: Recognizer) -> Iterator[TarMember | _Damage]:
    """Yields the images in a tar, and the texts that may belong to them."""
    try:
        for member in index_tar(path):
            name = plain_name(member.name)
            is_text = bool(facts.text_suffix(name)) and not is_hidden(name)
            if is_text or is_image_member(path, member, recognizer):
                yield member._replace(name=name)
    except files.RemoteError as error:
        raise files.server_error(path, error) from None
    except (InputError, OSError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) else str(error).replace(str(path), "it")
        )
        yield _Damage(path.name, f"the rest of the tar cannot be read: {reason}")


def _tar_images(
    source: Input, path: Path, members: Sequence[TarMember], texts: tuple[Text, ...]
) -> Iterator[Entry]:
    return (
        Entry(name, str(path), offset, size, texts=texts, input=source)
        for name, offset, size in members
    )


def _texts_beside(path: Path, listed: dict[str, set[str]]) -> tuple[Text, ...]:
    """KEY.cls, KEY.txt and KEY.json beside an image KEY.jpg.

    A folder of a store is listed once, into `listed`; a web server lists none, so that there are
    none.
    """
    key, folder = facts.key_of(path.name), path.parent
    if not isinstance(path, files.RemotePath):
        paths = ((suffix, os.path.join(folder, key + suffix)) for suffix in sorted(TEXTS))
        return tuple(Text(suffix, beside) for suffix, beside in paths if os.path.isfile(beside))
    if path.is_web:
        return ()
    if str(folder) not in listed:
        listed.clear()  # images of one folder follow one another
        try:
            names = (found.name for found in folder.iterdir())
            listed[str(folder)] = {name for name in names if facts.text_suffix(name)}
        except files.RemoteError as error:
            raise files.server_error(folder, error) from None
    names = listed[str(folder)]
    return tuple(
        Text(suffix, str(folder / (key + suffix)))
        for suffix in sorted(TEXTS)
        if key + suffix in names
    )


def _walk(root: str, prefix: str, recognizer: Recognizer) -> Iterator[Entry]:
    """Yields the images and tars below a folder: in each folder sorted by name, before those of its
    sub-folders.

    Only the names of one folder are held at a time. Hidden ones are left out; links are followed,
    each folder once. A folder that cannot be listed is yielded itself, as an error.
    """
    seen, waiting = set(), [("", root)]
    while waiting:
        below, folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        names, folders, texts = _listed(folder, recognizer)
        if names is None:
            yield Entry(prefix + below, folder, error="the folder cannot be listed")
            continue
        for name in names:
            key = facts.key_of(name) if texts else ""
            beside = tuple(
                Text(facts.text_suffix(text), os.path.join(folder, text))
                for text in texts.get(key, ())
            )
            yield Entry(prefix + below + name, os.path.join(folder, name), texts=beside)
        waiting += [(f"{below}{name}/", os.path.join(folder, name)) for name in reversed(folders)]


def _listed(
    folder: str, recognizer: Recognizer
) -> tuple[list[str] | None, list[str], dict[str, list[str]]]:
    """Lists wanted files, and folders, each sorted by name; and texts by the key of their image.

    None for a folder that cannot be listed.
    """
    names, folders, texts = [], [], dict[str, list[str]]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
                    folders.append(entry.name)
                elif facts.text_suffix(entry.name) and os.path.isfile(entry):
                    texts.setdefault(facts.key_of(entry.name), []).append(entry.name)
                elif _readable_kind(entry) and (
                    files.is_tar(entry.name) or recognizer.is_image_file(Path(entry.path))
                ):
                    names.append(entry.name)
    except OSError:
        return None, [], {}
    return sorted(names), sorted(folders), {key: sorted(each) for key, each in texts.items()}


def _readable_kind(entry: os.DirEntry[str]) -> bool:
    """Accepts files, and links to nothing, which are reported when they are read; refuses pipes and
    devices: reading one could block forever.
    """
    return os.path.isfile(entry) or (entry.is_symlink() and not os.path.exists(entry))


@dataclass(frozen=True)
class WorkSlice:
    """Part `index` of `count` equal parts of the work."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> "WorkSlice":
        """Parses `i/n`, counted from 0. None stands for RANK and WORLD_SIZE, which torchrun sets,
        or else all of the work. Raises UsageError.
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
