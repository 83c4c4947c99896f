"""Damaged and hostile images of every format that vqtok reads."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from image_helpers import saved, smooth, with_gamma_one
from PIL import Image

from attacks import mutate
from attacks.harness import Case, FoundError
from vqtok import images
from vqtok.images.read import pillow_limits

# bytes that an honest pixel takes: 4 in Pillow, 4 while it is converted, 3 as
# an array, 1 of transparency
EACH = 12
LARGE = 40_000_000  # pixels past which a case is slow: most claims are cut down to that


def wholes() -> dict[str, bytes]:
    """One small file of each kind, with as much metadata as it takes."""
    image, exif = Image.fromarray(smooth(20, 30)), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "an image"
    icc = with_gamma_one()
    icc = icc[:24] + bytes(12) + icc[36:]  # the time when littlecms made it
    palette = image.quantize(16)
    frames = {"save_all": True, "append_images": [image.rotate(180)]}
    deep = Image.fromarray(smooth(9, 9, 1)[..., 0].astype(np.uint16) * 200)
    return {
        "png": saved(image, "PNG", exif=exif, icc_profile=icc),
        "png palette": saved(palette, "PNG", transparency=bytes(range(16))),
        "png animated": saved(image, "PNG", **frames),
        "jpeg": saved(image, "JPEG", exif=exif, icc_profile=icc),
        "jpeg progressive cmyk": saved(image.convert("CMYK"), "JPEG", progressive=True),
        "mpo": saved(image, "MPO", **frames),
        "webp": saved(image.convert("RGBA"), "WEBP", exif=exif),
        "webp lossless animated": saved(image, "WEBP", lossless=True, **frames),
        "avif": saved(image, "AVIF", exif=exif, speed=10),
        "gif": saved(palette, "GIF", transparency=3, **frames),
        "tiff": saved(image, "TIFF", exif=exif, icc_profile=icc),
        "tiff deflate": saved(image, "TIFF", compression="tiff_deflate"),
        "tiff float": saved(image.convert("F"), "TIFF"),
        "tiff 16": saved(deep, "TIFF"),
        "bmp": saved(image, "BMP"),
        "ppm": saved(image, "PPM"),
        "pgm 16": saved(deep, "PPM"),
        "jpeg2000": saved(image, "JPEG2000"),
        "bmp packed": bmp_rle(30, 2, b"\x1e\1\0\0\x1e\2\0\1"),
        "qoi": qoi(7, 3, b"\xfe\1\2\3" + b"\xc0" * 5 + b"\xd3"),
        "ppm plain": b"P3 2 2 255\n" + b"1 2 3 " * 4,
    }


class Images:
    """Reader: `images.read_image`, in color and in gray."""

    name = "pictures"

    def __init__(self) -> None:
        self.kinds = wholes()
        self.files = list(self.kinds.values())

    def warm(self) -> None:
        for data in self.files:
            self.run(Case(data, "whole", 0))

    def case(self, draw: random.Random) -> Case:
        kind = draw.choice(list(self.kinds))
        data = self.kinds[kind]
        if draw.random() < 0.06:
            kind, data = "made", draw.choice(_MADE)(draw)
        elif draw.random() < 0.4 and (edit := _EDITS.get(kind.split()[0])):
            data = edit(data, draw)
        else:
            data, origin = mutate.damage(data, self.files, draw)
            kind = f"{kind}: {origin}"
        return Case(data, kind, EACH * claimed(data) + 4 * len(data))

    def write(self, case: Case) -> None:
        """Images are read from memory."""

    def run(self, case: Case) -> str:
        pixels = images.read_image(case.data).pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise FoundError(f"pixels came out of {pixels.dtype} {pixels.shape}")
        return "read"


def claimed(data: bytes) -> int:
    """Pixels that a header claims; 0 where Pillow cannot read it, or they
    are more than vqtok takes.
    """
    with pillow_limits:  # Pillow's own limit is lower than vqtok's
        try:
            with Image.open(io.BytesIO(data)) as image:
                count = image.width * image.height
        except Exception:
            return 0
    return count if count <= images.MAX_PIXELS else 0


def sides(draw: random.Random) -> tuple[int, int]:
    """A size that a header may claim: any, but seldom one that honestly takes seconds."""
    while True:
        width, height = (abs(draw.choice(mutate.NUMBERS)) % 2**32 for _ in range(2))
        if not LARGE < width * height <= images.MAX_PIXELS or draw.random() < 0.05:
            return width, height


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, body: bytes, depth: int = 8, color: int = 2, more: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + more
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def bmp_rle(width: int, height: int, body: bytes) -> bytes:
    palette = bytes(range(256)) * 4
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 2835, 2835, 256, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", 54 + len(palette) + len(body), 0, 0, 54 + len(palette))
        + header
        + palette
        + body
    )


def qoi(width: int, height: int, body: bytes) -> bytes:
    return b"qoif" + struct.pack(">IIBB", width, height, 3, 0) + body + bytes(7) + b"\1"


def gif(frames: int, width: int = 1, height: int = 1) -> bytes:
    """A GIF of many frames of one pixel."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x4c\1\0"
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
        + bytes(6)
        + frame * frames
        + b"\x3b"
    )


