"""Reads and writes config and tensors as .safetensors.

A weights file is a safetensors file whose metadata has the one key "vqtok": one JSON object in
ASCII, keys sorted: "format" (1), "kind" (one of KINDS),
"config" (it rebuilds the network), "record" (data, steps, seed, figures, version) and, where there
are any, "int8" (names of tensors held in one byte a number, see int8.py) and "codes" (whose codes
a tokenizer makes, see `codes_fingerprint`). One key only, because safetensors shuffles several, and
equal models would get different bytes.
"""

import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from vqtok import config, files, int8
from vqtok.codes import name_in_errors, parse_meta
from vqtok.errors import FormatError, InputError

FORMAT = 1
KINDS = ("tokenizer", "prior", "entropy", "vae", "tokens", "state")
SUFFIX = ".safetensors"
DECODER = ("decoder.", "likelihood.")  # how names of tensors begin that make no codes
HEADER_LIMIT = 16 << 20  # bytes of JSON: some 150,000 tensors
FILE_LIMIT = 64 << 30  # bytes, all of which are held in memory
_META_KEY = "vqtok"
_COPY_AGAIN = "copy or download the file again"
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BOOL": "|b1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
}


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and their description: meta has the keys kind, config and record, int8 where
    a file holds some of them in one byte a number, and format once it was in a file.
    """

    tensors: dict[str, np.ndarray]
    meta: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.meta["config"]

    @property
    def record(self) -> dict[str, Any]:
        return self.meta["record"]


def save_weights(path: Path, weights: Weights, force: bool = True) -> None:
    """Writes a weights file in one step; equal weights give equal bytes.

    OutputError where the path cannot be written.
    ValueError where meta holds NaN or infinity: JSON has no word for them.
    """
    meta = {"format": FORMAT, **weights.meta}
    assert meta["format"] == FORMAT, meta["format"]
    assert meta.get("kind") in KINDS, meta.get("kind")
    assert _has_parts(meta), "meta lacks config or record"
    text = json.dumps(meta, sort_keys=True, allow_nan=False, separators=(",", ":"))
    packed = int8.pack(weights.tensors, meta.get("int8", []))
    files.write_bytes(path, to_safetensors(packed, {_META_KEY: text}), force)


def to_safetensors(
    tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> bytes:
    """Returns the bytes of a safetensors file, whatever the memory layout of the arrays.

    Everything that writes safetensors calls this: safetensors 0.8.0 takes the memory of an array
    for its values in C order, so that a transposed or strided one is written wrong, without an
    error (findings/safetensors-transposed.sh).
    """
    plain = {name: _plain(tensors[name]) for name in sorted(tensors)}
    return safetensors.numpy.save(plain, metadata)


@dataclass(frozen=True)
class Packed:
    """A weights file as it lies on the disk: tensors held in one byte a number still are."""

    path: Path
    tensors: dict[str, np.ndarray]
    meta: dict[str, Any]

    def unpack(self) -> Weights:
        return Weights(int8.unpack(self.tensors, self._names, self.path), self.meta)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Passes when the tensors are those of these shapes, as `check_tensors`."""
        steps = {name + int8.STEP for name in self._names}
        plain = {name: tensor for name, tensor in self.tensors.items() if name not in steps}
        check_tensors(plain, shapes, self.path)
        for name in steps:
            # times the largest number, which some channel of all tensors that vqtok writes has
            check_tensors(
                {name: int8.largest(self.tensors[name])},
                {name: self.tensors[name].shape},
                self.path,
            )

    def widened(self) -> Mapping[str, np.ndarray]:
        """Returns the tensors, each made when it is asked for."""
        return int8.Widened(self.tensors, self._names)

    @property
    def _names(self) -> list[str]:
        return self.meta.get("int8", [])


def load_weights(path: Path, kind: str) -> Weights:
    """Reads a weights file of one kind.

    Nothing is executed; arrays are writable, bfloat16 comes as float32.

    InputError: not readable. FormatError: damaged, truncated, a pickle, not vqtok's, of a newer
    format, or of another kind.
    """
    return load_packed(path, kind).unpack()


