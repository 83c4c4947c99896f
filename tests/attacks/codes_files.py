"""Damaged and hostile codes files of all three forms: plain, bit-packed, and coded by a prior."""

import io
import json
import math
import random
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks import mutate
from attacks.harness import Case, FoundError
from vqtok import codes, model_registry, weights
from vqtok.codec import EntropyCoder
from vqtok.codes import Codes, Compact
from vqtok.codes.compact import checksum, from_first_form, from_stream, to_stream
from vqtok.config import EntropyConfig
from vqtok.errors import FormatError
from vqtok.priors import IntegerPrior

FINGERPRINT = "0badcafe"
BOMB = 64 << 20  # bytes of zeros that a few kB of deflate make
# bytes that the sizes of one image take as Python objects, while JSON is parsed and after
EACH = 512


def tiny_coder(levels: int = 2) -> EntropyCoder:
    """An entropy prior so small that a grid takes a millisecond; of 16 codes."""
    torch.manual_seed(0)
    settings = EntropyConfig(
        codebook_size=16, levels=levels, embedding=4, width=8, blocks=1, rank=4
    )
    tensors = IntegerPrior(settings).integers()
    tensors["readout.bias"][:, 3] += 4000
    meta = {"kind": "entropy", "config": asdict(settings), "record": {"tokenizer": FINGERPRINT}}
    with tempfile.TemporaryDirectory() as folder:
        weights.save_weights(Path(folder, "entropy.safetensors"), weights.Weights(tensors, meta))
        return EntropyCoder(model_registry.ModelFolder("toy", Path(folder)), FINGERPRINT)


def grid(
    draw: random.Random,
    K: int,
    L: int,
    f: int,
    sizes: tuple[tuple[int, int], ...],
    model: str = "toy",
) -> Codes:
    shape = (len(sizes), L, -(-sizes[0][0] // f), -(-sizes[0][1] // f))
    values = np.array(
        [
            min(3, K - 1) if draw.random() < 0.5 else draw.randrange(K)
            for _ in range(math.prod(shape))
        ]
    )
    return Codes(
        values.reshape(shape).astype(codes.index_dtype(K)), model, FINGERPRINT, K, f, 3, sizes
    )


def npy(
    descr: str,
    shape: str,
    data: bytes,
    order: str = "False",
    version: bytes = b"\1\0",
    length: int | None = None,
) -> bytes:
    """An .npy file of which nothing is checked."""
    header = (
        f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}".encode(
            "utf-8", "replace"
        ).ljust(117)
        + b"\n"
    )
    return (
        b"\x93NUMPY"
        + version
        + (len(header) if length is None else length).to_bytes(2, "little")
        + header
        + data
    )


def meta_member(text: str) -> bytes:
    return npy(f"<U{len(text)}", "()", text.encode("utf-32-le", "surrogatepass"))


