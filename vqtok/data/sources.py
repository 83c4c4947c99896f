"""Finds out what a path holds, and opens it: the entry point of all that reads images in number."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vqtok import files
from vqtok.config import registry
from vqtok.data import classes, foreign
from vqtok.data.archives import tar_files
from vqtok.data.classes import Classes
from vqtok.data.dataset import ArrayData, DataOptions, Dataset
from vqtok.data.listing import TEXTS, Files, images_of
from vqtok.data.place import Place
from vqtok.data.shapes import Shapes
from vqtok.data.splits import NoSplitError, Split
from vqtok.errors import InputError, UsageError
from vqtok.files import expand, human_count
from vqtok.images import IMAGE_SUFFIXES, Recognizer

_PACKED = {b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_TEST_SEED = 2**32  # beyond every training seed: no test shape is a training shape
_NO_OPTIONS = DataOptions()
AnyPath = Path | str | Sequence[Path]


def open_data(
    path: AnyPath | None, split: Split = "train", options: DataOptions = _NO_OPTIONS
) -> Dataset:
    """Opens the images at `path`: a folder, zip, tar or tar shards, CIFAR, STL-10, IDX, .npz or
    .npy; None is the built-in `Shapes`.

    Gives names, images, labels, captions, which split it is, and `notes`: what was guessed.
    `split` chooses between training and test images where the data has both (a word like
    train or val in the names of folders or shards, CIFAR's and MNIST's own files); other data is
    used whole, and its `split` is None. A glob or a list of paths names tar shards or images, used
    as they are. Raises InputError when nothing is found or nothing can be read, UsageError where
    the options do not fit the data.
    """
    if path is None:
        data: Dataset = Shapes() if split == "train" else Shapes(2000, seed=_TEST_SEED)
        return _with_options(data, options)
    try:
        return _with_options(_open(path, split, options), options)
    except files.RemoteError as error:
        raise files.unreadable(error.filename or path, error) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot read {error.filename or path}: {reason}", "check the path and its permissions"
        ) from None


def open_splits(
    path: AnyPath | None, options: DataOptions = _NO_OPTIONS
) -> dict[Split | None, Dataset]:
    """Opens all parts of the data: train and test where it has both, else all of it under
    None.

    Raises as `open_data`, also where one part is damaged.
    """
    found: dict[Split | None, Dataset] = {}
    first: NoSplitError | None = None
    for split in ("train", "test"):
        try:
            data = open_data(path, split, options)
        except NoSplitError as error:
            first = first or error
            continue
        if data.split is None and path is not None:
            return {None: data}
        found[split] = data
    if not found:
        assert first is not None
        raise first
    return found


def _open(path: AnyPath, split: Split, options: DataOptions) -> Dataset:
    if not isinstance(path, Path | str):
        return _open_many([files.as_path(p) for p in path], f"{len(path)} files", options)
    if files.is_pattern(str(files.as_path(path))) and not os.path.exists(path):
        wanted = IMAGE_SUFFIXES | files.TAR_SUFFIXES
        name = str(files.as_path(path))
        found = [s.path for s in expand(files.expand_braces(name), wanted) if s.path]
        return _open_many(found, str(path), options)
    return _open_one(files.as_path(path), split, options)


def _with_options(data: Dataset, options: DataOptions) -> Dataset:
    """Applies what the user says to data that no names belong to; UsageError where it cannot be."""
    if not isinstance(data, ArrayData | Shapes):
        return data
    for name, given in (("--split", options.split), ("--member", options.member)):
        if given:
            raise UsageError(
                f"{name} does not go with {data.name}", "leave it out: it has no names"
            )
    if not options.labels:
        return data
    if options.labels in ("folders", "cls") or isinstance(data, Shapes):
        raise UsageError(f"--labels {options.labels} does not go with {data.name}", "leave it out")
    if options.labels == "none":
        return data.relabelled(Classes())
    names = [data.image_name(i) for i in range(len(data))]
    return data.relabelled(classes.from_file(Path(options.labels), names))


def _open_one(path: Path, split: Split, options: DataOptions) -> Dataset:
    if not path.exists():
        raise InputError(
            f"there is no {path}",
            "give a folder, zip, tar, CIFAR-10, IDX, .npz or .npy file, or leave it out",
        )
    place = Place.of(path)
    if not place.head and not path.is_dir():
        raise InputError(f"{path} is empty", "give a whole file")
    for entry in registry.DATA_SOURCES.values():
        data = entry.load()(place, split, options)
        if data is not None:
            return data
    if path.is_dir():
        return _open_folder(place, split, options)
    return _open_tar_file(path, place.head, split, options)


def _open_tar_file(path: Path, head: bytes, split: Split, options: DataOptions) -> Dataset:
    if head[257:262] == b"ustar" or (files.is_tar(path) and head[:2] not in _PACKED):
        # named by the user: its own name gives no split
        return images_of(replace(tar_files([path], path.name), groups=()), split, options)
    if head[:2] in _PACKED:
        raise InputError(
            f"{path} is compressed ({_PACKED[head[:2]]}); "
            "images in it cannot be reached one by one",
            "unpack it, and give the folder or the plain .tar, or one that gzip packed",
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return images_of(_loose([path], [path.name], path.name), None, options)
    raise foreign.refuse_file(path) or InputError(
        f"{path} is no kind of data set that vqtok knows",
        "give a folder of images, a zip or tar of them, CIFAR-10, IDX, .npz or .npy",
    )


def _open_folder(place: Place, split: Split, options: DataOptions) -> Dataset:
    folder, names = place.path, place.names
    name = folder.name or str(folder)
    wanted, recognizer = IMAGE_SUFFIXES | files.TAR_SUFFIXES | TEXTS, Recognizer()
    try:
        sources = expand([str(folder)], wanted, recognizer.is_image_file)
        found = [(s.path, s.relative.as_posix()) for s in sources if s.path]
    except InputError:
        found = []
    tars = [path for path, _ in found if files.is_tar(path)]
    others = [(path, as_named) for path, as_named in found if not files.is_tar(path)]
    loose = [path for path, _ in others if path.suffix.lower() not in TEXTS]
    if tars and (not loose or any(map(files.is_tar, names))):
        shards = tar_files(tars, name, root=folder)
        shards = replace(shards, notes=(*shards.notes, *filter(None, [recognizer.note()])))
        if loose:
            note = f"{human_count(len(loose), 'image')} beside the tars left out."
            shards = replace(shards, notes=(*shards.notes, note))
        return images_of(shards, split, options)
    if loose:
        listed = _loose([path for path, _ in others], [n for _, n in others], name)
        left = f"{human_count(len(tars), 'tar')} left out." if tars else ""
        listed = replace(listed, notes=tuple(filter(None, [left, recognizer.note()])))
        return images_of(listed, split, options)
    if recognizer.passed and not any((folder / name).is_dir() for name in names):
        raise InputError(
            f"{folder} holds no images that vqtok reads: {recognizer.note().partition(':')[0]}",
            "convert them to PNG or JPEG",
        )
    return _open_other(folder, names, split, options)


def _open_other(folder: Path, names: Sequence[str], split: Split, options: DataOptions) -> Dataset:
    """Opens a folder without images: one with a single array or folder in it. Raises an error for
    others.
    """
    if refused := foreign.refuse_folder(folder, names):
        raise refused
    inner = [folder / name for name in names if (folder / name).is_dir()]
    lone = [name for name in names if name.endswith((".npz", ".npy"))]
    if len(lone) == 1:
        return _open_one(folder / lone[0], split, options)
    if len(inner) == 1:  # an archive unpacked into a folder of its own
        return _open_one(inner[0], split, options)
    many = f"; none of its {len(names)} entries is one" if names else ""
    raise InputError(
        f"{folder} holds no images{many}", "put files like .png, .jpg or .webp into it"
    )


def _open_many(paths: Sequence[Path], name: str, options: DataOptions) -> Dataset:
    tars = [path for path in paths if files.is_tar(path)]
    found = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    if tars and found:
        raise InputError(f"{name} mixes tar shards and images", "name one kind")
    if not tars and not found:
        raise InputError(
            f"{name} matches no tar shards and no images", "check the pattern; put it in quotes"
        )
    listed = tar_files(tars, name) if tars else _loose(found, [p.name for p in found], name)
    if options.split:
        raise UsageError("--split does not go with files that are named", "leave it out")
    return images_of(listed, None, options)


def _loose(paths: Sequence[Path], names: Sequence[str], name: str) -> Files:
    """Lists image files, and texts beside them."""
    return Files(name, names, lambda i: paths[i], lambda i: _bytes(paths[i]))


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
