"""Turns the names of files into a data set: one image a sample, the split, the classes,
captions.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vqtok.data import classes, samples, splits
from vqtok.data.classes import Classes
from vqtok.data.dataset import DataOptions, ImageFiles
from vqtok.data.splits import Split
from vqtok.errors import InputError, UsageError

TEXTS = frozenset((".cls", ".txt", ".json"))  # beside images: labels and captions
_TEXT_LIMIT = 2**20
_CAPTION_KEYS = ("caption", "text", "txt", "prompt", "title")


@dataclass(frozen=True)
class Files:
    """Files of a folder or archive, in order: images, and texts beside them.

    `groups`: the shard of each, where there are several, as its name says the split.
    """

    name: str
    names: Sequence[str]
    fetch: Callable[[int], Path | bytes]
    size: Callable[[int], int]
    groups: Sequence[str] = ()
    is_tar: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Chosen:
    """Images that are left, as positions in `Files.names`, and notes for the user."""

    places: list[int]
    notes: list[str]

    def keep(self, which: Sequence[int], note: str = "") -> "_Chosen":
        return _Chosen([self.places[i] for i in which], [*self.notes, *([note] if note else [])])


def images_of(files: Files, split: Split | None, options: DataOptions) -> ImageFiles:
    """Makes the data set of the images among the files. Raises InputError, UsageError."""
    places = [i for i, name in enumerate(files.names) if not is_text(name)]
    chosen = _Chosen(places, list(files.notes))
    if not chosen.places:
        said = f": {files.notes[-1].rstrip('.')}" if files.notes else ""
        raise InputError(
            f"{files.name} holds no images{said}", "give one with files like .png, .jpg or .webp"
        )
    chosen = _one_a_sample(files, chosen, options.member)
    chosen, of_split, parts = _of_split(files, chosen, split, options)
    found = _classes(files, chosen, parts, options.labels)
    places, texts = chosen.places, _texts(files)
    data = ImageFiles(
        files.name,
        [files.names[i] for i in places],
        lambda i: files.fetch(places[i]),
        found.targets,
        found.labels,
        [*chosen.notes, *([found.note] if found.note else [])],
        of_split,
        (lambda i: _caption(files, texts, places[i])) if texts else None,
        lambda i: files.size(places[i]),
        options.value_range,
    )
    data.check_readable()
    data.look_at_ranges()
    return data


def _one_a_sample(files: Files, chosen: _Chosen, member: str) -> _Chosen:
    names = [_unique(files, i) for i in chosen.places]
    choice = samples.choose(names, member, files.is_tar)
    chosen = chosen.keep(choice.kept, choice.note())
    if member:
        return chosen
    kept, folders = samples.without_annotations([files.names[i] for i in chosen.places])
    gone = len(chosen.places) - len(kept)
    told = f"one image a sample: left out {gone:,} in {', '.join(folders[:3])}." if gone else ""
    return chosen.keep(kept, told)


def _unique(files: Files, index: int) -> str:
    """Returns a file's name, prefixed by its shard's: two shards may hold equal names."""
    name = files.names[index]
    return f"{files.groups[index]}/{name}" if files.groups else name


def _of_split(
    files: Files, chosen: _Chosen, split: Split | None, options: DataOptions
) -> tuple[_Chosen, Split | None, list[splits.Parts]]:
    """Selects the images of the split; returns them, which split it is where that is known, and
    their names without it.
    """
    names = [files.names[i] for i in chosen.places]
    parts = [PurePosixPath(name).parts for name in names]
    if split is None:
        return chosen, None, classes.without_root(parts)
    if options.split:
        kinds = splits.pattern_kinds([_unique(files, i) for i in chosen.places], options.split)
        depth, shown = None, [kind or "neither" for kind in kinds]
    else:
        rooted = classes.without_root(parts)
        kinds, depth, shown = _guess(files, chosen.places, rooted)
        parts = rooted
    if not any(kinds):
        rooted = classes.without_root(parts)
        said = splits.note_on_classes(rooted) if options.labels != "none" else ""
        return chosen.keep(range(len(parts)), said), None, rooted
    which = splits.choose(kinds, split, files.name)
    told = splits.describe(shown, kinds, split)
    left = [parts[i] for i in which]
    if depth is not None:
        left = [
            part[:depth] + part[depth + 1 :] if len(part) > depth + 1 else part for part in left
        ]
    return chosen.keep(which, told), split, classes.without_root(left)


def _guess(
    files: Files, places: Sequence[int], parts: Sequence[splits.Parts]
) -> tuple[list[Split | None], int | None, list[str]]:
    """Guesses from names: the split of each image, the position of the folder that says it, and the
    text that did.
    """
    if files.groups:
        groups = list(dict.fromkeys(files.groups))
        found = splits.shard_kinds([PurePosixPath(group).parts for group in groups])
        if any(found):
            by_group = dict(zip(groups, found, strict=True))
            shown = [files.groups[i] for i in places]
            return [by_group[group] for group in shown], None, shown
    level = splits.find_level(parts)
    if level is None:
        return [None for _ in parts], None, []
    kinds: list[Split | None]
    if not level.is_folder:
        kinds = [level.kinds[part[-1]] for part in parts]
        return kinds, None, [f"files named {kind}" for kind in kinds]
    texts = [part[level.depth] if len(part) > level.depth + 1 else "" for part in parts]
    kinds = [level.kinds.get(text) for text in texts]
    return kinds, level.depth, [text or "files beside them" for text in texts]


def _classes(files: Files, chosen: _Chosen, parts: Sequence[splits.Parts], labels: str) -> Classes:
    if labels == "none":
        return Classes()
    if labels not in ("", "folders", "cls"):
        path = Path(labels)
        return classes.from_file(path, [files.names[i] for i in chosen.places])
    if labels in ("", "cls"):
        found = _of_members(files, chosen.places)
        if found.labels:
            return found
        if labels == "cls":
            raise UsageError(
                f"{files.name} has no .cls beside its images", "choose --labels folders or none"
            )
    found = classes.of_folders(parts, force=labels == "folders")
    if labels and not found.labels:
        raise UsageError(
            f"{files.name} has no folders that are classes",
            "put the images of each class into a folder, or leave --labels out",
        )
    return found


def is_text(name: str) -> bool:
    """Whether a file may hold the class, caption or facts of an image, by its suffix."""
    return PurePosixPath(name).suffix.lower() in TEXTS


def _texts(files: Files) -> dict[str, list[int]]:
    """Returns positions of texts, by the key of their sample."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(files.names):
        if is_text(name):
            found.setdefault(samples.take_apart(_unique(files, i)).key, []).append(i)
    return found


