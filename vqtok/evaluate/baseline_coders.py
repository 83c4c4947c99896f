"""Codes one image's index grids with general coders, for comparison with the priors."""

import io
import lzma
import zlib

import numpy as np
from PIL import Image

from vqtok import entropy
from vqtok.codes import Codes

TITLES = {
    "packed": "bit-packed",
    "zlib": "zlib",
    "lzma": "lzma",
    "png": "PNG",
    "zero_order": "zero-order",
    "prior": "float prior",
    "integer": "integer prior",
    "compact": "compact files",
}
LZMA_DICTIONARY = 4096, 2**26  # bytes: the smallest that there is, and that of the preset


def grid_bytes(codes: Codes) -> dict[str, int]:
    """Returns the bytes of the indices alone by coder: bit-packed, zlib and lzma at their best, and
    a gray PNG with the levels one below another (and the halves of indices past 16 bits).
    """
    n, L, h, w = codes.indices.shape
    raw = codes.indices.tobytes()
    return {
        "packed": len(entropy.pack_bits(codes.indices, (codes.codebook_size - 1).bit_length())),
        "zlib": len(zlib.compress(raw, 9)),
        "lzma": _lzma_bytes(raw),
        "png": _png_bytes(codes.indices.reshape(n * L * h, w)),
    }


def zero_order_bits(counts: np.ndarray) -> float:
    """Returns the bits of all indices under their own frequencies, counts (K,); the table itself is
    not counted.
    """
    used = counts[counts > 0].astype(np.float64)
    return float((used * np.log2(used.sum() / used)).sum())


def _lzma_bytes(raw: bytes) -> int:
    """Compresses with a dictionary no larger than the data: the preset's 64 MiB give the same
    bytes, and take 27 ms a call in place of 0.3.
    """
    preset = 9 | lzma.PRESET_EXTREME
    options = {
        "id": lzma.FILTER_LZMA1,
        "preset": preset,
        "dict_size": min(max(len(raw), LZMA_DICTIONARY[0]), LZMA_DICTIONARY[1]),
    }
    return len(lzma.compress(raw, lzma.FORMAT_ALONE, filters=[options]))


def _png_bytes(grid: np.ndarray) -> int:
    """Counts a gray PNG's bytes; of indices past 16 bits, the low halves below the high ones."""
    file = io.BytesIO()
    if grid.dtype.itemsize > 2:
        grid = np.concatenate([grid >> 16, grid & 0xFFFF]).astype(np.uint16)
    Image.fromarray(grid).save(file, "PNG", optimize=True)
    return file.tell()
