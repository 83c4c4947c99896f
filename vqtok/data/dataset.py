"""The protocol of a data set, and its two kinds: pixels in memory, and image files decoded one at a
time.
"""

import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vqtok import images
from vqtok.data.classes import Classes
from vqtok.data.splits import Split, parse_patterns
from vqtok.errors import InputError, VqtokError
from vqtok.files import human_count

_LOOKED_AT = 9  # images whose depth is looked at when a set is opened
_SAMPLED = 64  # images of an array by which it is known again


@dataclass(frozen=True)
class DataOptions:
    """The user's answers to what the data itself does not say."""

    split: tuple[tuple[Split, str], ...] = ()  # (train or test, glob of names)
    labels: str = ""  # none, folders, cls or a file; "": by the data
    member: str = ""  # of several images a sample the one with this field, like seg.png
    range: str = ""  # of deep images LOW:HIGH, the values that become 0 and 255; "": by their type

    @classmethod
    def of(
        cls,
        split: Iterable[str] = (),
        labels: str | None = None,
        member: str | None = None,
        range: str | None = None,
    ) -> "DataOptions":
        """Makes options of what a command takes. Raises UsageError."""
        given = images.parse_range(range)
        shown = "" if given is None else images.show_range(given)
        return cls(parse_patterns(split), labels or "", member or "", shown)

    @property
    def value_range(self) -> images.Range | None:
        return images.parse_range(self.range)

    def to_dict(self) -> dict[str, object]:
        return {
            "split": [f"{name}={pattern}" for name, pattern in self.split],
            "labels": self.labels,
            "member": self.member,
            "range": self.range,
        }


class Dataset(Protocol):
    """Images by number, readable from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns names of the classes; empty when the images have none."""
        ...

    @property
    def channels(self) -> int:
        """Returns the channels of what `image` returns, 1 or 3."""
        ...

    @property
    def description(self) -> str:
        """Describes the data in one clause: how many images, how large, how many labels."""
        ...

    @property
    def skipped(self) -> int:
        """Counts the images that proved unreadable so far."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns what was guessed or left out when the data was opened, a line each."""
        ...

    @property
    def split(self) -> Split | None:
        """Returns which part this is; None where the data does not tell its parts apart."""
        ...

    @property
    def range(self) -> images.Range | None:
        """Returns the values of deep images that become 0 and 255, where the user says so."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """Returns uint8 (H, W, C). Raises InputError where this one cannot be read."""
        ...

    def label(self, index: int) -> int:
        """Returns the position in `labels`; -1 when there are none."""
        ...

    def image_name(self, index: int) -> str:
        """Returns the image's name in its source, unique in it; for arrays, its number."""
        ...

    def caption(self, index: int) -> str | None:
        """Returns the text that comes with an image; None without one."""
        ...

    def digest(self) -> str:
        """Returns eight hex digits that differ for other images: of names and sizes of files, of
        some pixels of arrays. Where the data lies does not count.
        """
        ...


class Plain:
    """Defaults for a data set that has no labels, captions, splits or notes."""

    notes: tuple[str, ...] = ()
    split: Split | None = None
    range: images.Range | None = None

    def image_name(self, index: int) -> str:
        return f"{index:06}"

    def caption(self, index: int) -> str | None:
        return None

    def digest(self) -> str:
        return ""


class ArrayData(Plain):
    """Images of one size, in memory or memory-mapped:
    pixels uint8 (N, H, W, C), targets int64 (N,) or None.
    """

    skipped = 0

    def __init__(
        self,
        name: str,
        pixels: np.ndarray,
        targets: np.ndarray | None = None,
        labels: Sequence[str] = (),
        notes: Sequence[str] = (),
        split: Split | None = None,
    ) -> None:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 4
        assert pixels.shape[3] in (1, 3)
        assert targets is None or targets.shape == pixels.shape[:1]
        self.name, self.labels = name, tuple(labels)
        self._pixels, self._targets = pixels, targets if self.labels else None
        self.channels = int(pixels.shape[3])
        self.notes = tuple(notes)
        self.split: Split | None = split
        self.range: images.Range | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Returns (H, W) of every image."""
        return self._pixels.shape[1], self._pixels.shape[2]

    @property
    def description(self) -> str:
        H, W = self.size
        return (
            f"{human_count(len(self), 'image')} of {W}x{H}{_labelled(self.labels)} from {self.name}"
        )

    def __len__(self) -> int:
        return len(self._pixels)

    def image(self, index: int) -> np.ndarray:
        return np.array(self._pixels[index])

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Returns many at once: uint8 (n, H, W, C)."""
        return np.array(self._pixels[indices])

    def label(self, index: int) -> int:
        return -1 if self._targets is None else int(self._targets[index])

    def relabelled(self, classes: Classes) -> "ArrayData":
        """Returns the same images with other classes."""
        targets = np.asarray(classes.targets, np.int64) if classes.labels else None
        notes = (*self.notes, classes.note) if classes.note else self.notes
        data = ArrayData(self.name, self._pixels, targets, classes.labels, notes, self.split)
        data.range = self.range
        return data

    def digest(self) -> str:
        places = np.unique(np.linspace(0, len(self) - 1, _SAMPLED).astype(np.int64))
        crc = zlib.crc32(repr(self._pixels.shape).encode())
        for place in places:
            crc = zlib.crc32(self.image(int(place)).tobytes(), crc)
        return f"{crc:08x}"