def tiff_pages(pages: int) -> bytes:
    """A TIFF of many directories, all of one image."""
    first = saved(Image.fromarray(smooth(4, 4)), "TIFF")
    (at,) = struct.unpack_from("<I", first, 4)
    (count,) = struct.unpack_from("<H", first, at)
    end = at + 2 + 12 * count
    parts, place = [first[:end]], len(first)
    for i in range(pages):
        parts.append(struct.pack("<I", place if i + 1 < pages else 0))
        parts.append(first[end + 4 :] if i == 0 else b"")
        parts.append(first[at:end] if i + 1 < pages else b"")
        place += end - at + 4
    return b"".join(parts)


def tiff_tags(tags: int, size: int) -> bytes:
    """A TIFF whose tags all point to the same `size` bytes."""
    entries = b"".join(struct.pack("<HHII", 1000 + i, 7, size, 8) for i in range(tags))
    base = struct.pack("<HHII", 256, 3, 1, 4) + struct.pack("<HHII", 257, 3, 1, 4)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + size)
        + bytes(size)
        + struct.pack("<H", tags + 2)
        + base
        + entries
        + bytes(4)
    )


@lru_cache
def _progressive(side: int) -> bytes:
    return saved(Image.new("L", (side, side), 99), "JPEG", progressive=True)


def jpeg_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG with its last scan again and again:
    a hundred bytes for a pass over every block.
    """
    whole = _progressive(side)
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * scans + b"\xff\xd9"


def _edit_png(data: bytes, draw: random.Random) -> bytes:
    """Chunks whose checksums are right: a damaged one would be seen at once."""
    out, at = [data[:8]], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if kind == b"IHDR" and draw.random() < 0.3:
            body = struct.pack(">II", *sides(draw)) + body[8:]
        elif body and draw.random() < 0.3:
            body = draw.choice(mutate.BYTES)(body, draw)
        out += [chunk(kind, body)] * draw.choice((1, 1, 1, 1, 1, 0, 2))
        at += 12 + length
    return b"".join(out)


def _edit_jpeg(data: bytes, draw: random.Random) -> bytes:
    """The size in the frame header, or the bytes of one segment."""
    place = next((data.find(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data), -1)
    if place >= 0 and draw.random() < 0.5:
        width, height = sides(draw)
        return (
            data[: place + 5]
            + struct.pack(">HH", height % 65536, width % 65536)
            + data[place + 9 :]
        )
    at = draw.choice(
        [i for i in range(len(data) - 4) if data[i] == 0xFF and 0xC0 <= data[i + 1] < 0xFF]
    )
    return (
        data[: at + 4]
        + draw.choice(mutate.BYTES)(data[at + 4 : at + 60] or b"x", draw)
        + data[at + 60 :]
    )


def _edit_number(offset: int, form: str) -> Callable[[bytes, random.Random], bytes]:
    """The size at a fixed place."""

    def edit(data: bytes, draw: random.Random) -> bytes:
        limit = 1 << 8 * struct.calcsize(form[:2])
        body = struct.pack(form, *(side % limit for side in sides(draw)))
        return data[:offset] + body + data[offset + len(body) :]

    return edit


_EDITS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "png": _edit_png,
    "jpeg": _edit_jpeg,
    "mpo": _edit_jpeg,
    "gif": _edit_number(6, "<HH"),
    "bmp": _edit_number(18, "<II"),
    "qoi": _edit_number(4, ">II"),
}
_PPM_PARTS = (b"1 ", b"\0", b"# ", b"#\n", b"#a\n", b" ")
_MADE: tuple[Callable[[random.Random], bytes], ...] = (
    lambda draw: png(*sides(draw), bytes(1 << draw.randint(0, 22))),
    lambda draw: png(
        3,
        3,
        bytes(30),
        more=chunk(draw.choice((b"zTXt", b"iCCP")), b"a\0\0" + zlib.compress(bytes(1 << 24))),
    ),
    lambda draw: png(
        3, 3, bytes(30), more=chunk(b"eXIf", tiff_tags(200, 5000)[: draw.randint(8, 9000)])
    ),
    lambda draw: png(3, 3, bytes(30), more=chunk(b"tEXt", b"a\0" + b"x" * 1000) * 5000),
    lambda draw: bmp_rle(
        draw.choice((1, 1000, 30_000_000)),
        draw.choice((1, 4, 100)),
        draw.randbytes(100) + b"\1\1\0\0" * 1000,
    ),
    lambda draw: qoi(*sides(draw), draw.randbytes(20) + b"\xfd" * draw.choice((10, 10_000))),
    lambda draw: gif(draw.choice((2, 1000, 30_000)), 3, 3),
    lambda draw: gif(1, *(side % 65536 for side in sides(draw))),
    lambda draw: tiff_pages(draw.choice((2, 1000, 20_000))),
    lambda draw: tiff_tags(draw.choice((5, 1000, 60_000)), draw.choice((10, 10_000, 200_000))),
    lambda draw: jpeg_scans(draw.choice((8, 1000, 5000)), draw.choice((3, 50, 1000))),
    lambda draw: (
        b"P%d %d %d 255\n" % (draw.randint(1, 6), *sides(draw))
        + draw.choice(_PPM_PARTS) * draw.choice((9, 500_000))
    ),
)
