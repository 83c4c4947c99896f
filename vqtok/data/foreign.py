"""Recognizes data sets in formats that vqtok does not read, and says how to get images out of
them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vqtok.data import cifar
from vqtok.errors import InputError

_INDEX_LIMIT = 2**26  # bytes of an index.json that is looked into
COMPRESSED = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


class _Format(NamedTuple):
    name: str
    fix: str


_SAVE = "save its images as files, like"
_FORMATS = {
    "mds": _Format(
        "MDS shards of MosaicML streaming",
        f"{_SAVE} row['image'].save(f'{{i:06}}.png') for i, row in "
        "enumerate(streaming.StreamingDataset(local=FOLDER, batch_size=1))",
    ),
    "litdata": _Format(
        "chunks of litdata",
        f"{_SAVE} row['image'].save(f'{{i:06}}.png') for i, row in "
        "enumerate(litdata.StreamingDataset(FOLDER))",
    ),
    "arrow": _Format(
        "a data set that Hugging Face's save_to_disk wrote",
        f"{_SAVE} row['image'].save(f'{{i:06}}.png') for i, row in "
        "enumerate(datasets.load_from_disk(FOLDER)); with several splits, one at a time",
    ),
    "parquet": _Format(
        "Parquet files (of Hugging Face, perhaps)",
        f"{_SAVE} row['image'].save(f'{{i:06}}.png') for i, row in "
        "enumerate(datasets.load_dataset('parquet', data_files=FILES, split='train'))",
    ),
    "tfrecord": _Format("TFRecord files", f"{_SAVE} tf.io.write_file of each record's image bytes"),
    "lmdb": _Format("an LMDB database", f"{_SAVE} the values of lmdb.open(FOLDER, readonly=True)"),
    "hdf5": _Format(
        "HDF5", "save its array of images, uint8 (N, H, W, C), with numpy.save('images.npy', ...)"
    ),
    "beton": _Format("an FFCV file", "give the images that it was made from"),
    "pickle": _Format(
        "Python pickles, which vqtok never loads",
        "save the images, uint8 (N, H, W, C), with numpy.save('images.npy', ...)",
    ),
    "mat": _Format(
        "MATLAB files",
        "save the images, uint8 (N, H, W, C), with numpy.save('images.npy', ...); "
        "scipy.io.loadmat reads them",
    ),
    "rec": _Format("MXNet RecordIO", f"{_SAVE} mxnet.recordio.unpack of each record"),
}
_SUFFIXES = {
    ".mds": "mds",
    ".arrow": "arrow",
    ".parquet": "parquet",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
    ".mdb": "lmdb",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".beton": "beton",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".pt": "pickle",
    ".pth": "pickle",
    ".mat": "mat",
    ".rec": "rec",
}


def refuse_folder(folder: Path, names: Sequence[str]) -> InputError | None:
    """Returns what to say of a folder in another format, by the names in it; None where it is in
    none.
    """
    if cifar.is_pickled(folder, names):
        return cifar.refuse_pickled(folder, names)
    packed = [name for name in names if name.lower().endswith(COMPRESSED)]
    if packed:
        return refuse_compressed(folder, packed)
    kind = _index_kind(folder, names) or _dict_kind(names) or _suffix_kind(names)
    if kind is None:
        for name in names:  # a folder a split, as save_to_disk and MDS have it
            below = folder / name
            if below.is_dir() and (kind := _kind_below(below)):
                break
    return None if kind is None else _refusal(folder, kind)


def refuse_words(words: Sequence[str]) -> InputError | None:
    """Returns what to say of folders, given as a user does, where one is in another format."""
    for folder in map(Path, words):
        try:
            names = sorted(path.name for path in folder.iterdir())
        except OSError:  # no folder, or one that cannot be read
            continue
        if refused := refuse_folder(folder, names):
            return refused
    return None


def refuse_compressed(folder: Path, packed: Sequence[str]) -> InputError:
    return InputError(
        f"{folder} holds {len(packed)} compressed tars, such as {packed[0]}; images in them "
        "cannot be reached one by one",
        "unpack them to plain .tar, or pack them by gzip, which is read where it lies",
    )


def refuse_file(path: Path) -> InputError | None:
    """Returns what to say of a file in another format, by its name and first bytes; None:
    unknown.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"\x80") and (path.name.startswith(("data_batch", "test_batch"))):
        return cifar.refuse_pickled(path)
    kind = _SUFFIXES.get(path.suffix.lower())
    kind = kind or ("parquet" if head.startswith(b"PAR1") else None)
    kind = kind or ("hdf5" if head.startswith(b"\x89HDF\r\n") else None)
    kind = kind or ("pickle" if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" else None)
    return None if kind is None else _refusal(path, kind)


def _refusal(place: Path, kind: str) -> InputError:
    found = _FORMATS[kind]
    verb = "is" if found.name.startswith(("a ", "an ")) or place.is_file() else "holds"
    fix = found.fix.replace("FOLDER", repr(str(place))).replace("FILES", repr(_files(place)))
    return InputError(f"{place} {verb} {found.name}, which vqtok does not read", fix)


def _files(place: Path) -> str:
    return str(place / "**" / "*.parquet") if place.is_dir() else str(place)


def _kind_below(folder: Path) -> str | None:
    names = sorted(path.name for path in folder.iterdir())
    return _index_kind(folder, names) or _dict_kind(names) or _suffix_kind(names)


def _index_kind(folder: Path, names: Sequence[str]) -> str | None:
    """Tells MDS and litdata apart by their index.json."""
    path = folder / "index.json"
    if "index.json" not in names or path.stat().st_size > _INDEX_LIMIT:
        return None
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(index, dict):
        return None
    return "mds" if "shards" in index else "litdata" if "chunks" in index else None


def _dict_kind(names: Sequence[str]) -> str | None:
    wrote = "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= set(names)
    return "arrow" if wrote else None


def _suffix_kind(names: Sequence[str]) -> str | None:
    found = (_SUFFIXES.get(Path(name).suffix.lower()) for name in names)
    by_suffix = next((kind for kind in found if kind), None)
    return by_suffix or ("tfrecord" if any(".tfrecord-" in name for name in names) else None)
