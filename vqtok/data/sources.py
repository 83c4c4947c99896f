"""Finds out what a path holds, and opens folders, zips and tar shards of images."""

import re
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from vqtok import images
from vqtok.data import arrays
from vqtok.data.dataset import Dataset, ImageFiles, Split
from vqtok.data.shapes import Shapes
from vqtok.data.tar import MEMBER_LIMIT, TarMember, is_image, tar_images
from vqtok.errors import InputError
from vqtok.files import expand
from vqtok.images import IMAGE_SUFFIXES

_SPLIT_NAMES = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "val", "valid", "validation"), "test"
)
_START = 64  # bytes by which images are told from what is none
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_TEST_SEED = 2**32  # beyond every training seed: no test shape is a training shape


def open_data(path: Path | str | Sequence[Path] | None, split: Split = "train") -> Dataset:
    """The images at `path`: a folder, zip, tar or tar shards, CIFAR-10, IDX, .npz or .npy;
    None is the built-in `Shapes`.

    `split` chooses between training and test images where the data tells them apart (train-*.tar
    and val-*.tar, folders named train and test, CIFAR-10's and MNIST's own files); other data is
    used whole. A glob or a list of paths names tar shards or images, used as they are. Raises
    InputError when nothing is found or nothing can be read.
    """
    if path is None:
        return Shapes() if split == "train" else Shapes(2000, seed=_TEST_SEED)
    try:
        if not isinstance(path, Path | str):
            return _open_many([Path(p) for p in path], f"{len(path)} files")
        path = Path(path)
        if any(letter in str(path) for letter in "*?[") and not path.exists():
            return _open_many(
                [s.path for s in expand([str(path)], IMAGE_SUFFIXES | {".tar"}) if s.path],
                str(path),
            )
        return _open_one(path, split)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot read {error.filename or path}: {reason}", "check the path and its permissions"
        ) from None


def _open_one(path: Path, split: Split) -> Dataset:
    if not path.exists():
        raise InputError(
            f"there is no {path}",
            "give a folder, zip, tar, CIFAR-10, IDX, .npz or .npy file, or leave it out",
        )
    if path.is_dir():
        return _open_folder(path, split)
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise InputError(f"{path} is empty", "give a whole file")
    if head.startswith(b"\x93NUMPY"):
        return arrays.open_npy(path)
    if head.startswith(b"PK"):
        return arrays.open_npz(path, split) if arrays.is_npz(path) else _open_zip(path, split)
    if arrays.is_idx(path, head):
        return arrays.open_idx(path)
    if path.name.endswith(".bin"):
        return arrays.open_cifar([path])
    return _open_tar_file(path, head, split)


