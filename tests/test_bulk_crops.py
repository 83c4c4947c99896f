"""Crops, mirror images and the largest size of `vqtok encode`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bulk_helpers import contents, image_files, make_tar, png
from cli_helpers import fails, ok, run, save
from conftest import image
from PIL import Image

from vqtok import codec, codes
from vqtok.bulk import CodesDataset
from vqtok.bulk.crops import Crops
from vqtok.data import split_indices
from vqtok.errors import InputError, UsageError
from vqtok.train.shards import CodesData

pytestmark = pytest.mark.usefixtures("toy")


def gradient(H: int, W: int) -> np.ndarray:
    """Red grows to the right, green downwards: a crop tells where it lies."""
    red, green = np.meshgrid(np.arange(W), np.arange(H))
    return np.stack([red, green, np.zeros_like(red)], -1).astype(np.uint8)


def lanczos(pixels: np.ndarray, side: int, box: tuple[float, float, float, float]) -> np.ndarray:
    return np.asarray(
        Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS, box=box)
    )


def test_the_center_is_the_largest_square_in_one_lanczos_step():
    pixels = image(40, 61)
    (found,) = Crops.of(16).apply(pixels, "a")
    assert (found == lanczos(pixels, 16, (10, 0, 50, 40))).all()
    (same,) = Crops.of(40).apply(pixels, "a")
    assert (same == pixels[:, 10:50]).all()  # a copy, not resampled
    (tall,) = Crops.of(16).apply(pixels.swapaxes(0, 1), "a")
    assert (tall == lanczos(np.ascontiguousarray(pixels.swapaxes(0, 1)), 16, (0, 10, 40, 50))).all()
    (gray,) = Crops.of(16).apply(pixels[..., :1], "a")
    assert gray.shape == (16, 16, 1)


def test_ten_are_the_corners_and_the_middle_of_a_square_and_their_mirror_images():
    pixels = gradient(110, 150)  # the square is columns 20 to 129, its crops have 100
    found = Crops.of(100, "ten").apply(pixels, "a")
    assert found.shape == (10, 100, 100, 3)
    assert [tuple(crop[0, 0, :2]) for crop in found[:5]] == [
        (20, 0), (30, 0), (20, 10), (30, 10), (25, 5)
    ]  # fmt: skip
    assert (found[5:] == found[:5, :, ::-1]).all()


def test_random_crops_are_drawn_by_seed_and_name():
    pixels = gradient(100, 200)
    first = Crops.of(50, "random:40", seed=1).apply(pixels, "a.tar/0.png")
    assert (first == Crops.of(50, "random:40", seed=1).apply(pixels, "a.tar/0.png")).all()
    few = Crops.of(50, "random:3", seed=1).apply(pixels, "a.tar/0.png")
    assert (few == first[:3]).all()
    for other in (("a.tar/1.png", 1), ("b.tar/0.png", 1), ("a.tar/0.png", 2)):
        drawn = Crops.of(50, "random:40", seed=other[1]).apply(pixels, other[0])
        assert (drawn != first).any(axis=(1, 2, 3)).all()
    widths = first[:, 25, -1, 0].astype(int) - first[:, 25, 0, 0]
    assert 77 <= widths.min() < 83 < 95 < widths.max() <= 100  # squares of 80 to 100
    assert first[:, 0, 0, 0].min() < 20
    assert first[:, -1, -1, 0].max() > 180


def test_flip_and_max_size():
    pixels = image(30, 60)
    found = Crops.of(flip=True, max_size=20).apply(pixels, "a")
    assert found.shape == (2, 10, 20, 3)
    small = Image.fromarray(pixels).resize((20, 10), Image.Resampling.LANCZOS)
    assert (found[0] == np.asarray(small)).all()
    assert (found[1] == found[0][:, ::-1]).all()
    (kept,) = Crops.of(max_size=60).apply(pixels, "a")
    assert (kept == pixels).all()
    (thin,) = Crops.of(max_size=10).apply(image(1, 400), "a")
    assert thin.shape == (1, 10, 3)
    mirrored = Crops.of(16, "random:3", flip=True).apply(pixels, "a")
    assert (mirrored[3:] == mirrored[:3, :, ::-1]).all()


def test_moved_copies_follow_and_mirror_what_is_missing():
    pixels = gradient(48, 80)
    found = Crops.of(moved=60, seed=1).apply(pixels, "a")
    assert found.shape == (61, 48, 80, 3)
    assert (found[0] == pixels).all()
    wide = np.pad(pixels, ((3, 3), (3, 3), (0, 0)), "symmetric")  # 3: a sixteenth of 48
    places = set()
    for copy in found[1:]:
        x, y = (int(value) - 20 for value in copy[20, 20, :2])
        assert (copy == wide[3 + y : 51 + y, 3 + x : 83 + x]).all()
        places.add((x, y))
    assert (0, 0) not in places
    assert {x for x, _ in places} == {y for _, y in places} == set(range(-3, 4))
    assert (Crops.of(moved=9, seed=1).apply(pixels, "a") == found[:10]).all()
    assert (Crops.of(moved=60, seed=1).apply(pixels, "b") != found).any()
    both = Crops.of(16, "random:2", flip=True, moved=2)
    drawn = both.apply(pixels, "a")
    assert len(drawn) == both.copies == 12
    assert (drawn[:2] == Crops.of(16, "random:2").apply(pixels, "a")).all()
    assert (drawn[6:] == drawn[:6, :, ::-1]).all()
    assert Crops.of(16, "ten", moved=1).copies == len(
        Crops.of(16, "ten", moved=1).apply(pixels, "")
    )
    assert Crops.of(moved=2).apply(image(1, 2), "a").shape == (3, 1, 2, 3)
    with pytest.raises(InputError, match="1,000 moved copies of 600x400 hold more than"):
        Crops.of(moved=1000).apply(np.broadcast_to(np.uint8(0), (400, 600, 3)), "a")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--crop", "ten"), "give --size"),
        (("--size", 16, "--crop", "five"), "choose center, ten, or random:N"),
        (("--size", 16, "--crop", "random:0"), "with N from 1 to 1000"),
        (("--size", 16, "--crop", "random:1001"), "with N from 1 to 1000"),
        (("--size", 16, "--crop", "ten", "--flip"), "leave --flip out"),
        (("--size", 16, "--max-size", 20), "--max-size does not go with --size"),
        (("--size", 16, "--seed", 1), "--seed is for random crops and moved"),
        (("--moved", 1001), "give 0 to 1000 copies"),
        (("--size", 1 << 20), "give 1 to 65536 pixels"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[object, ...], what: str):
    save("a.png")
    assert what in fails("encode", "a.png", *words, code=2)
    with pytest.raises(UsageError):
        Crops.of(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--size", 12, "--crop", "ten"),
        ("--size", 8, "--crop", "random:3", "--seed", 5, "--flip"),
        ("--max-size", 12, "--flip"),
        ("--size", 20),
    ],
)
def test_copies_are_records_of_one_name_and_equal_however_they_are_made(words: tuple[object, ...]):
    members = image_files(5, ((16, 16), (18, 30), (40, 16)))
    members["002.png"] = b"no image"
    make_tar("a.tar", members)
    common = ("encode", "a.tar", "--shard-size", 2, "-q", *words)
    for out, workers in (("here", 0), ("there", 1)):
        assert "1 of" in run_failing(*common, "-o", out, "--workers", workers)
    for part in range(2):
        run(*common, "-o", "parts", "--shard", f"{part}/2", "--workers", 0)
    for path in Path("parts").glob("00000-00001.*"):
        path.unlink()
    run_failing(*common, "-o", "parts", "--resume", "--workers", 0)
    assert contents("here") == contents("there") == contents("parts")
    data, model = CodesDataset("here"), codec.load("toy")
    names = ("--size", "--crop", "--max-size", "--seed")
    given: dict[str, Any] = {str(w): words[i + 1] for i, w in enumerate(words) if w in names}
    size, crop, most, seed = map(given.get, names)
    crops = Crops.of(size, crop, "--flip" in words, most, seed)
    at = 0
    for i, name in enumerate(members):
        if i == 2:
            continue
        pixels = image(*((16, 16), (18, 30), (40, 16))[i % 3], seed=i)
        copies = crops.apply(pixels, f"a.tar/{name}")
        assert len(copies) == crops.copies
        for copy in copies:
            assert data[at][1] == f"a.tar/{name}"
            assert (data[at][0] == model.encode(np.ascontiguousarray(copy)).indices[0]).all()
            at += 1
    assert at == len(data)
    manifest = json.loads(Path("here/manifest.json").read_text())
    assert manifest["crops"] == crops.describe()
    assert "with another crops" in fails(
        "encode", "a.tar", "--shard-size", 2, "-o", "here", "--resume", "--workers", 0
    )


def run_failing(*words: object) -> str:
    done = run(*words)
    assert done.exit_code == 1, done.output
    return done.stderr


def test_enlarged_images_have_a_note():
    make_tar("a.tar", {"0.png": png(image(16, 30)), "1.png": png(image(20, 20))})
    ok("encode", "a.tar", "-o", "out", "--size", 20, "--workers", 0)
    lines = [json.loads(line) for line in Path("out/00000-00000.jsonl").read_text().splitlines()]
    assert [line.get("notes") for line in lines[1:]] == [["enlarged from 30x16"], None]


def test_a_file_holds_all_copies_of_its_image():
    save("a.png", image(24, 40))
    ok("encode", "a.png", "--size", 16, "--crop", "ten")
    model = codec.load("toy")
    copies = list(Crops.of(16, "ten").apply(image(24, 40), "a.png"))
    assert codes.read_plain_codes("a.npz") == model.encode_batch(copies)
    ok("encode", "a.png", "--max-size", 20, "-o", "small.npz")
    assert codes.read_plain_codes("small.npz").sizes == ((12, 20),)


def test_a_prior_validates_on_images_of_which_it_sees_no_copy():
    """Of images in two tars, which share names, and of which each has four copies."""
    for name, seed in (("a.tar", 0), ("b.tar", 9)):
        make_tar(name, {f"{i}.png": png(image(16, 24, seed=seed + i)) for i in range(4)})
    ok(
        "encode",
        "a.tar",
        "b.tar",
        "-o",
        "out",
        "--size",
        16,
        "--crop",
        "random:2",
        "--flip",
        "--workers",
        0,
    )
    data, stored = CodesData(Path("out")), CodesDataset("out")
    assert data.notes == (
        "32 copies of 8 images: of an image set aside for validation, the first copy is used, and "
        "none is trained on.",
    )
    assert data.mirrored
    for seed in range(5):
        train, aside = split_indices(data, 0.4, 256, seed)
        names = [{stored[i][1] for i in part} for part in (train, aside)]
        assert len(names[1]) == len(aside) == 3
        assert len(names[0]) == 5
        assert not names[0] & names[1]


def test_llamagen_has_the_copies_of_an_image_in_one_file():
    for name in ("cat/0", "cat/1", "dog/2"):
        save(f"in/{name}.png", image(18, 20))
    ok("encode", "in", "-o", "codes", "--bulk", "--size", 16, "--crop", "ten", "--workers", 0)
    ok("export", "codes", "-o", "out", "--to", "llamagen")
    found = [np.load(f"out/imagenet16_codes/{i}.npy") for i in range(3)]
    assert [each.shape for each in found] == [(1, 10, 16)] * 3
    labels = [np.load(f"out/imagenet16_labels/{i}.npy").tolist() for i in range(3)]
    assert labels == [[0], [0], [1]]
