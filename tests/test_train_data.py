"""What reaches a model from the data: channels, unreadable images, grids of codes;
and the plan that tells the costs.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image, make_model
from train_helpers import SMALL, Interrupt, data_threads, go, recipe_for, truncate, write_images

from vqtok import codec, images
from vqtok import train as training
from vqtok.config import TokenizerConfig
from vqtok.data import ArrayData, Shapes, open_data
from vqtok.errors import InputError, TrainingError
from vqtok.networks.vqvae import VQVAE
from vqtok.train.grids import Grids, encode_dataset, load_grids, save_grids
from vqtok.train.plan import multiply_adds_by_part

# Data


@pytest.mark.slow
def test_gray_idx_images_give_a_gray_model(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    place = tmp_path / "mnist"
    place.mkdir()
    (place / "train-images-idx3-ubyte").write_bytes(
        b"\0\0\x08\x03" + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes()
    )
    labels = np.arange(12, dtype=np.uint8) % 3
    (place / "train-labels-idx1-ubyte").write_bytes(
        b"\0\0\x08\x01" + np.array(labels.shape, ">u4").tobytes() + labels.tobytes()
    )
    spec, data = training.new_run(
        training.RunSpec(data=str(place), values={**SMALL, "data": {"validation_max": 4}})
    )
    assert (spec.recipe.tokenizer.channels, spec.recipe.data.size, spec.recipe.precision) == (
        1,
        28,
        "bf16",
    )
    assert go(tmp_path / "run", spec.recipe, data)
    model = codec.load(tmp_path / "run")
    assert model.sample(2)[0].shape == (28, 28, 1)
    assert model.labels == ("0", "1", "2")
    assert images.read_image(tmp_path / "run" / "tokenizer-000008.png").pixels.ndim == 3


@pytest.mark.slow
def test_channels_may_be_chosen(tmp_path: Path) -> None:
    spec, _ = training.new_run(
        training.RunSpec(values=training.merge([SMALL, {"tokenizer": {"channels": 1}}]))
    )
    assert spec.recipe.tokenizer.channels == 1
    assert go(tmp_path, spec.recipe, Shapes(12))
    assert codec.load(tmp_path).sample(1)[0].shape[2] == 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_images_than_a_batch(tmp_path: Path, count: int) -> None:
    data = ArrayData("few", np.stack([image(16, 16, seed=i) for i in range(count)]))
    listener = Interrupt()
    assert go(tmp_path, recipe_for(data), data, listener)
    assert codec.load(tmp_path).sample(1)[0].shape == (16, 16, 3)


@pytest.mark.slow
def test_unreadable_images_are_left_out_and_counted(tmp_path: Path) -> None:
    names = {f"{i % 2}/{i:02}.png": i for i in range(12)}
    place = write_images(tmp_path / "data", names)
    for bad in (1, 4, 7):
        (place / f"{bad % 2}/{bad:02}.png").write_bytes(b"not an image")
    data = open_data(place)
    recipe = recipe_for(data, data={"validation": 0.5, "validation_max": 6})
    listener = Interrupt()
    assert go(tmp_path / "run", recipe, data, listener)
    assert data.skipped == 3
    stored = load_grids(
        tmp_path / "run" / "indices.state.safetensors", codec.load(tmp_path / "run").fingerprint, 24
    )
    assert stored is not None
    empty = [i for i in range(24) if stored[i].size == 0]
    order = sorted(names)
    assert [order[i // 2] for i in empty] == ["0/04.png"] * 2 + ["1/01.png"] * 2 + ["1/07.png"] * 2


@pytest.mark.slow
def test_validation_images_that_are_all_unreadable_are_replaced(tmp_path: Path) -> None:
    place = write_images(tmp_path / "data", {f"{i}.png": i for i in range(4)})
    data = open_data(place)
    recipe = recipe_for(data, data={"validation_max": 1})
    _, aside = training.split_indices(data, recipe.data.validation, 1, recipe.seed)
    (place / f"{aside[0]}.png").write_bytes(b"")
    listener = Interrupt()
    assert go(tmp_path / "run", recipe, open_data(place), listener)
    said = "3 images to train on, none set aside: validation looks at training images."
    assert said in listener.notes


def test_one_image_is_not_said_to_be_set_aside(tmp_path: Path) -> None:
    data = open_data(write_images(tmp_path / "data", {"0.png": 0}))
    listener = Interrupt("tokenizer", 1)
    go(tmp_path / "run", recipe_for(data), data, listener)
    said = "1 image to train on, none set aside: validation looks at training images."
    assert said in listener.notes


def test_images_that_all_become_unreadable(tmp_path: Path) -> None:
    place = write_images(tmp_path / "data", {f"{i}.png": i for i in range(4)})
    data = open_data(place)
    for path in place.iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no image of data can be read"):
        go(tmp_path / "run", recipe_for(data), data)


@pytest.mark.slow
def test_data_error_in_the_middle_ends_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Shapes(24)

    def broken(self: Shapes, indices: np.ndarray) -> np.ndarray:
        raise InputError("the disk is gone", "plug it in")

    class Break(Interrupt):
        def status(self, status: training.Status) -> None:
            monkeypatch.setattr(Shapes, "images", broken)

    recipe = recipe_for(data, tokenizer_training={"steps": 1000})
    try:
        go(tmp_path, recipe, data, Break())
    except InputError:
        assert not data_threads()
    else:
        pytest.fail("the error is lost")


# Grids


def test_grids_are_those_that_encoding_gives(tmp_path: Path) -> None:
    model = codec.load(make_model(tmp_path / "m"))
    sizes = [(20, 30), (20, 30), (9, 5), (1, 1)]
    pixels = [image(*size, seed=i) for i, size in enumerate(sizes)]
    for i, image_ in enumerate(pixels):
        images.write_image(tmp_path / "d" / f"{i}.png", image_)
    listener = Interrupt()
    run = training.RunContext(
        training.RunSpec(folder=tmp_path), torch.device("cpu"), listener=listener
    )
    grids = encode_dataset(model.network, open_data(tmp_path / "d"), True, run)
    assert grids is not None
    for i, image_ in enumerate(pixels):
        assert np.array_equal(grids[2 * i], model.encode(image_).indices[0])
        assert np.array_equal(
            grids[2 * i + 1], model.encode(np.ascontiguousarray(image_[:, ::-1])).indices[0]
        )
    assert (listener.statuses[-1].step, listener.statuses[-1].steps) == (4, 4)
    assert grids.flat.dtype == np.uint8


def test_grids_on_disk(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = [
        draw.integers(0, 300, (1, h, w)).astype(np.uint16) for h, w in ((3, 4), (0, 0), (5, 2))
    ]
    grids = Grids.of_list(arrays, np.array([2, -1, 0]))
    path = tmp_path / "indices.state.safetensors"
    save_grids(path, grids, "0123abcd")
    back = load_grids(path, "0123abcd", 3)
    assert back is not None
    assert all(np.array_equal(back[i], arrays[i]) for i in range(3))
    assert np.array_equal(back.known().select(np.array([1]))[0], arrays[2])
    assert back.known().labels.tolist() == [2, 0]
    assert load_grids(path, "ffffffff", 3) is None
    assert load_grids(path, "0123abcd", 4) is None
    assert load_grids(tmp_path / "none", "0123abcd", 3) is None
    save_grids(path, replace(grids, flat=grids.flat[:-1]), "0123abcd")
    with pytest.raises(TrainingError, match="damaged"):
        load_grids(path, "0123abcd", 3)
    truncate(path)
    with pytest.raises(TrainingError, match="damaged"):
        load_grids(path, "0123abcd", 3)


# The plan


def test_multiply_adds_are_counted_by_hand() -> None:
    network = VQVAE(
        TokenizerConfig(
            downsample=4, width=8, encoder_blocks=1, decoder_blocks=0, codebook_size=16, code_dim=4
        )
    )
    cells = 1 / 16  # everything happens at a quarter of the side
    costs = multiply_adds_by_part(network)
    assert costs["encoder"] == pytest.approx(cells * (48 * 8 * 9 + 2 * 8 * 8 * 9 + 8 * 4))
    assert costs["decoder"] == pytest.approx(cells * (4 * 8 * 9 + 8 * 48 * 9))


@pytest.mark.slow
def test_plan_tells_size_and_time() -> None:
    data = Shapes(24)
    facts = training.plan(recipe_for(data), data, "all", torch.device("cpu"))
    network = VQVAE(recipe_for(data).tokenizer)
    assert facts["pictures"] == 24
    assert facts["bpp"] == 4 / 16
    entry = facts["stages"]["tokenizer"]
    assert entry["parameters"] == sum(p.numel() for p in network.parameters())
    assert entry["seconds"] == entry["seconds_per_step"] * 8 > 0
    assert list(training.plan(recipe_for(data), data, "prior", torch.device("cpu"))["stages"]) == [
        "prior"
    ]
