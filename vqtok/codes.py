"""Codes <-> .npz: the file format and its checks.

A codes file is an ordinary .npz: `numpy.load(path, allow_pickle=False)` opens it. Its members, stored or deflated:
- `indices`: the smallest unsigned integers that hold K - 1, little-endian, C order, (n, L, h, w): pictures, levels, rows, columns.
  L may be less than the model's: the first levels alone are a picture too
- `meta`: a 0-d string, one JSON object in ASCII: "format" (1), "model", "fingerprint" (eight hex digits), "codebook_size" (K),
  "downsample" (f; h is ceil(H / f)), "channels" (1 or 3), and "sizes": the [H, W] of each picture, or one [H, W] for all
A reader ignores keys and members that it does not know.

The reader trusts nothing: names, sizes and headers of the members are checked before memory is reserved for what they claim.
It parses .npy headers itself: NumPy evaluates them as Python literals, and raises nine kinds of exception on damaged ones.
"""

import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vqtok import files
from vqtok.errors import FormatError, UsageError

FORMAT = 1
FILE_LIMIT = 4 << 30        # bytes; the file is held in memory while it is read
_META_BYTES = 1 << 16       # the most the meta member may take without the sizes, 4 bytes a character ...
_META_BYTES_EACH = 96       # ... and for each picture: "[1234567890,1234567890],"
_DEFLATE_RATIO = 1032       # no deflate stream expands more
_COPY_AGAIN = "copy or download the file again"
_GIVE_CODES = "give a .npz that vqtok encode wrote"
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\s*\{\s*'descr':\s*'([^']{1,20})',\s*'fortran_order':\s*(True|False),\s*'shape':\s*\(([0-9, ]{0,100})\),?\s*\}\s*"
)
_DTYPE = re.compile(r"\|u1|<u[24]|<U[1-9][0-9]{0,9}")
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, OverflowError, LookupError,
)   # fmt: skip


@dataclass(frozen=True, eq=False)
class Codes:
    """Index grids of n pictures that share a grid size, and what decoding needs; FormatError where the parts disagree."""

    indices: np.ndarray                     # (n, L, h, w), of index_dtype(K)
    model: str                              # name of the model that made them
    fingerprint: str                        # of its tokenizer: eight hex digits
    codebook_size: int                      # K
    downsample: int                         # f: pixels per index along each axis
    channels: int                           # of the pictures: 1 or 3
    sizes: tuple[tuple[int, int], ...]      # (H, W) of each picture

    def __post_init__(self) -> None:
        _check(_is_int(self.codebook_size, 2, 1 << 32), "the codebook size is no integer from 2 to 2^32")
        _check(_is_int(self.downsample, 1, 1024), "downsample is no integer from 1 to 1024")
        _check(_is_int(self.channels, 1, 3) and self.channels != 2, "channels is neither 1 nor 3")
        named = isinstance(self.model, str) and 0 < len(self.model) < 256 and self.model.isprintable()
        _check(named, "the model's name is not a line of text")
        marked = isinstance(self.fingerprint, str) and re.fullmatch("[0-9a-f]{8}", self.fingerprint) is not None
        _check(marked, "the fingerprint is not eight hex digits")
        _check_indices(self.indices, self.codebook_size)
        _check_sizes(self.sizes, self.indices.shape, self.downsample)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        return _to_meta(self) == _to_meta(other) and np.array_equal(self.indices, other.indices)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def levels(self) -> int:
        """How many levels are here: the model's first ones, or all of them."""
        return self.indices.shape[1]

    def first_levels(self, count: int) -> "Codes":
        """The same pictures at their first `count` levels: fewer bits, less detail. UsageError where so many are not here."""
        if not 1 <= count <= self.levels:
            raise UsageError(f"these codes hold {counted(self.levels)}, not {count}", choice(self.levels))
        return replace(self, indices=np.ascontiguousarray(self.indices[:, :count]))

    @property
    def bits(self) -> float:
        """Bits that the raw indices take: n * L * h * w * log2(K)."""
        return self.indices.size * math.log2(self.codebook_size)

    @property
    def pixels(self) -> int:
        """Pixels of all pictures together, at their own sizes."""
        return sum(H * W for H, W in self.sizes)


