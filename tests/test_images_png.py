"""PNG files: what they hold, and how many bytes they take."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_helpers import smooth
from PIL import Image

from vqtok.errors import OutputError
from vqtok.images import encode_png, read, read_image, write_image


def drawing() -> np.ndarray:
    """Equal letters on white: what repeats is no run."""
    letter = np.random.default_rng(0).integers(0, 2, (12, 8, 1), np.uint8) * np.uint8(255)
    return np.tile(letter, (20, 40, 3))


def by_pillow(pixels: np.ndarray, level: int) -> int:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=level)
    return len(file.getvalue())


def photo() -> np.ndarray:
    """A smooth image with noise: (200, 300, 3)."""
    noise = np.random.default_rng(0).normal(0, 3, (200, 300, 3))
    return (smooth(200, 300).astype(float) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1, 1), (3, 1, 3), (1, 9, 3), (9, 7, 4), (70, 700, 3), (2, 70_000, 3)]
)
def test_pixels_come_back(shape: tuple[int, ...]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    steps = np.cumsum(noise // 32, axis=0, dtype=np.uint8)  # wraps around at 256
    for pixels in (noise, steps, np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)):
        with Image.open(io.BytesIO(encode_png(pixels))) as image:
            image.load()  # checks the sums
            assert np.array_equal(np.asarray(image).reshape(shape), pixels)


def test_photos_take_no_more_bytes_than_by_level_6_and_are_searched_for_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(encode_png(photo())) <= 1.005 * by_pillow(photo(), 6)
    asked = list[int]()
    save = Image.Image.save

    def watched(self: Image.Image, *args: Any, **more: Any) -> None:
        asked.append(more["compress_type"])
        save(self, *args, **more)

    monkeypatch.setattr(Image.Image, "save", watched)
    encode_png(photo())
    assert asked[-1] == zlib.Z_RLE


def test_drawings_are_searched_for_all_that_repeats() -> None:
    assert len(encode_png(drawing())) <= by_pillow(drawing(), 4)


def test_an_image_without_pixels_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not take 0x4 pixels"):
        write_image(tmp_path / "a.png", np.zeros((4, 0, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_small_and_large_images_become_equal_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_png(photo())
    whole = read_image(data).pixels
    monkeypatch.setattr(read, "_AT_ONCE", 100)
    assert np.array_equal(read_image(data).pixels, whole)
    whole[0, 0] = 0  # they can be written to
