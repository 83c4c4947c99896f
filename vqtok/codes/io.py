"""Reads and writes codes files of both forms."""

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vqtok import files
from vqtok.codes.checks import COPY_AGAIN, FORMAT, name_in_errors, parse_meta, require
from vqtok.codes.compact import Compact, from_first_form, from_stream, to_stream, unpack
from vqtok.codes.grids import Codes
from vqtok.codes.npz import (
    Member,
    find,
    find_bytes,
    open_archive,
    read_member,
    write_bytes,
    write_member,
)
from vqtok.errors import FormatError

FILE_LIMIT = 4 << 30  # bytes; the file is held in memory while it is read
COMPACT_MEMBER = "c"  # short: a zip holds each name twice
TOKENS_MEMBER = "vqtok_tokens"  # of a packed token set, see `token_sets.packed`
# the most the meta member may take without the sizes, 4 bytes a character ...
_META_BYTES = 1 << 16
_META_BYTES_EACH = 96  # ... and for each image: "[1234567890,1234567890],"


def to_bytes(codes: Codes | Compact, deflate: bool = True) -> bytes:
    """Returns the bytes of a codes file.

    Equal codes give equal bytes, apart from how a machine's zlib packs them.

    Without `deflate` plain indices are stored as they are:
    `data_offset` says where, and a memory map reads one image alone.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        if isinstance(codes, Compact):
            write_bytes(archive, COMPACT_MEMBER, to_stream(codes))
        else:
            write_member(archive, "indices", codes.indices, deflate)
            write_member(
                archive,
                "meta",
                np.array(json.dumps(_to_meta(codes), sort_keys=True, separators=(",", ":"))),
            )
    return buffer.getvalue()


def indices_to_bytes(codes: Codes) -> bytes:
    """Returns the bytes of an .npz of the indices (n, L, h, w) alone, for programs that cannot read
    a string member. Nothing in it says which model made it: vqtok does not read it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        write_member(archive, "indices", codes.indices)
    return buffer.getvalue()


def write_codes(path: Path | str, codes: Codes | Compact, force: bool = False) -> None:
    """Writes a codes file in one step.

    OutputError where the path exists (unless force) or cannot be written.
    """
    files.write_bytes(Path(path), to_bytes(codes), force)


def read_plain_codes(source: Path | str | bytes) -> Codes:
    """Reads the codes in a file, or in the bytes of one; indices are writable.

    InputError: unreadable. FormatError: not valid codes.

    Compact files that a prior coded need its network: `codec.read_codes` reads both forms.
    """
    found = read_any_codes(source)
    origin = "codes" if isinstance(source, bytes) else source
    if isinstance(found, Compact) and found.prior is not None:
        raise FormatError(
            f"{origin}: coded by a prior of model {found.model}",
            "read it with vqtok.read_codes, or run vqtok unpack",
        )
    with name_in_errors(origin):
        return unpack(found)


def read_any_codes(source: Path | str | bytes, origin: object = None) -> Codes | Compact:
    """Reads what is in a file of either form. Errors as `read_plain_codes`; they name `origin`, by
    default the file, and bytes "codes".
    """
    data, name = _load(source)
    origin = name if origin is None else origin
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
        value_range = _from_json_range(meta.pop("range", None))
        return Codes(indices, sizes=sizes, range=value_range, **meta)


def read_codes_meta(source: Path | str | bytes) -> dict[str, Any]:
    """Reads the metadata of a codes file, with "form" (plain, packed or coded) and "shape", the (n,
    L, h, w) of the indices, not read.

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
    """Returns plain, packed or coded."""
    return "plain" if isinstance(codes, Codes) else "packed" if codes.prior is None else "coded"


def _is_compact(archive: zipfile.ZipFile) -> bool:
    names = archive.namelist()
    require(
        f"{TOKENS_MEMBER}.npy" not in names,
        "these are packed tokens, not codes of images",
        "vqtok unpack makes the array again that they were packed from",
    )
    return (COMPACT_MEMBER in names or "stream.npy" in names) and "indices.npy" not in names


def _read_compact(archive: zipfile.ZipFile) -> Compact:
    if COMPACT_MEMBER in archive.namelist():
        return from_stream(read_member(archive, find_bytes(archive, COMPACT_MEMBER)).tobytes())
    member = find(archive, "stream")
    require(
        member.dtype == np.uint8 and len(member.shape) == 1,
        "the member stream is not a line of bytes",
    )
    return from_first_form(read_member(archive, member).tobytes())


def _to_meta(codes: Codes | Compact) -> dict[str, Any]:
    """Returns the JSON object of the meta member."""
    sizes = codes.sizes[:1] if len(set(codes.sizes)) == 1 else codes.sizes
    return {
        "format": FORMAT,
        "model": codes.model,
        "fingerprint": codes.fingerprint,
        "codebook_size": codes.codebook_size,
        "downsample": codes.downsample,
        "channels": codes.channels,
        "sizes": [list(size) for size in sizes],
        **({} if codes.range is None else {"range": list(codes.range)}),
    }


def _from_json_sizes(value: Any, n: int) -> tuple[tuple[int, int], ...]:
    """Reads the sizes of n images; Codes checks what the pairs hold."""
    require(
        isinstance(value, list) and all(isinstance(size, list) for size in value),
        "the sizes are not a list of pairs",
    )
    sizes = tuple(tuple(size) for size in value)
    return sizes * n if len(sizes) == 1 else sizes


def _from_json_range(value: Any) -> tuple[float, float] | None:
    """Parses the values that became 0 and 255; `Codes` checks that they are a range."""
    if value is None:
        return None
    numbers = (
        isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) for v in value)
    )
    require(numbers and all(abs(v) < 1e308 for v in value), "the range is no pair LOW, HIGH")
    return float(value[0]), float(value[1])


def _load(source: Path | str | bytes) -> tuple[bytes, object]:
    """Returns the bytes of a codes file, and what to call it in errors."""
    if isinstance(source, bytes):
        return source, "codes"
    return files.read_bytes(files.as_path(source), FILE_LIMIT), source


def _read_meta(archive: zipfile.ZipFile) -> tuple[dict[str, Any], Member]:
    """Reads the values of the meta member by field of Codes; finds the indices' member, unread."""
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
    more = ("range",) if "range" in values else ()  # of files since 2026-11-28
    return {key: values[key] for key in (*keys, *more)}, find(archive, "indices")


def _claimed_images(archive: zipfile.ZipFile) -> int:
    """Returns how many images the indices' header claims; 0 where it says nothing, so that a newer
    format is still recognized by its meta.
    """
    try:
        shape = find(archive, "indices").shape
    except FormatError:
        return 0
    return shape[0] if shape and math.prod(shape) else 0
