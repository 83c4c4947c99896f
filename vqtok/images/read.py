"""Reads image files into uint8 arrays (H, W, C): orientation, odd color modes, hostile files."""

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from vqtok.errors import InputError
from vqtok.files import RemotePath, read_bytes
from vqtok.images.color import WHITE, Color, lay_over, split_alpha, to_srgb
from vqtok.images.depth import Range, Scaled, narrow_of_bytes, parse_nodata, to_8_bits, words_note
from vqtok.images.tiff import (
    check_layout,
    describe_tiff,
    is_inverted,
    is_whole_tiff,
    layout_refusal,
    nodata_text,
    read_tags,
    sample_bits,
    sample_kind,
    signed_bytes,
    with_black_zero,
)

# 600 MB as an array; a header that asks for more is refused before decoding
MAX_PIXELS = 200_000_000
MAX_BYTES = 2 << 30  # of an image file
IMAGE_SUFFIXES = frozenset(
    {
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".j2k",
        ".qoi",
        ".mpo",
    }
)
# of a progressive JPEG: encoders write about 10, and 100 bytes make one
# more pass over all pixels ...
_SCANS_MAX = 100
_SCANNED_MAX = 4_000_000_000  # ... of which so many take 3 s
_RLE_MAX = 20_000_000  # pixels of a packed BMP: Pillow unpacks these in Python, 0.1 s a million
_COMMENTS_MAX = 1000  # in a PPM of plain text: Pillow copies a megabyte for each
_COUNTED_PAGES = 1000
_COUNTED_BYTES = 32 << 20  # of an animation whose frames are counted, which takes 2 s
# of a JPEG: those that a length follows, and the end. \xff may be repeated: the last one is taken.
# A pattern that begins with one byte is found 20 times as fast as \xff+
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")
_AT_ONCE = 2**22  # pixels that are taken from PIL in one piece
_FEW_BITS = {"L;2": 3, "L;4": 15}  # raw modes that PIL scales to 8 bits, and their highest value

# A fixed list: Pillow would otherwise hand EPS to Ghostscript, and take noise for
# formats without a signature.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "QOI")
_SIGNATURES = re.compile(
    rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP|....ftypavi[fs]|BM|GIF8|II[*+]\0|MM\0[*+]|P[1-6]"
    rb"\s|\0\0\0\x0cjP "
    rb" |qoif",
    re.DOTALL,
)
# All that Pillow would try one of _FORMATS on, DIB among them, which begins
# with the size of its header.
_STARTS = re.compile(
    rb"\x89PNG|\xff\xd8|\xff\x4f\xff\x51|RIFF|....ftyp|BM|GIF8|II|MM|P[0-6fy]"
    rb"|\0\0\0\x0cjP|qoif|[^\0]\0\0\0",
    re.DOTALL,
)
# formats that hold values of more than 8 bits which Pillow gives as they are
_DEEP = re.compile(rb"\x89PNG|II[*+]\0|MM\0[*+]|P[2-6fy]\s|\0\0\0\x0cjP |\xff\x4f\xff\x51")
_ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF tag 0x0112
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image, and notes on how it was converted."""

    pixels: np.ndarray  # uint8 (H, W, C), C 1 or 3, contiguous
    notes: tuple[str, ...] = ()  # what the user should know: "transparency laid over white"
    source_bytes: int = 0  # size of the file it came from; 0 for arrays
    reduced: int = 1  # how many pixels of the file, along each axis, became one
    range: Range | None = None  # values that became 0 and 255; None: it had 8 bits
    narrow: Range | None = None  # values in use, where another range would serve them better
    nan: int = 0  # how many values are NaN, and became black


def read_image(
    source: Path | bytes,
    channels: int = 3,
    background: Color = WHITE,
    shrink: int = 1,
    least: int = 1,
    value_range: Range | None = None,
) -> DecodedImage:
    """Reads an image file, by path or content, as uint8 (H, W, channels); channels is 1 or 3.

    A JPEG is decoded at 1/shrink of its sides (1, 2, 4 or 8), or larger where its short side would
    be less than `least`: that takes a part of the time. Other formats come whole.

    EXIF orientation is applied, color profiles are converted to sRGB, transparency is laid over
    `background`, an animation gives its first frame. Of images deeper than 8 bits `value_range`
    becomes 0 to 255; None chooses (see `depth.to_8_bits`).
    Raises InputError for whatever cannot be read.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, MAX_BYTES)
    name = "the image" if isinstance(source, bytes) else str(source)
    if not data:
        raise InputError(f"{name} is empty (0 bytes)", "give an image file")
    with _guard(name, data), _open(data) as image:
        _check_work(image, data, name)
        frames = _first_frame(image, len(data))
        reduced = _reduce(image, shrink, least)
        found = _decode(image, name, channels, background, value_range, data)
    return replace(found, notes=frames + found.notes, source_bytes=len(data), reduced=reduced)