def load_packed(path: Path, kind: str) -> Packed:
    """Reads a weights file as `load_weights`, and leaves its tensors as they are stored."""
    with files.open_input(path) as file:
        header = _header(file, path)
        meta = _parse_header(header, path)
        _check_kind(meta, kind, path)
        found = Packed(path, _tensors(file, header, path), meta)
    int8.check(found.tensors, meta.get("int8", []), path)
    return found


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of any safetensors file, also of another program's.

    Errors as `load_weights`.
    """
    with files.open_input(path) as file:
        return _tensors(file, _header(file, path), path)


def _header(file: io.BufferedReader, path: Path) -> bytes:
    """Reads the JSON that a safetensors file begins with; the file is then at the first tensor."""
    size = os.fstat(file.fileno()).st_size
    length = _header_size(file.read(9), size, path)
    file.seek(8)
    return file.read(length)


def _tensors(file: io.BufferedReader, header: bytes, path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors that follow the header, by name.

    Each is read to where it stays: there is never a second copy in memory.
    """
    if os.fstat(file.fileno()).st_size > FILE_LIMIT:
        raise InputError(
            f"{path} is larger than {files.human_bytes(FILE_LIMIT)}", "give a smaller file"
        )
    try:
        # checks the whole header, and that the tensors fill the file to its end
        with safetensors.safe_open(path, "np"):
            entries = json.loads(header)
    except (safetensors.SafetensorError, ValueError) as error:
        raise FormatError(f"{path} is damaged or truncated ({error})", _COPY_AGAIN) from None
    entries.pop("__metadata__", None)
    found = {}
    for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
        found[name] = _array(file, entries[name], f"{path}: {name}")
    return {name: found[name] for name in sorted(found)}


def read_meta(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Reads the metadata alone: the header, not the tensors.

    Errors as `load_weights`; kind None takes any.
    """
    with files.open_input(path) as file:
        header = _header(file, path)
    meta = _parse_header(header, path)
    _check_kind(meta, kind, path)
    return meta


def tokenizer_config(path: Path) -> config.TokenizerConfig:
    """Reads the settings of a tokenizer file, from its header alone.

    Errors as `load_weights`, and FormatError where they are damaged.
    """
    return config.from_dict(
        config.TokenizerConfig, read_meta(path, "tokenizer")["config"], str(path)
    )


def fingerprint(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns eight hex digits of SHA-256 over the tensors in name order: name, dtype, shape, and
    bytes in C order, little-endian.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = _plain(tensors[name])
        shape = ",".join(map(str, array.shape))
        digest.update(f"{name}\0{array.dtype.name}\0{shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:8]


def codes_fingerprint(tokenizer: Weights) -> str:
    """Returns the fingerprint that codes of a tokenizer bear.

    It is that of its tensors; but a tokenizer whose decoder alone was trained further makes the
    codes of the one it comes from, and bears its fingerprint. Its file says so in `codes`, and
    that counts only while the tensors that make the codes are still the same.
    """
    kept = tokenizer.meta.get("codes")
    if (
        isinstance(kept, dict)
        and isinstance(kept.get("fingerprint"), str)
        and re.fullmatch("[0-9a-f]{8}", kept["fingerprint"])
        and kept.get("encoder") == encoder_fingerprint(tokenizer.tensors)
    ):
        return kept["fingerprint"]
    return fingerprint(tokenizer.tensors)


def encoder_fingerprint(tensors: Mapping[str, np.ndarray]) -> str:
    """Computes `fingerprint` of all that makes a tokenizer's codes: of all but its decoder."""
    return fingerprint({n: t for n, t in tensors.items() if not n.startswith(DECODER)})


def kept_codes(tokenizer: Weights) -> dict[str, str]:
    """Returns what `codes` says in the file of a tokenizer with this one's encoder and codebook."""
    return {
        "fingerprint": codes_fingerprint(tokenizer),
        "encoder": encoder_fingerprint(tokenizer.tensors),
    }


def tokenizer_fingerprint(path: Path) -> str:
    """Computes `codes_fingerprint` of a tokenizer file; reads all of it, 0.1 s for 32 MB.

    Errors as `load_weights`.
    """
    return codes_fingerprint(load_weights(path, "tokenizer"))


def check_tensors(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], origin: object
) -> None:
    """Passes when the tensors are the expected ones:
    none missing or extra, each of its shape, all finite.

    shapes comes from the network that the config describes.
    Else FormatError, which names the first wrong tensor.
    """
    for name in sorted(shapes):
        if name not in tensors:
            raise FormatError(f"{origin} lacks the tensor {name}", _COPY_AGAIN)
        if tuple(tensors[name].shape) != tuple(shapes[name]):
            found, wanted = tuple(tensors[name].shape), tuple(shapes[name])
            raise FormatError(
                f"{origin}: tensor {name} has the shape {found}, its config asks for {wanted}",
                _COPY_AGAIN,
            )
        if not _is_finite(tensors[name]):
            raise FormatError(
                f"{origin}: tensor {name} holds NaN or infinity",
                "use weights saved before training went wrong",
            )
    for name in sorted(set(tensors) - set(shapes)):
        raise FormatError(
            f"{origin} has the unknown tensor {name}", "it may be of a newer vqtok: upgrade vqtok"
        )


