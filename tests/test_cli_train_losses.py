"""`vqtok train` with weights from elsewhere:
a tokenizer to start from, and the network of the perceptual distance.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from cli_helpers import small, train
from test_criterion import lpips_tensors

from vqtok import codec, weights
from vqtok.losses.lpips import ALEX

pytestmark = pytest.mark.usefixtures("data")
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


FROZEN = (
    *("--set", "tokenizer_training.freeze_encoder=true"),
    *("--set", "losses.adversarial=1", "--set", "tokenizer_training.ema=0.9"),
    *("--steps", "12"),
)


def test_a_frozen_encoder_keeps_its_codes(tmp_path: Path) -> None:
    assert small("-o", "first", *LEVELS).exit_code == 0
    path = tmp_path / "first" / "tokenizer.safetensors"
    signed = weights.load_weights(path, "tokenizer")
    signed.tensors["quantizer.depth"][:] = -0.0  # an average would forget the sign
    weights.save_weights(path, signed)
    frozen = (*LEVELS, "--init", "./first", *FROZEN)
    assert small("-o", "second", *frozen).exit_code == 0
    assert small("-o", "parts", *frozen, "--steps", "5").exit_code == 0
    steps = json.loads((tmp_path / "second" / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert train("data", "-o", "parts", "--resume", "--steps", str(steps)).exit_code == 0
    first, second, parts = (
        weights.load_weights(tmp_path / name / "tokenizer.safetensors", "tokenizer")
        for name in ("first", "second", "parts")
    )
    for name, tensor in first.tensors.items():
        same = np.array_equal(tensor, second.tensors[name])
        assert same or name.startswith("decoder."), name
    assert weights.fingerprint(first.tensors) != weights.fingerprint(second.tensors)
    # the codes of one are those of the other, in files too
    for stored in (second, parts):
        assert weights.codes_fingerprint(stored) == weights.fingerprint(first.tensors)
    model, other = codec.load("./first"), codec.load("./second")
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    codes = other.encode(image)
    assert codes.fingerprint == model.fingerprint == second.record["fingerprint"]
    assert np.array_equal(codes.indices, model.encode(image).indices)
    assert not np.array_equal(other.decode(codes), model.decode(codes))


def test_codes_are_kept_only_while_the_encoder_is_the_same(tmp_path: Path) -> None:
    assert small("-o", "first", *LEVELS).exit_code == 0
    stored = weights.load_weights(tmp_path / "first" / "tokenizer.safetensors", "tokenizer")
    own = weights.fingerprint(stored.tensors)
    kept = weights.kept_codes(stored) | {"fingerprint": "0123abcd"}
    for value, expected in [
        (kept, "0123abcd"),
        (kept | {"encoder": "00000000"}, own),
        (kept | {"fingerprint": "../../x"}, own),
        ("0123abcd", own),
    ]:
        claims = weights.Weights(stored.tensors, stored.meta | {"codes": value})
        assert weights.codes_fingerprint(claims) == expected


def test_freezing_needs_a_model_to_start_from(tmp_path: Path) -> None:
    result = small("-o", "m", *LEVELS, *FROZEN)
    assert result.exit_code == 2
    assert "--init MODEL" in result.stderr
    assert not (tmp_path / "m").exists()


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
