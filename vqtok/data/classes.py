"""Classes of images: from folders, from `.cls` members, from a file; and folders that are none."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from vqtok import files
from vqtok.data.samples import is_no_class
from vqtok.data.splits import Parts, split_word
from vqtok.errors import InputError

_FILE_LIMIT = 2**28  # bytes of a file of labels: enough for five million names
_CLASSES_MAX = 65536
_NAME_COLUMNS = ("file_name", "filename", "file", "name", "image", "path", "key")
_LABEL_COLUMNS = ("label", "labels", "class", "class_id", "cls", "category", "target")
_HEX = re.compile(r"[0-9a-f]{1,4}")
_HASH = re.compile(r"[0-9a-f]{8,}")


class Classes(NamedTuple):
    """Names of classes; the number of each image's class, -1 for none; a line for a person."""

    labels: tuple[str, ...] = ()
    targets: Sequence[int] | np.ndarray = ()
    note: str = ""


def of_values(values: Sequence[str | None], origin: str = "") -> Classes:
    """Returns the classes that occur, named by their values; numbers in the order of numbers.

    Raises InputError where there are too many.
    """
    names = {value for value in values if value is not None}
    if len(names) > _CLASSES_MAX:
        raise InputError(
            f"{origin or 'the data'} has {len(names):,} labels",
            "train without them: --labels none",
        )
    numeric = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
    order = sorted(names, key=(lambda name: (int(name), name)) if numeric else None)
    number = {name: i for i, name in enumerate(order)}
    return Classes(tuple(order), [-1 if v is None else number[v] for v in values])


def of_integers(values: np.ndarray) -> Classes:
    """Returns the classes as `of_values`, for integers (N,)."""
    found, inverse = np.unique(values, return_inverse=True)
    return Classes(tuple(str(int(v)) for v in found), inverse.reshape(-1).astype(np.int64))


def without_root(parts: Sequence[Parts]) -> list[Parts]:
    """Drops the folders that all names share, down to one that names a split."""
    found = list(parts)
    while (
        len(found[0]) > 1
        and not _is_split(found[0][0])
        and all(part[:1] == found[0][:1] and len(part) > 1 for part in found)
    ):
        found = [part[1:] for part in found]
    return found


def _is_split(folder: str) -> bool:
    mark = split_word(folder)
    return mark is not None and len(mark[1]) == 1


def of_folders(parts: Sequence[Parts], force: bool = False) -> Classes:
    """Takes the top folders as classes when there are two or more and no image lies beside them,
    and when they are not called images and masks, or number parts of the data.

    `force` takes them as classes whatever they are called.
    """
    if not parts:
        return Classes()
    folders = sorted({part[0] for part in parts if len(part) > 1})
    if len(folders) < 2 or any(len(part) == 1 for part in parts):
        return Classes()
    if not force and all(is_no_class(folder) for folder in folders):
        return Classes(note=_none(f"folders called {', '.join(folders[:3])} say what files are"))
    if not force and is_numbered(parts):
        return Classes(
            note=_none(f"folders {folders[0]} to {folders[-1]} number parts of the data")
        )
    number = {folder: i for i, folder in enumerate(folders)}
    return Classes(tuple(folders), [number[part[0]] for part in parts])


def _none(why: str) -> str:
    return f"no labels: {why}; --labels folders takes them as classes."


def is_numbered(parts: Sequence[Parts]) -> bool:
    """Whether folders are parts of a long list and no classes.

    Folders of digits with running numbers in them (FFHQ, img2dataset), or files whose names begin
    (hashes) or end (numbers modulo the number of folders) with the folder's.
    """
    stems: dict[str, list[str]] = {}
    for part in parts:
        stems.setdefault(part[0], []).append(part[-1].partition(".")[0])
    if max(map(len, stems.values())) < 2:
        return False
    if all(folder.isdecimal() for folder in stems):
        if not all(
            stem.isdecimal() and len(stem) < 19 for names in stems.values() for stem in names
        ):
            return False
        numbers = {int(f): [int(stem) for stem in names] for f, names in stems.items()}
        ordered = [numbers[folder] for folder in sorted(numbers)]
        runs_on = all(max(a) < min(b) for a, b in pairwise(ordered))
        return runs_on or any(
            all(number % 10**digits == folder for folder, of in numbers.items() for number in of)
            for digits in (2, 3, 4)
        )
    return len({len(folder) for folder in stems}) == 1 and all(
        _HEX.fullmatch(folder) and _HASH.fullmatch(stem) and stem.startswith(folder)
        for folder, names in stems.items()
        for stem in names
    )


# A file of labels


