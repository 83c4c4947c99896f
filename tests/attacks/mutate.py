"""Mutations that know nothing of a format, or only of zip: each takes bytes and a random.Random."""

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache

NUMBERS = (
    0, 1, 2, 3, 7, 8, 15, 16, 127, 128, 255, 256, 1023, 1024, 4095, 4096, 32767, 32768,
    65535, 65536, 10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**60,
    2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -1, -2, -(2**31), -(2**63),
)  # fmt: skip
NAMES = (
    "",
    ".",
    "..",
    "/",
    "../x",
    "/etc/passwd",
    "C:\\x",
    "a\0b",
    "\x1b[2J\x1b]0;owned\x07",
    "[bold red]x[/]",
    "\u202egnp.exe",
    "a\nb",
    "\x9b31m",
    "é" * 300,
    "x" * 70000,
    "\ud83d\ude00",
    ":smile:",
    "con",
    "a/b/c/d",
)
_FIELDS = {  # offsets and sizes of a zip's fields behind their signatures
    b"PK\3\4": ((4, 2), (6, 2), (8, 2), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\1\2": ((4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2),
                (32, 2), (34, 2), (38, 4), (42, 4)),
    b"PK\5\6": ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
}  # fmt: skip


def flip(data: bytes, draw: random.Random) -> bytes:
    """1 to 8 bits, half of the time all near the start."""
    out = bytearray(data)
    reach = len(out) if draw.random() < 0.5 else min(len(out), 200)
    for _ in range(draw.randint(1, 8)):
        out[draw.randrange(reach)] ^= 1 << draw.randrange(8)
    return bytes(out)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def remove(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.randint(1, 16) :]


def insert(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.randint(1, 16)) + data[at:]


def repeat(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at : at + draw.randint(1, 64)] * draw.randint(2, 20) + data[at:]


def overwrite(data: bytes, draw: random.Random) -> bytes:
    """A number at the edges of what a field holds, in either byte order."""
    size = draw.choice((1, 2, 4, 8))
    value = (draw.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, draw.choice(("little", "big")))
    at = draw.randrange(len(data))
    return data[:at] + value + data[at + size :]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    cut,
    remove,
    insert,
    repeat,
    overwrite,
)


def splice(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """The start of one and the end of another."""
    return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


def damage(data: bytes, others: Sequence[bytes], draw: random.Random) -> tuple[bytes, str]:
    """One to three mutations, and their names."""
    names = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        if draw.random() < 0.1:
            data, name = splice(data, draw.choice(others), draw), "splice"
        else:
            change = draw.choice(BYTES)
            data, name = change(data, draw), change.__name__
        names.append(name)
        if not data:
            break
    return data, "+".join(names)


def zip_field(data: bytes, draw: random.Random) -> bytes:
    """A field of a zip's headers set to a number at the edges;
    half of the time in the local and the central header alike.
    """
    signature = draw.choice(list(_FIELDS))
    places = [match.start() for match in re.finditer(re.escape(signature), data)]
    if not places:
        return data
    offset, size = draw.choice(_FIELDS[signature])
    value = (draw.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
    out, at = bytearray(data), draw.choice(places)
    out[at + offset : at + offset + size] = value
    if signature == b"PK\1\2" and 8 <= offset < 30 and draw.random() < 0.5:
        (local,) = struct.unpack_from("<I", data, at + 42)
        out[local + offset - 2 : local + offset - 2 + size] = value
    return bytes(out)


# what bombs are of: the same objects, so that they are packed once
ZEROS = {bits: bytes(1 << bits) for bits in (20, 25)}


@lru_cache(maxsize=64)
def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def zipped(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of members, of which nothing is checked:
    names may be double, absolute, or no text at all.
    """
    body, central = io.BytesIO(), io.BytesIO()
    for name, data in members:
        packed = _deflated(data) if method == zipfile.ZIP_DEFLATED else data
        encoded = name.encode("utf-8", "surrogatepass")[:65000]
        fields = struct.pack(
            "<HHHHHIII", 20, 0x800, method, 0, 33, zlib.crc32(data), len(packed), len(data)
        )
        offset = body.tell()
        body.write(b"PK\3\4" + fields + struct.pack("<HH", len(encoded), 0) + encoded + packed)
        central.write(
            b"PK\1\2\x14\3"
            + fields
            + struct.pack("<HHHHHII", len(encoded), 0, 0, 0, 0, 0o600 << 16, offset)
            + encoded
        )
    end = struct.pack(
        "<HHHHIIH", 0, 0, len(members) % 65536, len(members) % 65536, central.tell(), body.tell(), 0
    )
    return body.getvalue() + central.getvalue() + b"PK\5\6" + end


def json_value(draw: random.Random, depth: int = 0) -> str:
    """The text of a JSON value of any kind: numbers too large, words that JSON has not, deep
    nesting, hostile strings.
    """
    kind = draw.randrange(10)
    if kind < 4:
        return str(draw.choice(NUMBERS))
    if kind == 4:
        return draw.choice(
            (
                "NaN",
                "Infinity",
                "-Infinity",
                "1e999",
                "-0",
                "0.1",
                "1.0",
                "9" * 5000,
                "true",
                "false",
                "null",
            )
        )
    if kind == 5:
        levels = draw.choice((10, 1000, 100_000))
        return (
            draw.choice(("[", '{"a":')) * levels
            if draw.random() < 0.5
            else "[" * levels + "]" * levels
        )
    if kind == 6 or depth > 2:
        return json_text(draw.choice(NAMES))
    inner = [json_value(draw, depth + 1) for _ in range(draw.randint(0, 4))]
    if kind < 9:
        return f"[{','.join(inner)}]"
    return "{" + ",".join(f"{json_text(draw.choice(NAMES))}:{part}" for part in inner) + "}"


def json_text(text: str) -> str:
    """A JSON string in ASCII."""
    import json

    return json.dumps(text)
