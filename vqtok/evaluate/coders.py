"""What one picture's index grids take when others than the priors code them."""

import io
import lzma
import zlib

import numpy as np
from PIL import Image

from vqtok import entropy
from vqtok.codes import Codes

TITLES = {
    "packed": "bit-packed", "zlib": "zlib", "lzma": "lzma", "png": "PNG", "zero_order": "zero-order", "prior": "float prior",
    "integer": "integer prior", "compact": "compact files",
}   # fmt: skip


def grid_bytes(codes: Codes) -> dict[str, int]:
    """Bytes of the indices alone, by coder: bit-packed; zlib and lzma at their best; a grey PNG, the levels one below another."""
    n, L, h, w = codes.indices.shape
    raw = codes.indices.tobytes()
    return {
        "packed": len(entropy.pack_bits(codes.indices, (codes.codebook_size - 1).bit_length())),
        "zlib": len(zlib.compress(raw, 9)),
        "lzma": len(lzma.compress(raw, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)),
        "png": _png_bytes(codes.indices.reshape(n * L * h, w)),
    }


def zero_order_bits(counts: np.ndarray) -> float:
    """Bits of all indices when each is coded by how often it occurs among all: of counts (K,), without the table."""
    used = counts[counts > 0].astype(np.float64)
    return float((used * np.log2(used.sum() / used)).sum())


def _png_bytes(grid: np.ndarray) -> int:
    file = io.BytesIO()
    Image.fromarray(grid).save(file, "PNG", optimize=True)
    return file.tell()
