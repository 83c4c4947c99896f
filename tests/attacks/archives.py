"""Damaged and hostile data sets: zips, tars and arrays, as training, eval
and bulk encoding open them.
"""

import gzip
import io
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from image_helpers import saved, smooth
from PIL import Image

from attacks import mutate
from attacks.harness import Case, FoundError
from attacks.image_files import claimed, png
from vqtok.data import open_data
from vqtok.errors import InputError

READ = 6  # images of a data set that are decoded
EACH = 2000  # bytes that an entry takes in an index of names
Maker = Callable[[random.Random], tuple[bytes, int]]
_SUFFIXES = {
    "zip": ".zip",
    "tar": ".tar",
    "npz": ".npz",
    "npy": ".npy",
    "idx": "-images-idx3-ubyte",
    "cifar": "cifar.tar.gz",
    "tgz": ".tar.gz",
}
_FIELDS = (  # offsets and sizes in a tar header
    (0, 100), (100, 8), (108, 8), (124, 12), (124, 12), (124, 12), (136, 12), (156, 1),
    (157, 100), (257, 8), (345, 155),
)  # fmt: skip
_ODD_NAMES = (
    "../../evil.png",
    "/tmp/evil.png",
    "a/../../evil.png",
    "C:\\evil.png",
    "a\\..\\evil.png",
    "nul\0.png",
    "\x1b[2Jevil.png",
    "[red]x.png",
    "x" * 5000 + ".png",
    "\u202egnp.png",
    ".hidden.png",
    "a//b.png",
    "./a.png",
    "évil.png",
    "a\nb.png",
)


def packed(data: bytes) -> bytes:
    """As gzip does it, without the time of day."""
    return bytes(gzip.compress(data, 1, mtime=0))


@lru_cache
def image(number: int = 0) -> bytes:
    return saved(Image.fromarray(smooth(6 + number, 8)), "PNG")


def header(
    name: bytes, size: int = 0, kind: bytes = b"0", link: bytes = b"", field: bytes | None = None
) -> bytes:
    """A tar header with a right checksum; `field` replaces the twelve bytes of the size."""
    sized = f"{size:011o}\0".encode() if field is None else field
    head = (
        name[:100].ljust(100, b"\0")
        + b"0000644\0"
        + b"0000000\0" * 2
        + sized[:12].ljust(12, b"\0")
        + b"00000000000\0"
    )
    tail = kind + link[:100].ljust(100, b"\0") + b"ustar\x0000" + bytes(247)
    total = sum(head) + 8 * 32 + sum(tail)
    return head + f"{total:06o}\0 ".encode() + tail


def member(name: str, data: bytes, kind: bytes = b"0") -> bytes:
    return (
        header(name.encode("utf-8", "surrogatepass"), len(data), kind)
        + data
        + bytes(-len(data) % 512)
    )


def tar(*members: bytes) -> bytes:
    return b"".join(members) + bytes(1024)


def pax(**records: str) -> bytes:
    """An extended header in front of a member."""
    text = b""
    for key, value in records.items():
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        length = len(str(len(body) + len(str(length)))) + len(body)
        text += str(length).encode() + body
    return member("pax", text, b"x")