def read_labels(path: Path) -> dict[str, str] | list[str]:
    """Reads the labels in a file: by the names of images, or, without names, one for each in order.

    CSV, TSV or lines of two words (a header may name the columns); JSON or JSON lines, as Hugging
    Face's metadata.jsonl or the dataset.json of StyleGAN; one label a line; an array .npy.
    Raises InputError.
    """
    data = files.read_bytes(path, _FILE_LIMIT)
    try:
        if data.startswith(b"\x93NUMPY"):
            return _read_array(path)
        text = data.decode("utf-8-sig")
        if path.suffix.lower() in (".json", ".jsonl"):
            return _read_json(text, path)
        return _read_table(text)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        reason = str(error).splitlines()[0] if str(error) else "it cannot be understood"
        raise InputError(
            f"{path} is no file of labels: {reason}",
            "write a line for each image: NAME,LABEL",
        ) from None


def _read_array(path: Path) -> list[str]:
    array = np.load(path, allow_pickle=False)
    if array.dtype.kind not in "iuU" or array.size != len(np.atleast_1d(array)):
        raise InputError(
            f"{path} holds {array.dtype} {array.shape}", "store one integer label for each image"
        )
    return [str(value) for value in array.reshape(-1).tolist()]


def _read_json(text: str, path: Path) -> dict[str, str] | list[str]:
    rows: Any = (
        [json.loads(line) for line in text.splitlines() if line.strip()]
        if path.suffix.lower() == ".jsonl"
        else json.loads(text)
    )
    if isinstance(rows, dict) and isinstance(rows.get("labels"), list):
        rows = rows["labels"]
    if isinstance(rows, dict):
        return {str(name): _as_label(value) for name, value in rows.items()}
    if all(isinstance(row, dict) for row in rows):
        name, label = (_column(rows[0], known) for known in (_NAME_COLUMNS, _LABEL_COLUMNS))
        return {str(row[name]): _as_label(row[label]) for row in rows}
    if all(isinstance(row, list) and len(row) == 2 for row in rows):
        return {str(name): _as_label(value) for name, value in rows}
    return [_as_label(value) for value in rows]


def _as_label(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{str(value)[:40]!r} is no label")
    return str(value)


def _column(row: Mapping[str, object], known: Sequence[str]) -> str:
    lower = {key.lower(): key for key in row}
    found = next((lower[name] for name in known if name in lower), None)
    if found is None:
        raise ValueError(f"it has no field called {known[0]}")
    return found


def _read_table(text: str) -> dict[str, str] | list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    mark = next((mark for mark in (",", "\t", ";") if mark in lines[0]), None)
    if mark is None:
        pairs = [line.rsplit(None, 1) for line in lines]
        if all(len(pair) == 2 for pair in pairs):
            return dict(pairs)
        return [line.strip() for line in lines]
    rows = list(csv.reader(lines, delimiter=mark, skipinitialspace=True))
    head = [cell.strip().lower() for cell in rows[0]]
    name, label = (
        next((head.index(c) for c in known if c in head), None)
        for known in (_NAME_COLUMNS, _LABEL_COLUMNS)
    )
    body = rows if name is None and label is None else rows[1:]
    at, to = 0 if name is None else name, 1 if label is None else label
    short = next((row for row in body if len(row) <= max(at, to)), None)
    if short is not None:
        raise ValueError(f"a line is {mark.join(short)[:60]!r}")
    found = dict[str, str]()
    for row in body:
        image, value = row[at].strip(), row[to].strip()
        if found.setdefault(image, value) != value:
            raise ValueError(f"{image[:60]!r} has the labels {found[image][:40]} and {value[:40]}")
    return found


def from_file(path: Path, names: Sequence[str]) -> Classes:
    """Reads the classes of images from a file: by their names, those without suffix or without
    folders, or, where it holds only labels, in order. Raises InputError where it is of other
    images.
    """
    found = read_labels(path)
    if isinstance(found, list):
        if len(found) != len(names):
            raise InputError(
                f"{path} has {len(found):,} labels for {len(names):,} images",
                "give one for each, or write NAME,LABEL",
            )
        return of_values(found, str(path))
    known = _by_short_names(found)
    values = [
        next((known[form] for form in _forms(name) if known.get(form) is not None), None)
        for name in names
    ]
    missing = sum(value is None for value in values)
    if missing == len(names):
        raise InputError(
            f"{path} names none of the {len(names):,} images, such as {names[0]}",
            "write a line for each image: NAME,LABEL",
        )
    classes = of_values(values, str(path))
    if missing:
        note = f"{missing:,} of {len(names):,} images have no label in {path.name}."
        return classes._replace(note=note)
    return classes


def _forms(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    return (path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem)


def _by_short_names(labels: Mapping[str, str]) -> dict[str, str | None]:
    """Labels by all forms of their names; None where a short form stands for different labels."""
    known: dict[str, str | None] = {}
    for name, label in labels.items():
        for form in set(_forms(name)) if name else ():
            known[form] = label if known.get(form, label) == label else None
    return known | {PurePosixPath(name).as_posix(): label for name, label in labels.items() if name}