class CodesFiles:
    """Readers: `codes.read_codes_meta`, `codes.read_any_codes`, and the coder
    or `codes.unpack` behind them.
    """

    name = "codes"

    def __init__(
        self, coder: EntropyCoder | None = None, originals: list[Codes] | None = None
    ) -> None:
        draw = random.Random(0)
        self.coder = coder or tiny_coder()
        self.originals = originals or [
            grid(draw, 16, 2, 8, ((31, 77),)),
            grid(draw, 1000, 1, 16, ((97, 65), (100, 70), (112, 80))),
            grid(draw, 65537, 1, 4, ((9, 9),) * 2),
            grid(draw, 16, 1, 8, ((40, 40), (33, 39))),
            grid(draw, 2, 1, 2, ((1, 9),), "F\u00fc\u00dfe"),
            grid(draw, 16, 2, 8, ((17, 20),) * 5),
        ]
        small = [
            one for one in self.originals if one.codebook_size == self.coder.config.codebook_size
        ]
        self.compacts = [codes.to_compact(one) for one in self.originals] + [
            self._coded(one, sharing) for one in small for sharing in range(1, 1 + len(one))
        ]
        self.streams = [to_stream(one) for one in self.compacts]
        self.first_forms = [
            self._first_form(one, one.codebook_size == 16) for one in self.originals
        ]
        self.files = [codes.to_bytes(one) for one in [*self.originals, *self.compacts]]
        self.files += [_first_form_file(stream) for stream in self.first_forms]
        self.results = {_identity(one) for one in self.originals}

    def warm(self) -> None:
        for data in self.files:
            self.run(Case(data, "whole", 0, "damaged"))

    def _coded(self, one: Codes, sharing: int) -> Compact:
        """Coded even where bit-packing is smaller."""
        value, coder = checksum(one.indices, one.sizes), self.coder
        streams = tuple(coder.prior.encode(one.indices, value, sharing))
        name, found = coder.fingerprint, codes.to_compact(one)
        return replace(found, checksum=None, prior=name, streams=streams, sharing=sharing)

    def _first_form(self, one: Codes, coded: bool) -> bytes:
        """What the member of the first form holds."""
        packed = codes.to_compact(one).streams
        streams = self.coder.prior.encode(one.indices) if coded else packed
        equal = len(set(one.sizes)) == 1
        numbers = [one.codebook_size, one.downsample, one.levels, len(one)]
        name = one.model.encode()
        sizes = [side for size in (one.sizes[:1] if equal else one.sizes) for side in size]
        parts = [
            bytes([1, coded + (one.channels == 1) * 2 + equal * 4]),
            bytes.fromhex(one.fingerprint),
            checksum(one.indices, one.sizes).to_bytes(4, "little"),
            bytes.fromhex(self.coder.fingerprint) if coded else b"",
            _as_varints([*numbers, len(name)]) + name + _as_varints(sizes),
            _as_varints([len(stream) for stream in streams[:-1]]),
        ]
        return b"".join([*parts, *streams])

    def case(self, draw: random.Random) -> Case:
        if draw.random() < 0.5:
            data, origin = mutate.damage(draw.choice(self.files), self.files, draw)
            return Case(data, f"bytes: {origin}", 1 << 16, "damaged")
        make = draw.choice(_MAKERS)
        return make(self, draw)

    def write(self, case: Case) -> None:
        """Codes are read from memory."""

    def run(self, case: Case) -> str:
        outcome = self._read(case)
        codes.read_codes_meta(case.data)  # it checks less, so that it has no cause to fail
        return outcome

    def _read(self, case: Case) -> str:
        found = codes.read_any_codes(case.data)
        if isinstance(found, Compact):
            form = codes.form(found)
            found = codes.unpack(found, lambda _: self.coder)
        else:
            form = "plain"
        _check_valid(found)
        if _identity(found) in self.results:
            return f"equal, {form}"
        if case.more == "damaged":
            raise FoundError(f"other codes came out ({form})")
        return f"valid, {form}"


def _identity(found: Codes) -> tuple[Any, ...]:
    """What the checksums cover."""
    return found.indices.tobytes(), found.indices.shape, found.sizes


