"""Data sets that are NumPy arrays, .npz and .npy; and what readers of other arrays share.

Headers are checked first.
"""

import gzip
import lzma
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from vqtok import images
from vqtok.codes.io import TOKENS_MEMBER
from vqtok.data.classes import Classes, of_integers, of_values
from vqtok.data.dataset import ArrayData, DataOptions
from vqtok.data.place import Place
from vqtok.data.splits import NoSplitError, Split
from vqtok.errors import InputError

# the most that deflate can expand: an honest header asks for no more than this
# times the bytes there are
DEFLATE = 1032
_PICKLED = "holds Python objects, which vqtok never loads"
_PIXELS = (np.dtype(np.uint8), np.dtype(np.bool_))
_CLASSES_MAX = 65536
_AT_ONCE = 4096  # images looked at together
_AT_ONCE_BYTES = 1 << 26  # of deep ones
# What zipfile, gzip and NumPy's header reader let through for damaged files (NumPy the last two;
# MemoryError: LZMA's dictionary).
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
    TypeError,
    gzip.BadGzipFile,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
)


class BinaryReader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def damaged(path: Path, why: object) -> InputError:
    return InputError(f"{path} is damaged: {why}", "copy or download it again")


def read_pixels(
    file: BinaryReader, path: Path, shape: tuple[int, ...], available: int
) -> np.ndarray:
    """Reads uint8 of `shape` from an open file; takes memory only for what `available` bytes can
    hold.
    """
    wanted = math.prod(shape)
    if wanted > available:
        raise damaged(path, f"its header asks for {wanted} bytes, more than the file can hold")
    data = bytearray()
    while len(data) < wanted and (chunk := file.read(min(wanted - len(data), 2**24))):
        data += chunk
    if len(data) < wanted:
        raise damaged(path, f"it ends after {len(data)} of {wanted} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


# .npz and .npy


def is_npz(path: Path) -> bool:
    """True for a zip that holds arrays."""
    if path.suffix == ".npz":
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") and "/" not in name for name in archive.namelist())
    except (*BROKEN, OSError):
        return False


class ScaledPixels:
    """Deep pixels (N, H, W, C), in memory or memory-mapped, as uint8: converted where asked for,
    all by one range.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, values: np.ndarray, value_range: images.Range) -> None:
        self._values, self._range, self.shape = values, value_range, values.shape

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> np.ndarray:
        return images.to_8_bits(np.asarray(self._values[index]), self._range, check=False).pixels


def _range_of(values: np.ndarray, given: images.Range | None) -> tuple[images.Range, list[str]]:
    """Returns the one range of a whole array, and what to say of it."""
    lows, highs, nan = list[float](), list[float](), 0
    step = max(1, _AT_ONCE_BYTES // max(1, values[0].nbytes))
    for i in range(0, len(values), step):
        part = np.asarray(values[i : i + step])
        nan += images.count_nan(part)
        with suppress(InputError):  # no finite number
            low, high = images.used_range(part)
            lows.append(low)
            highs.append(high)
    if not lows:
        raise InputError("no value of the images is a finite number", "give images that have some")
    ends = np.array([min(lows), max(highs)], values.dtype)
    whole = values.dtype.kind != "f" or _are_whole(values, step)
    scaled = images.to_8_bits(
        ends if whole else np.append(ends, ends[:1] + ends.dtype.type(1e-3)), given
    )
    notes = [*scaled.notes, *([images.nan_note(nan, values.size)] if nan else [])]
    return scaled.range, [f"{note}." for note in notes]


def _are_whole(values: np.ndarray, step: int) -> bool:
    """Whether floats are whole numbers: bytes that went through floats."""
    parts = (np.asarray(values[i : i + step]) for i in range(0, len(values), step))
    return all(bool((part == np.rint(part))[np.isfinite(part)].all()) for part in parts)


def _as_bytes(
    pixels: np.ndarray, dtype: np.dtype, given: images.Range | None
) -> tuple[np.ndarray, list[str], images.Range | None]:
    """Converts images (N, H, W, C) to uint8; returns them with what was done to them, and the range
    where they are deep.
    """
    if dtype.itemsize == 1 and dtype.kind in "bu":
        return (*_stretched(pixels, dtype), None)
    found, notes = _range_of(pixels, given)
    return cast(np.ndarray, ScaledPixels(pixels, found)), notes, found


def npy_source(place: Place, split: Split, options: DataOptions) -> ArrayData | None:
    """Opens a .npy file, known by its first bytes."""
    return (
        open_npy(place.path, options.value_range) if place.head.startswith(b"\x93NUMPY") else None
    )


def npz_source(place: Place, split: Split, options: DataOptions) -> ArrayData | None:
    """Opens an .npz file, known by its name or by a zip of arrays."""
    found = place.head.startswith(b"PK") and is_npz(place.path)
    return open_npz(place.path, split, options.value_range) if found else None


def pairs_source(place: Place, split: Split, options: DataOptions) -> ArrayData | None:
    """Opens a folder of images and labels in files of their own, like KMNIST's .npz."""
    pairs = [name for name in place.names if re.search(r"(imgs|images)\.np[yz]$", name)]
    marks = ("train",) if split == "train" else ("test", "val")
    own = [name for mark in marks for name in pairs if mark in name]
    if not own and any(mark in name for name in pairs for mark in ("train", "test", "val")):
        raise NoSplitError(f"{place.path} holds no {split} images", "name one of its files")
    for name in own or pairs[:1]:
        path = place.path / name
        data = (
            open_npz(path, split, options.value_range)
            if name.endswith("z")
            else open_npy(path, options.value_range)
        )
        data.split = split if own else data.split
        return data
    return None


def open_npy(path: Path, given: images.Range | None = None) -> ArrayData:
    """Opens one array (N, H, W[, C]), memory-mapped: it may be larger than memory. Of values deeper
    than 8 bits, `given` becomes 0 to 255.

    Labels are in the .npy whose name has labels in the place of imgs or images.
    """
    with path.open("rb") as file:
        shape, fortran, dtype = _npy_header(file, path)
        offset = file.tell()
    check_images(path, shape, dtype)
    if path.stat().st_size - offset < math.prod(shape) * dtype.itemsize:
        raise damaged(path, "it is shorter than its header says")
    kind = np.dtype(np.uint8) if dtype == np.bool_ else dtype
    pixels = np.memmap(path, kind, "r", offset, shape, "F" if fortran else "C")
    pixels = pixels if len(shape) == 4 else pixels[..., None]
    beside, targets = _labels_beside(path), None
    if beside is not None:
        with beside.open("rb") as file:
            targets = _read_stream(file, beside, beside.stat().st_size, images=False)
    pixels, notes, found = _as_bytes(pixels, dtype, given)
    data = with_targets(path.name, path, pixels, notes, targets)
    data.range = found if given is not None else None
    return data


def _labels_beside(path: Path) -> Path | None:
    """Returns the labels' file of an images' file, such as kmnist-train-labels.npz of kmnist-train-
    imgs.npz; None where there is none.
    """
    name = re.sub(r"(images|imgs|image|img|_x|-x|^x|_X|^X)(?=[-_.])", _labels_name, path.name)
    found = path.with_name(name)
    return found if name != path.name and found.is_file() else None


def _labels_name(match: re.Match[str]) -> str:
    word = match[1]
    return word.replace("x", "y").replace("X", "Y") if word[-1] in "xX" else "labels"


def _stretched(pixels: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, list[str]]:
    """Turns images of 0 and 1 alone, as dSprites has them, into 0 and 255; returns them with a line
    that says so.
    """
    if dtype != np.bool_ and any(
        (pixels[i : i + _AT_ONCE] > 1).any() for i in range(0, len(pixels), _AT_ONCE)
    ):
        return pixels, []
    if dtype != np.bool_ and not pixels.any():
        return pixels, []
    return pixels * np.uint8(255), ["the pixels are 0 and 1 alone: taken as 0 and 255."]


_IMAGES = ("images", "imgs", "x", "data", "arr_0")
_LABELS = ("labels", "y", "label")


def npz_splits(path: Path) -> list[str]:
    """Returns which of train, val and test the names in an .npz have images of, in that order."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {n.removesuffix(".npy").lower() for n in archive.namelist()}
    except BROKEN as error:
        raise damaged(path, error) from None
    return [
        split
        for split in ("train", "val", "test")
        if any(form in names for n in _IMAGES for form in (f"{n}_{split}", f"{split}_{n}"))
    ]


def open_npz(
    path: Path, split: Split, given: images.Range | None = None, words: Sequence[str] = ()
) -> ArrayData:
    """Opens the images and labels in an .npz, under names like images and labels, or x_train and
    y_train; else the first array that can hold images. Labels may be in an .npz beside it. `words`
    are what names say of the split: by default train, or test and val.

    Raises InputError when there is no array of images, or it is not of
    numbers (N, H, W) or (N, H, W, 1|3). Of values deeper than 8 bits `given` becomes 0 to 255.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                m.filename.removesuffix(".npy"): m
                for m in archive.infolist()
                if m.filename.endswith(".npy")
            }
            compact = "c" in archive.namelist() or list(members) == ["stream"]
            if ("meta" in members and "indices" in members) or compact:
                raise InputError(f"{path} holds codes, not images", "decode it: vqtok decode")
            if TOKENS_MEMBER in members:
                raise InputError(f"{path} holds packed tokens, not images", "give images")
            words = words or (("train",) if split == "train" else ("test", "val"))
            own, name = _pick(members, _IMAGES, words)
            name = name or _first_images(archive, members, path)
            if name is None:
                raise InputError(
                    f"{path} holds no array of images",
                    "name it images: uint8 (N, H, W) or (N, H, W, C)",
                )
            pixels, dtype = _read_member(archive, members[name], path, images=True)
            labels = _pick(members, _LABELS, words)[1]
            targets = (
                None
                if labels is None
                else _read_member(archive, members[labels], path, images=False)[0]
            )
    except BROKEN as error:
        raise damaged(path, error) from None
    if targets is None and (beside := _labels_beside(path)) is not None:
        targets = _lone_array(beside)
    pixels = pixels if pixels.ndim == 4 else pixels[..., None]
    pixels, notes, found = _as_bytes(pixels, dtype, given)
    data = with_targets(path.name, path, pixels, notes, targets, split if own else None)
    data.range = found if given is not None else None
    return data