def _open(data: bytes) -> Image.Image:
    """Raises what Pillow does."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        if (other := with_black_zero(data)) is None:
            raise
        image = Image.open(io.BytesIO(other), formats=_FORMATS)
        image.info["zero is white"] = True
        return image


def count_pixels(path: Path) -> int:
    """Returns how many pixels an image file has, by its header alone; 0 where it cannot be read,
    and for a file on a server.
    """
    if isinstance(path, RemotePath):
        return 0
    try:
        with pillow_limits, Image.open(path, formats=_FORMATS) as image:
            return image.width * image.height
    except Exception:  # damaged ones raise about anything
        return 0


def is_deep(source: Path | bytes) -> bool:
    """Whether an image file has more than 8 bits a value, by its header alone; no, where it
    cannot be read.
    """
    start = source[:64] if isinstance(source, bytes) else _first_bytes(source, 64)
    if not _DEEP.match(start):
        return False
    try:
        with (
            pillow_limits,
            _open(source if isinstance(source, bytes) else read_bytes(source, MAX_BYTES)) as image,
        ):
            return image.mode.startswith(("I", "F")) or _words_mode(image) != ""
    except Exception:  # damaged ones raise about anything
        return False


def _first_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def may_be_image(start: bytes) -> bool:
    """Whether a file that begins with these bytes, some 16 or more, can be an image:
    not, where `read_image` would refuse it as none.
    """
    return _STARTS.match(start) is not None


_HEIC = re.compile(rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)
_JXL = re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")


def foreign_kind(start: bytes) -> str:
    """Returns words like 'a HEIC image' where a file begins like one of a format that is not read;
    else nothing.
    """
    return "a HEIC image" if _HEIC.match(start) else "a JPEG XL image" if _JXL.match(start) else ""


def from_any(
    image: Any, channels: int = 3, background: Color = WHITE, value_range: Range | None = None
) -> DecodedImage:
    """Converts a path, file content, PIL image, DecodedImage or array (H, W), (H, W, 1|3|4) to a
    DecodedImage with `channels` channels.

    Arrays are uint8, bool, or deeper: those are scaled as in `read_image`. An animated PIL image
    gives the frame it stands at. Raises InputError for what is none of these.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image), channels, background, value_range=value_range)
    if isinstance(image, bytes | bytearray | memoryview):
        return read_image(bytes(image), channels, background, value_range=value_range)
    size = image.source_bytes if isinstance(image, DecodedImage) else 0
    notes = image.notes if isinstance(image, DecodedImage) else ()
    array = image.pixels if isinstance(image, DecodedImage) else image
    scaled = None
    if isinstance(array, np.ndarray):
        scaled, array = _scaled_array(array, value_range)
        array = Image.fromarray(checked(array))
    if not isinstance(array, Image.Image):
        raise InputError(
            f"a {type(image).__name__} is no image",
            "give a path, bytes, a PIL image or an array (H, W, C)",
        )
    with _guard("the image"):
        found = _decode(array, "the image", channels, background, value_range)
    if scaled is not None:
        notes += scaled.notes
        found = replace(found, range=scaled.range, narrow=scaled.narrow, nan=scaled.nan)
    return replace(found, notes=notes + found.notes, source_bytes=size)


