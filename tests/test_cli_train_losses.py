"""`vqtok train` with weights from elsewhere:
a tokenizer to start from, and the network of the perceptual distance.
"""

import json
from pathlib import Path

import pytest
import safetensors.numpy
import torch
from cli_helpers import small, train
from test_criterion import lpips_tensors

from vqtok import codec, weights
from vqtok.losses.lpips import ALEX

pytestmark = pytest.mark.usefixtures("few_vectors", "data")
LEVELS = ("--levels", "3", "--no-normalize", "--stage", "tokenizer")


# A tokenizer to start from


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    assert small("-o", "first", *LEVELS).exit_code == 0
    result = train(
        "data",
        "-o",
        "second",
        "--init",
        "./first",
        "--recipe",
        "small.toml",
        *LEVELS,
        "--learning-rate",
        "1e-8",
    )
    assert result.exit_code == 0, result.output
    first, second = (
        codec.load_tokenizer(tmp_path / name / "tokenizer.safetensors")
        for name in ("first", "second")
    )
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        if "codebook" not in name:  # restarts move codes
            torch.testing.assert_close(a, b, msg=name)
    assert json.loads((tmp_path / "second" / "run.json").read_text())["init"].endswith(
        "first/tokenizer.safetensors"
    )


def test_settings_of_the_network_come_with_its_weights(tmp_path: Path) -> None:
    assert small("-o", "first", *LEVELS, "--width", "12").exit_code == 0
    assert (
        train(
            "data",
            "-o",
            "second",
            "--init",
            "./first",
            "--stage",
            "tokenizer",
            "--steps",
            "2",
            "--size",
            "16",
        ).exit_code
        == 0
    )
    meta = weights.read_meta(tmp_path / "second" / "tokenizer.safetensors")
    assert (meta["config"]["width"], meta["config"]["levels"]) == (12, 3)


def test_weights_that_do_not_fit_are_a_usage_error(tmp_path: Path) -> None:
    assert small("-o", "first", *LEVELS).exit_code == 0
    for flags, words in [
        (("--init", "./first", "--width", "12"), "do not fit another width"),
        (("--init", "./first", "--resume"), "--init does not go with --resume"),
        (("--init", "nowhere"), "no model"),
    ]:
        result = train("data", "-o", "second", *LEVELS, *flags)
        assert result.exit_code in (1, 2)
        assert words in result.stderr, result.stderr
        assert result.stderr.count("\n") == 2
    assert not (tmp_path / "second").exists()


# The perceptual distance


def test_what_is_no_perceptual_network_leaves_the_old_run_alone(tmp_path: Path) -> None:
    assert small("-o", "m", *LEVELS).exit_code == 0
    before = fingerprint(tmp_path / "m")
    Path("pickle.safetensors").write_bytes(b"PK\3\4" + bytes(100))
    wrong = lpips_tensors(ALEX) | {
        "lin0.model.1.weight": lpips_tensors(ALEX)["lin1.model.1.weight"]
    }
    Path("wrong.safetensors").write_bytes(safetensors.numpy.save(wrong))
    for name, words in [
        ("pickle", "looks like a pickle"),
        ("wrong", "lin0.model.1.weight has the shape"),
        ("missing", "does not exist"),
    ]:
        result = small("-o", "m", "-f", *LEVELS, "--perceptual", f"{name}.safetensors")
        assert result.exit_code == 1
        assert words in result.stderr
        assert result.stderr.count("\n") == 2
    result = small("-o", "m", "-f", *LEVELS, "--perceptual-weight", "1")
    assert result.exit_code == 2
    assert "--perceptual FILE" in result.stderr
    assert fingerprint(tmp_path / "m") == before


def test_a_resumed_run_finds_its_perceptual_network(tmp_path: Path) -> None:
    Path("alex.safetensors").write_bytes(safetensors.numpy.save(lpips_tensors(ALEX)))
    flags = (
        *LEVELS,
        "--size",
        "64",
        "--perceptual",
        "alex.safetensors",
        "--set",
        "data.validation_max=1",
    )
    for name, steps in (("whole", "3"), ("parts", "2")):
        result = small(
            "-o", name, *flags, "--steps", steps, "--set", "tokenizer_training.validate_every=1"
        )
        assert result.exit_code == 0, result.output
    assert train("--resume", "-o", "parts", "--stage", "tokenizer", "--steps", "3").exit_code == 0
    last = [
        json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1])
        for name in ("whole", "parts")
    ]
    assert all(line["step"] == 3 and line["perceptual"] > 0 for line in last)


def fingerprint(out: Path) -> str:
    return weights.tokenizer_fingerprint(out / "tokenizer.safetensors")
