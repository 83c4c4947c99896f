"""Data sets that are plain arrays: CIFAR-10 binaries, IDX (MNIST and its kin), .npz and .npy.

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
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from vqtok.data import tar
from vqtok.data.dataset import ArrayData, Split
from vqtok.errors import InputError

IDX_NAME = re.compile(r"images?[-.]idx[34]-ubyte(\.gz)?$")
_RECORD = 1 + 3 * 32 * 32  # one byte of label, then the red, green and blue planes
_CIFAR_LIMIT = 2**28  # bytes of all batches together; the real ones have 185 MB
_CIFAR_NAMES = 2**16
# the most that deflate can expand: an honest header asks for no more than this
# times the bytes there are
_DEFLATE = 1032
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


class _BinaryReader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def _damaged(path: Path, why: object) -> InputError:
    return InputError(f"{path} is damaged: {why}", "copy or download it again")


# CIFAR-10


def open_cifar_folder(folder: Path, split: Split) -> ArrayData:
    """The folder cifar-10-batches-bin: data_batch_1.bin to 5 for training, test_batch.bin."""
    paths = sorted(folder.glob("data_batch_*.bin" if split == "train" else "test_batch.bin"))
    if not paths:
        raise InputError(
            f"{folder} holds no {split} batches of CIFAR-10", "unpack cifar-10-binary.tar.gz again"
        )
    return open_cifar(paths)


def open_cifar(paths: Sequence[Path]) -> ArrayData:
    """Binary batches of CIFAR-10, with the class names beside them when they are there."""
    names = paths[0].parent / "batches.meta.txt"
    text = names.read_text(encoding="utf-8", errors="replace") if names.is_file() else ""
    if sum(path.stat().st_size for path in paths) > _CIFAR_LIMIT:
        raise _damaged(paths[0], "it is too large for a batch of CIFAR-10")
    return _cifar(
        paths[0].parent.name or "CIFAR-10", [(path, path.read_bytes()) for path in paths], text
    )


def open_cifar_archive(path: Path, split: Split) -> ArrayData:
    """cifar-10-binary.tar.gz, read in one pass without unpacking it."""
    wanted = re.compile(r"data_batch_\d\.bin" if split == "train" else r"test_batch\.bin")
    batches, text = [], ""
    try:
        with gzip.open(path) as file:
            for member in tar.index_tar_stream(file, _CIFAR_LIMIT, path):
                name = PurePosixPath(member.name).name
                if name == "batches.meta":
                    raise InputError(
                        f"{path} holds Python pickles, which vqtok does not read",
                        "use cifar-10-binary.tar.gz",
                    )
                if wanted.fullmatch(name) or name == "batches.meta.txt":
                    file.seek(member.offset)
                    data = file.read(min(member.size, _CIFAR_LIMIT - member.offset))
                    batches += [(Path(name), data)] if wanted.fullmatch(name) else []
                    text = (
                        data[:_CIFAR_NAMES].decode("utf-8", "replace")
                        if name == "batches.meta.txt"
                        else text
                    )
    except BROKEN as error:
        raise _damaged(path, error) from None
    if not batches:
        raise InputError(
            f"{path} holds no {split} batches of CIFAR-10", "use cifar-10-binary.tar.gz"
        )
    return _cifar(path.name, sorted(batches), text)


def _cifar(name: str, batches: Sequence[tuple[Path, bytes]], names: str) -> ArrayData:
    for path, data in batches:
        if not data or len(data) % _RECORD:
            raise InputError(
                f"{path} is no batch of CIFAR-10: {len(data)} bytes",
                f"it must hold records of {_RECORD} bytes",
            )
    records = np.concatenate(
        [np.frombuffer(data, np.uint8).reshape(-1, _RECORD) for _, data in batches]
    )
    targets = records[:, 0].astype(np.int64)
    if targets.max() > 9:
        raise InputError(
            f"{name} has the label {targets.max()}, CIFAR-10 has 0 to 9",
            "give the binary batches of CIFAR-10",
        )
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, H, W, C)
    labels = names.split()
    return ArrayData(
        name,
        np.ascontiguousarray(pixels),
        targets,
        labels if len(labels) == 10 else [str(i) for i in range(10)],
    )


# IDX


def is_idx(path: Path, head: bytes) -> bool:
    """True for a file of unsigned bytes with three or four axes, or a gzip named like one."""
    if head[:2] == b"\x1f\x8b":
        return bool(re.search(r"idx\d-ubyte(\.gz)?$", path.name))
    return head[:4] in (b"\0\0\x08\x01", b"\0\0\x08\x03", b"\0\0\x08\x04")


def open_idx_folder(folder: Path, paths: Sequence[Path], split: Split) -> ArrayData:
    """train-images-idx3-ubyte or t10k-images-idx3-ubyte, .gz or not, with its labels."""
    marks = ("train",) if split == "train" else ("t10k", "test")
    chosen = {
        path.name.removesuffix(".gz"): path
        for path in paths
        if any(mark in path.name for mark in marks)
    }
    if not chosen:
        raise InputError(
            f"{folder} holds no IDX file of {split} images",
            f"its name must hold {' or '.join(marks)}",
        )
    if len(chosen) > 1:
        raise InputError(
            f"{folder} holds {len(chosen)} IDX files of {split} images",
            f"name one, such as {min(chosen)}",
        )
    return open_idx(min(chosen.values()))


def open_idx(path: Path) -> ArrayData:
    """An IDX file of images (N, H, W) or (N, H, W, C), and the file of its labels
    when that lies beside it.
    """
    pixels = _read_idx(path)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    _check_images(path, pixels.shape)
    name = re.sub(r"images?([-.])idx[34]", r"labels\1idx1", path.name)
    beside = [
        path.with_name(n)
        for n in (name, name.removesuffix(".gz"), name + ".gz")
        if name != path.name
    ]
    found = next((p for p in beside if p.is_file()), None)
    folder = path.absolute().parent.name
    return _with_targets(
        folder or path.name, path, pixels, None if found is None else _read_idx(found)
    )


def _read_idx(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
                raise InputError(
                    f"{path} is no IDX file of unsigned bytes",
                    "give files like train-images-idx3-ubyte",
                )
            shape = tuple(int(n) for n in np.frombuffer(file.read(4 * head[3]), ">u4"))
            if len(shape) != head[3]:
                raise _damaged(path, "the header is cut off")
            return _read_pixels(
                file, path, shape, path.stat().st_size * (_DEFLATE if packed else 1)
            )
    except BROKEN as error:
        raise _damaged(path, error) from None


def _read_pixels(
    file: _BinaryReader, path: Path, shape: tuple[int, ...], available: int
) -> np.ndarray:
    """uint8 of `shape` from an open file; memory is taken only for what
    `available` bytes can hold.
    """
    wanted = math.prod(shape)
    if wanted > available:
        raise _damaged(path, f"its header asks for {wanted} bytes, more than the file can hold")
    data = bytearray()
    while len(data) < wanted and (chunk := file.read(min(wanted - len(data), 2**24))):
        data += chunk
    if len(data) < wanted:
        raise _damaged(path, f"it ends after {len(data)} of {wanted} bytes")
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


def open_npy(path: Path) -> ArrayData:
    """One array (N, H, W[, C]), memory-mapped: it may be larger than memory."""
    with path.open("rb") as file:
        shape, fortran, dtype = _npy_header(file, path)
        offset = file.tell()
    _check_images(path, shape, dtype)
    if path.stat().st_size - offset < math.prod(shape):
        raise _damaged(path, "it is shorter than its header says")
    pixels = np.memmap(path, np.uint8, "r", offset, shape, "F" if fortran else "C")
    return ArrayData(path.name, pixels if len(shape) == 4 else pixels[..., None])


def open_npz(path: Path, split: Split) -> ArrayData:
    """The images and labels in an .npz, under names like images and
    labels, or x_train and y_train.

    Raises InputError when there is no array of images, or it is not uint8
    (N, H, W) or (N, H, W, 1|3).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                m.filename.removesuffix(".npy"): m
                for m in archive.infolist()
                if m.filename.endswith(".npy")
            }
            images = _pick(members, ("images", "x", "data", "arr_0"), split) or _first_images(
                archive, members, path
            )
            if images is None:
                raise InputError(
                    f"{path} holds no array of images",
                    "name it images: uint8 (N, H, W) or (N, H, W, C)",
                )
            pixels = _read_member(archive, members[images], path, images=True)
            labels = _pick(members, ("labels", "y", "label"), split)
            targets = (
                None
                if labels is None
                else _read_member(archive, members[labels], path, images=False)
            )
    except BROKEN as error:
        raise _damaged(path, error) from None
    return _with_targets(
        path.name, path, pixels if pixels.ndim == 4 else pixels[..., None], targets
    )