def _open_tar_file(path: Path, head: bytes, split: Split) -> Dataset:
    if head[257:262] == b"ustar" or (path.suffix == ".tar" and head[:2] not in _PACKED):
        return _open_tars([path], path.name, split)
    if head[:2] == b"\x1f\x8b" and "cifar" in path.name:
        return arrays.open_cifar_archive(path, split)
    if head[:2] in _PACKED:
        raise InputError(
            f"{path} is compressed ({_PACKED[head[:2]]}); "
            "images in it cannot be reached one by one",
            "unpack it, and give the folder or the plain .tar",
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _open_images([path], path.name)
    raise InputError(
        f"{path} is no kind of data set that vqtok knows",
        "give a folder of images, a zip or tar of them, CIFAR-10, IDX, .npz or .npy",
    )


def _open_folder(folder: Path, split: Split) -> Dataset:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if any(re.fullmatch(r"(data|test)_batch(_\d)?\.bin", name) for name in names):
        return arrays.open_cifar_folder(folder, split)
    if idx := [folder / name for name in names if arrays.IDX_NAME.search(name)]:
        return arrays.open_idx_folder(folder, idx, split)
    if shards := [folder / name for name in names if name.endswith(".tar")]:
        return _open_tars(_of_split(shards, split, folder), folder.name, split)
    try:
        found = expand([str(folder)], IMAGE_SUFFIXES)
    except InputError:
        inner = [folder / name for name in names if (folder / name).is_dir()]
        if len(inner) == 1:  # an archive unpacked into a folder of its own
            return _open_folder(inner[0], split)
        many = f"; none of its {len(names)} entries is one" if names else ""
        raise InputError(
            f"{folder} holds no images{many}", "put files like .png, .jpg or .webp into it"
        ) from None
    paths = [s.path for s in found if s.path]
    return _listed(
        folder.name or str(folder),
        [s.relative.as_posix() for s in found],
        lambda i: paths[i],
        split,
    )


def _open_many(paths: Sequence[Path], name: str) -> Dataset:
    tars = [path for path in paths if path.suffix == ".tar"]
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    if tars and images:
        raise InputError(f"{name} mixes tar shards and images", "name one kind")
    if not tars and not images:
        raise InputError(
            f"{name} matches no tar shards and no images", "check the pattern; put it in quotes"
        )
    return _open_tars(tars, name, None) if tars else _open_images(images, name)


def _open_images(paths: Sequence[Path], name: str) -> Dataset:
    return _listed(name, [path.name for path in paths], lambda i: paths[i], None)


def _of_split(shards: list[Path], split: Split, folder: Path) -> list[Path]:
    """The shards whose names begin with the split's; all of them when no name does."""
    kinds = [_SPLIT_NAMES.get(re.split(r"[-_.\d]", shard.name.lower())[0]) for shard in shards]
    return [shards[i] for i in _chosen(kinds, split, str(folder))]


def _chosen(kinds: list[str | None], split: Split | None, origin: str) -> list[int]:
    """Positions of the wanted split among entries marked train, test or None.

    Without marks everything is wanted. Where some are marked test and none train, what is
    unmarked is for training.
    """
    if split is None or not any(kinds):
        return list(range(len(kinds)))
    wanted = [split, None] if split == "train" and "train" not in kinds else [split]
    chosen = [i for i, kind in enumerate(kinds) if kind in wanted]
    if not chosen:
        raise InputError(
            f"{origin} holds no {split} images", "name the files or the folder to use instead"
        )
    return chosen


def _listed(
    name: str, names: list[str], fetch: Callable[[int], Path | bytes], split: Split | None
) -> Dataset:
    """A data set of image files, from their names in the folder or archive:
    these tell the split and the labels.
    """
    if not names:
        raise InputError(f"{name} holds no images", "give one with files like .png, .jpg or .webp")
    parts = _without_root([PurePosixPath(n).parts for n in names])
    kinds = [_SPLIT_NAMES.get(part[0].lower()) if len(part) > 1 else None for part in parts]
    # beside other folders, a lone one named `test` is a label
    marked = "train" in kinds or all(kinds)
    kept = _chosen(kinds, split if marked else None, name)
    labels, targets = _labels([parts[i][1:] if marked and kinds[i] else parts[i] for i in kept])
    data = ImageFiles(name, [names[i] for i in kept], lambda i: fetch(kept[i]), targets, labels)
    data.check_readable()
    return data


def _without_root(parts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Names without the folders that all share, down to one that names a split."""
    while (
        len(parts[0]) > 1
        and parts[0][0].lower() not in _SPLIT_NAMES
        and all(part[:1] == parts[0][:1] for part in parts)
    ):
        parts = [part[1:] for part in parts]
    return parts


def folder_labels(names: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], list[int]]:
    """Labels, and the number of each image's label, from the parts of the images' names;
    both are empty where there are none.
    """
    return _labels(_without_root(list(names)))


def _labels(parts: list[tuple[str, ...]]) -> tuple[tuple[str, ...], list[int]]:
    """The top folders are labels when there are two or more and no image lies beside them."""
    folders = sorted({part[0] for part in parts if len(part) > 1})
    if len(folders) < 2 or any(len(part) == 1 for part in parts):
        return (), []
    number = {folder: i for i, folder in enumerate(folders)}
    return tuple(folders), [number[part[0]] for part in parts]


def _open_zip(path: Path, split: Split) -> Dataset:
    try:
        archive = zipfile.ZipFile(path)
    except arrays.BROKEN as error:
        raise InputError(f"{path} is a damaged zip: {error}", "copy or download it again") from None
    members = [
        m for m in archive.infolist() if not m.filename.endswith("/") and is_image(m.filename)
    ]
    members.sort(key=lambda m: m.filename)
    lock = threading.Lock()  # one file handle, so one seek at a time; decoding is outside of it

    def fetch(index: int) -> bytes:
        member = members[index]
        if member.file_size > MEMBER_LIMIT:
            raise InputError(
                f"{member.filename} claims {member.file_size} bytes", "remove it from the zip"
            )
        try:
            with lock:
                return _read_member(archive, member)
        except (*arrays.BROKEN, OSError) as error:
            raise InputError(
                f"{member.filename} in {path} is damaged: {error}", "pack the zip again"
            ) from None

    return _listed(path.name, [member.filename for member in members], fetch, split)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """An image's bytes; ValueError where they are none's, before more than the
    first of them are unpacked.
    """
    with archive.open(member) as file:
        start = file.read(_START)
        if not images.may_be_image(start):
            raise ValueError("it is not an image")
        data = bytearray(start)
        while piece := file.read(1 << 20):  # all at once, zipfile would hold them twice
            data += piece
    return bytes(data)


def _open_tars(paths: Sequence[Path], name: str, split: Split | None) -> Dataset:
    """Indexes the shards once; each image is then one read at a known offset."""
    members = [(path, member) for path in paths for member in _index_tar(path)]

    def fetch(index: int) -> bytes:
        path, member = members[index]
        try:
            # each time anew, 10 µs: no handle is shared by threads or left open
            with path.open("rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise InputError(
                f"{member.name} in {path}: {error.strerror}", "check the disk"
            ) from None

    return _listed(
        name if len(paths) == 1 else f"{len(paths)} shards of {name}",
        [member.name for _, member in members],
        fetch,
        split,
    )


def _index_tar(path: Path) -> list[TarMember]:
    """The images in a tar; raises InputError when the file is no tar or is cut off."""
    length = path.stat().st_size
    return [m for m in tar_images(path) if m.size <= MEMBER_LIMIT and m.offset + m.size <= length]
