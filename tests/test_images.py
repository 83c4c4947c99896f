"""Every kind of image becomes uint8 (H, W, C), or one InputError."""

import io
from pathlib import Path

import numpy as np
import pytest
from image_helpers import distance, png, saved, smooth, with_gamma_one
from PIL import Image, ImageCms, ImageOps

from vqtok.errors import InputError, OutputError, UsageError
from vqtok.images import (
    IMAGE_SUFFIXES,
    DecodedImage,
    crop,
    encode_png,
    from_any,
    pad,
    parse_color,
    read_image,
    resize_to,
    write_image,
)

# Reading


def test_png_by_path_content_and_text(tmp_path: Path) -> None:
    pixels = smooth(5, 9)
    path = tmp_path / "x.png"
    path.write_bytes(png(pixels))
    for source in (path, path.read_bytes()):
        image = read_image(source)
        assert np.array_equal(image.pixels, pixels)
        assert image.notes == ()
        assert image.source_bytes == path.stat().st_size
        assert image.pixels.dtype == np.uint8
        assert image.pixels.flags.c_contiguous
        assert image.pixels.flags.writeable
    assert np.array_equal(from_any(str(path)).pixels, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    image = Image.fromarray(smooth(24, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    array = read_image(data)
    assert array.pixels.shape[:2] == ((40, 24) if orientation > 4 else (24, 40))
    assert np.array_equal(array.pixels, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_the_background(mode: str) -> None:
    alpha = np.tile(np.array([0, 51, 255], np.uint8), (2, 1))
    image = Image.fromarray(np.full((2, 3), 100, np.uint8)).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    over_white = read_image(saved(image, "PNG"))
    assert over_white.pixels[0, :, 0].tolist() == [255, 224, 100]  # 0.2 * 100 + 0.8 * 255
    assert over_white.notes == ("transparency laid over white",)
    over_color = read_image(saved(image, "PNG"), background=(200, 0, 50))
    assert over_color.pixels[1].tolist() == [[200, 0, 50], [180, 20, 60], [100, 100, 100]]
    assert over_color.notes == ("transparency laid over #c80032",)


def test_opaque_alpha_is_no_note() -> None:
    pixels = np.dstack([smooth(4, 4), np.full((4, 4), 255, np.uint8)])
    image = read_image(png(pixels))
    assert np.array_equal(image.pixels, pixels[..., :3])
    assert image.notes == ()


def test_palette_with_and_without_transparency() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert read_image(saved(image, "PNG")).pixels.tolist() == [
        [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    ]
    for transparency in (1, b"\xff\x00\xff"):
        array = read_image(saved(image, "PNG", transparency=transparency))
        assert array.pixels.tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
        assert array.notes == ("transparency laid over white",)


def test_transparent_gray_and_rgb_by_color_key() -> None:
    gray = png(np.array([[10, 20]], np.uint8), transparency=10)
    assert read_image(gray, 1).pixels.tolist() == [[[255], [20]]]
    color = png(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), transparency=(1, 2, 3))
    assert read_image(color).pixels.tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_one_bit_and_gray() -> None:
    bits = np.array([[True, False, True]])
    assert read_image(png(bits)).pixels[..., 1].tolist() == [[255, 0, 255]]
    assert read_image(png(bits), channels=1).pixels.tolist() == [[[255], [0], [255]]]
    gray = smooth(3, 7, 1)
    image = read_image(png(gray[..., 0]))
    assert np.array_equal(image.pixels, np.repeat(gray, 3, axis=2))
    assert image.notes == ()


def test_one_channel_from_color_says_so() -> None:
    image = read_image(
        png(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)), channels=1
    )
    # ITU-R BT.601 luma: 0.299, 0.587, 0.114
    assert image.pixels[0, :, 0].tolist() == [76, 150, 29]
    assert image.notes == ("color dropped",)
    assert read_image(png(np.full((2, 2, 3), 9, np.uint8)), channels=1).notes == ()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    image = read_image(saved(Image.fromarray(values), kind), channels=1)
    assert image.pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert image.notes == ("16-bit values reduced to 8 bits",)


def test_big_endian_16_bit_tiff() -> None:
    image = Image.frombytes("I;16B", (3, 1), np.array([0, 256, 65535], ">u2").tobytes())
    assert read_image(saved(image, "TIFF"), 1).pixels[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.2, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([float("inf"), 0.0, 0.0], [255, 0, 0]),
        ([0.25, 0.25, 0.25], [64, 64, 64]),
        ([-7.0, -7.0, -7.0], [0, 0, 0]),
    ],
)
def test_float_tiff(values: list[float], expected: list[int]) -> None:
    image = read_image(saved(Image.fromarray(np.array([values], np.float32)), "TIFF"), 1)
    assert image.pixels[0, :, 0].tolist() == expected
    assert "8 bits" in image.notes[0]


def test_32_bit_integers() -> None:
    image = Image.fromarray(np.array([[-100000, 0, 100000]], np.int32))
    assert read_image(saved(image, "TIFF"), 1).pixels[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    array = read_image(saved(image, "JPEG", quality=100))
    assert distance(array.pixels, np.full((16, 16, 3), (255, 0, 0), np.uint8)) <= 3
    assert array.notes == ("CMYK turned into RGB without a color profile",)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("white", "black", "white")]
    image = read_image(saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50))
    assert image.pixels.min() > 250
    assert image.notes == ("first of 3 frames",)


def test_pages_and_phone_images() -> None:
    pages = [Image.new("RGB", (16, 16), color) for color in ("white", "black")]
    assert read_image(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])).notes == (
        "first of 2 pages",
    )
    assert read_image(saved(pages[0], "MPO", save_all=True, append_images=pages[1:])).notes == ()