def _pick(members: dict[str, zipfile.ZipInfo], names: Sequence[str], split: Split) -> str | None:
    splits = ("train",) if split == "train" else ("test", "val")
    own = [form for s in splits for n in names for form in (f"{n}_{s}", f"{s}_{n}")]
    return next((name for name in (*own, *names) if name in members), None)


def _first_images(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path
) -> str | None:
    for name, member in members.items():
        with archive.open(member) as file:
            if len(_npy_header(file, path)[0]) == 4:
                return name
    return None


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, images: bool
) -> np.ndarray:
    with archive.open(member) as file:
        shape, fortran, dtype = _npy_header(file, path)
        if images:
            _check_images(path, shape, dtype)
        elif dtype.kind not in "iu":
            raise InputError(
                f"{path}: {member.filename} is {dtype}, not whole numbers",
                "store labels as integers from 0",
            )
        flat = _read_pixels(
            file, path, (math.prod(shape) * dtype.itemsize,), member.compress_size * _DEFLATE
        )
    return flat.view(dtype).reshape(shape, order="F" if fortran else "C")


def _npy_header(file: _BinaryReader, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of a .npy stream, which then stands
    at the first byte of data.
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
        raise _damaged(path, f"bad .npy header ({error})") from None
    if dtype.hasobject or dtype.kind == "V":
        raise InputError(
            f"{path} holds Python objects, which vqtok never loads",
            "store the images as a uint8 array",
        )
    return tuple(int(n) for n in shape), bool(fortran), dtype


def _check_images(path: Path, shape: Sequence[int], dtype: np.dtype | None = None) -> None:
    """Raises InputError unless this is uint8 (N, H, W) or (N, H, W,
    1|3) with at least one pixel.
    """
    if dtype is not None and dtype != np.uint8:
        raise InputError(
            f"{path} holds {dtype}, not uint8",
            "scale the images to 0...255 and store them as uint8",
        )
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        raise InputError(
            f"{path} has the shape {tuple(shape)}", "store images as (N, H, W) or (N, H, W, C)"
        )
    if len(shape) == 4 and shape[3] not in (1, 3):
        fix = (
            "transpose (N, C, H, W) to (N, H, W, C)"
            if shape[1] in (1, 3)
            else "keep 1 or 3 channels"
        )
        raise InputError(f"{path} has {shape[3]} channels on its last axis", fix)


def _with_targets(
    name: str, path: Path, pixels: np.ndarray, targets: np.ndarray | None
) -> ArrayData:
    """Joins images and labels 0...n-1; refuses labels that do not match."""
    if targets is None:
        return ArrayData(name, pixels)
    if targets.size != len(pixels):
        raise InputError(
            f"{path} has {len(pixels)} images and {targets.size} labels",
            "give one label for each image",
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= 65536:
        raise InputError(f"{path} has labels from {low} to {high}", "number the labels from 0")
    return ArrayData(
        name, pixels, targets.reshape(-1).astype(np.int64), [str(i) for i in range(high + 1)]
    )
