"""The built-in shapes, splits, and batches that are pure functions of their step."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqtok import images
from vqtok.data import (
    ArrayData,
    Batches,
    Dataset,
    ImageFiles,
    Shapes,
    convert_channels,
    counter_rng,
    open_data,
    read_whole,
    split_indices,
)
from vqtok.errors import InputError
from vqtok.images import write as images_write

# its package hides it behind a function


def targets(data: Dataset) -> list[int]:
    return [data.label(i) for i in range(len(data))]


# Shapes


def test_shapes_are_the_same_everywhere() -> None:
    shapes = Shapes()
    assert (len(shapes), shapes.image(0).shape, len(shapes.labels)) == (20000, (32, 32, 3), 6)
    some = np.array([19999, 3, 3, 500])
    block = shapes.images(some)
    assert all((shapes.image(int(i)) == block[j]).all() for j, i in enumerate(some))
    assert [shapes.label(i) for i in range(12)] == [3, 4, 4, 5, 1, 4, 3, 4, 4, 3, 1, 1], (
        "a bundled recipe's data must not move"
    )
    assert shapes.image(0)[16, ::8].mean(1).round().tolist() == pytest.approx(SHAPE_ROW, abs=1)
    with pytest.raises(IndexError):
        shapes.image(20000)


SHAPE_ROW = [80, 162, 90, 162]


@pytest.mark.slow
def test_shapes_vary_and_show_their_label() -> None:
    shapes = Shapes(600)
    counts = Counter(targets(shapes))
    assert len(counts) == 6
    assert min(counts.values()) > 60
    block = shapes.images(np.arange(600))
    assert len({p.tobytes() for p in block}) == 600
    assert block.reshape(600, -1).std(1).min() > 8, "each image has something on it"
    rings, circles = (
        block[np.array(targets(shapes)) == shapes.labels.index(k)] for k in ("ring", "circle")
    )
    assert rings.std((1, 2)).mean() < circles.std((1, 2)).mean(), "a ring covers less than a disk"
    # a small codebook has room for the colors of shapes, or of grounds, not for all pairs of both
    corner = block[:, 0, 0].astype(int)
    assert (corner.max(1) - corner.min(1)).mean() < 40, "grounds are tinted"
    middle = block[(block.max(3).astype(int) - block.min(3)).reshape(600, -1).max(1) > 100]
    assert len(middle) > 500, "shapes have strong colors"
    assert 0.3 < (corner.mean(1) < 110).mean() < 0.7, "half the grounds are dark"


@pytest.mark.slow
def test_test_shapes_are_not_training_shapes() -> None:
    train, test = open_data(None), open_data(None, "test")
    seen = {train.image(i).tobytes() for i in range(200)}
    assert not seen & {test.image(i).tobytes() for i in range(200)}


# Split and batches


def numbered(n: int, H: int = 4, W: int = 4) -> ArrayData:
    """Image i is i everywhere, so a batch tells what it holds."""
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, H, W, 1))
    return ArrayData("numbered", pixels, np.arange(n) % 3, ["a", "b", "c"])


def test_split() -> None:
    data = numbered(200)
    train, validation = split_indices(data, 0.1, 256, seed=4)
    assert len(validation) == 20
    assert sorted([*train, *validation]) == list(range(200))
    assert (split_indices(data, 0.1, 256, seed=4)[1] == validation).all()
    assert (split_indices(data, 0.1, 256, seed=5)[1] != validation).any()
    assert len(split_indices(data, 0.1, 7, seed=4)[1]) == 7
    assert len(split_indices(data, 0.0, 7, seed=4)[1]) == 0
    assert [len(part) for part in split_indices(numbered(2), 0.5, 256, 0)] == [1, 1]
    assert [len(part) for part in split_indices(numbered(1), 0.02, 256, 0)] == [1, 1]


class Copied(ArrayData):
    """`sources` says which image each is a copy of."""

    sources = np.zeros(0, np.int64)


def split_copies(sources: np.ndarray, part: float) -> tuple[np.ndarray, np.ndarray]:
    data = Copied("copied", np.zeros((len(sources), 4, 4, 1), np.uint8))
    data.sources = sources
    return split_indices(data, part, 256, seed=4)


def test_copies_of_an_image_lie_on_one_side_of_the_split() -> None:
    sources = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 4))
    train, validation = split_copies(sources, 0.2)
    aside = sources[validation].tolist()
    assert len(aside) == len(set(aside)) == 6  # a fifth of the images
    assert [sources.tolist().index(each) for each in aside] == validation.tolist()  # first copies
    assert sorted(validation) == validation.tolist()
    assert len(train) == 24 * 4
    assert {*sources[train].tolist()} == {*range(30)} - {*aside}
    assert [part.tolist() for part in split_copies(np.zeros(4, np.int64), 0.5)] == [
        [0, 1, 2, 3],
        [0],
    ]
    assert len(split_copies(np.repeat([0, 1], 4), 0.0)[1]) == 0
    for mine, theirs in zip(
        split_copies(np.arange(50), 0.1), split_indices(numbered(50), 0.1, 256, 4), strict=True
    ):
        assert (mine == theirs).all()


def test_each_epoch_shows_each_image_once() -> None:
    indices = np.arange(0, 100, 2)
    batches = Batches(numbered(100), indices, batch=8, size=4, channels=1)
    # 200 positions: 4 epochs
    shown = np.concatenate([batches.batch(step).pixels[:, 0, 0, 0] for step in range(25)])
    epochs = shown.reshape(4, 50)
    assert all(sorted(epoch) == indices.tolist() for epoch in epochs.tolist())
    assert (epochs[0] != epochs[1]).any(), "each epoch has its own order"


def test_labels_go_with_images() -> None:
    pixels, labels = Batches(numbered(100), np.arange(100), 32, 4, channels=1).batch(3)
    assert pixels.shape == (32, 1, 4, 4)
    assert labels.dtype == np.int64
    assert (pixels[:, 0, 0, 0] % 3 == labels).all()


def gradient(H: int, W: int, n: int = 6) -> ArrayData:
    """Red is the row, green the column, blue the image: a crop tells where it was cut."""
    pixels = np.zeros((n, H, W, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.mgrid[:H, :W]
    pixels[..., 2] = np.arange(n)[:, None, None]
    return ArrayData("gradient", pixels)


def test_crops_keep_pixels_and_reach_every_place() -> None:
    # (B, 3, 8, 8)
    pixels = Batches(gradient(10, 14), np.arange(6), 600, 8).batch(0).pixels.astype(int)
    assert (pixels[:, 0, :, :] - pixels[:, 0, :1, :1] == np.arange(8)[:, None]).all(), (
        "no resampling, height is height"
    )
    assert (pixels[:, 1, :, :] - pixels[:, 1, :1, :1] == np.arange(8)).all()
    assert {(p[0, 0, 0], p[1, 0, 0]) for p in pixels} == {
        (y, x) for y in range(3) for x in range(7)
    }


def test_scale_and_flip() -> None:
    data = gradient(32, 40)
    plain = Batches(data, np.arange(6), 200, 8, min_scale=0.25).batch(0).pixels.astype(int)
    span = plain[:, 1, 4, 7] - plain[:, 1, 4, 0]
    assert span.min() < 9
    assert span.max() > 22, "crops of 8 to 32 pixels a side"
    flipped = (
        Batches(data, np.arange(6), 200, 8, flip=True, min_scale=0.25).batch(0).pixels.astype(int)
    )
    mirrored = flipped[:, 1, 4, 0] > flipped[:, 1, 4, 7]
    assert 60 < mirrored.sum() < 140
    assert (flipped[mirrored] == plain[mirrored, :, :, ::-1]).all()
    assert (flipped[~mirrored] == plain[~mirrored]).all()


def test_small_images_are_enlarged() -> None:
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
        def images(self, indices: np.ndarray) -> np.ndarray:
            raise InputError("gone", "mount it")

    with pytest.raises(InputError, match="gone"):
        next(Batches(Broken("x", np.zeros((4, 8, 8, 3), np.uint8)), np.arange(4), 2, 8).prefetch(0))
    endless = Batches(gradient(8, 8), np.arange(6), 4, 8).prefetch(10)
    assert next(endless).pixels.shape == (4, 3, 8, 8)
    endless.close()


def jpegs(H: int, W: int, n: int = 4) -> tuple[ImageFiles, Counter[int]]:
    """JPEGs of smooth gradients, and a count of how often each is fetched."""
    slope = np.mgrid[:H, :W] * (250 / max(H, W))
    files = [
        images_write._encode(
            np.stack([*slope, np.full((H, W), 60 * i)], -1).astype(np.uint8), ".jpg"
        )
        for i in range(n)
    ]
    fetched: Counter[int] = Counter()

    def fetch(index: int) -> bytes:
        fetched[index] += 1
        return files[index]

    return ImageFiles("jpegs", [f"{i}.jpg" for i in range(n)], fetch), fetched


@pytest.mark.slow
def test_decoded_files_stay_in_memory_and_change_no_batch() -> None:
    def make(keep: int | None, min_scale: float) -> tuple[Batches, Counter[int]]:
        data, fetched = jpegs(48, 64)
        return Batches(
            data, np.arange(4), 6, 16, flip=True, min_scale=min_scale, keep=keep
        ), fetched

    for min_scale in (1.0, 0.2):
        forgetful, again = make(0, min_scale)
        straight = [forgetful.batch(step).pixels for step in range(8)]
        assert sum(again.values()) == 48
        for keep in (None, 2 * 48 * 64 * 3 + 100):
            batches, fetched = make(keep, min_scale)
            shown = {step: batches.batch(step).pixels for step in (7, 3, 3, 0, 6, 1, 2, 4, 5)}
            assert all((shown[step] == straight[step]).all() for step in range(8))
            assert sum(fetched.values()) < 48, "some were found in memory"
    batches, fetched = make(None, 1.0)
    assert sum(len(b.labels) for b in batches.prefetch(0, 20, 3)) == 120
    assert max(fetched.values()) <= 3, "each once, and more only where threads ask at the same time"


def test_memory_for_decoded_files_is_bounded() -> None:
    data, fetched = jpegs(48, 64)
    batches = Batches(data, np.arange(4), 4, 16, keep=2 * 48 * 64 * 3)
    for step in range(5):
        batches.batch(step)
    assert sorted(fetched.values()) == [1, 1, 5, 5], "two have room, whichever came first"
    assert sum(image.nbytes for image, _ in batches._kept._images.values()) == 2 * 48 * 64 * 3


@pytest.mark.slow
def test_jpegs_are_decoded_smaller_where_the_crop_is_shrunk_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, _ = jpegs(300, 500)
    whole_ones = [data.image(i) for i in range(4)]
    sizes: list[tuple[int, int, int]] = []
    reduced = ImageFiles.reduced

    def watched(self: ImageFiles, index: int, shrink: int, least: int) -> tuple[np.ndarray, int]:
        image, divisor = reduced(self, index, shrink, least)
        sizes.append((shrink, divisor, len(image)))
        return image, divisor

    monkeypatch.setattr(ImageFiles, "reduced", watched)
    ours = Batches(data, np.arange(4), 60, 32, min_scale=0.05).batch(0).pixels.astype(int)
    assert {(shrink, divisor) for shrink, divisor, _ in sizes} == {(1, 1), (2, 2), (4, 4), (8, 8)}
    assert all(height == -(-300 // divisor) >= 32 for _, divisor, height in sizes)
    full = (
        Batches(ArrayData("whole", np.stack(whole_ones)), np.arange(4), 60, 32, min_scale=0.05)
        .batch(0)
        .pixels.astype(int)
    )
    assert abs(ours - full).mean() < 1
    assert abs(ours - full).max() < 12, "the same places of the same images"
    sizes.clear()
    ours = Batches(data, np.arange(4), 60, 32, min_scale=0.51).batch(0).pixels
    assert (
        ours
        == Batches(ArrayData("whole", np.stack(whole_ones)), np.arange(4), 60, 32, min_scale=0.51)
        .batch(0)
        .pixels
    ).all()
    assert {divisor for _, divisor, _ in sizes} == {1}


def test_small_and_other_images_are_decoded_whole(tmp_path: Path) -> None:
    data, _ = jpegs(100, 40)
    assert [data.reduced(0, 8, least)[0].shape[:2] for least in (5, 6, 10, 11, 20, 21)] == [
        (13, 5),
        (25, 10),
        (25, 10),
        (50, 20),
        (50, 20),
        (100, 40),
    ]
    images.write_image(tmp_path / "a.png", np.zeros((100, 40, 3), np.uint8))
    assert images.read_image(tmp_path / "a.png", shrink=8).pixels.shape == (100, 40, 3)
    sideways = images.read_image(tmp_path / "a.png")
    assert sideways.reduced == 1


def test_channels() -> None:
    color = np.array(
        [[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [7, 7, 7]]], np.uint8
    )
    expected = np.asarray(Image.fromarray(color).convert("L"))
    assert (convert_channels(color, 1)[..., 0] == expected).all()
    assert (convert_channels(convert_channels(color, 1), 3)[..., 1] == expected).all()
    assert read_whole(numbered(3), 2, 3).shape == (4, 4, 3)
    assert Batches(gradient(8, 8), np.arange(6), 4, 8, channels=1).batch(0).pixels.shape == (
        4,
        1,
        8,
        8,
    )


def test_noise_is_fixed_and_even() -> None:
    assert counter_rng.bits(0, 0, np.arange(3)).tolist() == NOISE, "or old runs no longer resume"
    values = counter_rng.uniform(7, 2, np.arange(20000))
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.std() - 12**-0.5) < 0.01
    for other in (
        counter_rng.uniform(7, 3, np.arange(20000)),
        counter_rng.uniform(8, 2, np.arange(20000)),
        np.roll(values, 1),
    ):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.03
    assert sorted(counter_rng.permutation(1, 2, 1000).tolist()) == list(range(1000))


NOISE = [2558736989570252433, 3400964856525257824, 12865742008072950574]