class ImageFiles(Plain):
    """Encoded images, decoded when they are asked for.

    `fetch` gives an image's path or bytes, `caption` its text, and `size` its file's bytes; all
    are safe to call from threads.
    """

    channels = 3

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        fetch: Callable[[int], Path | bytes],
        targets: Sequence[int] | np.ndarray = (),
        labels: Sequence[str] = (),
        notes: Sequence[str] = (),
        split: Split | None = None,
        caption: Callable[[int], str | None] | None = None,
        size: Callable[[int], int] | None = None,
        value_range: images.Range | None = None,
    ) -> None:
        self.name, self.labels = name, tuple(labels)
        self.notes = tuple(notes)
        self.split: Split | None = split
        self._names, self._fetch, self._targets = names, fetch, targets
        self._caption, self._size = caption, size
        self.range = value_range
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        return f"{human_count(len(self), 'image')}{_labelled(self.labels)} from {self.name}"

    @property
    def skipped(self) -> int:
        return len(self._bad)

    def __len__(self) -> int:
        return len(self._names)

    def image_name(self, index: int) -> str:
        return self._names[index]

    def caption(self, index: int) -> str | None:
        return None if self._caption is None else self._caption(index)

    def digest(self) -> str:
        crc = 0
        for index, name in enumerate(self._names):
            size = -1 if self._size is None else self._size(index)
            crc = zlib.crc32(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"), crc)
        return f"{crc:08x}"

    def image(self, index: int) -> np.ndarray:
        return self.reduced(index, 1, 1)[0]

    def reduced(self, index: int, shrink: int, least: int) -> tuple[np.ndarray, int]:
        """Reads an image at 1/shrink of its sides where that saves time (see `images.read_image`);
        returns it with the divisor that it has: 1 for most formats.
        """
        if index in self._bad:
            raise self._error(index)
        try:
            found = images.read_image(
                self._fetch(index),
                self.channels,
                shrink=shrink,
                least=least,
                value_range=self.range,
            )
            return found.pixels, found.reduced
        except VqtokError as error:
            with self._lock:
                self._bad[index] = str(error)
            raise self._error(index) from None

    def label(self, index: int) -> int:
        return int(self._targets[index]) if len(self._targets) else -1

    def check_readable(self) -> None:
        """Raises InputError when no image at all can be read;
        looks no further than the first good one.
        """
        for index in range(len(self)):
            with suppress(InputError):
                self.image(index)
                return
        first = str(self._error(0))
        if len(self) == 1:
            given_itself = self._names[0] == self.name  # then its own error says all
            message = (
                first if given_itself else f"the only image in {self.name} cannot be read: {first}"
            )
            raise InputError(message, "check that the file is whole and is an image")
        raise InputError(
            f"none of the {human_count(len(self), 'image')} in {self.name} can be read; "
            f"the first: {first}",
            "check that the files are whole and are images",
        )

    def look_at_ranges(self) -> None:
        """Notes, of a few images, whether they are deeper than 8 bits and use little of the range
        that their values are taken from: one line for the set.
        """
        places = np.unique(np.linspace(0, len(self) - 1, _LOOKED_AT).astype(np.int64))
        little, own, ranges = list[images.Range](), list[images.Range](), set[images.Range]()
        with_nan = 0
        for place in map(int, places):
            with suppress(VqtokError, OSError):
                source = self._fetch(place)
                if not images.is_deep(source):
                    continue
                found = images.read_image(source, self.channels, value_range=self.range)
                if found.narrow:  # the range itself: it was made of the image's values
                    (own if found.narrow == found.range else little).append(found.narrow)
                ranges |= {found.range} if found.range else set()
                with_nan += found.nan > 0
        if not ranges:
            return
        shown = " or ".join(images.show_range(each) for each in sorted(ranges)[:3])
        line = f"images deeper than 8 bits: values {shown} become 8 bits."
        wanted = images.show_range(images.suggest(little + own)) if little or own else ""
        if little:
            uses = "uses" if len(little) == 1 else "use"
            line += (
                f" Of {human_count(len(places), 'image')} looked at, {len(little)} {uses} little "
                f"of that, such as {images.show_range(little[0])}. "
                f"--range {wanted} would use it all."
            )
        elif len(ranges) > 1:
            line += (
                " Each image has a range of its own, from its lowest to its highest value. "
                f"--range {wanted} would be one for all."
            )
        if with_nan:
            line += (
                f" Of {human_count(len(places), 'image')} looked at, {with_nan} "
                f"{'has' if with_nan == 1 else 'have'} NaN, which become black."
            )
        self.notes = (*self.notes, line)

    def _error(self, index: int) -> InputError:
        reason = self._bad[index]
        name = self._names[index]
        return InputError(
            reason if Path(name).name in reason else f"{name}: {reason}",
            "replace or remove the file",
        )


def convert_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Converts (..., 1|3) to (..., channels): gray is repeated, color becomes luma (ITU-R BT.601,
    as Pillow does it).
    """
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    weights = np.array([19595, 38470, 7471], np.uint32)  # 0.299, 0.587, 0.114 in 1/65536
    return ((pixels.astype(np.uint32) @ weights + 32768) >> 16).astype(np.uint8)[..., None]


def read_whole(dataset: Dataset, index: int, channels: int) -> np.ndarray:
    """Reads an image as training and evaluation see it, uncropped: uint8 (H, W, channels)."""
    return convert_channels(dataset.image(index), channels)


def _labelled(labels: Sequence[str]) -> str:
    return f" with {len(labels)} labels" if labels else ""
