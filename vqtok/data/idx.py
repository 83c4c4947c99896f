"""IDX files: MNIST and its kin (Fashion-MNIST, KMNIST, EMNIST, QMNIST)."""

import gzip
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vqtok.data.arrays import BROKEN, DEFLATE, check_images, damaged, read_pixels, with_targets
from vqtok.data.dataset import ArrayData, DataOptions
from vqtok.data.place import Place
from vqtok.data.splits import NoSplitError, Split
from vqtok.errors import InputError

IDX_NAME = re.compile(r"images?[-.]idx[34]-ubyte(\.gz)?$")
_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def idx_source(place: Place, split: Split, options: DataOptions) -> ArrayData | None:
    """Opens a file of images, or a folder that holds such files for training or tests."""
    if found := [place.path / name for name in place.names if IDX_NAME.search(name)]:
        return open_idx_folder(place.path, found, split)
    return open_idx(place.path) if is_idx(place.path, place.head) else None


def is_idx(path: Path, head: bytes) -> bool:
    """True for a file of unsigned bytes with three or four axes, or a gzip named like one."""
    if head[:2] == b"\x1f\x8b":
        return bool(re.search(r"idx\d-ubyte(\.gz)?$", path.name))
    return head[:4] in (b"\0\0\x08\x01", b"\0\0\x08\x03", b"\0\0\x08\x04")


def open_idx_folder(folder: Path, paths: Sequence[Path], split: Split) -> ArrayData:
    """Opens train-images-idx3-ubyte or t10k-images-idx3-ubyte in a folder, .gz or not, with its
    labels.
    """
    marks = ("train",) if split == "train" else ("t10k", "test")
    chosen = {
        path.name.removesuffix(".gz"): path
        for path in paths
        if any(mark in path.name for mark in marks)
    }
    if not chosen:
        raise NoSplitError(
            f"{folder} holds no IDX file of {split} images",
            f"its name must hold {' or '.join(marks)}",
        )
    if len(chosen) > 1:
        raise InputError(
            f"{folder} holds {len(chosen)} IDX files of {split} images",
            f"name one, such as {chosen[min(chosen)]}",
        )
    return open_idx(min(chosen.values()), split)


def open_idx(path: Path, split: Split | None = None) -> ArrayData:
    """Opens an IDX file of images (N, H, W) or (N, H, W, C), and the file of its labels when that
    lies beside it: bytes (N,), or QMNIST's integers (N, 8), the class first.
    """
    pixels = _read_idx(path)
    if pixels.dtype != np.uint8:
        raise InputError(
            f"{path} is no IDX file of unsigned bytes", "give files like train-images-idx3-ubyte"
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    check_images(path, pixels.shape)
    found, notes = _labels_beside(path), []
    targets = None if found is None else _read_idx(found)
    if targets is not None and targets.ndim == 2 and targets.shape[1] > 1 and found is not None:
        if "idx2-int" not in found.name:
            notes.append(f"no labels: {found.name} has {targets.shape[1]} for each image.")
            targets = None
        else:
            targets = targets[:, 0]
    folder = path.absolute().parent.name
    return with_targets(folder or path.name, path, pixels, notes, targets, split)


def _labels_beside(path: Path) -> Path | None:
    """Returns the labels' file of an images' file, such as train-labels-idx1-ubyte of train-images-
    idx3-ubyte, whatever its type, .gz or not.
    """
    parts = re.fullmatch(r"(.*)images?([-.])idx[34]-.*", path.name)
    if parts is None:
        return None
    form = re.compile(re.escape(parts[1]) + r"labels?[-.]idx\d-\w+(\.gz)?")
    beside = sorted(p for p in path.absolute().parent.iterdir() if form.fullmatch(p.name))
    return beside[0] if beside else None


def _read_idx(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4)
            kind = _TYPES.get(head[2]) if len(head) == 4 and head[:2] == b"\0\0" else None
            if kind is None or not 1 <= head[3] <= 4:
                raise InputError(
                    f"{path} is no IDX file of unsigned bytes",
                    "give files like train-images-idx3-ubyte",
                )
            shape = tuple(int(n) for n in np.frombuffer(file.read(4 * head[3]), ">u4"))
            if len(shape) != head[3]:
                raise damaged(path, "the header is cut off")
            dtype = np.dtype(kind)
            flat = read_pixels(
                file,
                path,
                (math.prod(shape) * dtype.itemsize,),
                path.stat().st_size * (DEFLATE if packed else 1),
            )
    except BROKEN as error:
        raise damaged(path, error) from None
    if not flat.size:  # 0 times whatever the other axes claim
        raise InputError(f"{path} holds no images: its shape is {shape}", "give one with images")
    return flat.view(dtype).reshape(shape)
