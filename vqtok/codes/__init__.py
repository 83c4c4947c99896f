"""Reads, writes and checks codes files (.npz).

A codes file is an ordinary .npz: `numpy.load(path, allow_pickle=False)` opens it.
Its members, stored or deflated, are in the plain form
- `indices`: the smallest unsigned integers that hold K - 1, little-endian, C order, (n, L, h, w):
  images, levels, rows, columns.
  L may be less than the model's: the first levels alone are an image too
- `meta`: a 0-d string, one JSON object in ASCII:
  "format" (1), "model", "fingerprint" (eight hex digits), "codebook_size" (K),
  "downsample" (f; h is ceil(H / f)), "channels" (1 or 3), and "sizes":
  the [H, W] of each image, or one [H, W] for all

and in the compact form (see `compact`)
- `c`: bytes, no array: the same, entropy-coded or bit-packed; `stream`, an array of bytes, in
  files that are older

A reader ignores keys and members that it does not know. It trusts nothing: see `npz`.
"""

from vqtok.codes.checks import FORMAT, name_in_errors, parse_meta
from vqtok.codes.compact import Compact, images_sharing, to_compact, unpack
from vqtok.codes.grids import Codes, count_levels, has_levels, index_dtype, levels_fix
from vqtok.codes.io import (
    FILE_LIMIT,
    form,
    indices_to_bytes,
    read_any_codes,
    read_codes_meta,
    read_plain_codes,
    to_bytes,
    write_codes,
)
from vqtok.codes.npz import data_offset
from vqtok.codes.rate import Encoded, RateTarget, encode_at_rate, fit_to_size

__all__ = [
    "FILE_LIMIT",
    "FORMAT",
    "Codes",
    "Compact",
    "Encoded",
    "RateTarget",
    "count_levels",
    "data_offset",
    "encode_at_rate",
    "fit_to_size",
    "form",
    "has_levels",
    "images_sharing",
    "index_dtype",
    "indices_to_bytes",
    "levels_fix",
    "name_in_errors",
    "parse_meta",
    "read_any_codes",
    "read_codes_meta",
    "read_plain_codes",
    "to_bytes",
    "to_compact",
    "unpack",
    "write_codes",
]