def _scaled_array(array: np.ndarray, value_range: Range | None) -> tuple[Scaled | None, np.ndarray]:
    """Converts the array to uint8; returns it with what was done to it. An alpha channel keeps the
    range of its type.
    """
    if array.dtype == np.bool_:
        return None, array.astype(np.uint8) * np.uint8(255)
    shaped = array.ndim in (2, 3) and array.shape[2:] in ((), (1,), (3,), (4,)) and array.size
    if array.dtype == np.uint8 or array.dtype.kind not in "iuf" or not shaped:
        return None, array
    colors = array[..., :3] if array.shape[2:] == (4,) else array
    scaled = to_8_bits(colors, value_range)
    if array.shape[2:] != (4,):
        return scaled, scaled.pixels
    alpha = _scaled_alpha(array[..., 3:])
    if alpha.nan:
        count = "1 value" if alpha.nan == 1 else f"{alpha.nan:,} values"
        note = f"{count} of the alpha channel {'is' if alpha.nan == 1 else 'are'} NaN: transparent"
        scaled = replace(scaled, notes=(*scaled.notes, note))
    return scaled, np.concatenate([scaled.pixels, alpha.pixels], axis=2)


def _scaled_alpha(alpha: np.ndarray) -> Scaled:
    """Converts an alpha channel (H, W, 1) to uint8: integers up to 16 bits by the range of their
    type, larger ones by 0 to 255 or 0 to 65535, floats by 0 to 1 or 0 to 255.
    """
    if alpha.dtype.kind == "f":  # up to 2, 0 to 1 with some overshoot
        highest = float(alpha.max(initial=0, where=np.isfinite(alpha)))
        return to_8_bits(alpha, (0.0, 1.0 if highest <= 2 else 255.0))
    full, highest = int(np.iinfo(alpha.dtype).max), int(alpha.max())
    if alpha.dtype.itemsize > 2:
        full = next((top for top in (255, 65535) if highest <= top), full)
    return to_8_bits(alpha, (0.0, float(full)))


def checked(array: np.ndarray) -> np.ndarray:
    """Returns the array as PIL takes it: uint8 (H, W) or (H, W, 3|4)."""
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or array.shape[2:] not in ((), (1,), (3,), (4,))
    ):
        raise InputError(
            f"an array of {array.dtype} {array.shape} is no image",
            "give numbers of shape (H, W) or (H, W, C), C 1, 3 or 4",
        )
    return np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array)


class _PillowLimits:
    """Ignores PIL's warnings and sets our limit while any thread decodes; the last to leave
    restores both.

    Both are settings of the whole process, so `warnings.catch_warnings` in each of several threads
    would restore them in the wrong order.
    """

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            self._caught, self._limit = warnings.catch_warnings(), Image.MAX_IMAGE_PIXELS
            self._caught.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
            # PIL warns above its limit and raises above twice its limit
            Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                Image.MAX_IMAGE_PIXELS = self._limit
                self._caught.__exit__(None, None, None)


pillow_limits = _PillowLimits()