def _check_valid(found: Codes) -> None:
    K, f = found.codebook_size, found.downsample
    h, w = found.indices.shape[2:]
    if (
        found.indices.max() >= K
        or any((-(-H // f), -(-W // f)) != (h, w) for H, W in found.sizes)
        or not found.model.isprintable()
    ):
        raise FoundError("codes came out that are not valid")


def _zip_fields(kind: CodesFiles, draw: random.Random) -> Case:
    data = draw.choice(kind.files)
    for _ in range(draw.randint(1, 3)):
        data = mutate.zip_field(data, draw)
    return Case(data, "zip fields", 1 << 16, "damaged")


def _streams(kind: CodesFiles, draw: random.Random) -> Case:
    """A damaged stream in a zip made anew, so that only its own checksum is left."""
    first = draw.random() < 0.25
    wholes = kind.first_forms if first else kind.streams
    stream, origin = mutate.damage(draw.choice(wholes), wholes, draw)
    need, work = _claim(stream, from_first_form if first else from_stream)
    file = _first_form_file(stream) if first else _compact_file(stream)
    return Case(file, f"stream: {origin}", need, "damaged", work)


def _claim(stream: bytes, read: Callable[[bytes], Compact] = from_stream) -> tuple[int, float]:
    """Bytes and seconds that the decoding of the grid that a coded stream claims takes.

    That is four floats and an index for each place, as embeddings of the tiny prior are, and 1 ms a
    step, as on a busy machine.
    """
    with suppress(FormatError):
        found = read(stream)
        if found.prior is not None:
            _, levels, h, w = found.shape
            return (1 << 16) + 24 * math.prod(found.shape), 1e-3 * (2 * h + w + 4 * levels)
    return 1 << 16, 0.0


def _compact_file(stream: bytes) -> bytes:
    return mutate.zipped([("c", stream)])


def _first_form_file(stream: bytes) -> bytes:
    return mutate.zipped([("stream.npy", npy("|u1", f"({len(stream)},)", stream))])


def _varints(kind: CodesFiles, draw: random.Random) -> Case:
    """A stream whose numbers are set anew: K, f, L, n, sizes."""
    one = draw.choice(kind.compacts)
    flags = draw.choice((to_stream(one)[0] | 8, draw.randrange(256)))
    numbers = [one.codebook_size, one.downsample, one.depth, 3, len(one.sizes)]
    sizes = [side for size in one.sizes[:1] for side in size]
    for values in (numbers, sizes):
        if draw.random() < 0.7:
            values[draw.randrange(len(values))] = abs(draw.choice(mutate.NUMBERS))
    stream = _stream(flags, numbers, one, b"toy" + _as_varints(sizes) + b"".join(one.streams))
    need, work = _claim(stream)
    return Case(_compact_file(stream), "varints", need, "edited", work)


def _stream(flags: int, numbers: list[int], one: Compact, rest: bytes) -> bytes:
    """A stream whose numbers K, f, L, bytes of the name and n all stand as varints."""
    mark = (one.checksum or b"")[:3] + bytes.fromhex(one.prior or "")[:2]
    marks = bytes.fromhex(one.fingerprint) + mark
    return bytes([flags, 0, 0]) + _as_varints(numbers) + marks + rest


def _as_varints(values: list[int]) -> bytes:
    out = bytearray()
    for value in values:
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def _headers(kind: CodesFiles, draw: random.Random) -> Case:
    """Members whose .npy headers lie, in a zip that is whole."""
    one = draw.choice(kind.originals)
    dtype = draw.choice(
        (
            "|u1",
            "<u2",
            "<u4",
            ">u2",
            "|i1",
            "<f4",
            "<f8",
            "|O",
            "<U3",
            "|S9",
            "<M8[s]",
            "|V4",
            "<U9999999999",
            "<U536870911",
            "|b1",
            "=u2",
        )
    )
    shape = draw.choice(
        (
            str(one.indices.shape),
            "()",
            "(0,)",
            "(1,)",
            "(1, 1, 1048576, 1048576)",
            f"(1, 1, {2**62}, 4)",
            "(-1, 1, 2, 3)",
            "(1, 1, 2, 3",
            f"({draw.choice(mutate.NUMBERS)}, 1, {draw.choice(mutate.NUMBERS)}, 1)",
            "(1,,2)",
            "(True, 1)",
            "(" + "1, " * 60 + ")",
            "(0, 1, 9, 9)",
        )
    )
    order, version = (
        draw.choice(("False", "False", "True", "f()")),
        draw.choice((b"\1\0", b"\1\0", b"\2\0", b"\xff\0")),
    )
    length = draw.choice((None, None, 0, 65535, 3))
    member = npy(dtype, shape, one.indices.tobytes(), order, version, length)
    name = draw.choice(("indices", "meta", "stream"))
    return Case(_with(one, {name: member}), "npy header", 1 << 16, "edited")


def _with(one: Codes, changes: dict[str, bytes]) -> bytes:
    """The plain file of codes with members set anew."""
    with zipfile.ZipFile(io.BytesIO(codes.to_bytes(one))) as archive:
        members = {
            name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()
        } | changes
    return mutate.zipped([(f"{name}.npy", data) for name, data in members.items()])


def _meta(one: Codes) -> dict[str, Any]:
    return {
        key: value
        for key, value in codes.read_codes_meta(codes.to_bytes(one)).items()
        if key not in ("form", "shape")
    }


def _metas(kind: CodesFiles, draw: random.Random) -> Case:
    """Metadata that is hostile JSON, or JSON with one or more values set anew."""
    one = draw.choice(kind.originals)
    parts = {key: json.dumps(value) for key, value in _meta(one).items()}
    for _ in range(draw.randint(1, 3)):
        key = draw.choice([*parts, draw.choice(mutate.NAMES)])
        parts[key] = mutate.json_value(draw)
    text = "{" + ",".join(f"{mutate.json_text(key)}:{value}" for key, value in parts.items()) + "}"
    if draw.random() < 0.2:
        text = mutate.json_value(draw)
    return Case(_with(one, {"meta": meta_member(text)}), "meta", 1 << 20, "edited")


def _members(kind: CodesFiles, draw: random.Random) -> Case:
    """Members double, renamed, nested, many, or packed in another way."""
    with zipfile.ZipFile(io.BytesIO(draw.choice(kind.files))) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    method = draw.choice((0, 8, 8, 8, 9, 12, 14, 93, 97, 99))
    what = draw.randrange(5)
    if what == 0:
        members.append(draw.choice(members))
    elif what == 1:
        members = [(draw.choice((name, *mutate.NAMES)), data) for name, data in members]
    elif what == 2:
        members.append((draw.choice((*mutate.NAMES, "inner.npz")), draw.choice(kind.files)))
    elif what == 3:
        members += [(f"{i}.npy", b"") for i in range(draw.choice((10, 2000)))]
    else:
        draw.shuffle(members)
    return Case(mutate.zipped(members, method), "members", 1 << 20, "damaged")


def _bombs(kind: CodesFiles, draw: random.Random) -> Case:
    """A few kB that unpack to many MB: what is refused must be refused before it is unpacked."""
    one, what = draw.choice(kind.originals), draw.randrange(5)
    zeros = bytes(BOMB)
    if what == 0:  # more metadata than any codes have
        return Case(_with(one, {"meta": npy(f"<U{BOMB // 4}", "()", zeros)}), "bomb: meta", 1 << 16)
    if what == 1:  # images are claimed so that more metadata is allowed
        n = 100_000
        pairs = "[1,1]," * draw.choice((10, 4 * n))
        meta = (
            json.dumps({**_meta(one), "codebook_size": 2, "downsample": 1, "sizes": 0})[:-2]
            + f"[{pairs[:-1]}]"
            + "}"
        )
        data = _with(
            one, {"indices": npy("|u1", f"({n}, 1, 1, 1)", bytes(n)), "meta": meta_member(meta)}
        )
        return Case(data, "bomb: sizes", n * EACH + 4 * len(meta))
    if what == 2:  # an honest claim: 64 MiB of indices
        side = 1 << 13
        meta = {**_meta(one), "codebook_size": 16, "downsample": 1, "sizes": [[side, side]]}
        data = _with(
            one,
            {
                "indices": npy("|u1", f"(1, 1, {side}, {side})", zeros),
                "meta": meta_member(json.dumps(meta)),
            },
        )
        return Case(data, "bomb: indices", side * side)
    if what == 3:  # a stream of zeros
        stream = to_stream(draw.choice(kind.compacts)) + zeros[: 1 << 24]
        return Case(_compact_file(stream), "bomb: stream", 2 << 24)
    side = draw.choice((1 << 10, 1 << 14, 1 << 20))  # a short coded stream that claims a large grid
    one = draw.choice(kind.compacts)
    flags = to_stream(one)[0] | 8
    head = _stream(flags, [16, 8, 1, 1, 1], one, b"m" + _as_varints([side, side]))
    # cut off: no time for it
    return Case(_compact_file(head + draw.randbytes(2000)), "bomb: grid", 1 << 20)


_MAKERS: tuple[Callable[[CodesFiles, random.Random], Case], ...] = (
    _zip_fields,
    _zip_fields,
    _zip_fields,
    _streams,
    _streams,
    _streams,
    _varints,
    _headers,
    _metas,
    _members,
)


class CodesBombs(CodesFiles):
    """The slow ones, which are few."""

    name = "codes bombs"

    def case(self, draw: random.Random) -> Case:
        return _bombs(self, draw)