def test_color_profile_is_converted_to_srgb() -> None:
    middle = np.full((4, 4, 3), 55, np.uint8)
    array = read_image(png(middle, icc_profile=with_gamma_one()))
    # Linear 55/255 = 0.2157 is 0.5020 in sRGB: 1.055 * 0.2157 ** (1 / 2.4) - 0.055.
    assert distance(array.pixels, np.full((4, 4, 3), 128, np.uint8)) <= 1
    assert array.notes == ("colors converted to sRGB",)
    image = Image.fromarray(middle)
    for other in (image.quantize(2), image.convert("RGBA")):
        assert np.array_equal(
            read_image(saved(other, "PNG", icc_profile=with_gamma_one())).pixels, array.pixels
        )


def test_lab() -> None:
    # White, and the green (0, 128, 0): L 46.2, a -51.7, b 49.9 as CIE
    # gives it, L stored times 2.55.
    image = Image.frombytes("LAB", (2, 1), bytes([255, 0, 0, 118, 256 - 52, 50]))
    array = read_image(saved(image, "TIFF"))
    assert distance(array.pixels, np.array([[[255, 255, 255], [0, 128, 0]]], np.uint8)) <= 5
    assert array.notes == ("colors converted to sRGB",)


@pytest.mark.parametrize(
    "profile", [b"junk", b"", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
)
def test_profile_that_is_broken_or_for_other_colors_is_ignored(profile: bytes) -> None:
    pixels = smooth(6, 5)
    image = read_image(png(pixels, icc_profile=profile))
    assert np.array_equal(image.pixels, pixels)
    assert image.notes == ()


def test_srgb_profile_changes_nothing() -> None:
    pixels = smooth(6, 5)
    image = read_image(
        png(pixels, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    )
    assert np.array_equal(image.pixels, pixels)
    assert image.notes == ()


# Arrays and PIL images


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays(shape: tuple[int, ...], channels: int) -> None:
    image = from_any(np.full(shape, 255, np.uint8)[:, ::-1], channels)
    assert image.pixels.shape == (4, 5, channels)
    assert image.pixels.min() == 255
    assert image.source_bytes == 0


def test_array_is_copied_and_alpha_counts() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    assert from_any(pixels, background=(1, 2, 3)).pixels[0, 0].tolist() == [1, 2, 3]
    opaque = smooth(4, 4)
    image = from_any(opaque)
    image.pixels[:] = 0
    assert opaque.min() > 0


def test_pil_image_image_and_content() -> None:
    pixels = smooth(4, 6)
    image = Image.fromarray(pixels)
    assert np.array_equal(from_any(image).pixels, pixels)
    assert np.array_equal(from_any(bytearray(png(pixels))).pixels, pixels)
    again = from_any(DecodedImage(pixels, ("a note",), 77), channels=1)
    assert again.pixels.shape == (4, 6, 1)
    assert again.notes == ("a note", "color dropped")
    assert again.source_bytes == 77


def test_animated_pil_image_gives_the_frame_it_stands_at() -> None:
    frames = [Image.new("L", (4, 4), gray) for gray in (10, 20, 30)]
    image = Image.open(io.BytesIO(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    assert from_any(image).pixels.max() == 20
    assert from_any(image).notes == ()


def test_lazy_pil_image_that_is_truncated() -> None:
    data = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    with pytest.raises(InputError, match="cut off"):
        from_any(Image.open(io.BytesIO(data[:2000])))


@pytest.mark.parametrize(
    "thing",
    [
        np.zeros((4, 5, 3), complex),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        Image.new("RGB", (0, 4)),
        None,
        3,
        [1],
    ],
)
def test_what_is_no_image(thing: object) -> None:
    with pytest.raises(InputError, match=r"is no image|has no pixels"):
        from_any(thing)


# Writing


@pytest.mark.parametrize(
    ("suffix", "error"),
    [
        (".png", 0),
        (".PNG", 0),
        (".webp", 0),
        (".bmp", 0),
        (".tif", 0),
        (".tiff", 0),
        (".jpg", 4),
        (".avif", 4),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1, 3), (13, 21, 3), (13, 21, 1)])
def test_write_and_read_back(
    tmp_path: Path, suffix: str, error: int, shape: tuple[int, int, int]
) -> None:
    pixels = smooth(*shape)
    write_image(tmp_path / f"x{suffix}", pixels)
    image = read_image(tmp_path / f"x{suffix}", channels=shape[2])
    assert distance(image.pixels, pixels) <= error
    assert suffix.lower() in IMAGE_SUFFIXES
    with pytest.raises(OutputError, match="exists"):
        write_image(tmp_path / f"x{suffix}", pixels)


def test_encode_png_is_a_png() -> None:
    pixels = smooth(31, 77)
    assert encode_png(pixels)[:4] == b"\x89PNG"
    assert np.array_equal(read_image(encode_png(pixels)).pixels, pixels)


@pytest.mark.parametrize("name", ["x.gif", "x", "x.npz"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="unknown image format"):
        write_image(tmp_path / name, smooth(2, 2))


@pytest.mark.parametrize(("suffix", "width"), [(".webp", 16384), (".jpg", 70000)])
def test_size_that_a_format_cannot_hold(tmp_path: Path, suffix: str, width: int) -> None:
    with pytest.raises(OutputError, match=f"does not take {width}x1 pixels") as caught:
        write_image(tmp_path / f"x{suffix}", smooth(1, width))
    assert ".png" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


# Sizes and colors


@pytest.mark.parametrize(
    ("size", "padded"),
    [((1, 1), (8, 8)), ((8, 16), (8, 16)), ((31, 77), (32, 80)), ((5000, 3), (5000, 8))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_pad_and_crop(size: tuple[int, int], padded: tuple[int, int], channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), np.uint8)
    wide = pad(pixels, 8)
    assert wide.shape == (*padded, channels)
    assert np.array_equal(crop(wide, *size), pixels)
    assert (wide[size[0] :, : size[1]] == pixels[-1:]).all()
    assert (wide[: size[0], size[1] :] == pixels[:, -1:]).all()
    assert (wide[size[0] :, size[1] :] == pixels[-1, -1]).all()


@pytest.mark.parametrize(("H", "W"), [(10, 14), (80, 33), (1, 1), (7, 200), (40, 60)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit(H: int, W: int, channels: int) -> None:
    small = resize_to(smooth(40, 60, channels), H, W)
    assert small.shape == (H, W, channels)
    assert small.dtype == np.uint8
    if min(H, W) > 1:
        assert distance(small, smooth(H, W, channels)) <= 20  # a gradient stays that gradient


def test_shrinking_averages_fine_detail() -> None:
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    assert distance(resize_to(checkers, 8, 8), np.full((8, 8, 1), 128, np.uint8)) <= 2


@pytest.mark.parametrize(
    ("text", "color"),
    [
        ("white", (255, 255, 255)),
        ("#fff", (255, 255, 255)),
        ("#102030", (16, 32, 48)),
        (" 1, 2,3 ", (1, 2, 3)),
        ("rgb(9, 8, 7)", (9, 8, 7)),
        ("RebeccaPurple", (102, 51, 153)),
    ],
)
def test_parse_color(text: str, color: tuple[int, int, int]) -> None:
    assert parse_color(text) == color


@pytest.mark.parametrize(
    "text", ["", "blurple", "#ff", "#ffffff80", "1,2", "1,2,256", "1,2,3,4", "-1,2,3"]
)
def test_parse_color_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="is no color"):
        parse_color(text)


def test_a_tall_image_is_read_whole(tmp_path: Path) -> None:
    """Pixels are taken from PIL in strips."""
    for channels in (1, 3):
        pixels = np.random.default_rng(0).integers(0, 256, (600, 5, channels), np.uint8)
        write_image(tmp_path / f"{channels}.png", pixels)
        assert (read_image(tmp_path / f"{channels}.png", channels).pixels == pixels).all()
