"""Training of several levels, with averaged weights and further losses:
what is learned, kept, logged and resumed.
"""

import math
from pathlib import Path

import pytest
import torch
from test_criterion import alex, lpips_tensors  # noqa: F401
from torch import nn
from train_helpers import Interrupt, contents, go, log, recipe_for

from vqtok import codec, weights
from vqtok.config import Recipe
from vqtok.data import Shapes
from vqtok.train.ema import WeightAverage

DATA = Shapes(40, 32)
LEVELS = {
    "tokenizer": {"levels": 3, "normalize": False, "level_dropout": 0.5},
    "tokenizer_training": {"ema": 0.5},
    "losses": {"ms_ssim": 0.5},
}


def recipe(**values: object) -> Recipe:
    return recipe_for(DATA, **{**LEVELS, **values})


# Averaged weights


def test_the_average_follows_the_weights():
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(0.0)
    average = WeightAverage(network, 0.75)
    average.reset()
    expected = 0.0
    for step in range(1, 40):
        with torch.no_grad():
            network.weight.fill_(float(step))
        average.schedule(step)
        average.update()
        decay = min(0.75, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        assert float(network.weight.detach()) == pytest.approx(expected)
    assert float(network.weight.detach()) == 39.0
    assert list(average.tensors) == ["ema.weight"]


@pytest.mark.slow
def test_the_average_is_what_is_kept(tmp_path: Path):
    go(tmp_path / "plain", recipe(tokenizer_training={"ema": 0.0}), DATA, stage="tokenizer")
    go(tmp_path / "mean", recipe(), DATA, stage="tokenizer")
    plain, mean = (
        weights.load_weights(tmp_path / name / "tokenizer.safetensors", "tokenizer").tensors
        for name in ("plain", "mean")
    )
    states = [
        weights.load_weights(tmp_path / name / "tokenizer.state.safetensors", "state").tensors
        for name in ("plain", "mean")
    ]
    name = "decoder.0.weight"
    assert (states[0][f"network.{name}"] == states[1][f"network.{name}"]).all(), (
        "the average does not change what is learned"
    )
    assert (plain[name] != mean[name]).any()
    assert (mean[name] == states[1][f"ema.{name}"].astype("float16")).all()


# Levels


@pytest.mark.slow
def test_a_run_with_levels_resumes_bit_by_bit(tmp_path: Path):
    go(tmp_path / "whole", recipe(), DATA)
    for step in (3, 6):
        go(tmp_path / "parts", recipe(), DATA, Interrupt("tokenizer", step), resume=step > 3)
    go(tmp_path / "parts", recipe(), DATA, resume=True)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    assert log(tmp_path / "whole") == log(tmp_path / "parts")


@pytest.mark.slow
def test_validation_looks_at_several_depths(tmp_path: Path):
    listener = Interrupt()
    go(tmp_path / "run", recipe(), DATA, listener, stage="tokenizer")
    line = log(tmp_path / "run")[-1]
    depths = ("_1", "_2", "")
    assert all(
        math.isfinite(line[f"val_{name}{depth}"])
        for name in ("mse", "psnr", "ms_ssim")
        for depth in depths
    )
    assert len({line[f"val_mse{depth}"] for depth in depths}) == 3
    assert "of the level that uses the fewest, of 3" in listener.sentences[-1]
    state = weights.load_weights(tmp_path / "run" / "tokenizer.state.safetensors", "state")
    score = (
        sum(line[f"val_mse{depth}"] / 0.0633 + line[f"val_ms_ssim{depth}"] for depth in depths) / 3
    )
    assert state.record["best"] == pytest.approx(min(score, state.record["best"]))
    assert state.record["best_step"] != 8 or state.record["best"] == pytest.approx(score)


@pytest.mark.slow
def test_the_prior_learns_all_levels(tmp_path: Path):
    go(tmp_path / "run", recipe(), DATA)
    model = codec.load(tmp_path / "run")
    assert (model.config.levels, model.prior.config.levels) == (3, 3)
    assert model.sample_codes(2, (16, 16)).indices.shape == (2, 3, 4, 4)


@pytest.mark.slow
def test_the_perceptual_distance_is_learned_from(tmp_path: Path, alex: Path):  # noqa: F811
    size = {"size": 64, "prior_size": 64, "validation_max": 2}
    values = {"data": size, "tokenizer_training": {"steps": 2, "validate_every": 2, "batch": 2}}
    data = Shapes(10, 64)
    go(tmp_path / "without", recipe_for(data, **values), data, stage="tokenizer")
    go(
        tmp_path / "with",
        recipe_for(data, losses={"perceptual": 1.0}, **values),
        data,
        stage="tokenizer",
        perceptual=alex,
    )
    without, line = log(tmp_path / "without")[-1], log(tmp_path / "with")[-1]
    assert line["perceptual"] > 0
    assert line["val_perceptual"] > 0
    assert "perceptual" not in without
    assert line["loss"] != without["loss"]


@pytest.mark.slow
def test_the_perceptual_distance_waits_for_its_start(tmp_path: Path, alex: Path):  # noqa: F811
    size = {"size": 64, "prior_size": 64, "validation_max": 2}
    stage = {"steps": 4, "validate_every": 1, "batch": 2}
    data, values = Shapes(10, 64), {"perceptual": 1.0, "perceptual_start": 0.5}
    go(
        tmp_path / "run",
        recipe_for(data, data=size, tokenizer_training=stage, losses=values),
        data,
        stage="tokenizer",
        perceptual=alex,
    )
    lines = log(tmp_path / "run")
    assert ["perceptual" in line for line in lines] == [False, False, True, True]
    assert all(line["val_perceptual"] > 0 for line in lines)
