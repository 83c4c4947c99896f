"""Token sets as packed files (.vqtok.npz), and the model of a token set (tokens.safetensors).

A packed file is an .npz of two members: `vqtok_tokens`, one JSON object in ASCII as bytes (shape
and dtype of the array, layout, fingerprint of the model or null, CRC-32 of the ids), and `stream`.
"""

import copy
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqtok import entropy, weights
from vqtok.codes import npz
from vqtok.codes.io import TOKENS_MEMBER
from vqtok.errors import FormatError, InputError, ModelError
from vqtok.token_sets import arrays, counts
from vqtok.token_sets.arrays import Tokens
from vqtok.token_sets.counts import Counts, Layout

FILE = f"tokens{weights.SUFFIX}"
HEADER = TOKENS_MEMBER
_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class TokenModel:
    """The counts of a set of tokens, for packing others like it."""

    bits: int  # of an id
    levels: int
    frames: bool
    grid: tuple[int, int]
    counts: Counts
    fingerprint: str | None  # None: nothing is counted yet

    @property
    def layout(self) -> Layout:
        count, size = arrays.digits_of(self.bits)
        return Layout(1 << size, self.levels * count, self.frames)


def empty(tokens: Tokens, frames: bool) -> TokenModel:
    """Returns a model that has seen nothing: it learns everything while it codes."""
    levels, h, w = tokens.grids.shape[1:]
    return TokenModel(tokens.bits, levels, frames, (h, w), Counts(), None)


def train(tokens: Tokens, frames: bool) -> TokenModel:
    """Counts a set of tokens."""
    model = empty(tokens, frames)
    counts.train(model.layout, arrays.to_digits(tokens.grids, model.bits), model.counts)
    return model


def save(model: TokenModel, folder: Path, name: str, force: bool) -> str:
    """Writes tokens.safetensors into a folder; returns its fingerprint."""
    tensors = model.counts.tensors()
    config = {
        "bits": model.bits,
        "levels": model.levels,
        "frames": model.frames,
        "grid": list(model.grid),
    }
    meta = {"format": 1, "kind": "tokens", "config": config, "record": {"data": name}}
    weights.save_weights(folder / FILE, weights.Weights(tensors, meta), force)
    return weights.fingerprint(tensors)


def load(path: Path) -> TokenModel:
    """Loads the model in a folder. Raises InputError, FormatError, ModelError."""
    file = path if path.suffix == weights.SUFFIX else path / FILE
    if not file.is_file():
        raise ModelError(
            f"{path} holds no {FILE}",
            "train one: vqtok train tokens.npy --stage entropy -o MODEL",
        )
    stored = weights.load_weights(file, "tokens")
    config = stored.config
    try:
        h, w = config["grid"]
        bits, levels, frames = config["bits"], config["levels"], config["frames"]
        good = all(type(n) is int and n > 0 for n in (h, w, bits, levels)) and type(frames) is bool
        if not good or bits > arrays.ID_BITS:
            raise ValueError
        model = TokenModel(bits, levels, frames, (h, w), Counts(), None)
        found = Counts.of_tensors(model.layout, stored.tensors)
    except (ValueError, KeyError, TypeError):
        raise FormatError(f"{file} is damaged", _AGAIN) from None
    return TokenModel(bits, levels, frames, (h, w), found, weights.fingerprint(stored.tensors))


def pack(tokens: Tokens, model: TokenModel, origin: object) -> bytes:
    """Packs tokens to a file. Raises InputError where they do not fit the model."""
    if tokens.grids.shape[1] != model.levels:
        raise InputError(
            f"{origin} has {tokens.grids.shape[1]} levels, the model knows {model.levels}",
            "give tokens like those that the model was trained on",
        )
    if tokens.bits > model.bits:
        raise InputError(
            f"{origin} holds the id {int(tokens.grids.max())}, the model knows ids below "
            f"{1 << model.bits}",
            "give tokens of the tokenizer that the model was trained on",
        )
    digits = arrays.to_digits(tokens.grids, model.bits)
    stream = counts.encode(model.layout, digits, copy.deepcopy(model.counts))
    header = {
        "format": 1,
        "shape": list(tokens.array.shape),
        "dtype": tokens.array.dtype.str,
        "grids": list(tokens.grids.shape),
        "bits": model.bits,
        "frames": model.frames,
        "prior": model.fingerprint,
        "crc": zlib.crc32(tokens.grids.astype("<i8").tobytes()),
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        npz.write_member(archive, HEADER, np.frombuffer(text, np.uint8), deflate=False)
        npz.write_member(archive, "stream", np.frombuffer(stream, np.uint8), deflate=False)
    return data.getvalue()


@dataclass(frozen=True)
class Packed:
    """A packed file whose header has been checked."""

    header: dict[str, Any]
    stream: bytes

    @classmethod
    def of(cls, data: bytes) -> "Packed":
        """Reads a packed file. FormatError where it is damaged or of a newer vqtok."""
        archive = npz.open_archive(data)
        parts = [
            npz.read_member(archive, npz.find(archive, name)).tobytes()
            for name in (HEADER, "stream")
        ]
        try:
            header = json.loads(parts[0])
            if header["format"] != 1:
                raise FormatError("the file is of a newer format", "upgrade vqtok")
            shape, grids = header["shape"], header["grids"]
            good = len(grids) == 4 and all(type(n) is int and n > 0 for n in [*shape, *grids])
            size = int(np.prod([int(n) for n in shape], dtype=object))
            bits, digits = header["bits"], arrays.digits_of(header["bits"])
            good = good and size == np.prod(grids, dtype=object) and 1 <= bits <= arrays.ID_BITS
            good = (
                good and type(header["frames"]) is bool and np.dtype(header["dtype"]).kind in "iu"
            )
            good = good and (header["prior"] is None or isinstance(header["prior"], str))
            good = good and arrays.padded_size(grids) <= arrays.GRID_MAX
            # a token takes (K - 1) / TOTAL bits or more: no short stream claims a vast array
            least = size * digits[0] * ((1 << digits[1]) - 1)
            if not good or least > 8 * len(parts[1]) * entropy.TOTAL:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise FormatError("the header is damaged", _AGAIN) from None
        return cls(header, parts[1])

    def unpack(self, model: TokenModel | None) -> np.ndarray:
        """Unpacks the array, equal to the one that was packed. Raises ModelError, FormatError."""
        header = self.header
        prior, grids = header["prior"], tuple(header["grids"])
        if prior is None:
            model = TokenModel(
                header["bits"], grids[1], header["frames"], grids[2:], Counts(), None
            )
        elif model is None or model.fingerprint != prior:
            here = f", but the one given is {model.fingerprint}" if model else ""
            raise ModelError(
                f"the tokens were packed with the model {prior}{here}",
                "give the model that they were packed with",
                "give its folder with --model, or put it in a folder that VQTOK_MODELS names",
            )
        if (model.bits, model.levels, model.frames) != (
            header["bits"],
            grids[1],
            header["frames"],
        ):
            raise FormatError("the header does not fit the model", _AGAIN)
        layout = model.layout
        shape = grids[0], layout.levels, grids[2], grids[3]
        found = counts.decode(layout, self.stream, shape, copy.deepcopy(model.counts))
        ids = arrays.from_digits(found, model.bits)
        if zlib.crc32(ids.astype("<i8").tobytes()) != header["crc"]:
            raise FormatError("the checksum of the tokens is wrong", _AGAIN)
        return ids.astype(np.dtype(header["dtype"])).reshape(header["shape"])
