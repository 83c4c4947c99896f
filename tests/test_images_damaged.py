"""What cannot be read as an image gives one InputError:
damaged, truncated and hostile files, and no warning escapes.
"""

import io
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from attacks.image_files import wholes
from image_helpers import png, saved, smooth
from PIL import Image

from vqtok.errors import InputError
from vqtok.images import read as images_read
from vqtok.images import read_image


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (b"\x89PNG\r\n\x1a\n", "damaged or cut off"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "damaged or cut off"),
    ],
)
def test_not_a_image(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_image(path)
    assert "x.png" in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_truncated(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with pytest.raises(InputError, match="damaged or cut off"):
        read_image(data[: len(data) * 2 // 3])


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / "x.png")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    "header", [b"P6 20000 10001 255\n", b"P6 100000 100000 255\n", b"P4 2000000000 2000000000\n"]
)
def test_bomb_is_refused_before_decoding(header: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.PpmImagePlugin.PpmImageFile.load", load)
    with pytest.raises(InputError, match="more than 200 million pixels"):
        read_image(header + b"\0" * 100)


def test_size_that_pil_alone_would_warn_about_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # PIL would warn above 10 pixels and raise above 20
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(png(smooth(3, 5))).pixels.shape == (3, 5, 3)
    assert read_image(png(smooth(30, 50))).pixels.shape == (30, 50, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_settings_of_the_process_come_back_also_from_threads() -> None:
    filters, limit, failed = list(warnings.filters), Image.MAX_IMAGE_PIXELS, []
    good, bad = png(smooth(50, 50)), b"nothing"

    def work(data: bytes) -> None:
        for _ in range(30):
            try:
                read_image(data)
            except InputError:
                failed.append(data)

    threads = [threading.Thread(target=work, args=(data,)) for data in (good, bad, good, bad)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert set(failed) == {bad}
    assert warnings.filters == filters
    assert limit == Image.MAX_IMAGE_PIXELS


def test_warnings_of_pil_neither_escape_nor_stop_the_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = bytearray(png(smooth(4, 8)))
    data[33:33] = b"\0\0\0\x08acTL" + bytes(8) + b"\x89M\xc0\x10"  # an animation of 0 frames
    with pytest.warns(UserWarning, match="APNG"):
        Image.open(io.BytesIO(data)).load()
    assert read_image(bytes(data)).pixels.shape == (4, 8, 3)
    monkeypatch.setattr(images_read, "MAX_PIXELS", 40)  # PIL warns from half of what we allow
    assert read_image(bytes(data)).pixels.shape == (4, 8, 3)


def read_quietly(data: bytes) -> None:
    """Reads; an InputError is well, and any other exception (warnings are
    errors here) fails the test.
    """
    with suppress(InputError):
        image = read_image(data)
        assert image.pixels.dtype == np.uint8
        assert image.pixels.ndim == 3


@pytest.mark.parametrize("kind", wholes())
def test_damaged_files_raise_input_error_or_are_read(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # flipped sizes stay small, so the test stays fast
    monkeypatch.setattr(images_read, "MAX_PIXELS", 1 << 20)
    data, random = wholes()[kind], np.random.default_rng(0)
    assert read_image(data).pixels.size
    for _ in range(30):
        damaged = bytearray(data[: random.integers(1, len(data))])
        read_quietly(bytes(damaged))
        damaged = bytearray(data)
        for _ in range(random.integers(1, 8)):
            # half of them in the header
            reach = len(data) if random.integers(2) else min(len(data), 200)
            damaged[random.integers(reach)] ^= 1 << random.integers(8)
        read_quietly(bytes(damaged))


def test_the_passes_of_a_jpeg_are_counted_by_its_markers() -> None:
    """Repeated \\xff before a marker, stuffed ones and restarts in the data are no passes."""
    segment = b"\xff\xe1\x00\x06\xff\xda\xff\xda"  # its own length hides what is in it
    scan = b"\xff\xda\x00\x02\x01\xff\x00\xff\xd3\xff\x01"
    end = b"\xff\xff\xd9"
    data = b"\xff\xd8" + segment + scan + b"\xff\xff\xff\xda\x00\x02" + scan + end + scan
    assert images_read._scans(data) == 3
