"""Turns a trainer's sequences back into codes: from arrays, and from files of the formats we
write.
"""

import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from vqtok import codes, files
from vqtok.codes import Codes, index_dtype
from vqtok.codes.checks import is_int, require
from vqtok.data.tar import index_tar
from vqtok.errors import FormatError, InputError, UsageError
from vqtok.gzipped import read_part
from vqtok.tokens.export import META, origin_of, read_meta_file
from vqtok.tokens.formats.flat import HEADER_WORDS
from vqtok.tokens.formats.megatron import DTYPES, MAGIC
from vqtok.tokens.layout import Layout
from vqtok.tokens.sources import Grid, Origin

LIMIT = 8 << 30
GIVE = "give .npy, .bin, .jsonl, .tar or .parquet, or the folder of an export"


@dataclass(frozen=True)
class TokenMeta:
    """The content of a meta.json."""

    layout: Layout
    origin: Origin
    container: str  # of exports that name none themselves
    exports: dict[str, Any]

    def export(self, path: Path) -> dict[str, Any]:
        """Returns what is said of a file; for other files, what is said of the only export, or else
        nothing.
        """
        for export in self.exports.values():
            if path.name in export["files"]:
                return export
        return {}

    def container_of(self, export: dict[str, Any]) -> str:
        """Returns the format of an export."""
        return export.get("container", self.container)

    @property
    def grid(self) -> Grid | None:
        """Returns (h, w) where all exports share one."""
        return _only_pair([export.get("grid") for export in self.exports.values()])

    @property
    def size(self) -> tuple[int, int] | None:
        """Returns (H, W) of the images, where all exports share one."""
        return _only_pair([export.get("size") for export in self.exports.values()])


def _only_pair(found: list[Any]) -> tuple[int, int] | None:
    pairs = {tuple(pair) if isinstance(pair, list) else None for pair in found}
    pair = pairs.pop() if len(pairs) == 1 else None
    good = pair is not None and len(pair) == 2 and all(type(n) is int and n > 0 for n in pair)
    return (pair[0], pair[1]) if good and pair is not None else None


def read_meta(path: Path) -> TokenMeta:
    """Reads the meta.json in a folder, or that file. Raises InputError, FormatError."""
    meta = read_meta_file(path / META if path.is_dir() else path)
    return TokenMeta(Layout.from_json(meta), origin_of(meta), meta["container"], meta["exports"])


def restore(
    sequences: Iterable[np.ndarray],
    meta: TokenMeta,
    grid: Grid | None = None,
    origin: object = "sequences",
) -> list[Codes]:
    """Makes codes of sequences (T,), in their order, those of one grid size together.

    `grid` is (h, w), by default that of meta.json; errors begin with `origin`. FormatError
    where an id does not belong where
    it stands: it names the sequence, the place and the id.
    """
    found: dict[Grid, list[np.ndarray]] = {}
    dtype = index_dtype(meta.layout.vocabulary.codebook_size)
    number = -1
    for number, sequence in enumerate(sequences):
        try:
            indices, _ = meta.layout.decode(sequence, grid or meta.grid)
        except FormatError as error:
            raise error.about(f"{origin}: sequence {number}") from None
        found.setdefault((indices.shape[1], indices.shape[2]), []).append(indices.astype(dtype))
    require(number >= 0, f"{origin}: there is no sequence", GIVE)
    return [_codes(np.stack(grids), meta) for grids in found.values()]


