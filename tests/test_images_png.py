"""PNG files that vqtok packs itself."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_helpers import smooth
from PIL import Image

from vqtok.errors import OutputError
from vqtok.images import encode_png, write_image


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


def test_all_four_filters_are_used_and_read_back() -> None:
    draw = np.random.default_rng(0)
    across = np.cumsum(draw.integers(-9, 10, (8, 64, 3)), axis=1)  # as the left neighbor: 1
    down = np.broadcast_to(draw.integers(0, 256, (1, 64, 3)), (8, 64, 3))  # as the row above: 2
    noise = 128 + draw.normal(0, 9, (8, 64, 3))  # near the mean of both: 3
    plane = np.cumsum(across, axis=0) + np.cumsum(down, axis=1)  # by all three neighbors: 4
    pixels = np.concatenate([across, down, noise, plane]).astype(np.int64).astype(np.uint8)
    data = encode_png(pixels)
    at, packed = 8, b""
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    rows = zlib.decompress(packed)
    assert {rows[i * (1 + 64 * 3)] for i in range(32)} == {1, 2, 3, 4}
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_photos_take_no_more_bytes_than_by_level_6_and_are_searched_for_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(encode_png(photo())) <= 1.005 * by_pillow(photo(), 6)
    asked = list[int]()
    make = zlib.compressobj

    def watched(level: int, strategy: int, memLevel: int) -> object:
        asked.append(strategy)
        return make(level, strategy=strategy, memLevel=memLevel)

    monkeypatch.setattr(zlib, "compressobj", watched)
    encode_png(photo())
    assert asked[-1] == zlib.Z_RLE


def test_drawings_are_searched_for_all_that_repeats() -> None:
    assert len(encode_png(drawing())) <= 1.1 * by_pillow(drawing(), 4)


def test_an_image_without_pixels_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not take 0x4 pixels"):
        write_image(tmp_path / "a.png", np.zeros((4, 0, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
