"""Images deeper than 8 bits: which range of values is taken, what is said, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_helpers import saved
from PIL import Image

from vqtok.errors import InputError, UsageError
from vqtok.images import (
    DecodedImage,
    Recognizer,
    from_any,
    is_deep,
    parse_range,
    read_image,
    suggest,
)
from vqtok.images.tiff import describe_tiff, read_tags

RAMP = np.linspace(0, 4095, 64 * 48).reshape(48, 64).round().astype(np.uint16)


def tiff(
    pixels: np.ndarray,
    photometric: int = 1,
    kind: int | None = None,
    planar: bool = False,
    nodata: str = "",
    big: bool = False,
) -> bytes:
    """A TIFF of one strip (of one a band in separate planes), of any values (H, W[, C])."""
    bands = pixels[..., None] if pixels.ndim == 2 else pixels
    H, W, C = bands.shape
    kind = kind or {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    parts = [bands[..., i] for i in range(C)] if planar else [bands]
    strips = [
        np.ascontiguousarray(part).astype(part.dtype.newbyteorder("<")).tobytes() for part in parts
    ]
    start, count = (16, 2) if big else (8, 2)
    offsets = [start + sum(map(len, strips[:i])) for i in range(len(strips))]
    tags: list[tuple[int, str, list[int] | bytes]] = [
        (256, "I", [W]),
        (257, "I", [H]),
        (258, "H", [8 * pixels.dtype.itemsize] * C),
        (259, "H", [1]),
        (262, "H", [photometric]),
        (273, "I", offsets),
        (277, "H", [C]),
        (278, "I", [H]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [2 if planar else 1]),
        (339, "H", [kind] * C),
    ]
    if nodata:
        tags.append((42113, "s", nodata.encode() + b"\0"))
    body = b"".join(strips)
    directory = start + len(body)
    entry, inline = (20, 8) if big else (12, 4)
    extra_at = directory + (8 if big else count) + entry * len(tags) + inline
    entries, extra = b"", b""
    for tag, form, values in tags:
        data = (
            values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{form}", *values)
        )
        number = {"H": 3, "I": 4, "s": 2}[form]
        head = struct.pack("<HHQ" if big else "<HHI", tag, number, len(values))
        if len(data) > inline:
            entries += head + struct.pack("<Q" if big else "<I", extra_at + len(extra))
            extra += data
        else:
            entries += head + data.ljust(inline, b"\0")
    if big:
        head = b"II+\0" + struct.pack("<HHQ", 8, 0, directory)
        return head + body + struct.pack("<Q", len(tags)) + entries + b"\0" * 8 + extra
    head = b"II*\0" + struct.pack("<I", directory)
    return head + body + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + extra


def white_zero_big_endian(values: np.ndarray) -> bytes:
    """A gray TIFF with 0 as white, the high byte of each number first."""
    (H, W), body = values.shape, values.astype(values.dtype.newbyteorder(">")).tobytes()
    numbers = [(256, W), (257, H), (258, 8 * values.dtype.itemsize), (259, 1), (262, 0), (273, 8)]
    numbers += [(277, 1), (278, H), (279, len(body)), (339, 1)]
    tags = b"".join(struct.pack(">HHIHH", tag, 3, 1, number, 0) for tag, number in numbers)
    head = b"MM\0*" + struct.pack(">I", 8 + len(body))
    return head + body + struct.pack(">H", len(numbers)) + tags + bytes(4)


def png16(pixels: np.ndarray, key: int | tuple[int, ...] | None = None, bits: int = 16) -> bytes:
    """A 16-bit PNG of (H, W) or (H, W, 2|3|4), or one of fewer bits of gray (H, 8); `key` is a gray
    level or color that is transparent.
    """
    H, W = pixels.shape[:2]
    color = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    if bits < 16:
        texts = ("".join(f"{value:0{bits}b}" for value in row) for row in pixels)
        rows = b"".join(b"\0" + int(text, 2).to_bytes(bits, "big") for text in texts)

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, bits, color, 0, 0, 0))
    keys = key if isinstance(key, tuple) else () if key is None else (key,)
    transparent = chunk(b"tRNS", struct.pack(f">{len(keys)}H", *keys)) if keys else b""
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + transparent + body


def said(image: DecodedImage) -> str:
    return "; ".join(image.notes)


@pytest.mark.parametrize("form", ["tiff", "png", "bigtiff", "uint32", "array"])
def test_twelve_bits_in_sixteen_are_told_and_kept_by_a_range(form: str) -> None:
    source = {
        "tiff": tiff(RAMP),
        "png": png16(RAMP),
        "bigtiff": tiff(RAMP, big=True),
        "uint32": tiff(RAMP.astype(np.uint32)),
        "array": RAMP,
    }[form]
    auto = from_any(source, 1)
    assert auto.pixels.max() == 15
    assert auto.range == (0, 65535)
    assert auto.narrow == (0, 4095)
    assert "only 6.25% of the range 0:65535 is used: --range 0:4095" in said(auto)
    wide = from_any(source, 1, value_range=(0, 4095))
    assert np.array_equal(wide.pixels[..., 0], np.rint(RAMP / 4095 * 255))
    assert wide.range == (0, 4095)
    assert wide.narrow is None


@pytest.mark.parametrize("bands", [2, 3, 4])
@pytest.mark.parametrize("form", ["png", "tiff"])
def test_sixteen_bit_colors_keep_their_low_bytes_under_a_range(bands: int, form: str) -> None:
    if form == "tiff" and bands == 2:
        pytest.skip("Pillow reads no such TIFF")
    colors = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]][: 1 if bands == 2 else 3], 2)
    opaque = np.full((*RAMP.shape, 1), 65535, np.uint16)
    pixels = np.concatenate([colors, opaque], 2) if bands != 3 else colors
    source = png16(pixels) if form == "png" else tiff(pixels, photometric=2)
    auto = read_image(source)
    assert auto.pixels.max() == 15
    assert "6.25%" in said(auto)
    assert "--range 0:4095" in said(auto)
    wide = read_image(source, value_range=(0, 4095))
    wanted = np.broadcast_to(np.rint(colors / 4095 * 255), (*RAMP.shape, 3))
    assert np.array_equal(wide.pixels, wanted)


def test_full_sixteen_bit_colors_say_nothing() -> None:
    pixels = np.stack([RAMP * 16] * 3, 2)
    image = read_image(png16(pixels))
    assert np.array_equal(image.pixels, pixels >> 8)
    assert image.narrow is None
    assert image.notes == ()


@pytest.mark.parametrize("top", [1.0, 1.004, 1.05])
def test_floats_may_pass_one_by_a_hair(top: float) -> None:
    values = np.linspace(-0.02, top, 1000, dtype=np.float32).reshape(20, 50)
    image = read_image(tiff(values), 1)
    assert np.array_equal(image.pixels[..., 0], np.rint(np.clip(values.astype(float), 0, 1) * 255))
    assert image.range == (0, 1)


def test_floats_far_above_one_are_not_taken_for_bytes() -> None:
    values = np.linspace(0, 1.3, 1000, dtype=np.float32).reshape(20, 50)
    image = read_image(tiff(values), 1)
    assert np.unique(image.pixels).size == 256
    assert "scaled to 8 bits" in said(image)
    assert "--range 0:1.3" in said(image)


def test_whole_numbers_in_floats_are_bytes() -> None:
    values = np.arange(0, 40, dtype=np.float32).reshape(5, 8)
    image = read_image(tiff(values), 1)
    assert np.array_equal(image.pixels[..., 0], values)
    assert "--range 0:63" in said(image)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, -9999.0, -3.4028235e38, 1e20, -32768.0])
def test_what_is_no_measurement_does_not_count(hole: float) -> None:
    values = np.linspace(300, 350, 1000, dtype=np.float32).reshape(20, 50)
    whole = read_image(tiff(values), 1)
    values[3, 4] = hole
    image = read_image(tiff(values), 1)
    assert image.range == (300, 350)
    assert image.pixels[3, 4, 0] == (255 if hole > 0 else 0)
    assert ("1 of 1,000 values are NaN and become black" in said(image)) == np.isnan(hole)
    image.pixels[3, 4] = whole.pixels[3, 4]
    assert np.array_equal(image.pixels, whole.pixels)


def test_gdal_names_its_no_data_value() -> None:
    values = np.full((4, 4), 310, np.float32)
    values[0], values[1, 1] = 320, 290
    image = read_image(tiff(values, nodata="290"), 1)
    assert image.range == (310, 320)
    assert image.pixels[1, 1, 0] == 0


def test_an_image_of_nothing_finite_is_refused() -> None:
    with pytest.raises(InputError, match="no value of the image is a finite number"):
        read_image(tiff(np.full((4, 4), np.nan, np.float32)))


def test_signed_bytes_do_not_wrap() -> None:
    values = np.array([[-128, -100, 0, 127]], np.int8)
    for source in (tiff(values), values):
        assert from_any(source, 1).pixels[0, :, 0].tolist() == [0, 28, 128, 255]


def test_a_marker_in_sixteen_bits_does_not_hide_that_little_is_used() -> None:
    values = RAMP.copy()
    values[0, 0] = 65535
    image = read_image(tiff(values), 1)
    assert "the value 65535 counts as no data" in said(image)
    assert "--range 0:4095" in said(image)
    mask = read_image(tiff(np.array([[0, 65535]], np.uint16)), 1)
    assert mask.notes == ("16-bit values reduced to 8 bits",)


def test_uint32_above_two_to_the_31_does_not_wrap() -> None:
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    assert read_image(tiff(values), 1).pixels[0, :, 0].tolist() == [0, 128, 255]
    assert from_any(values, 1).pixels[0, :, 0].tolist() == [0, 128, 255]


def test_signed_sixteen_bits_keep_their_type() -> None:
    values = np.array([[-1024, 0, 3071]], np.int16)
    auto = read_image(tiff(values), 1)
    assert auto.range == (-32768, 32767)
    assert "--range -1024:3071" in said(auto)
    found = read_image(tiff(values), 1, value_range=(-1024, 3071))
    assert found.pixels[0, :, 0].tolist() == [0, 64, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_zero_is_white(dtype: type) -> None:
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    values = (np.array([[0, 0.25, 1]]) * top).astype(dtype)
    found = read_image(tiff(values, photometric=0), 1).pixels[0, :, 0].tolist()
    assert found[0] == 255
    assert found[1] in (191, 192)
    assert found[2] == 0


def test_zero_is_white_in_the_other_byte_order(tmp_path: Path) -> None:
    """Pillow 13.0.0 does not open these."""
    values = np.array([[0, 16383, 65535]], np.uint16)
    data = white_zero_big_endian(values)
    assert read_image(data, 1).pixels[0, :, 0].tolist() in ([255, 192, 0], [255, 191, 0])
    path = tmp_path / "x.tif"
    path.write_bytes(data)
    assert is_deep(path)
    assert "0 is white" in describe_tiff(read_tags(data) or {})


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (tiff(np.zeros((4, 4, 3), np.uint16), 2, planar=True), "3 bands of 16-bit.*separate"),
        (tiff(np.zeros((4, 4, 5), np.uint8), 1), "5 bands of 8-bit unsigned"),
        (tiff(np.zeros((4, 4, 3), np.float64), 2), "3 bands of 64-bit floats"),
        (tiff(np.zeros((4, 4, 3), np.float32), 2), "3 bands of 32-bit floats"),
        (tiff(np.zeros((4, 4), np.float16)), "1 band of 16-bit floats"),
        (tiff(np.zeros((4, 4, 2), np.uint16)), "2 bands of 16-bit"),
        (tiff(np.zeros((4, 4), np.uint32), kind=5), "complex"),
    ],
)
def test_layouts_that_are_not_read_are_named(data: bytes, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        read_image(data)
    assert "damaged" not in str(caught.value)
    assert "save it as" in caught.value.fix


def test_a_tiff_that_is_cut_off_is_still_damaged() -> None:
    with pytest.raises(InputError, match=r"damaged|cut off"):
        read_image(saved(Image.fromarray(RAMP), "TIFF")[:-4000])


def test_planes_of_eight_bits_are_read() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(read_image(tiff(pixels, 2, planar=True)).pixels, pixels)


@pytest.mark.parametrize(
    ("start", "named"),
    [(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\xff\x0a" + bytes(30), "JPEG XL")],
)
def test_formats_that_are_not_read_are_named(start: bytes, named: str) -> None:
    with pytest.raises(InputError, match=f"is a {named} image, which vqtok does not read"):
        read_image(start + bytes(100))


def test_transparent_level_of_sixteen_bit_gray() -> None:
    image = read_image(png16(np.array([[0, 700, 65535]], np.uint16), key=700), 1)
    assert image.pixels[0, :, 0].tolist() == [0, 255, 255]
    assert "transparency laid over white" in image.notes


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_transparent_level_of_few_bits(bits: int) -> None:
    """Pillow 13.0.0 scales the pixels of 2 and 4 bits to bytes, and their key not: nothing was
    transparent.
    """
    top = 2**bits - 1
    values = np.arange(8).reshape(1, 8) % (top + 1)
    for key in range(top + 1):
        found = read_image(png16(values, key, bits), 1).pixels[0, :, 0].tolist()
        assert found == [255 if v == key else v * 255 // top for v in values[0].tolist()]


@pytest.mark.parametrize("value_range", [None, (0, 65535), (0, 8191)])
def test_transparent_color_of_sixteen_bits(value_range: tuple[float, float] | None) -> None:
    """Pillow 13.0.0 compares the low bytes of the key with the high bytes of the pixels; a range
    forgot the key.
    """
    key = (0x1234, 0x0102, 0x0304)
    near, low = (0x1235, 0x0102, 0x0304), (0x34FF, 0x02FF, 0x04FF)
    image = read_image(png16(np.array([[key, near, low]]), key), value_range=value_range)
    assert "transparency laid over white" in image.notes
    assert image.pixels[0, 0].tolist() == [255] * 3
    assert image.pixels[0, 1].max() < 200
    assert image.pixels[0, 2].min() < 200


def test_arrays_of_every_kind() -> None:
    gray = np.array([[0, 1]])
    assert from_any(gray.astype(bool), 1).pixels[0, :, 0].tolist() == [0, 255]
    assert from_any(gray.astype(np.float64), 1).pixels[0, :, 0].tolist() == [0, 255]
    assert from_any((gray * 65535).astype(np.uint16), 1).pixels[0, :, 0].tolist() == [0, 255]
    assert from_any(gray.astype(np.float16)[..., None], 3).pixels.shape == (1, 2, 3)
    cut = from_any(np.array([[[1.0, 0, 0, 0.0], [1.0, 0, 0, 1.0]]]))
    assert cut.pixels.tolist() == [[[255, 255, 255], [255, 0, 0]]]
    with pytest.raises(InputError, match="no value"):
        from_any(np.full((2, 2), np.nan))


@pytest.mark.parametrize(
    ("opaque", "dtype"),
    [
        *((1.004, "f4"), (1.5, "f8"), (1.0, ">f4"), (255.0, "f4"), (np.inf, "f4"), (255, "i4")),
        *((65535, "i4"), (65535, ">i8"), (65535, "u2"), (127, "i1"), (2**31 - 1, "u4")),
    ],
)
def test_alpha_of_any_type_and_range_is_not_taken_for_transparency(
    opaque: float, dtype: str
) -> None:
    """A little above 1, it was taken as 1 of 255: the image came out white."""
    colors = np.zeros((2, 2, 3), dtype)  # black
    alpha = np.full((2, 2, 1), opaque, np.dtype(dtype))
    if np.isinf(opaque):
        alpha[1] = 1
    found = from_any(np.concatenate([colors, alpha], 2), value_range=(0, 1))
    assert found.pixels.max() <= 128 if opaque == 2**31 - 1 else not found.pixels.any()


def test_nan_of_an_alpha_channel_is_transparent_and_said() -> None:
    pixels = np.zeros((2, 2, 4), np.float32)
    pixels[..., 3] = [[1, 1], [1, np.nan]]
    found = from_any(pixels)
    assert found.pixels[..., 0].tolist() == [[0, 0], [0, 255]]
    assert "1 value of the alpha channel is NaN: transparent" in said(found)


@pytest.mark.parametrize(("photometric", "rest"), [(1, [0, 255]), (0, [255, 0])])
def test_nan_and_no_data_become_black_where_zero_is_white(
    photometric: int, rest: list[int]
) -> None:
    values = np.array([[np.nan, 0, 1, -7]], np.float32)
    found = read_image(tiff(values, photometric, nodata="-7"), 1)
    assert found.pixels[0, :, 0].tolist() == [0, *rest, 0]


def test_a_range_as_typed() -> None:
    assert parse_range(None) is parse_range("auto") is None
    assert parse_range("-1000:3000") == (-1000, 3000)
    assert parse_range("0:1e-3") == (0, 0.001)
    for bad in ("5", "5:5", "9:1", "a:b", "0:inf", "nan:1", "1:2:3"):
        with pytest.raises(UsageError, match="is no range of values"):
            parse_range(bad)
    assert suggest([(1, 4000), (0, 3000)]) == (0, 4095)
    assert suggest([(0, 1023), (5, 1024)]) == (0, 2047)
    assert suggest([(-3, 7), (1, 9)]) == (-3, 9)


def test_images_are_told_by_content(tmp_path: Path) -> None:
    jpeg = saved(Image.new("RGB", (8, 8)), "JPEG")
    recognizer = Recognizer()
    for name, data, wanted in (
        ("a.image", jpeg, True),
        ("b", jpeg, True),
        ("c.0001", png16(RAMP), True),
        ("notes", b"BMW is a car, and this is text", False),
        ("P5 notes", b"P5 is a text", False),
        ("d.json", jpeg, False),
        ("e.dng", tiff(RAMP), False),
        ("f.heic", b"x", False),
        ("g", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", False),
    ):
        (tmp_path / name).write_bytes(data)
        assert recognizer.is_image_file(tmp_path / name) is wanted, name
    assert recognizer.passed == {".dng": 1, ".heic": 1, "HEIC": 1}
    assert recognizer.note().startswith("passed over 1 .dng, 1 .heic, 1 HEIC:")
