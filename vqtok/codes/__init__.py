"""Codes <-> .npz: the file format and its checks.

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
- `stream`: uint8, one axis: the same, entropy-coded or bit-packed

A reader ignores keys and members that it does not know. It trusts nothing: see `npz`.
"""

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vqtok import files
from vqtok.codes.checks import COPY_AGAIN, FORMAT, name_in_errors, parse_meta, require
from vqtok.codes.compact import Compact, from_stream, to_compact, to_stream
from vqtok.codes.grids import Codes, count_levels, index_dtype, levels_fix
from vqtok.codes.npz import Member, data_offset, find, open_archive, read_member, write_member
from vqtok.errors import FormatError

__all__ = [
    "FILE_LIMIT",
    "FORMAT",
    "Codes",
    "Compact",
    "count_levels",
    "data_offset",
    "fit_to_size",
    "form",
    "index_dtype",
    "levels_fix",
    "name_in_errors",
    "parse_meta",
    "read_any_codes",
    "read_codes_meta",
    "read_plain_codes",
    "to_bytes",
    "to_compact",
    "write_codes",
]

FILE_LIMIT = 4 << 30  # bytes; the file is held in memory while it is read
# the most the meta member may take without the sizes, 4 bytes a character ...
_META_BYTES = 1 << 16
_META_BYTES_EACH = 96  # ... and for each image: "[1234567890,1234567890],"


def to_bytes(codes: Codes | Compact, deflate: bool = True) -> bytes:
    """The bytes of a codes file.

    Equal codes give equal bytes, apart from how a machine's zlib packs them.

    Without `deflate` plain indices are stored as they are:
    `data_offset` tells where, and a memory map reads one image alone.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        if isinstance(codes, Compact):
            write_member(archive, "stream", np.frombuffer(to_stream(codes), np.uint8))
        else:
            write_member(archive, "indices", codes.indices, deflate)
            write_member(
                archive,
                "meta",
                np.array(json.dumps(_to_meta(codes), sort_keys=True, separators=(",", ":"))),
            )
    return buffer.getvalue()


def write_codes(path: Path | str, codes: Codes | Compact, force: bool = False) -> None:
    """Writes a codes file in one step.

    OutputError where the path exists (unless force) or cannot be written.
    """
    files.write_bytes(Path(path), to_bytes(codes), force)


def fit_to_size(
    codes: Codes, limit: float, pack: Callable[[Codes], bytes] = to_bytes
) -> tuple[Codes, bytes]:
    """The codes at the most levels whose file takes at most `limit` bytes, and that file;
    at one level where even that takes more.
    """
    for count in range(codes.levels, 1, -1):
        cut = codes.first_levels(count)
        data = pack(cut)
        if len(data) <= limit:
            return cut, data
    cut = codes.first_levels(1)
    return cut, pack(cut)


def read_plain_codes(source: Path | str | bytes) -> Codes:
    """The codes in a file, or in the bytes of one; indices are writable.

    InputError: unreadable. FormatError: not valid codes.

    Compact files that a prior coded need its network: `codec.read_codes` reads both forms.
    """
    found = read_any_codes(source)
    if isinstance(found, Codes):
        return found
    if found.prior is None:
        with name_in_errors("codes" if isinstance(source, bytes) else source):
            return found.unpacked()
    what = "codes" if isinstance(source, bytes) else source
    raise FormatError(
        f"{what}: coded by a prior of model {found.model}",
        "read it with vqtok.read_codes, or run vqtok unpack",
    )


def read_any_codes(source: Path | str | bytes) -> Codes | Compact:
    """What is in a file of either form. Errors as `read_plain_codes`."""
    data, origin = _load(source)
    with name_in_errors(origin), open_archive(data) as archive:
        if _is_compact(archive):
            return _read_compact(archive)
        meta, member = _read_meta(archive)
        raw = read_member(archive, member)
        indices = (
            raw.view(member.dtype)
            .reshape(member.shape)
            .astype(member.dtype.newbyteorder("="), copy=False)
        )
        sizes = _from_json_sizes(meta.pop("sizes"), len(indices) if indices.ndim else 0)
        return Codes(indices, sizes=sizes, **meta)


def read_codes_meta(source: Path | str | bytes) -> dict[str, Any]:
    """The metadata of a codes file, with "form" (plain, packed or coded) and "shape", the (n, L, h,
    w) of the indices, not read.

    Checked are the format number, that the keys are there, and that the file can hold the shape;
    not what the keys hold. Errors as `read_plain_codes`.
    """
    data, origin = _load(source)
    with name_in_errors(origin), open_archive(data) as archive:
        if _is_compact(archive):
            found = _read_compact(archive)
            facts = {key: value for key, value in _to_meta(found).items() if key != "format"}
            return {
                "format": FORMAT,
                **facts,
                "form": form(found),
                "prior": found.prior,
                "shape": found.shape,
            }
        meta, member = _read_meta(archive)
        return {"format": FORMAT, **meta, "form": "plain", "shape": member.shape}


def form(codes: Codes | Compact) -> str:
    """plain, packed or coded."""
    return "plain" if isinstance(codes, Codes) else "packed" if codes.prior is None else "coded"


def _is_compact(archive: zipfile.ZipFile) -> bool:
    names = archive.namelist()
    return "stream.npy" in names and "indices.npy" not in names


def _read_compact(archive: zipfile.ZipFile) -> Compact:
    member = find(archive, "stream")
    require(
        member.dtype == np.uint8 and len(member.shape) == 1,
        "the member stream is not a line of bytes",
    )
    return from_stream(read_member(archive, member).tobytes())


def _to_meta(codes: Codes | Compact) -> dict[str, Any]:
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
    """The sizes of n images; Codes checks what the pairs hold."""
    require(
        isinstance(value, list) and all(isinstance(size, list) for size in value),
        "the sizes are not a list of pairs",
    )
    sizes = tuple(tuple(size) for size in value)
    return sizes * n if len(sizes) == 1 else sizes


def _load(source: Path | str | bytes) -> tuple[bytes, object]:
    """The bytes of a codes file, and what to call it in errors."""
    if isinstance(source, bytes):
        return source, "codes"
    return files.read_bytes(Path(source), FILE_LIMIT), source


def _read_meta(archive: zipfile.ZipFile) -> tuple[dict[str, Any], Member]:
    """The values of the meta member by field of Codes, and the indices' member, unread."""
    meta = find(archive, "meta")
    require(meta.dtype.kind == "U" and meta.shape == (), "the member meta is not a string")
    limit = _META_BYTES + _META_BYTES_EACH * _claimed_images(archive)
    require(meta.nbytes <= limit, f"the member meta takes {meta.nbytes} bytes, more than {limit}")
    try:
        text = read_member(archive, meta).tobytes().decode("utf-32-le")
    except UnicodeDecodeError:
        raise FormatError("the metadata is damaged", COPY_AGAIN) from None
    values = parse_meta(text)
    keys = ("model", "fingerprint", "codebook_size", "downsample", "channels", "sizes")
    for key in keys:
        require(key in values, f"the metadata lacks {key!r}")
    return {key: values[key] for key in keys}, find(archive, "indices")


def _claimed_images(archive: zipfile.ZipFile) -> int:
    """How many images the indices' header tells of;
    0 where it has no say, so that a newer format is still told by its meta.
    """
    try:
        shape = find(archive, "indices").shape
    except FormatError:
        return 0
    return shape[0] if shape and math.prod(shape) else 0