def index_dtype(codebook_size: int) -> np.dtype:
    """The smallest unsigned dtype that holds the indices of a codebook of that size."""
    return np.dtype(np.uint8 if codebook_size <= 1 << 8 else np.uint16 if codebook_size <= 1 << 16 else np.uint32)


def counted(levels: int) -> str:
    """'1 level', '8 levels'."""
    return "1 level" if levels == 1 else f"{levels} levels"


def choice(levels: int) -> str:
    """What to do about a number of levels that is not among those there are."""
    return "there is only one level: leave the number of levels out" if levels == 1 else f"choose 1 to {levels} levels"


def fit(codes: Codes, limit: float) -> tuple[Codes, bytes]:
    """The codes at the most levels whose file takes at most `limit` bytes, and that file; at one level where even that takes more."""
    for count in range(codes.levels, 1, -1):
        cut = codes.first_levels(count)
        data = to_bytes(cut)
        if len(data) <= limit:
            return cut, data
    cut = codes.first_levels(1)
    return cut, to_bytes(cut)


def to_bytes(codes: Codes) -> bytes:
    """The bytes of a codes file. Equal codes give equal bytes, apart from how a machine's zlib packs them."""
    text = json.dumps(_to_meta(codes), sort_keys=True, separators=(",", ":"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        _write_member(archive, "indices", codes.indices)
        _write_member(archive, "meta", np.array(text))
    return buffer.getvalue()


def write(path: Path | str, codes: Codes, force: bool = False) -> None:
    """Writes a codes file in one step. OutputError where the path exists (unless force) or cannot be written."""
    files.write_bytes(Path(path), to_bytes(codes), force)


def read(source: Path | str | bytes) -> Codes:
    """The codes in a file, or in the bytes of one; indices are writable. InputError: unreadable. FormatError: not valid codes."""
    data, origin = _load(source)
    with named(origin), _archive(data) as archive:
        meta, member = _read_meta(archive)
        raw = _read_member(archive, member)
        indices = raw.view(member.dtype).reshape(member.shape).astype(member.dtype.newbyteorder("="), copy=False)
        sizes = _from_json_sizes(meta.pop("sizes"), len(indices) if indices.ndim else 0)
        return Codes(indices, sizes=sizes, **meta)


def read_meta(source: Path | str | bytes) -> dict[str, Any]:
    """The metadata of a codes file, with "shape", the (n, L, h, w) of the indices, which are not read. Errors as `read`.

    Checked are the format number, that the keys are there, and that the file can hold the shape; not what the keys hold.
    """
    data, origin = _load(source)
    with named(origin), _archive(data) as archive:
        meta, member = _read_meta(archive)
        return {"format": FORMAT, **meta, "shape": member.shape}


def parse_meta(text: str) -> dict[str, Any]:
    """The JSON object that is the metadata of a codes or weights file; FormatError where damaged or of a newer format."""
    try:
        if not text.isascii():
            raise ValueError
        meta = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):        # ValueError: also an integer of thousands of digits
        raise FormatError("the metadata is damaged", _COPY_AGAIN) from None
    number = meta.get("format") if isinstance(meta, dict) else None
    _check(_is_int(number, 1, math.inf), "the metadata is damaged")
    if number != FORMAT:
        raise FormatError(f"written in format {str(number)[:20]}, newer than this vqtok reads", "upgrade vqtok")
    return meta


@contextmanager
def named(origin: object) -> Iterator[None]:
    """Puts the file's name before the message of a FormatError."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{origin}: {error}", error.fix) from None


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _check(ok: bool, message: str, fix: str = _COPY_AGAIN) -> None:
    if not ok:
        raise FormatError(message, fix)


def _is_int(value: object, low: int, high: float) -> bool:
    return type(value) is int and low <= value <= high


def _check_indices(indices: np.ndarray, K: int) -> None:
    _check(isinstance(indices, np.ndarray) and indices.ndim == 4, "the indices lack the four axes images, levels, rows, columns")
    _check(indices.size > 0, f"the indices are empty: shape {indices.shape}")
    wanted = index_dtype(K)
    _check(indices.dtype == wanted, f"the indices are {indices.dtype}, K = {K} asks for {wanted}")
    largest = int(indices.max())
    _check(largest < K, f"the indices go up to {largest}, the codebook has {K} entries")


def _check_sizes(sizes: object, shape: tuple[int, ...], f: int) -> None:
    """sizes against the (n, L, h, w) of the indices."""
    n, _, h, w = shape
    if not isinstance(sizes, tuple) or len(sizes) != n:
        raise FormatError("the sizes do not match the number of pictures", _COPY_AGAIN)
    pairs = all(isinstance(size, tuple) and len(size) == 2 and all(_is_int(side, 1, math.inf) for side in size) for size in sizes)
    _check(pairs, "the sizes are not pairs of positive integers")
    for H, W in set(sizes):
        _check((-(-H // f), -(-W // f)) == (h, w), f"a picture of {W}x{H} does not have a grid of {w}x{h} at downsample {f}")


def _to_meta(codes: Codes) -> dict[str, Any]:
    """The JSON object of the meta member."""
    sizes = codes.sizes[:1] if len(set(codes.sizes)) == 1 else codes.sizes
    return {
        "format": FORMAT,
        "model": codes.model,
        "fingerprint": codes.fingerprint,
        "codebook_size": codes.codebook_size,
        "downsample": codes.downsample,
        "channels": codes.channels,
        "sizes": [list(size) for size in sizes],
    }


def _from_json_sizes(value: Any, n: int) -> tuple[tuple[int, int], ...]:
    """The sizes of n pictures; Codes checks what the pairs hold."""
    _check(isinstance(value, list) and all(isinstance(size, list) for size in value), "the sizes are not a list of pairs")
    sizes = tuple(tuple(size) for size in value)
    return sizes * n if len(sizes) == 1 else sizes


def _write_member(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """Adds an array as a deflated .npy; date and system are fixed, so that equal arrays give equal bytes."""
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o600 << 16
    npy = io.BytesIO()
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    np.lib.format.write_array(npy, little, version=(1, 0), allow_pickle=False)
    archive.writestr(info, npy.getbuffer())


def _load(source: Path | str | bytes) -> tuple[bytes, object]:
    """The bytes of a codes file, and what to call it in errors."""
    if isinstance(source, bytes):
        return source, "codes"
    return files.read_bytes(Path(source), FILE_LIMIT), source


@dataclass(frozen=True)
class _Member:
    """An array in the archive, whose header was found plausible."""

    info: zipfile.ZipInfo
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int                 # of the data in the unpacked member

    @property
    def nbytes(self) -> int:
        return self.info.file_size - self.offset


@contextmanager
def _zip_errors() -> Iterator[None]:
    """zipfile raises all of these on damaged bytes; only its own calls stand under this guard."""
    try:
        yield
    except _ZIP_ERRORS:
        raise FormatError("damaged or truncated", _COPY_AGAIN) from None


def _archive(data: bytes) -> zipfile.ZipFile:
    _check(bool(data), "the file is empty")
    _check(data[:2] == b"PK", "not a codes file (.npz)", _GIVE_CODES)
    with _zip_errors():
        archive = zipfile.ZipFile(io.BytesIO(data))
    _check(all(info.compress_size <= len(data) for info in archive.infolist()), "damaged or truncated")
    return archive


def _read_meta(archive: zipfile.ZipFile) -> tuple[dict[str, Any], _Member]:
    """The values of the meta member by field of Codes, and the indices' member, unread."""
    meta = _find(archive, "meta")
    _check(meta.dtype.kind == "U" and meta.shape == (), "the member meta is not a string")
    limit = _META_BYTES + _META_BYTES_EACH * _claimed_pictures(archive)
    _check(meta.nbytes <= limit, f"the member meta takes {meta.nbytes} bytes, more than {limit}")
    try:
        text = _read_member(archive, meta).tobytes().decode("utf-32-le")
    except UnicodeDecodeError:
        raise FormatError("the metadata is damaged", _COPY_AGAIN) from None
    values = parse_meta(text)
    keys = ("model", "fingerprint", "codebook_size", "downsample", "channels", "sizes")
    for key in keys:
        _check(key in values, f"the metadata lacks {key!r}")
    if "stream.npy" in archive.namelist() and "indices.npy" not in archive.namelist():
        raise FormatError("the codes are in the compact form, which this version does not read", "upgrade vqtok")
    return {key: values[key] for key in keys}, _find(archive, "indices")


def _claimed_pictures(archive: zipfile.ZipFile) -> int:
    """How many pictures the indices' header tells of; 0 where it has no say, so that a newer format is still told by its meta."""
    try:
        shape = _find(archive, "indices").shape
    except FormatError:
        return 0
    return shape[0] if shape and math.prod(shape) else 0


def _find(archive: zipfile.ZipFile, name: str) -> _Member:
    """A member of the archive by its array's name; FormatError unless it can hold what its header claims."""
    infos = [info for info in archive.infolist() if info.filename == f"{name}.npy"]
    _check(len(infos) < 2, f"the member {name} stands twice in the file")
    _check(len(infos) > 0, f"not a codes file: the member {name} is missing", _GIVE_CODES)
    info = infos[0]
    packed = info.compress_size
    most = {zipfile.ZIP_STORED: packed, zipfile.ZIP_DEFLATED: packed * _DEFLATE_RATIO}.get(info.compress_type, -1)
    _check(most >= 0, f"the member {name} is packed in a way that vqtok does not read")
    with _zip_errors(), archive.open(info) as file:
        start = file.read(10)
        header = file.read(int.from_bytes(start[8:], "little"))
    _check(start[:8] == _NPY_MAGIC, f"the member {name} is not an .npy array")
    dtype, shape = _parse_npy_header(header, name)
    offset = len(start) + len(header)
    claimed = math.prod(shape) * dtype.itemsize
    _check(
        offset + claimed == info.file_size <= most,
        f"the member {name} claims {claimed} bytes (shape {shape}), which the file cannot hold",
    )
    return _Member(info, dtype, shape, offset)


def _parse_npy_header(header: bytes, name: str) -> tuple[np.dtype, tuple[int, ...]]:
    match = _NPY_HEADER.fullmatch(header)
    if match is None:
        raise FormatError(f"the member {name} has a damaged header", _COPY_AGAIN)
    descr, fortran, dims = (part.decode("latin-1") for part in match.groups())
    _check("O" not in descr, f"the member {name} holds Python objects, which vqtok never unpickles")
    _check(_DTYPE.fullmatch(descr) is not None, f"the member {name} is of type {descr!r}")
    _check(fortran == "False", f"the member {name} is in Fortran order")
    try:
        shape = tuple(int(dim) for dim in dims.split(",") if dim.strip())
    except ValueError:
        raise FormatError(f"the member {name} has a damaged header", _COPY_AGAIN) from None
    return np.dtype(descr), shape


def _read_member(archive: zipfile.ZipFile, member: _Member) -> np.ndarray:
    """The bytes of a member after its header, as uint8 (nbytes,); zipfile compares the checksum when it reaches the end."""
    try:
        raw = np.empty(member.nbytes, np.uint8)
    except MemoryError:
        raise FormatError(f"{member.nbytes >> 20} MiB do not fit in memory", "use a machine with more memory") from None
    done = 0
    with _zip_errors(), archive.open(member.info) as file:
        file.read(member.offset)
        while chunk := file.read(1 << 20):
            raw[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
            done += len(chunk)
    _check(done == member.nbytes, f"the member {member.info.filename} is truncated")
    return raw