@contextmanager
def _guard(name: str, data: bytes | None = None) -> Iterator[None]:
    """Turns whatever PIL raises into an InputError.

    Damaged files make it raise about any exception, hence the wide net.
    """
    try:
        with pillow_limits:
            yield
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except UnidentifiedImageError:
        if data is not None and (kind := foreign_kind(data[:64])):
            raise InputError(
                f"{name} is {kind}, which vqtok does not read", "convert it to PNG or JPEG"
            ) from None
        if data is not None and (tags := _whole_tiff(data)):
            raise layout_refusal(name, tags) from None
        if data is not None and _SIGNATURES.match(data):
            raise InputError(
                f"{name} is damaged or cut off: its header cannot be read", "get the file again"
            ) from None
        raise InputError(
            f"{name} is not an image", "give a PNG, JPEG, WebP, AVIF, GIF, TIFF, BMP or PPM file"
        ) from None
    except MemoryError:
        raise InputError(f"{name} does not fit into memory", "shrink the image first") from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        if data is not None and (tags := _whole_tiff(data)):
            raise InputError(
                f"{name} cannot be decoded ({reason}): a TIFF of {describe_tiff(tags)}",
                "save it as PNG, or as TIFF without compression",
            ) from None
        raise InputError(
            f"{name} is damaged or cut off: {reason}", "get the file again, or save it as PNG"
        ) from None


def _whole_tiff(data: bytes) -> dict[int, Any] | None:
    """Reads the tags of a TIFF whose pixels are all there; None for other files, and for one that
    is cut off.
    """
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    tags = read_tags(data)
    return tags if tags and is_whole_tiff(tags, len(data)) else None


def _too_large(name: str) -> InputError:
    return InputError(
        f"{name} claims more than {MAX_PIXELS // 10**6} million pixels",
        "shrink or cut up the image first",
    )


def _first_frame(image: Image.Image, size: int) -> tuple[str, ...]:
    """Returns the note on further frames of a file of `size` bytes, which is at the first one."""
    # MPO: a JPEG of a phone with a preview or depth map behind it
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return ()
    frames = (
        _pages(image)
        if image.format == "TIFF"
        else image.n_frames  # type: ignore[attr-defined]
        if size <= _COUNTED_BYTES
        else None
    )
    return (f"first of {frames or 'many'} {'pages' if image.format == 'TIFF' else 'frames'}",)


def _pages(image: Image.Image) -> int | None:
    """Counts the pages of a TIFF; None for many: Pillow compares each with all before, 8 s for
    40,000.
    """
    pages = 1
    try:
        while pages < _COUNTED_PAGES:
            image.seek(pages)
            pages += 1
        return None
    except EOFError:
        return pages
    finally:
        image.seek(0)


def _check_work(image: Image.Image, data: bytes, name: str) -> None:
    """Refuses small files that keep a decoder busy for minutes;
    the limits lie at 2 to 4 seconds, and no honest file reaches them.
    """
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO"):
        scans = _scans(data)
        busy = scans > _SCANS_MAX or scans * pixels > _SCANNED_MAX
    elif image.format in ("BMP", "DIB"):
        busy = pixels > _RLE_MAX and any(
            tile[0] == "bmp_rle" for tile in getattr(image, "tile", ())
        )
    else:
        busy = (
            image.format == "PPM"
            and data[:2] in (b"P1", b"P2", b"P3")
            and data.count(b"#") > _COMMENTS_MAX
        )
    if busy:
        raise InputError(
            f"{name} would take minutes to decode",
            "it looks made for that; save it as PNG with a program you trust",
        )