def _is_finite(array: np.ndarray) -> bool:
    """Whether an array of numbers holds neither NaN nor infinity."""
    if array.dtype != np.float16:
        return array.dtype.kind != "f" or bool(np.isfinite(array).all())
    # by its bits, as all of the exponent's are set in both: NumPy's isfinite takes 8 times as long
    magnitude = array.view(np.uint16) & 0x7FFF
    return bool((magnitude < 0x7C00).all())


def _plain(array: np.ndarray) -> np.ndarray:
    """Returns the array in C order and little-endian; 0-d stays 0-d."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _array(file: io.BufferedReader, entry: Mapping[str, Any], origin: str) -> np.ndarray:
    """Reads the next array in the file, writable and in this machine's byte order; the entry is its
    dtype and shape.
    """
    dtype = "<u2" if entry["dtype"] == "BF16" else _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise FormatError(
            f"{origin} is of type {entry['dtype']}, which vqtok does not read",
            "save it as float32 or float16",
        )
    try:
        array = np.empty(entry["shape"], dtype)
    except (ValueError, OverflowError):
        # a shape such as (2^63, 0), which holds nothing and yet fits no array
        raise FormatError(f"{origin} has the shape {entry['shape']}", _COPY_AGAIN) from None
    if array.size and file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise FormatError(f"{origin} is cut off", _COPY_AGAIN)
    if entry["dtype"] == "BF16":  # the upper half of a float32; numpy has no such type
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array if sys.byteorder == "little" else array.astype(array.dtype.newbyteorder("="))


def _header_size(start: bytes, size: int, path: Path) -> int:
    """Returns the bytes of JSON that follow the first eight; start is the first nine bytes of a
    file of the given size.
    """
    if len(start) < 9 or start[8:] != b"{":
        # torch.save writes a zip, and wrote a bare pickle before 1.6
        if start[:4] == b"PK\3\4" or start[:1] == b"\x80":
            raise FormatError(
                f"{path} looks like a pickle, not a safetensors file",
                "vqtok reads no pickles, they can run code; give a file that vqtok wrote",
            )
        what = (
            "is truncated"
            if 0 < len(start) < 9
            else "is empty"
            if not start
            else "is not a safetensors file"
        )
        raise FormatError(f"{path} {what}", "give a weights file that vqtok wrote")
    length = int.from_bytes(start[:8], "little")
    if length > min(HEADER_LIMIT, size - 8):
        raise FormatError(f"{path} is damaged or truncated (header of {length} bytes)", _COPY_AGAIN)
    return length


def _parse_header(header: bytes, path: Path) -> dict[str, Any]:
    """Returns the checked metadata in a safetensors header, which is JSON that starts with a
    brace.
    """
    try:
        metadata = json.loads(header.decode("utf-8")).get("__metadata__")
    except (ValueError, RecursionError):
        raise FormatError(f"{path} has a damaged header", _COPY_AGAIN) from None
    text = metadata.get(_META_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise FormatError(
            f"{path} is a safetensors file, but not a vqtok file",
            "give a weights file that vqtok wrote",
        )
    with name_in_errors(path):
        meta = parse_meta(text)
    packed = meta.get("int8", [])
    names = isinstance(packed, list) and all(isinstance(name, str) for name in packed)
    if not names or not _has_parts(meta):
        raise FormatError(f"{path}: the metadata is damaged", _COPY_AGAIN)
    return meta


def _has_parts(meta: Mapping[str, Any]) -> bool:
    return isinstance(meta.get("config"), dict) and isinstance(meta.get("record"), dict)


def _check_kind(meta: Mapping[str, Any], kind: str | None, path: Path) -> None:
    found = meta.get("kind")
    if found not in KINDS:
        raise FormatError(f"{path} is of the unknown kind {str(found)[:40]!r}", "upgrade vqtok")
    if kind not in (None, found):
        raise FormatError(f"{path} is a {found} file, not a {kind} file", f"give a {kind} file")
