"""Finds and checks the images of a study, and writes them as two arrays that all systems read."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqtok import files
from vqtok.data import Dataset, convert_channels, open_data, split_indices
from vqtok.errors import InputError, UsageError
from vqtok.study.systems import DOWNSAMPLE, Shape

SIDE_MAX = 64  # pixels; a raw image of 64x64 is 12,288 symbols already
HELD_OUT = 0.1  # at most this part of the images is set aside where there is no test set
_FEW = 4  # images to train on, to validate with, and to test on


@dataclass(frozen=True)
class ImageSet:
    """Training images in a file, and test images in memory."""

    path: Path  # train.npy, uint8 (N, H, W, C)
    name: str
    train: int
    test: np.ndarray  # uint8 (n, H, W, C)
    source: str  # where the test images are from, as a clause
    digest: str  # of all of them

    @property
    def shape(self) -> Shape:
        return Shape(self.test.shape[1], self.test.shape[3])


def find_data(data: str | None) -> Path | None:
    """Finds the path of --data: itself, or below VQTOK_DATA; None for the built-in shapes.

    Raises InputError.
    """
    if data is None:
        return None
    root = os.environ.get("VQTOK_DATA")
    positions = [Path(data), *([Path(root) / data] if root else [])]
    found = next((position for position in positions if position.exists()), None)
    if found is None:
        where = "" if root is None else f", nor in VQTOK_DATA ({root})"
        raise InputError(
            f"there is no {data}{where}: vqtok downloads nothing",
            "give the path of the images, like cifar-10-batches-bin, "
            "or of the folder that holds them in VQTOK_DATA",
        )
    return found


def prepare(path: Path | None, folder: Path, count: int, seed: int) -> ImageSet:
    """Writes train.npy and test.npy into `folder`; the test set has at most `count` images.

    The data's own test images where it has some, else images set aside.
    Raises InputError, UsageError, OutputError.
    """
    data = open_data(path)
    test, source = _test_set(path, data)
    if test is None:
        training, aside = split_indices(data, HELD_OUT, count, seed)
        pixels, kept = _pixels(data, training), _pixels(data, aside)
    else:
        chosen = np.sort(np.random.default_rng([seed, 7]).permutation(len(test))[:count])
        pixels, kept = (
            _pixels(data, np.arange(len(data))),
            convert_channels(_pixels(test, chosen), data.channels),
        )
    _check(pixels, kept, data.name)
    for name, array in (("train", pixels), ("test", kept)):
        with (
            files.atomic(folder / f"{name}.npy", force=True) as temporary,
            temporary.open("wb") as file,
        ):
            np.save(file, array, allow_pickle=False)
    digest = hashlib.sha256(pixels.tobytes() + kept.tobytes()).hexdigest()[:16]
    return ImageSet(folder / "train.npy", data.name, len(pixels), kept, source, digest)


def _test_set(path: Path | None, data: Dataset) -> tuple[Dataset | None, str]:
    """Opens the data's own test images, None without any, and says where test images are from."""
    try:
        test = open_data(path, "test")
    except InputError:
        return None, "set aside from the training images"
    same = len(test) == len(data) and all(
        np.array_equal(test.image(i), data.image(i)) for i in (0, len(data) - 1)
    )
    return (
        (None, "set aside from the training images")
        if same
        else (test, f"from the test set of {data.name}")
    )


def _pixels(data: Dataset, indices: np.ndarray) -> np.ndarray:
    """Reads images as uint8 (n, H, W, C), without unreadable ones. Raises UsageError where sizes
    differ.
    """
    many = getattr(data, "images", None)
    if many is not None:
        return np.ascontiguousarray(many(indices))
    found: list[np.ndarray] = []
    for i in indices:
        try:
            found.append(data.image(int(i)))
        except InputError:
            continue
        if found[-1].shape != found[0].shape or max(found[-1].shape) > SIDE_MAX:
            _refuse_size(found[-1], data.name)
    return np.stack(found) if found else np.empty((0, 0, 0, 0), np.uint8)


def _check(training: np.ndarray, test: np.ndarray, name: str) -> None:
    if len(training) < _FEW or len(test) < 1:
        raise InputError(
            f"{name} has {len(training) + len(test)} images: too few to train and to test on",
            "give more images",
        )
    H, W = training.shape[1:3]
    if H != W or H > SIDE_MAX or H % DOWNSAMPLE or training.shape[1:] != test.shape[1:]:
        _refuse_size(test[0] if training.shape[1:] != test.shape[1:] else training[0], name)


def _refuse_size(image: np.ndarray, name: str) -> None:
    H, W = image.shape[:2]
    raise UsageError(
        f"{name} holds an image of {W}x{H}: a study models raw pixels, "
        "and needs small squares of one size",
        "give images of one size, square, "
        f"a multiple of {DOWNSAMPLE} and at most {SIDE_MAX} pixels a side, like CIFAR-10",
    )