def _scans(data: bytes) -> int:
    """Passes over the pixels of a JPEG, up to its end marker;
    counted no further than is allowed.
    """
    at, scans = 2, 0
    while scans <= _SCANS_MAX and (found := _MARKER.search(data, at)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


def _reduce(image: Image.Image, shrink: int, least: int) -> int:
    """Makes a JPEG decode from a part of each block's frequencies; returns the divisor of its
    sides.
    """
    while shrink > 1 and min(image.size) < shrink * least:
        shrink //= 2
    if (
        shrink == 1
        or not isinstance(image, JpegImagePlugin.JpegImageFile)
        or image.width * image.height > MAX_PIXELS
    ):
        return 1
    image.draft(None, (image.width // shrink, image.height // shrink))
    return shrink


def _decode(
    image: Image.Image,
    name: str,
    channels: int,
    background: Color,
    value_range: Range | None = None,
    data: bytes | None = None,
) -> DecodedImage:
    """Decodes pixels (H, W, channels) and notes of an opened image; `data` is the content of its
    file.
    """
    assert channels in (1, 3), channels
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    if image.width * image.height == 0:
        raise InputError(f"{name} has no pixels", "give an image of at least 1x1")
    tags = dict(getattr(image, "tag_v2", None) or {})  # a TIFF's alone
    if tags:
        check_layout(name, tags)
    deep_mode, raw = _words_mode(image), _raw_mode(image)
    image.load()
    if raw in _FEW_BITS:
        _scale_key(image, raw)
    # after load: for some formats PIL applies it then, and drops the tag
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    notes: list[str] = []
    scaled: Scaled | None = None
    if image.mode.startswith(("I", "F")) or (signed_bytes(tags) and image.mode == "L"):
        scaled, image = _gray_to_8_bits(image, name, tags, value_range)
    elif deep_mode:
        scaled, image = _colors_to_8_bits(image, deep_mode, name, value_range, data)
    elif value_range is not None and image.mode == "CMYK" and sample_bits(tags) == 16:
        notes.append("the range does not count for CMYK")
    notes += scaled.notes if scaled else ()
    image, alpha = split_alpha(image)
    image = to_srgb(image, profile, notes)
    image = lay_over(image, alpha, background, notes)
    pixels = _to_array(image, "L" if channels == 1 else "RGB")
    if channels == 1 and image.mode == "RGB" and (np.asarray(image) != pixels[..., None]).any():
        notes.append("color dropped")
    pixels = _ORIENTATIONS.get(orientation, lambda x: x)(pixels)
    pixels = np.ascontiguousarray(pixels).reshape(*pixels.shape[:2], channels)
    if scaled is None:
        return DecodedImage(pixels, tuple(notes))
    found = DecodedImage(pixels, tuple(notes), range=scaled.range, narrow=scaled.narrow)
    return replace(found, nan=scaled.nan)


def _gray_to_8_bits(
    image: Image.Image, name: str, tags: dict[int, Any], value_range: Range | None
) -> tuple[Scaled, Image.Image]:
    """Converts gray modes of 16 or 32 bits or float to mode L, or LA where a gray level is
    transparent; PIL's own conversion would clip them at 255.
    """
    values, bits = np.asarray(image), None  # (H, W) of uint16, int32 or float32
    if tags and values.dtype.kind == "i":
        # PIL has one mode for all of these
        unsigned = sample_kind(tags) == 1 and sample_bits(tags) == 32
        signed = sample_kind(tags) == 2 and sample_bits(tags) == 16
        values = values.view(np.uint32) if unsigned else values
        values = values.astype(np.int16) if signed else values
    values = values.view(np.int8) if signed_bytes(tags) else values
    if tags and values.dtype == np.uint16 and sample_bits(tags) < 16:
        bits = sample_bits(tags)
    nodata = parse_nodata(nodata_text(tags)) if tags else None
    try:
        scaled = to_8_bits(values, value_range, bits, nodata)
    except InputError as error:
        raise InputError(str(error).replace("the image", name), error.fix) from None
    is_negative = "zero is white" in image.info or (tags and is_inverted(tags))
    pixels = scaled.pixels
    if is_negative:  # what counts as no value is black here, too
        none = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        none |= False if nodata is None else values == nodata
        pixels = np.where(none, np.uint8(0), 255 - pixels)
    gray, key = Image.fromarray(pixels), image.info.get("transparency")
    if isinstance(key, int):  # of a PNG
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        gray = Image.merge("LA", (gray, alpha))
    return scaled, gray


def _words_mode(image: Image.Image) -> str:
    """Returns PIL's raw mode of colors that have 16 bits in the file, of which it keeps the high 8;
    else nothing.
    """
    raw = _raw_mode(image)
    found = re.fullmatch(r"(RGB|RGBA|RGBX|RGBa|LA);16[LBN]", raw)
    return raw if found and image.format in ("PNG", "TIFF") else ""


def _raw_mode(image: Image.Image) -> str:
    """Returns PIL's name for the values as they are in the file, before it loads them; nothing
    where it has none.
    """
    tiles = getattr(image, "tile", None) or ()
    args = tiles[0].args if len(tiles) > 0 else ""
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _scale_key(image: Image.Image, raw: str) -> None:
    """Scales the gray level that is transparent as PIL scales the pixels of 2 or 4 bits, where it
    did not.
    """
    key, top = image.info.get("transparency"), _FEW_BITS[raw]
    if image.format == "PNG" and image.mode == "L" and isinstance(key, int) and key <= top:
        image.info["transparency"] = key * 255 // top


def _colors_to_8_bits(
    image: Image.Image, raw: str, name: str, value_range: Range | None, data: bytes | None
) -> tuple[Scaled, Image.Image]:
    """Scales colors of 16 bits that are loaded as the high bytes, by these or by the range of the
    whole values.
    """
    high = np.asarray(image)  # (H, W, 3|4)
    key = image.info.get("transparency")  # of a PNG: PIL compares bytes with its 16 bits
    if isinstance(key, tuple) and data is not None and high.shape[2] == 3:
        clear = (_words(data, image.mode, raw, name, high) == np.array(key)).all(axis=2)
        high = np.concatenate([high, np.where(clear, 0, 255)[..., None].astype(np.uint8)], axis=2)
        image = Image.fromarray(high)
    if value_range is None or value_range == (0.0, 65535.0) or data is None:
        used = narrow_of_bytes(high[..., :3])
        notes = () if used is None else (words_note(used),)
        return Scaled(high, (0.0, 65535.0), used, notes), image
    values = _words(data, image.mode, raw, name, high)
    scaled = to_8_bits(values, value_range)
    pixels = np.concatenate([scaled.pixels, high[..., 3:]], axis=2)  # transparency as it is
    changed = Image.fromarray(pixels)
    changed.info = {k: v for k, v in image.info.items() if k != "transparency"}
    return scaled, changed


def _words(data: bytes, mode: str, raw: str, name: str, high: np.ndarray) -> np.ndarray:
    """Reads the colors (H, W, 3) in uint16.

    Pillow gives the high byte of each. Read in the other byte order it gives the low one; gray with
    transparency, of which it has no other order, is read as four bytes a pixel.
    """

    def load(as_raw: str) -> np.ndarray:
        with Image.open(io.BytesIO(data), formats=("PNG", "TIFF")) as image:
            image.tile = [  # type: ignore[attr-defined]
                tile._replace(
                    args=(as_raw, *tile.args[1:]) if isinstance(tile.args, tuple) else as_raw
                )
                for tile in image.tile  # type: ignore[attr-defined]
            ]
            image.load()
            return np.asarray(image)

    if raw.startswith("LA"):
        found = load("RGBA")
        return np.repeat(found[..., :1].astype(np.uint16) * 256 + found[..., 1:2], 3, axis=2)
    base = raw.partition(";")[0]
    one, other = load(f"{base};16L"), load(f"{base};16B")
    low = other if np.array_equal(one[..., :3], high[..., :3]) else one
    return high[..., :3].astype(np.uint16) * 256 + low[..., :3]


def _to_array(image: Image.Image, mode: str) -> np.ndarray:
    """Converts mode L to uint8 (H, W), RGB to (H, W, 3).

    A large image strip by strip: taken at once, PIL holds it three times more.
    """
    image = image if image.mode == mode else image.convert(mode)
    if image.width * image.height <= _AT_ONCE:
        return np.array(image)
    pixels = np.empty((image.height, image.width, 3)[: 2 if mode == "L" else 3], np.uint8)
    for top in range(0, image.height, 256):
        bottom = min(top + 256, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) when there is none or it cannot be parsed."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        # parsing damaged EXIF raises struct, type, value, ... errors; the pixels are still good
        return 1
