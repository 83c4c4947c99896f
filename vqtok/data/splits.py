"""Tells training images from test images by the names of folders, shards and files."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from vqtok.errors import InputError, UsageError

Split = Literal["train", "test"]
Parts = tuple[str, ...]


class NoSplitError(InputError):
    """A part of a data set, train or test, is not there or holds no image. Damage is no such
    error: what is damaged must not pass as missing.
    """


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TRAIN = words("train training trains trainset trainval trn")
_TEST = words("test testing testset tst val valid validation valset dev eval heldout holdout")
_VAL = words("val valid validation valset dev eval")  # of _TEST: not the test itself
_WORDS: dict[str, Split] = dict.fromkeys(_TRAIN, "train")
_WORDS.update(dict.fromkeys(_TEST, "test"))
# Beside a split word they say nothing of a class: train_images, DIV2K_train_HR.
_GENERIC = words(
    "all base color data dataset extra full hr image images img imgs input inputs jpg jpeg "
    "jpegs large lr main photo photos pictures png pngs rgb sample samples set small"
)
# Folders that no class is called: beside a lone train folder they do not make it one.
_ASIDE = _GENERIC | words(
    "annotation annotations gt ground groundtruth label labels mask masks segmentation truth "
    "unlabeled unlabelled"
)
_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")
_OTHER = "\0"  # stands for the split word in a pattern of tokens


class SplitLevel(NamedTuple):
    """The part of the names that gives the split: its position among the parts, and the meaning of
    each text there; None: neither training nor test.
    """

    depth: int
    kinds: dict[str, Split | None]
    is_folder: bool


def _tokens(name: str) -> list[str]:
    return [token.lower() for token in _TOKEN.findall(name)]


def split_word(name: str) -> tuple[Split, tuple[str, ...]] | None:
    """Returns what a name says of the split, and its other words; None where it says nothing.

    The word is between separators, digits or a change of case: train2017, DIV2K_train_HR,
    trainA. `train_val` is for training, and a name with both words otherwise says nothing.
    """
    tokens = [token for token in _tokens(name) if not token.isdigit()]
    places = [i for i, token in enumerate(tokens) if token in _WORDS]
    if not places:
        return None
    first, kinds = places[0], {_WORDS[tokens[i]] for i in places}
    if len(kinds) > 1 and tokens[first : first + 2] not in (["train", "val"], ["train", "valid"]):
        return None
    rest = [token for i, token in enumerate(tokens) if i not in places]
    return _WORDS[tokens[first]], (*rest[:first], _OTHER, *rest[first:])


def part_of(kind: Split, text: str) -> str:
    """Returns the split by its usual name, from the `text` that gave it: train, val or test."""
    if kind == "test" and any(token in _VAL for token in _tokens(text)):
        return "val"
    return kind


def _is_generic(template: Sequence[str]) -> bool:
    return all(token in _GENERIC or token == _OTHER or len(token) == 1 for token in template)


def find_level(parts: Sequence[Parts]) -> SplitLevel | None:
    """Finds the part of the images' names, folders first, that separates training and test
    images.
    """
    for depth in range(max(map(len, parts)) - 1):
        here = [part for part in parts if len(part) > depth + 1]
        deeper = {part[depth] for part in here if len(part) > depth + 2}
        if kinds := _folder_kinds({part[depth] for part in here}, deeper):
            return SplitLevel(depth, kinds, is_folder=True)
    return _file_level(parts)


def _folder_kinds(names: set[str], deeper: set[str]) -> dict[str, Split | None] | None:
    """Returns what folders beside each other mean; None where they are no split.

    `deeper`: those that hold folders. A class may be called train, test_tube or bullet_train:
    a split has both kinds under one pattern, or names that no class has.
    """
    marks = {name: mark for name in names if (mark := split_word(name))}
    if not marks:
        return None
    kinds: dict[str, Split | None] = {
        name: marks[name][0] if name in marks else None for name in names
    }
    templates = {kind: {t for k, t in marks.values() if k == kind} for kind in ("train", "test")}
    generic = {kind: any(map(_is_generic, found)) for kind, found in templates.items()}
    if templates["train"] and templates["test"]:
        same = templates["train"] & templates["test"]
        plain = generic["train"] and generic["test"]
        # train_256_places365standard beside val_256
        one = len(marks) == len(names) and (generic["train"] or generic["test"])
        return kinds if same or plain or (one and _share_numbers(names)) else None
    if len(marks) == len(names):
        return kinds if all(_is_generic(template) for _, template in marks.values()) else None
    others = names - marks.keys()
    if templates["test"]:  # data_256 beside val_256; a lone test beside classes is a class
        return kinds if any(_is_twin(name, test) for name in others for test in marks) else None
    aside = all(set(_tokens(name)) <= _ASIDE for name in others)
    holds_folders = any(name in deeper for name in marks)
    return kinds if generic["train"] and (aside or holds_folders) else None


def _share_numbers(names: set[str]) -> bool:
    """Whether all names have a number in common."""
    numbers = [{token for token in _tokens(name) if token.isdigit()} for name in names]
    return bool(set.intersection(*numbers))


def note_on_classes(parts: Sequence[Parts]) -> str:
    """Says that folders whose names have both split words are taken as classes; else nothing."""
    names = sorted({part[0] for part in parts if len(part) > 1})
    marks = {name: mark[0] for name in names if (mark := split_word(name))}
    if set(marks.values()) != {"train", "test"}:
        return ""
    first = next(name for name in names if marks.get(name) == "test")
    return (
        f"folders {', '.join(sorted(marks)[:3])} are taken as classes, not as a split; "
        f"--split test='{first}/*' makes them one."
    )


def _is_twin(name: str, test: str) -> bool:
    """Whether a name has a word like data where another one has val, and else the same words."""
    pairs = list(zip(_tokens(name), _tokens(test), strict=False))
    differ = [(mine, other) for mine, other in pairs if mine != other]
    same_length = len(_tokens(name)) == len(_tokens(test))
    return same_length and len(differ) == 1 and differ[0][0] in _GENERIC and differ[0][1] in _WORDS


def _file_level(parts: Sequence[Parts]) -> SplitLevel | None:
    """Finds the split in file names where each names it, in one pattern:
    COCO_train2014_000000000009.jpg.
    """
    kinds, seen = dict[str, "Split | None"](), set[tuple[Split, tuple[str, ...]]]()
    for part in parts:
        mark = split_word(part[-1].partition(".")[0])
        if mark is None:
            return None
        kinds[part[-1]] = mark[0]
        seen.add(mark)
        if len(seen) > 2:
            return None
    if {kind for kind, _ in seen} != {"train", "test"} or len({t for _, t in seen}) != 1:
        return None
    return SplitLevel(-1, kinds, is_folder=False)


def split_of_name(name: str) -> str | None:
    """Returns the split that an image's name tells by itself: train, val or test.

    A tar that the name begins with tells it by any split word, as `shard_kinds`. Else a folder
    does that is called so, perhaps beside words like images and numbers: train2017/cat/1.png,
    images/val/2.png. Folders below a class tell nothing, nor does the name of the file.
    `find_level` looks at all names together, and knows a class called train from a split.
    """
    folders, slash, _ = name.rpartition("/")
    return _split_of_folders(folders) if slash else None


@lru_cache(1024)
def _split_of_folders(folders: str) -> str | None:
    first, _, rest = folders.partition("/")
    if (stem := _stem(first)) != first:
        mark = split_word(stem)
        return part_of(mark[0], stem) if mark else _split_of_folders(rest)
    found = split_folder(PurePosixPath(folders).parts)
    return found[1] if found else None


def split_folder(folders: Sequence[str]) -> tuple[int, str] | None:
    """Returns the position of the folder that names a split, and that split: train, val or test.

    Only folders called images, data and the like may lie above it.
    """
    for depth, folder in enumerate(folders):
        mark = split_word(folder)
        if not _is_generic(mark[1] if mark else _tokens(folder)):
            return None
        if mark:
            return depth, part_of(mark[0], folder)
    return None


def shard_kinds(names: Sequence[Parts]) -> list[Split | None]:
    """Returns what the name of each shard says: the first of its parts that says anything
    counts.
    """
    for depth in range(max(map(len, names), default=0)):
        marks = [split_word(_stem(name[depth])) if len(name) > depth else None for name in names]
        if any(marks):
            return [mark[0] if mark else None for mark in marks]
    return [None] * len(names)


def _stem(name: str) -> str:
    for suffix in (".gz", ".tgz", ".tar"):
        name = name.removesuffix(suffix)
    return name


def parse_patterns(texts: Iterable[str]) -> tuple[tuple[Split, str], ...]:
    """Parses `train=PATTERN` and `test=PATTERN` (or val, ...). Raises UsageError."""
    found: list[tuple[Split, str]] = []
    for text in texts:
        name, _, pattern = text.partition("=")
        if name.lower() not in _WORDS or not pattern:
            raise UsageError(
                f"--split {text} is not understood",
                "write train=PATTERN or test=PATTERN, like test='holdout/*'",
            )
        found.append((_WORDS[name.lower()], pattern))
    return tuple(found)


def matches(name: str, pattern: str) -> bool:
    """Whether a glob names an image: its whole name, a folder that it lies in, or one part."""
    path = PurePosixPath(name)
    wanted = pattern.strip("/")
    above = ["/".join(path.parts[: i + 1]) for i in range(len(path.parts))]
    return any(fnmatchcase(text, wanted) for text in (*above, *path.parts))


def pattern_kinds(
    names: Sequence[str], patterns: Sequence[tuple[Split, str]]
) -> list[Split | None]:
    """Applies the user's patterns to each name: the first that matches counts.

    What none matches is for the split that no pattern is given for. Raises UsageError where a
    pattern matches nothing: images set aside would be trained on.
    """
    for _, pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise UsageError(
                f"the split pattern {pattern!r} matches no image",
                f"write it like the names of images, or of their folders: {names[0]}",
            )
    given = {split for split, _ in patterns}
    other: Split | None = None if len(given) != 1 else "test" if "train" in given else "train"
    found: list[Split | None] = []
    for name in names:
        kind = other
        for split, pattern in reversed(patterns):
            kind = split if matches(name, pattern) else kind
        found.append(kind)
    return found


def choose(kinds: Sequence[Split | None], split: Split | None, origin: str) -> list[int]:
    """Returns positions of the wanted split among entries marked train, test or None.

    Without marks everything is wanted. Where some are marked test and none train, what is
    unmarked is for training. Raises InputError where nothing is of the split.
    """
    if split is None or not any(kinds):
        return list(range(len(kinds)))
    wanted = [split, None] if split == "train" and "train" not in kinds else [split]
    chosen = [i for i, kind in enumerate(kinds) if kind in wanted]
    if not chosen:
        raise InputError(
            f"{origin} holds no {split} images",
            f"name the files or the folder to use instead, or say which: --split {split}=PATTERN",
        )
    return chosen


def describe(groups: Sequence[str], kinds: Sequence[Split | None], split: Split) -> str:
    """Says in one line which part was taken for what. `groups` names the part of each image."""
    trains = "train" in kinds
    parts: dict[str, dict[str, int]] = {"train": {}, "test": {}, "neither": {}}
    for group, kind in zip(groups, kinds, strict=True):
        counts = parts[kind or ("neither" if trains else "train")]
        counts[group] = counts.get(group, 0) + 1
    told = [f"{name}: {_listed(counts)}" for name, counts in parts.items() if counts]
    return (
        f"split: {'; '.join(told)}. Here {split} is used; --split train=PATTERN or "
        "test=PATTERN says otherwise."
    )


def _listed(counts: dict[str, int]) -> str:
    shown = ", ".join(list(counts)[:3]) + (", ..." if len(counts) > 3 else "")
    return f"{shown} ({sum(counts.values()):,})"