def _codes(indices: np.ndarray, meta: TokenMeta) -> Codes:
    n, _, h, w = indices.shape
    o, f = meta.origin, meta.origin.downsample
    size = meta.size
    if size is None or (-(-size[0] // f), -(-size[1] // f)) != (h, w):
        size = h * f, w * f
    return Codes(
        indices, o.model, o.fingerprint, o.codebook_size, o.downsample, o.channels, (size,) * n
    )


def read_sequences(path: Path, meta: TokenMeta) -> Iterator[np.ndarray]:
    """Yields the sequences in a file that a trainer has written, or in those of an export.

    Integers as .npy ((n, T), (T,), or LlamaGen's (1, copies, T)), .bin, .jsonl (arrays, or objects
    with "tokens"), .tar (its .npy members), .parquet (the column `tokens`) or Megatron's .bin with
    its .idx; a folder means all of its export. Raises InputError, FormatError.
    """
    if path.is_dir():
        yield from _read_folder(path, meta)
        return
    export = meta.export(path)
    alone = [name for name in export.get("files", ()) if not name.endswith(".idx")] == [path.name]
    found = _read_file(path, meta)
    yield from _counted(found, export, path) if alone else found


def _counted(
    sequences: Iterator[np.ndarray], export: dict[str, Any], origin: object
) -> Iterator[np.ndarray]:
    """The sequences of an export; FormatError where they are not as many as meta.json tells: a tar
    or text that was cut off between two of them shows no other sign.
    """
    count = 0
    for sequence in sequences:
        count += 1
        yield sequence
    told = export.get("sequences")
    require(
        told is None or told == count,
        f"{origin} holds {count:,} sequences, and meta.json tells of {told}",
        "copy the whole export again, meta.json too",
    )


def _read_file(path: Path, meta: TokenMeta) -> Iterator[np.ndarray]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"vqtok does not read sequences from {path}", GIVE)
    with codes.name_in_errors(path):
        yield from reader(path, meta)


def _read_folder(folder: Path, meta: TokenMeta) -> Iterator[np.ndarray]:
    containers = sorted({meta.container_of(export) for export in meta.exports.values()})
    for container in {"litdata", "mds"} & set(containers):
        raise UsageError(
            f"vqtok does not read {container} back itself",
            "save what its reader gives with numpy.save, and give that .npy",
        )
    if len(containers) > 1:
        first = next(iter(meta.exports.values()))["files"][0]
        raise UsageError(
            f"{folder} holds {' and '.join(containers)}, which may be of the same images",
            f"give one file: {folder / first}",
        )
    for export in meta.exports.values():
        yield from _counted(_read_export(folder, export, meta), export, folder)


def _read_export(folder: Path, export: dict[str, Any], meta: TokenMeta) -> Iterator[np.ndarray]:
    """The sequences of all files of an export."""
    for name in export["files"]:
        if name.endswith("_codes/"):
            count = export.get("images")
            require(is_int(count, 0, 1 << 40), "meta.json is damaged")
            assert count is not None
            for number in range(count):
                yield from _read_file(folder / name / f"{number}.npy", meta)
        elif not name.endswith(("/", ".idx")):
            yield from _read_file(folder / name, meta)


def _read_npy(path: Path, _meta: TokenMeta) -> Iterator[np.ndarray]:
    yield from _rows(_load_npy(files.read_bytes(path, LIMIT)))


def _load_npy(data: bytes) -> np.ndarray:
    """Loads the array in an .npy, whose header is checked before memory is taken."""
    file, save = io.BytesIO(data), "write it with numpy.save"
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
    # NumPy raises all of these on damaged headers
    except (ValueError, EOFError, OSError, TypeError, SyntaxError, KeyError, MemoryError):
        raise FormatError("not an .npy array", save) from None
    rest = len(data) - file.tell()
    require(dtype.kind in "iu", f"an array of {dtype} holds no ids", "give integers")
    require(math.prod(shape) * dtype.itemsize == rest, "the array is cut", "copy it again")
    array = np.frombuffer(data, dtype, offset=file.tell())
    return array.reshape(shape, order="F" if fortran else "C")


def _rows(array: np.ndarray) -> Iterator[np.ndarray]:
    require(
        array.dtype.kind in "iu" and array.ndim in (1, 2, 3) and array.size > 0,
        f"{array.dtype} in the shape {array.shape} are no sequences",
        "give integers (n, T): one sequence a row",
    )
    yield from array.reshape(-1, array.shape[-1])


def _read_bin(path: Path, meta: TokenMeta) -> Iterator[np.ndarray]:
    """Yields sequences of a flat file, which is cut at its EOS or BOS tokens, or else into equal
    lengths.
    """
    export, v = meta.export(path), meta.layout.vocabulary
    index = path.with_suffix(".idx")
    if meta.container_of(export) == "megatron" or index.exists():
        yield from _read_megatron(path, index)
        return
    data = np.frombuffer(files.read_bytes(path, LIMIT), np.uint8)
    skip = 4 * HEADER_WORDS if export.get("header") else 0
    dtype = v.dtype.newbyteorder("<")
    require(
        (len(data) - skip) % dtype.itemsize == 0 and len(data) > skip,
        f"not a whole number of {dtype.name}",
        "give the whole file",
    )
    tokens = data[skip:].view(dtype)
    length = export.get("length")
    require(length is None or is_int(length, 1, 1 << 40), "meta.json is damaged")
    if length is None and meta.grid is not None:
        length = meta.layout.length(*meta.grid)
    if v.eos is not None:
        ends = np.flatnonzero(tokens == v.eos) + 1
        yield from np.split(tokens, ends[ends < len(tokens)])
    elif v.bos is not None:
        yield from np.split(tokens, np.flatnonzero(tokens[1:] == v.bos) + 1)
    elif length is not None:
        require(
            len(tokens) % length == 0,
            f"{len(tokens):,} ids are no whole sequences of {length:,}",
            "give the whole file",
        )
        yield from tokens.reshape(-1, length)
    elif v.class_start is not None:
        yield from np.split(tokens, np.flatnonzero(tokens[1:] >= v.class_start) + 1)
    else:
        raise FormatError(
            "nothing tells where one sequence ends and the next begins",
            "export with --eol --eos where the grids differ",
        )


def _read_megatron(path: Path, index: Path) -> Iterator[np.ndarray]:
    head = files.read_bytes(index, LIMIT)
    with codes.name_in_errors(index):
        require(
            head[:9] == MAGIC and len(head) >= 34, "not an index of Megatron's", "give its .idx"
        )
        version = int.from_bytes(head[9:17], "little")
        dtype = DTYPES.get(head[17])
        n = int.from_bytes(head[18:26], "little")
        require(version == 1 and dtype is not None, "of another version or dtype", GIVE)
        require(len(head) >= 34 + 12 * n, "the file is cut", "copy it again")
        lengths = np.frombuffer(head, "<i4", n, 34)
        starts = np.frombuffer(head, "<i8", n, 34 + 4 * n)
    data = files.read_bytes(path, LIMIT)
    assert dtype is not None
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        whole = start >= 0 and length >= 0 and start + length * dtype.itemsize <= len(data)
        require(whole, "the file is cut", "copy it again")
        yield np.frombuffer(data, dtype, length, start)


def _read_jsonl(path: Path, _meta: TokenMeta) -> Iterator[np.ndarray]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                yield _parse_line(line, number + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the name") from None


def _parse_line(line: bytes, number: int) -> np.ndarray:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    tokens = value.get("tokens") if isinstance(value, dict) else value
    good = isinstance(tokens, list) and all(type(n) is int and abs(n) < 1 << 62 for n in tokens)
    require(good, f"line {number} has no list of integers", 'give [1, 2] or {"tokens": [1, 2]}')
    return np.array(tokens, np.int64)


def _read_tar(path: Path, _meta: TokenMeta) -> Iterator[np.ndarray]:
    try:
        for member in index_tar(path):
            if member.name.endswith(".npy"):
                data = read_part(path, member.offset, min(member.size, LIMIT))
                yield from _rows(_load_npy(data))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}", "copy the file again") from None


def _read_parquet(path: Path, _meta: TokenMeta) -> Iterator[np.ndarray]:
    try:
        pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(
            "Parquet is read by pyarrow, which is not installed", "pip install 'vqtok[parquet]'"
        ) from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches(1024, columns=["tokens"]):
            yield from (row.values.to_numpy() for row in batch.column(0))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"cannot read {path}: {error}", "copy the file again") from None


_READERS = {
    ".npy": _read_npy,
    ".bin": _read_bin,
    ".jsonl": _read_jsonl,
    ".tar": _read_tar,
    ".parquet": _read_parquet,
}
