"""Reads a TIFF's tags, and finds the layouts that Pillow reads wrongly or not at all."""

import io
import struct
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image

from vqtok.errors import InputError

_BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS, _BANDS = 258, 259, 262, 273, 277
_COUNTS, _PLANAR, _TILES, _TILE_COUNTS, _FORMAT, _NODATA = 279, 284, 324, 325, 339, 42113
_MAGIC = (b"II*\0", b"MM\0*")  # of BigTIFF another one
_TAGS_MAX = 4096  # real files have a few dozen; Pillow takes 200 bytes for each
_KINDS = {
    1: "unsigned integers",
    2: "signed integers",
    3: "floats",
    5: "complex integers",
    6: "complex floats",
}
_METHODS = {
    1: "none", 2: "CCITT RLE", 3: "CCITT fax 3", 4: "CCITT fax 4", 5: "LZW", 6: "old JPEG",
    7: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate", 34712: "JPEG 2000",
    33003: "JPEG 2000", 33005: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard",
    50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip


def read_tags(data: bytes) -> dict[int, Any] | None:
    """Reads the tags of a TIFF's first page; None where they cannot be read."""
    from PIL import TiffImagePlugin  # here: a seventieth of the import of torch

    try:
        is_big = data[2:4] in (b"\x2b\0", b"\0\x2b")
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if is_big else 8])
        count = data[tags.next : tags.next + (8 if is_big else 2)]
        if int.from_bytes(count, "little" if data[:2] == b"II" else "big") > _TAGS_MAX:
            return None
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    except Exception:  # damaged ones raise about anything
        return None


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def sample_bits(tags: dict[int, Any]) -> int:
    """Returns the bits of the first sample."""
    bits = _tuple(tags.get(_BITS, 1))[0]
    return bits if isinstance(bits, int) else 1


def sample_kind(tags: dict[int, Any]) -> int:
    """Returns 1 for unsigned, 2 for signed, 3 for float."""
    kind = _tuple(tags.get(_FORMAT, 1))[0]
    return kind if isinstance(kind, int) else 1


def signed_bytes(tags: dict[int, Any]) -> bool:
    """Whether values are signed and of 8 bits, which Pillow gives as unsigned ones."""
    return sample_kind(tags) == 2 and sample_bits(tags) == 8


def nodata_text(tags: dict[int, Any]) -> object:
    return tags.get(_NODATA)


def with_black_zero(data: bytes) -> bytes | None:
    """The file with 0 as black in place of white, for a Pillow that opens deep gray of only one
    byte order; None where 0 is no white, or values have 8 bits.
    """
    tags = read_tags(data) if data[:4] in _MAGIC else None
    if not tags or tags.get(_PHOTOMETRIC) != 0 or sample_bits(tags) <= 8:
        return None
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    count = int.from_bytes(data[start : start + 2], order)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if int.from_bytes(data[at : at + 2], order) == _PHOTOMETRIC:
            return data[: at + 8] + (1).to_bytes(2, order) + data[at + 10 :]
    return None


def is_inverted(tags: dict[int, Any]) -> bool:
    """Whether 0 is white, and this Pillow leaves values of more than 8 bits so."""
    return tags.get(_PHOTOMETRIC) == 0 and not _pillow_inverts()


@lru_cache(maxsize=1)
def _pillow_inverts() -> bool:
    """Whether Pillow turns 16-bit MinIsWhite around: 13.0.0 does not, a later one may."""
    tags = [(256, 1), (257, 1), (_BITS, 16), (_COMPRESSION, 1), (_PHOTOMETRIC, 0)]
    tags += [(_OFFSETS, 8), (_BANDS, 1), (278, 1), (_COUNTS, 2)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 10) + b"\0\0" + struct.pack("<H", len(tags))
    data += entries + b"\0" * 4
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
            return int(np.asarray(image)[0, 0]) == 65535
    except Exception:
        return False


def describe_tiff(tags: dict[int, Any]) -> str:
    """Returns words like '5 bands of 16-bit unsigned integers in separate planes, compression
    LZW'.
    """
    bands, bits = _tuple(tags.get(_BANDS, 1))[0], sample_bits(tags)
    kind = _KINDS.get(sample_kind(tags), "values of an unknown kind")
    text = f"{bands} {'band' if bands == 1 else 'bands'} of {bits}-bit {kind}"
    if len(set(_tuple(tags.get(_BITS, 1)))) > 1:
        text = f"{bands} bands of {', '.join(map(str, _tuple(tags[_BITS])))} bits"
    if tags.get(_PLANAR) == 2 and bands != 1:
        text += " in separate planes"
    text += ", 0 is white" if tags.get(_PHOTOMETRIC) == 0 else ""
    method = tags.get(_COMPRESSION, 1)
    return text if method == 1 else f"{text}, compression {_METHODS.get(method, method)}"


def is_whole_tiff(tags: dict[int, Any], size: int) -> bool:
    """Whether all strips or tiles that the tags name lie within `size` bytes."""
    for at, lengths in ((_OFFSETS, _COUNTS), (_TILES, _TILE_COUNTS)):
        if at in tags and lengths in tags:
            pairs = zip(_tuple(tags[at]), _tuple(tags[lengths]), strict=False)
            return all(
                isinstance(a, int) and isinstance(b, int) and a + b <= size for a, b in pairs
            )
    return False


def layout_refusal(name: str, tags: dict[int, Any]) -> InputError:
    """Says which layout it is that is not read."""
    return InputError(
        f"{name} is a TIFF of {describe_tiff(tags)}, which vqtok does not read",
        "save it as gray or RGB of 8 or 16 bits, values side by side",
    )


def check_layout(name: str, tags: dict[int, Any]) -> None:
    """Refuses what Pillow decodes to something else without a word: 16-bit colors in separate
    planes, of which it takes one byte after the other, and bands of signed bytes, as unsigned.
    """
    bands = _tuple(tags.get(_BANDS, 1))[0]
    if bands != 1 and (signed_bytes(tags) or (tags.get(_PLANAR) == 2 and sample_bits(tags) != 8)):
        raise layout_refusal(name, tags)