def _of_members(files: Files, places: Sequence[int]) -> Classes:
    """Returns the classes that .cls members name; those of webdataset hold a number."""
    by_key = {
        samples.take_apart(_unique(files, i)).key: i
        for i, name in enumerate(files.names)
        if name.lower().endswith(".cls")
    }
    if not by_key:
        return Classes()
    values: list[str | None] = []
    for place in places:
        at = by_key.get(samples.take_apart(_unique(files, place)).key)
        text = None if at is None else _read_text(files, at)
        values.append(text.strip() or None if text else None)
    found = classes.of_values(values, files.name)
    missing = sum(value is None for value in values)
    if missing and found.labels:
        return found._replace(note=f"{missing:,} of {len(values):,} images have no .cls.")
    return found


def _read_text(files: Files, index: int) -> str | None:
    """Reads a text; None where it is too large or unreadable: the image does without."""
    if files.size(index) > _TEXT_LIMIT:
        return None
    try:
        found = files.fetch(index)
        return (found.read_bytes() if isinstance(found, Path) else found).decode("utf-8", "replace")
    except (InputError, OSError):
        return None


def _caption(files: Files, texts: dict[str, list[int]], place: int) -> str | None:
    """Reads a caption from KEY.txt, else from a field of KEY.json like caption."""
    beside = texts.get(samples.take_apart(_unique(files, place)).key, [])
    by_suffix = {PurePosixPath(files.names[i]).suffix.lower(): i for i in beside}
    if ".txt" in by_suffix and (text := _read_text(files, by_suffix[".txt"])) is not None:
        return text.strip()
    if ".json" in by_suffix and (text := _read_text(files, by_suffix[".json"])) is not None:
        return caption_in(text)
    return None


def caption_in(text: str) -> str | None:
    """Returns the caption in a JSON object: its first field called caption, text or the like."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = (fields.get(key) for key in _CAPTION_KEYS) if isinstance(fields, dict) else ()
    return next((value for value in found if isinstance(value, str)), None)
