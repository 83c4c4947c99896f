"""The built-in shapes, splits, and batches that are pure functions of their step."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vqtok.data import ArrayData, Batches, Dataset, Shapes, convert, noise, open_data, split, whole
from vqtok.errors import InputError


def targets(data: Dataset) -> list[int]:
    return [data.label(i) for i in range(len(data))]


# Shapes

def test_shapes_are_the_same_everywhere() -> None:
    shapes = Shapes()
    assert (len(shapes), shapes.picture(0).shape, len(shapes.labels)) == (20000, (32, 32, 3), 6)
    some = np.array([19999, 3, 3, 500])
    block = shapes.pictures(some)
    assert all((shapes.picture(int(i)) == block[j]).all() for j, i in enumerate(some))
    assert [shapes.label(i) for i in range(12)] == [3, 4, 4, 5, 1, 4, 3, 4, 4, 3, 1, 1], "a bundled recipe's data must not move"
    assert shapes.picture(0)[16, ::8].mean(1).round().tolist() == pytest.approx(SHAPE_ROW, abs=1)
    with pytest.raises(IndexError):
        shapes.picture(20000)


SHAPE_ROW = [68, 170, 77, 65]


def test_shapes_vary_and_show_their_label() -> None:
    shapes = Shapes(600)
    counts = Counter(targets(shapes))
    assert len(counts) == 6
    assert min(counts.values()) > 60
    block = shapes.pictures(np.arange(600))
    assert len({p.tobytes() for p in block}) == 600
    assert block.reshape(600, -1).std(1).min() > 8, "each picture has something on it"
    rings, circles = (block[np.array(targets(shapes)) == shapes.labels.index(k)] for k in ("ring", "circle"))
    assert rings.std((1, 2)).mean() < circles.std((1, 2)).mean(), "a ring covers less than a disk"


def test_test_shapes_are_not_training_shapes() -> None:
    train, test = open_data(None), open_data(None, "test")
    seen = {train.picture(i).tobytes() for i in range(200)}
    assert not seen & {test.picture(i).tobytes() for i in range(200)}


# Split and batches

def numbered(n: int, H: int = 4, W: int = 4) -> ArrayData:
    """Picture i is i everywhere, so a batch tells what it holds."""
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, H, W, 1))
    return ArrayData("numbered", pixels, np.arange(n) % 3, ["a", "b", "c"])


def test_split() -> None:
    data = numbered(200)
    train, validation = split(data, 0.1, 256, seed=4)
    assert len(validation) == 20
    assert sorted([*train, *validation]) == list(range(200))
    assert (split(data, 0.1, 256, seed=4)[1] == validation).all()
    assert (split(data, 0.1, 256, seed=5)[1] != validation).any()
    assert len(split(data, 0.1, 7, seed=4)[1]) == 7
    assert len(split(data, 0.0, 7, seed=4)[1]) == 0
    assert [len(part) for part in split(numbered(2), 0.5, 256, 0)] == [1, 1]
    assert [len(part) for part in split(numbered(1), 0.02, 256, 0)] == [1, 1]


def test_each_epoch_shows_each_picture_once() -> None:
    indices = np.arange(0, 100, 2)
    batches = Batches(numbered(100), indices, batch=8, size=4, channels=1)
    shown = np.concatenate([batches.batch(step).pixels[:, 0, 0, 0] for step in range(25)])     # 200 positions: 4 epochs
    epochs = shown.reshape(4, 50)
    assert all(sorted(epoch) == indices.tolist() for epoch in epochs.tolist())
    assert (epochs[0] != epochs[1]).any(), "each epoch has its own order"


def test_labels_go_with_pictures() -> None:
    pixels, labels = Batches(numbered(100), np.arange(100), 32, 4, channels=1).batch(3)
    assert pixels.shape == (32, 1, 4, 4)
    assert labels.dtype == np.int64
    assert (pixels[:, 0, 0, 0] % 3 == labels).all()


def gradient(H: int, W: int, n: int = 6) -> ArrayData:
    """Red is the row, green the column, blue the picture: a crop tells where it was cut."""
    pixels = np.zeros((n, H, W, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.mgrid[:H, :W]
    pixels[..., 2] = np.arange(n)[:, None, None]
    return ArrayData("gradient", pixels)


def test_crops_keep_pixels_and_reach_every_place() -> None:
    pixels = Batches(gradient(10, 14), np.arange(6), 600, 8).batch(0).pixels.astype(int)     # (B, 3, 8, 8)
    assert (pixels[:, 0, :, :] - pixels[:, 0, :1, :1] == np.arange(8)[:, None]).all(), "no resampling, height is height"
    assert (pixels[:, 1, :, :] - pixels[:, 1, :1, :1] == np.arange(8)).all()
    assert {(p[0, 0, 0], p[1, 0, 0]) for p in pixels} == {(y, x) for y in range(3) for x in range(7)}


def test_scale_and_flip() -> None:
    data = gradient(32, 40)
    plain = Batches(data, np.arange(6), 200, 8, min_scale=0.25).batch(0).pixels.astype(int)
    span = plain[:, 1, 4, 7] - plain[:, 1, 4, 0]
    assert span.min() < 9
    assert span.max() > 22, "crops of 8 to 32 pixels a side"
    flipped = Batches(data, np.arange(6), 200, 8, flip=True, min_scale=0.25).batch(0).pixels.astype(int)
    mirrored = (flipped[:, 1, 4, 0] > flipped[:, 1, 4, 7])
    assert 60 < mirrored.sum() < 140
    assert (flipped[mirrored] == plain[mirrored, :, :, ::-1]).all()
    assert (flipped[~mirrored] == plain[~mirrored]).all()


def test_small_pictures_are_enlarged() -> None:
    for H, W in ((1, 1), (3, 5), (50, 2)):
        assert Batches(gradient(H, W), np.arange(6), 4, 16).batch(0).pixels.shape == (4, 3, 16, 16)


def test_batch_is_a_pure_function_of_its_step() -> None:
    def make(seed: int = 3) -> Batches:
        return Batches(gradient(12, 12), np.arange(6), 16, 8, seed, flip=True, min_scale=0.7)

    straight = [make().batch(step).pixels for step in range(6)]
    resumed = make()
    assert all((resumed.batch(step).pixels == straight[step]).all() for step in (5, 2, 4, 2))
    assert (make(4).batch(0).pixels != straight[0]).any()
    for workers in (1, 3):
        ahead = [b.pixels for b in make().prefetch(2, 6, workers)]
        assert len(ahead) == 4
        assert all((a == b).all() for a, b in zip(ahead, straight[2:], strict=True))


def test_prefetch_ends_and_passes_errors_on() -> None:
    class Broken(ArrayData):
        def pictures(self, indices: np.ndarray) -> np.ndarray:
            raise InputError("gone", "mount it")

    with pytest.raises(InputError, match="gone"):
        next(Batches(Broken("x", np.zeros((4, 8, 8, 3), np.uint8)), np.arange(4), 2, 8).prefetch(0))
    endless = Batches(gradient(8, 8), np.arange(6), 4, 8).prefetch(10)
    assert next(endless).pixels.shape == (4, 3, 8, 8)
    endless.close()


def test_channels() -> None:
    color = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [7, 7, 7]]], np.uint8)
    expected = np.asarray(Image.fromarray(color).convert("L"))
    assert (convert(color, 1)[..., 0] == expected).all()
    assert (convert(convert(color, 1), 3)[..., 1] == expected).all()
    assert whole(numbered(3), 2, 3).shape == (4, 4, 3)
    assert Batches(gradient(8, 8), np.arange(6), 4, 8, channels=1).batch(0).pixels.shape == (4, 1, 8, 8)


def test_noise_is_fixed_and_even() -> None:
    assert noise.bits(0, 0, np.arange(3)).tolist() == NOISE, "or old runs no longer resume"
    values = noise.uniform(7, 2, np.arange(20000))
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.std() - 12**-0.5) < 0.01
    for other in (noise.uniform(7, 3, np.arange(20000)), noise.uniform(8, 2, np.arange(20000)), np.roll(values, 1)):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.03
    assert sorted(noise.permutation(1, 2, 1000).tolist()) == list(range(1000))


NOISE = [2558736989570252433, 3400964856525257824, 12865742008072950574]