def _lone_array(path: Path) -> np.ndarray:
    """Reads the labels in an .npz that holds nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            name = next((n for n in (*_LABELS, "arr_0") if n in members), next(iter(members), ""))
            if not name:
                raise damaged(path, "it is empty")
            return _read_member(archive, members[name], path, images=False)[0]
    except BROKEN as error:
        raise damaged(path, error) from None


def _pick(
    members: dict[str, zipfile.ZipInfo], names: Sequence[str], words: Sequence[str]
) -> tuple[bool, str | None]:
    """Picks the member of that split, or of no split; returns whether its name has the split, and
    its name.
    """
    own = [form for s in words for n in names for form in (f"{n}_{s}", f"{s}_{n}")]
    lower = {name.lower(): name for name in members}
    found = next((name for name in (*own, *names) if name in lower), None)
    return found in own, None if found is None else lower[found]


def _first_images(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path
) -> str | None:
    """Returns the first array (N, H, W, 1|3) of bytes or bools, else the first of 3 or 4 axes."""
    forms = dict[str, tuple[tuple[int, ...], np.dtype]]()
    for name, member in members.items():
        with archive.open(member) as file:
            try:
                shape, _, dtype = _npy_header(file, path)
            except InputError as error:
                if _PICKLED not in str(error):  # another member's pickle is no matter
                    raise
                continue
        forms[name] = shape, dtype
    wanted = [
        lambda shape, dtype: len(shape) == 4 and shape[3] in (1, 3) and dtype in _PIXELS,
        lambda shape, dtype: len(shape) == 3 and dtype in _PIXELS,
        lambda shape, _: len(shape) == 4,
        lambda shape, _: len(shape) == 3,
    ]
    return next((name for fits in wanted for name, form in forms.items() if fits(*form)), None)


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, images: bool
) -> tuple[np.ndarray, np.dtype]:
    """Reads the array, bools as bytes; returns it with its type in the file."""
    with archive.open(member) as file:
        shape, fortran, dtype = _npy_header(file, path)
        if images:
            check_images(path, shape, dtype)
        array = _read_array(
            file, path, shape, fortran, dtype, member.compress_size * DEFLATE, images
        )
    return array, dtype


def _read_stream(file: BinaryReader, path: Path, available: int, images: bool) -> np.ndarray:
    shape, fortran, dtype = _npy_header(file, path)
    return _read_array(file, path, shape, fortran, dtype, available, images)


def _read_array(
    file: BinaryReader,
    path: Path,
    shape: tuple[int, ...],
    fortran: bool,
    dtype: np.dtype,
    available: int,
    images: bool,
) -> np.ndarray:
    if not images and dtype.kind not in "biufUS":
        raise InputError(f"{path}: the labels are {dtype}", "store them as integers or as text")
    flat = read_pixels(file, path, (math.prod(shape) * dtype.itemsize,), available)
    array = flat if dtype == np.bool_ else flat.view(dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _npy_header(file: BinaryReader, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads (shape, Fortran order, dtype) of a .npy stream, which is then at the first byte of
    data.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
    except (*BROKEN, MemoryError) as error:
        raise damaged(path, f"bad .npy header ({error})") from None
    if dtype.hasobject or dtype.kind == "V":
        raise InputError(
            f"{path} {_PICKLED}",
            "store the images as a uint8 array",
        )
    return tuple(int(n) for n in shape), bool(fortran), dtype


def check_images(path: Path, shape: Sequence[int], dtype: np.dtype | None = None) -> None:
    """Raises InputError unless these are numbers (N, H, W) or (N, H, W, 1|3) with at least one
    pixel.
    """
    if dtype is not None and dtype.kind not in "biuf":
        raise InputError(
            f"{path} holds {dtype}, not numbers",
            "store the images as uint8, or as other integers or floats",
        )
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        kind = NoSplitError if len(shape) in (3, 4) and not shape[0] else InputError
        raise kind(
            f"{path} has the shape {tuple(shape)}", "store images as (N, H, W) or (N, H, W, C)"
        )
    if len(shape) == 4 and shape[3] not in (1, 3):
        fix = (
            "transpose (N, C, H, W) to (N, H, W, C)"
            if shape[1] in (1, 3)
            else "keep 1 or 3 channels"
        )
        raise InputError(f"{path} has {shape[3]} channels on its last axis", fix)


def with_targets(
    name: str,
    path: Path,
    pixels: np.ndarray,
    notes: Sequence[str],
    targets: np.ndarray | None,
    split: Split | None = None,
) -> ArrayData:
    """Joins images and labels, whose classes are the values that occur.

    Labels (N,), (N, 1) or one-hot, numbers or text; -1 is none. Several for an image are left out,
    with a line that says so. InputError where their number is another, or one is a fraction.
    """
    data = ArrayData(name, pixels, notes=notes, split=split)
    if targets is None:
        return data
    targets = np.atleast_1d(targets)
    if len(targets) != len(pixels):
        raise InputError(
            f"{path} has {len(pixels)} images and {targets.size} labels",
            "give one label for each image",
        )
    if targets.size != len(pixels):
        flat = targets.reshape(len(pixels), -1)
        if targets.dtype.kind in "US" or not (
            ((flat == 0) | (flat == 1)).all() and (flat.sum(1) == 1).all()
        ):
            several = f"no labels: {path.name} has {flat.shape[1]} for each image, not one."
            return data.relabelled(Classes(note=several))
        targets = flat.argmax(1)
    classes = _classes_of(path, np.asarray(targets).reshape(-1))
    if len(classes.labels) > _CLASSES_MAX:
        classes = Classes(
            note=f"no labels: {path.name} has {len(classes.labels):,} different ones."
        )
    return data.relabelled(classes)


def _classes_of(path: Path, values: np.ndarray) -> Classes:
    """Returns the classes of labels (N,)."""
    if values.dtype.kind in "US":
        texts = values.tolist()
        return of_values(
            [t.decode("utf-8", "replace") if isinstance(t, bytes) else t for t in texts]
        )
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            raise InputError(
                f"{path}: the labels are not whole numbers", "store them as integers or as text"
            )
        values = values.astype(np.int64)
    if int(values.min()) != -1:
        return of_integers(values)
    some = values != -1
    if not some.any():
        return Classes(note=f"no labels: all of {path.name} are -1.")
    found, targets = of_integers(values[some]), np.full(len(values), -1, np.int64)
    targets[some] = found.targets
    missing = len(values) - int(some.sum())
    note = f"{missing:,} of {len(values):,} images have the label -1, which counts as none."
    return Classes(found.labels, targets, note)