def wholes() -> dict[str, bytes]:
    """A whole data set of each kind, small."""
    names = ["a/1.png", "a/2.png", "b/3.png", "notes.txt"]
    arrays = io.BytesIO()
    np.savez_compressed(arrays, images=np.zeros((4, 5, 6, 3), np.uint8), labels=np.arange(4))
    array = io.BytesIO()
    np.save(array, np.zeros((4, 5, 6), np.uint8))
    cifar = io.BytesIO()
    with tarfile.open(fileobj=cifar, mode="w") as archive:
        for i in range(1, 3):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{i}.bin")
            info.size = 3073 * 2
            archive.addfile(info, io.BytesIO(bytes(3073 * 2)))
    gnu = io.BytesIO()
    with tarfile.open(fileobj=gnu, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("n" * 150 + ".png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(image())
            archive.addfile(info, io.BytesIO(image()))
    return {
        "zip": mutate.zipped([(name, image(i)) for i, name in enumerate(names)]),
        "tar": tar(*(member(name, image(i)) for i, name in enumerate(names))),
        "tar pax": tar(
            pax(path="é/" + "p" * 200 + ".png"),
            member("x.png", image()),
            member("y.png", image()),
        ),
        "tar gnu": gnu.getvalue(),
        "npz": arrays.getvalue(),
        "npy": array.getvalue(),
        "idx": struct.pack(">IIII", 0x803, 4, 5, 6) + bytes(120),
        "idx packed": packed(struct.pack(">IIII", 0x803, 4, 5, 6) + bytes(120)),
        "cifar": packed(cifar.getvalue()),
        "tgz": packed(gnu.getvalue()),
    }


class Archives:
    """Reader: `open_data`, and the first images that it finds."""

    name = "archives"

    def __init__(self, folder: Path) -> None:
        self.files = wholes()
        self.folder = folder

    def warm(self) -> None:
        for kind, data in self.files.items():
            case = Case(data, "whole", 0, kind)
            self.write(case)
            if self.run(case) != "read":
                raise FoundError(f"a whole {kind} is not read")

    def case(self, draw: random.Random) -> Case:
        if draw.random() < 0.4:
            kind, make = draw.choice(_MAKERS)
            data, need = make(draw)
            return Case(data, f"{kind}: {getattr(make, '__name__', '')}", need, kind)
        kind = draw.choice(list(self.files))
        data = self.files[kind]
        if kind in ("zip", "npz") and draw.random() < 0.5:
            data, origin = mutate.zip_field(data, draw), "zip field"
        elif kind.startswith("tar") and draw.random() < 0.5:
            data, origin = _tar_field(data, draw), "tar field"
        else:
            data, origin = mutate.damage(data, list(self.files.values()), draw)
        return Case(data, f"{kind}: {origin}", 1 << 20, kind)

    def path(self, case: Case) -> Path:
        return self.folder / f"x{_SUFFIXES[case.more.split()[0]]}"

    def write(self, case: Case) -> None:
        self.path(case).write_bytes(case.data)

    def run(self, case: Case) -> str:
        data = open_data(self.path(case))
        if any("\0" in label for label in data.labels):
            raise FoundError("a label with a NUL in it")
        for index in range(min(READ, len(data))):
            try:
                pixels = data.image(index)
            except InputError:
                continue
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.size == 0:
                raise FoundError(f"pixels came out of {pixels.dtype} {pixels.shape}")
        return "read"


def _tar_field(data: bytes, draw: random.Random) -> bytes:
    """Bytes of a header set anew, and its checksum made right."""
    out = bytearray(data)
    start = 512 * draw.randrange(len(data) // 512)
    for _ in range(draw.randint(1, 3)):
        offset, size = draw.choice(_FIELDS)
        value = draw.choice(
            (
                _number(draw),
                draw.randbytes(size),
                draw.choice(mutate.NAMES).encode("utf-8", "surrogatepass"),
            )
        )
        out[start + offset : start + offset + size] = value[:size].ljust(size, b"\0")
    if draw.random() < 0.3:
        out[start + 156] = draw.choice(b"0123456LKNSDVMxgXA\0")
    head = out[start : start + 512]
    head[148:156] = b" " * 8
    out[start + 148 : start + 156] = f"{sum(head):06o}\0 ".encode()
    return bytes(out)


def _number(draw: random.Random) -> bytes:
    """Twelve bytes of a size: octal, in base 256, negative, or no number at all."""
    value = draw.choice(mutate.NUMBERS)
    if draw.random() < 0.5:
        return f"{abs(value) % 8**11:011o}".encode()
    return (b"\xff" if value < 0 else b"\x80") + (value % 2**88).to_bytes(11, "big")


def tar_names(draw: random.Random) -> tuple[bytes, int]:
    """Names that climb, and entries that are no files: links, devices, pipes, folders."""
    members = []
    for _ in range(draw.randint(1, 6)):
        kind = draw.choice(
            (b"0", b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"Z")
        )
        name = draw.choice(_ODD_NAMES)
        data = image() if kind in (b"0", b"\0", b"7") else b""
        if draw.random() < 0.3:
            members.append(pax(path=name, linkpath="/etc/passwd"))
        members.append(
            header(name.encode(), len(data), kind, b"/etc/passwd") + data + bytes(-len(data) % 512)
        )
    return tar(*members), 1 << 20


def tar_sizes(draw: random.Random) -> tuple[bytes, int]:
    """Sizes past the end of the file, or below zero:
    a reader that trusts them goes round in a circle.
    """
    number = draw.choice((-512, -1024, -1, -2048, 2**40, 2**62, 10**6))
    field = (b"\xff" if number < 0 else b"\x80") + (number % 2**88).to_bytes(11, "big")
    kind = draw.choice((b"0", b"x", b"g", b"L", b"K", b"5", b"S"))
    return tar(
        member("a.png", image()),
        header(b"b.png", 0, kind, field=field),
        member("c.png", image()),
    ), 1 << 20


def tar_pax(draw: random.Random) -> tuple[bytes, int]:
    """Extended headers that say anything: sizes, sparse maps, a thousand in a row."""
    records = {
        draw.choice(
            (
                "path",
                "size",
                "linkpath",
                "GNU.sparse.major",
                "GNU.sparse.map",
                "GNU.sparse.size",
                "hdrcharset",
                "comment",
            )
        ): draw.choice((*map(str, mutate.NUMBERS), "../../evil.png", "a,b", "BINARY"))
        for _ in range(3)
    }
    rows = [pax(**records)] * draw.choice((1, 1, 1, 2000))
    return tar(*rows, member("a.png", image()), member("b.png", image())), 1 << 20


def tar_many(draw: random.Random) -> tuple[bytes, int]:
    """Many headers, under a global header that each of them would copy."""
    n = draw.choice((100, 10_000))
    wide = member(
        "g", b"".join(b"18 key%06d=x\n" % i + b"" for i in range(draw.choice((1, 2000)))), b"g"
    )
    return tar(wide, *(header(b"%d.txt" % i) for i in range(n)), member("a.png", image())), n * EACH


def tar_nested(draw: random.Random) -> tuple[bytes, int]:
    """Archives in archives, under names of images."""
    inner = tar(member("a.png", image()))
    for _ in range(draw.randint(1, 4)):
        wraps = (lambda x: tar(member("b.png", x)), lambda x: mutate.zipped([("c.png", x)]), packed)
        inner = draw.choice(wraps)(inner)
    return tar(member("a.png", inner), member("a.png", image())), 4 << 20


def zip_names(draw: random.Random) -> tuple[bytes, int]:
    members = [(draw.choice(_ODD_NAMES), image(i)) for i in range(draw.randint(1, 6))]
    return mutate.zipped(members, draw.choice((0, 8, 8, 8, 9, 12, 14, 93, 99))), 1 << 20


def zip_bomb(draw: random.Random) -> tuple[bytes, int]:
    """Members that unpack to many MB: zeros under an image's name, an image of a great many
    pixels, and one that claims to be small.
    """
    bits, what = draw.choice((20, 25)), draw.randrange(3)
    if what == 0:
        # no image begins with zeros
        return mutate.zipped([("a.png", mutate.ZEROS[bits]), ("b.png", image())]), 1 << 20
    if what == 1:
        side = draw.choice((100, 3000, 100_000))
        data = _flat(side)
        return mutate.zipped([("a.png", data), ("b.png", image())]), 12 * claimed(data) + (1 << 20)
    data = mutate.zipped([("a.png", _long(bits)), ("b.png", image())])
    return data.replace(struct.pack("<I", len(_long(bits))), struct.pack("<I", 10**6)), 4 << 20


@lru_cache
def _flat(side: int) -> bytes:
    return png(side, side, bytes(min(side, 3000) ** 2 * 3))


@lru_cache
def _long(bits: int) -> bytes:
    """An image with zeros behind it."""
    return image() + mutate.ZEROS[bits]


def zip_many(draw: random.Random) -> tuple[bytes, int]:
    n = draw.choice((10, 3000))
    return mutate.zipped(
        [(draw.choice(("a.png", f"{i}.txt", f"{i}.png")), b"") for i in range(n)]
        + [("z.png", image())]
    ), n * EACH


def npz_arrays(draw: random.Random) -> tuple[bytes, int]:
    """Arrays whose headers lie."""
    shape = tuple(draw.choice((*mutate.NUMBERS[:12], 3, 4, 5)) for _ in range(draw.randint(0, 5)))
    dtype = draw.choice(
        (
            "|u1",
            "|u1",
            "|u1",
            "<i8",
            "|O",
            "<f4",
            "|V3",
            "<U9",
            "|S999999999",
            "<U9999999999",
            "x" * 9000,
        )
    )
    order = draw.choice(("False", "True", "1", "[" * 200))
    body = (
        f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117)
        + b"\n"
    )
    data = (
        b"\x93NUMPY\1\0"
        + struct.pack("<H", min(len(body), 65535))
        + body
        + bytes(1 << draw.choice((7, 20)))
    )
    names = draw.sample(("images.npy", "labels.npy", "x_train.npy", "other.npy"), 2)
    return mutate.zipped([(name, data) for name in names]), 4 << 20


def npy_array(draw: random.Random) -> tuple[bytes, int]:
    with zipfile.ZipFile(io.BytesIO(npz_arrays(draw)[0])) as archive:
        return archive.read(archive.namelist()[0]), 4 << 20


def idx_array(draw: random.Random) -> tuple[bytes, int]:
    numbers = [draw.choice(mutate.NUMBERS) % 2**32 for _ in range(3)]
    data = struct.pack(">IIII", 0x800 + draw.randint(0, 5), *numbers) + bytes(
        1 << draw.choice((7, 20))
    )
    return data if draw.random() < 0.5 else packed(data), 8 << 20


def cifar_bomb(draw: random.Random) -> tuple[bytes, int]:
    """Batches that are too many or too large, of zeros."""
    data = _batches(draw.choice((1, 5000)), draw.choice((1, 20)), draw.choice(_ODD_NAMES[:3]))
    return data, 128 << 20  # the real one has 185 MB


@lru_cache(maxsize=100)
def _batches(records: int, count: int, odd: str) -> bytes:
    names = [f"{i}/data_batch_{i % 10}.bin" for i in range(count)] + ["batches.meta.txt", odd]
    return packed(tar(*(member(name, bytes(3073 * records)) for name in names)))


_MAKERS: tuple[tuple[str, Maker], ...] = (
    *(
        ("tar", make)
        for make in (
            tar_names,
            tar_names,
            tar_sizes,
            tar_sizes,
            tar_pax,
            tar_pax,
            tar_many,
            tar_nested,
        )
    ),
    *(("zip", make) for make in (zip_names, zip_names, zip_bomb, zip_many)),
    ("npz", npz_arrays),
    ("npy", npy_array),
    ("idx", idx_array),
    ("cifar", cifar_bomb),
)
