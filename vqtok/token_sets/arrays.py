"""Converts token arrays of any tokenizer (.npy, .npz) to grids of ids (n, L, h, w) and back."""

import io
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqtok import files
from vqtok.errors import InputError

FILE_LIMIT = 4 << 30  # bytes
DIGIT_BITS = 12  # larger ids are coded as several digits, each as a level of its own
ID_BITS = 32
GRID_MAX = 1 << 22  # places of a grid with its edge, times levels: some 200 MB while coding
_SAVE = "save them with numpy.save as an array of integers: tokens.astype('int32')"


@dataclass(frozen=True)
class Tokens:
    """An array of tokens as it was stored, and as grids."""

    array: np.ndarray
    grids: np.ndarray  # int64 (n, L, h, w)

    @property
    def bits(self) -> int:
        """Returns the bits that the largest id needs, at least 1."""
        return max(1, int(self.grids.max()).bit_length())


def read_array(path: Path) -> np.ndarray:
    """Reads the one array in an .npy or .npz file. Raises InputError where there is not one, or it
    is damaged.

    Memory is taken for what the file holds, not for what its header claims.
    """
    data = files.read_bytes(path, FILE_LIMIT)
    if data[:2] == b"PK":
        data = _lone_member(path, data)
    if data[:6] != b"\x93NUMPY":
        raise InputError(f"{path} is not an .npy or .npz file of tokens", _SAVE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = io.BytesIO(data)
            version = np.lib.format.read_magic(header)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(header)
        if dtype.hasobject:
            raise InputError(f"{path} holds Python objects, which vqtok never unpickles", _SAVE)
        flat = np.frombuffer(data, dtype, offset=header.tell())
        return flat.reshape(shape, order="F" if fortran else "C")
    except InputError:
        raise
    except Exception:  # NumPy raises nine kinds of exception on damaged bytes
        raise InputError(
            f"{path} is damaged or truncated", "copy or download the file again"
        ) from None


def _lone_member(path: Path, data: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if len(infos) == 1 and infos[0].file_size <= FILE_LIMIT:
                return archive.read(infos[0])
    except Exception:  # zipfile, zlib and struct each have their own
        raise InputError(
            f"{path} is damaged or truncated", "copy or download the file again"
        ) from None
    names = ", ".join(info.filename.removesuffix(".npy") for info in infos[:5])
    if any(info.filename == "meta.npy" for info in infos):
        raise InputError(
            f"{path} is a codes file of vqtok, not an array of tokens",
            "leave --frames, --grid and the tokens' model out",
        )
    raise InputError(
        f"{path} holds {len(infos)} arrays ({names}), and one is needed",
        "save the tokens alone: numpy.savez('tokens.npz', tokens=...)",
    )


def to_tokens(array: np.ndarray, origin: object, grid: tuple[int, int] | None = None) -> Tokens:
    """Converts an array (n, w), (n, h, w) or (n, L, h, w) of ids to grids; rows (n, h*w) become the
    `grid` where one is given. Raises InputError for other shapes, other types and negative ids.
    """
    if array.dtype.kind not in "iu":
        raise InputError(f"{origin} holds {array.dtype}, and tokens are integers", _SAVE)
    if array.ndim not in (2, 3, 4) or not array.size:
        raise InputError(
            f"{origin} has the shape {array.shape}",
            "give (n, h, w) or (n, L, h, w): ids of n grids, or n frames",
        )
    shape = (len(array), 1, 1, array.shape[-1]) if array.ndim == 2 else array.shape
    if grid is not None:
        levels = array.shape[1] if array.ndim == 4 else 1
        shape = (len(array), levels, *grid)
        if shape[2] * shape[3] * levels * len(array) != array.size:
            raise InputError(
                f"{origin} has the shape {array.shape}, which makes no grids of "
                f"{grid[0]}x{grid[1]}",
                "give the height and width of a grid, like --grid 8x16",
            )
    elif array.ndim == 3:
        shape = (len(array), 1, *array.shape[1:])
    if padded_size(shape) > GRID_MAX:
        raise InputError(
            f"{origin} has grids of {shape[2]}x{shape[3]} with {shape[1]} levels",
            f"cut them to fewer than {GRID_MAX:,} tokens a grid",
        )
    least, most = int(array.min()), int(array.max())
    if least < 0 or most >= 1 << ID_BITS:
        wrong = least if least < 0 else most
        raise InputError(
            f"{origin} holds the id {wrong}",
            f"ids are 0 to {(1 << ID_BITS) - 1}: take padding and other marks out",
        )
    return Tokens(array, array.reshape(shape).astype(np.int64))


def padded_size(shape: Sequence[int]) -> int:
    """Returns the tokens of one of the grids (n, L, h, w) with an edge of one token around it."""
    return shape[1] * (shape[2] + 2) * (shape[3] + 2)


def digits_of(bits: int) -> tuple[int, int]:
    """Returns into how many digits an id of that many bits is cut, and the bits of each."""
    count = -(-bits // DIGIT_BITS)
    return count, -(-bits // count)


def to_digits(grids: np.ndarray, bits: int) -> np.ndarray:
    """Maps (n, L, h, w) to (n, L * digits, h, w): the highest digit of an id first."""
    count, size = digits_of(bits)
    parts = [grids >> size * i & (1 << size) - 1 for i in range(count)[::-1]]
    n, levels, h, w = grids.shape
    return np.stack(parts, 2).reshape(n, levels * count, h, w)


def from_digits(digits: np.ndarray, bits: int) -> np.ndarray:
    """Inverts `to_digits`."""
    count, size = digits_of(bits)
    n, levels, h, w = digits.shape
    parts = digits.reshape(n, levels // count, count, h, w)
    return sum(parts[:, :, i] << size * (count - 1 - i) for i in range(count))  # type: ignore
