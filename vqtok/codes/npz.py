"""Members of an .npz: arrays in a zip archive, of which nothing is trusted.

Names, sizes and headers are checked before memory is reserved for what they claim. The .npy
headers are parsed here: NumPy evaluates them as Python literals, and raises nine kinds of
exception on damaged ones.
"""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vqtok.codes.checks import COPY_AGAIN, require
from vqtok.errors import FormatError

GIVE_CODES = "give a .npz that vqtok encode wrote"
_SAVE_AGAIN = (
    "make the file with vqtok: vqtok.write_codes(path, model.codes(indices, sizes)) takes integers "
    "of any type, in any memory order"
)
_DEFLATE_RATIO = 1032  # no deflate stream expands more
_MEMBERS_MAX = 1024  # a few are ours, and the bytes that mark one come up by chance once in 4 GiB
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\s*\{\s*'descr':\s*'([^']{1,20})',\s*'fortran_order':\s*(True|False),\s*'shape':\s*\(([0-9,"
    rb" "
    rb"]{0,100})\),?\s*\}\s*"
)
_DTYPE = re.compile(r"\|u1|<u[24]|<U[1-9][0-9]{0,9}")
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    OverflowError,
    LookupError,
)


def write_member(
    archive: zipfile.ZipFile, name: str, array: np.ndarray, deflate: bool = True
) -> None:
    """Adds an array as an .npy, deflated or stored;
    date and system are fixed, so that equal arrays give equal bytes.
    """
    npy = io.BytesIO()
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    np.lib.format.write_array(npy, little, version=(1, 0), allow_pickle=False)
    _write(archive, f"{name}.npy", npy.getbuffer(), deflate)


def write_bytes(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Adds bytes as they are, which `numpy.load` gives back as bytes; deflated where that is
    smaller.
    """
    _write(archive, name, data, len(zlib.compress(data)) - 6 < len(data))


def _write(archive: zipfile.ZipFile, name: str, data: bytes | memoryview, deflate: bool) -> None:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    info.create_system, info.external_attr = 3, 0o600 << 16
    archive.writestr(info, data)


@dataclass(frozen=True)
class Member:
    """Describes an array in the archive, whose header was found plausible."""

    info: zipfile.ZipInfo
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # of the data in the unpacked member

    @property
    def nbytes(self) -> int:
        return self.info.file_size - self.offset


@contextmanager
def _zip_errors() -> Iterator[None]:
    """Turns what zipfile raises on damaged bytes into FormatError; only zipfile's own calls run
    under this guard.
    """
    try:
        yield
    except _ZIP_ERRORS:
        raise FormatError("damaged or truncated", COPY_AGAIN) from None


def open_archive(data: bytes) -> zipfile.ZipFile:
    require(bool(data), "the file is empty")
    require(data[:2] == b"PK", "not a codes file (.npz)", GIVE_CODES)
    # each takes 500 bytes as an object
    require(data.count(b"PK\1\2") <= _MEMBERS_MAX, "more members than a codes file has")
    with _zip_errors():
        archive = zipfile.ZipFile(io.BytesIO(data))
    require(
        all(info.compress_size <= len(data) for info in archive.infolist()), "damaged or truncated"
    )
    return archive


def find(archive: zipfile.ZipFile, name: str) -> Member:
    """Finds a member of the archive by its array's name; FormatError unless it can hold what its
    header claims.
    """
    info, most = _find(archive, f"{name}.npy", name)
    with _zip_errors(), archive.open(info) as file:
        start = file.read(10)
        header = file.read(int.from_bytes(start[8:], "little"))
    require(start[:8] == _NPY_MAGIC, f"the member {name} is not an .npy array")
    dtype, shape = _parse_npy_header(header, name)
    offset = len(start) + len(header)
    claimed = math.prod(shape) * dtype.itemsize
    require(
        offset + claimed == info.file_size <= most,
        f"the member {name} claims {claimed} bytes (shape {shape}), which the file cannot hold",
    )
    return Member(info, dtype, shape, offset)


def find_bytes(archive: zipfile.ZipFile, name: str) -> Member:
    """A member that is no array, as bytes (n,). Errors as `find`."""
    info, most = _find(archive, name, name)
    require(
        info.file_size <= most,
        f"the member {name} claims {info.file_size} bytes, which the file cannot hold",
    )
    return Member(info, np.dtype(np.uint8), (info.file_size,), 0)


def _find(archive: zipfile.ZipFile, filename: str, name: str) -> tuple[zipfile.ZipInfo, int]:
    """The one member of that file name, and the most bytes that it can hold."""
    infos = [info for info in archive.infolist() if info.filename == filename]
    require(len(infos) < 2, f"the member {name} stands twice in the file")
    require(len(infos) > 0, f"not a codes file: the member {name} is missing", GIVE_CODES)
    packed = infos[0].compress_size
    most = {zipfile.ZIP_STORED: packed, zipfile.ZIP_DEFLATED: packed * _DEFLATE_RATIO}.get(
        infos[0].compress_type, -1
    )
    require(most >= 0, f"the member {name} is packed in a way that vqtok does not read")
    return infos[0], most


def _parse_npy_header(header: bytes, name: str) -> tuple[np.dtype, tuple[int, ...]]:
    match = _NPY_HEADER.fullmatch(header)
    if match is None:
        raise FormatError(f"the member {name} has a damaged header", COPY_AGAIN)
    descr, fortran, dims = (part.decode("latin-1") for part in match.groups())
    require(
        "O" not in descr, f"the member {name} holds Python objects, which vqtok never unpickles"
    )
    fix = _SAVE_AGAIN if name == "indices" else COPY_AGAIN
    require(_DTYPE.fullmatch(descr) is not None, f"the member {name} is of type {descr!r}", fix)
    require(fortran == "False", f"the member {name} is in Fortran order", fix)
    try:
        return np.dtype(descr), tuple(int(dim) for dim in dims.split(",") if dim.strip())
    except (ValueError, TypeError):  # TypeError: a string longer than NumPy can say, "<U9999999999"
        raise FormatError(f"the member {name} has a damaged header", COPY_AGAIN) from None


def read_member(archive: zipfile.ZipFile, member: Member) -> np.ndarray:
    """Reads the bytes of a member after its header, as uint8 (nbytes,); zipfile compares the
    checksum when it reaches the end.
    """
    try:
        raw = np.empty(member.nbytes, np.uint8)
    except MemoryError:
        raise FormatError(
            f"{member.nbytes >> 20} MiB do not fit in memory", "use a machine with more memory"
        ) from None
    done = 0
    with _zip_errors(), archive.open(member.info) as file:
        file.read(member.offset)
        while chunk := file.read(1 << 20):
            raw[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
            done += len(chunk)
    require(done == member.nbytes, f"the member {member.info.filename} is truncated")
    return raw


def data_offset(data: bytes, name: str) -> int:
    """Returns where in the bytes of an archive the values of a stored array begin."""
    with open_archive(data) as archive:
        member = find(archive, name)
    assert member.info.compress_type == zipfile.ZIP_STORED
    start = member.info.header_offset
    # of the name and of further fields in the local header
    lengths = struct.unpack("<HH", data[start + 26 : start + 30])
    return start + 30 + sum(lengths) + member.offset
