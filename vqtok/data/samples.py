"""Chooses one image a sample: s0.jpg, s0.seg.png and s0.depth.png are three views of one thing.

A sample's key is its folder and its name up to the first dot (as webdataset has it), and what
follows is the field: `jpg` is plain, `seg.png` is not.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

from vqtok.data.splits import split_word, words
from vqtok.errors import InputError

T = TypeVar("T")
_SAMPLE_MAX = 10_000  # members of one key that are held

# fields that hold the image itself where no member is plain
_PREFERRED = ("rgb", "image", "img", "color", "photo", "input", "original", "hr")
_PHOTO = ("jpg", "jpeg", "webp", "png")  # of plain members in a tar, a photo's suffix comes first
_ANNOTATIONS = words(
    "annotation annotations depth depths edge edges groundtruth gt instance instances label "
    "labels mask masks normal normals panoptic seg segmentation segmentations trimap trimaps "
    "segmentationclass segmentationobject"
)
_IMAGES = words(
    "color data image images img imgs input inputs jpegimages original originals photo photos rgb"
)
_ENDINGS = ("_mask", "-mask", "_seg", "-seg", "_gt", "-gt", "_depth", "-depth", "_label", "-label")


class Member(NamedTuple):
    """The parts of a name: folder and base name up to the first dot, and what follows it."""

    key: str
    field: str

    @property
    def middle(self) -> str:
        """Returns the field without its suffix: seg of seg.png, nothing of a plain member."""
        return self.field.rpartition(".")[0]

    @property
    def is_named(self) -> bool:
        """Whether the field has a name of its own.

        Numbers are none: photo.1.jpg and photo.2.jpg are two photos.
        """
        return bool(self.middle) and not self.middle[0].isdigit()


def take_apart(name: str) -> Member:
    path = PurePosixPath(name)
    base, _, field = path.name.partition(".")
    return Member((path.parent / base).as_posix() if base else name, field.lower())


class Choice(NamedTuple):
    """The images that are kept, and how many of each field are left out."""

    kept: list[int]
    left_out: dict[str, int]

    def note(self, fields: bool = True) -> str:
        """Returns one line for a person; empty where nothing is left out."""
        if not self.left_out:
            return ""
        what = ", ".join(f"{count:,} {field}" for field, count in sorted(self.left_out.items()))
        first = min(self.left_out)
        fix = f"; --member {first} takes those" if fields else ""
        return f"one image a sample: left out {what}{fix}."


def is_field(name: str, wanted: str) -> bool:
    """Whether a name has that field, with or without its suffix."""
    return _is_field(take_apart(name), wanted)


def count_fields(names: Iterable[str]) -> dict[str, int]:
    """Counts the names of each field."""
    return _count(take_apart(name).field for name in names)


def choose(names: Sequence[str], member: str = "", is_tar: bool = False) -> Choice:
    """Chooses one image of each sample, or, with `member`, those of that field alone.

    A plain member comes first, then one called rgb, image or the like, then the first by name.
    Without a plain one, fields count as such only where several samples have them, or in a tar:
    holiday.rome.jpg and holiday.paris.jpg are two photos. Raises InputError where no image has
    the field `member`.
    """
    members = [take_apart(name) for name in names]
    if member:
        return _of_field(members, member)
    samples: dict[str, list[int]] = {}
    for i, found in enumerate(members):
        samples.setdefault(found.key, []).append(i)
    if len(samples) == len(names):
        return Choice(list(range(len(names))), {})
    keys: dict[str, int] = {}  # in how many samples a field is
    for field in (members[i].field for which in samples.values() for i in which):
        keys[field] = keys.get(field, 0) + 1
    dropped: dict[int, str] = {}
    for which in samples.values():
        if len(which) > 1:
            fields = [members[i] for i in which]
            keep = _kept(fields, is_tar or all(keys[m.field] > 1 for m in fields), is_tar)
            dropped |= {which[j]: fields[j].field for j in range(len(which)) if j not in keep}
    return Choice([i for i in range(len(names)) if i not in dropped], _count(dropped.values()))


def one_by_one(named: Iterable[tuple[str, T]], member: str, counts: dict[str, int]) -> Iterator[T]:
    """Chooses as `choose` in a tar, for members that come one after another: only those of one
    sample are held. Yields the second of each pair that is kept, and adds to `counts` what is left
    out.
    """
    for _, group in groupby(named, lambda pair: take_apart(pair[0]).key):
        pairs = list(islice(group, _SAMPLE_MAX))
        members = [take_apart(name) for name, _ in pairs]
        kept = (
            {i for i, found in enumerate(members) if _is_field(found, member)}
            if member
            else _kept(members, True, True)
        )
        yield from (thing for i, (_, thing) in enumerate(pairs) if i in kept)
        for i, found in enumerate(members):
            if i not in kept:
                counts[found.field] = counts.get(found.field, 0) + 1
        yield from (thing for _, thing in group)  # noqa: B031 - so many are no sample


def _kept(members: Sequence[Member], are_fields: bool, is_tar: bool) -> set[int]:
    """Returns positions of the members of one sample that are kept."""
    plain = [i for i, member in enumerate(members) if not member.middle]
    numbers = {i for i, member in enumerate(members) if member.middle and not member.is_named}
    named = [i for i, member in enumerate(members) if member.is_named]
    if plain:
        # in a folder photo.jpg and photo.png are two files
        best = min(plain, key=lambda i: _rank(members[i].field, _PHOTO))
        return numbers | ({best} if is_tar else set(plain))
    if len(named) < 2 or not are_fields:
        return numbers | set(named)
    return numbers | {min(named, key=lambda i: (_rank(members[i].middle, _PREFERRED), i))}


def _rank(text: str, order: Sequence[str]) -> int:
    return order.index(text) if text in order else len(order)


def _of_field(members: Sequence[Member], wanted: str) -> Choice:
    kept = [i for i, member in enumerate(members) if _is_field(member, wanted)]
    if not kept:
        known = sorted({member.field for member in members})
        raise InputError(
            f"no image has the member {wanted!r}",
            f"choose from {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}",
        )
    chosen = set(kept)
    return Choice(kept, _count(m.field for i, m in enumerate(members) if i not in chosen))


def _is_field(member: Member, wanted: str) -> bool:
    wanted = wanted.lower().strip(".")
    return wanted in (member.field, member.middle)


def _count(fields: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for field in fields:
        counts[field] = counts.get(field, 0) + 1
    return counts


def without_annotations(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Returns positions of the images that are no annotations of others, and the folders left out.

    annotations/7.png is one where images/7.jpg is there, at any depth.
    """
    parts = [PurePosixPath(name).parts for name in names]
    for depth in range(max(map(len, parts), default=1) - 1):
        kinds = [_kind(part[depth]) if len(part) > depth + 1 else "" for part in parts]
        if "image" not in kinds or "annotation" not in kinds:
            continue
        keys = [_key(part, depth) for part in parts]
        there = {key for key, kind in zip(keys, kinds, strict=True) if kind == "image"}
        marked = [i for i, kind in enumerate(kinds) if kind == "annotation"]
        if 2 * sum(keys[i] in there for i in marked) >= len(marked):
            gone = set(marked)
            folders = sorted({parts[i][depth] for i in marked})
            return [i for i in range(len(names)) if i not in gone], folders
    return list(range(len(names))), []


def _kind(folder: str) -> str:
    mark = split_word(folder)
    if mark is not None:  # train_masks beside train
        text = "".join(mark[1]).replace("\0", "") or "images"
    else:
        text = "".join(c for c in folder.lower() if c.isalpha())
    return "image" if text in _IMAGES else "annotation" if text in _ANNOTATIONS else ""


def is_no_class(folder: str) -> bool:
    """Whether a folder's name says what kind of files it holds, not of what class."""
    return bool(_kind(folder))


def _key(part: tuple[str, ...], depth: int) -> tuple[str, ...]:
    base = part[-1].partition(".")[0]
    for ending in _ENDINGS:
        base = base.removesuffix(ending)
    return (*part[:depth], *part[depth + 1 : -1], base)
