"""`vqtok train` as a command: what it writes, what it says, how it stops, and what cannot work."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import fingerprints, small, train
from conftest import make_model
from typer.testing import Result
from warm import TRAIN, Warm

from vqtok import images, weights
from vqtok import train as training
from vqtok.cli import train as command
from vqtok.train import loop


def refused(result: Result, code: int, *texts: str) -> None:
    """Two lines on standard error, nothing on standard output."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.rstrip().splitlines()
    assert lines[-2].startswith("vqtok: error: ")
    assert lines[-1].startswith("  fix: ")
    for text in texts:
        assert text in result.stderr


def stop_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int, number: int) -> None:
    """Sends this process a signal after some step."""
    report = command.Listener.status

    def status(self: Any, status: training.Status) -> None:
        report(self, status)
        if (status.stage, status.step) == (stage, step):
            signal.raise_signal(number)

    monkeypatch.setattr(command.Listener, "status", status)


# A whole run


def test_run_writes_a_model_with_card_and_samples(data: Path, tmp_path: Path) -> None:
    result = small("-o", "m")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    out = tmp_path / "m"
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "log.jsonl",
        "recipe.toml",
        "run.json",
        "samples.png",
        "indices.state.safetensors",
        *(
            f"{kind}{end}.safetensors"
            for kind in ("tokenizer", "prior", "entropy")
            for end in ("", ".state")
        ),
        *(f"tokenizer-{step:06}.png" for step in (3, 6)),
    }
    assert weights.read_meta(out / "prior.safetensors")["config"]["labels"] == ["a", "b"]
    card = (out / "README.md").read_text()
    assert card.startswith(f"# m ({fingerprints(out)[0]})\n")
    assert "data, 12 images" in card
    assert "![Samples of the prior](samples.png)" in card
    assert images.read_image(out / "samples.png").pixels.shape[2] == 3
    assert "12 images with 2 labels from data -> m" in result.stderr
    assert "codes are in use" in result.stderr
    assert "vqtok encode --model ./m IMAGE" in result.stderr


@pytest.mark.slow
def test_name_of_the_folder_may_be_that_of_a_model(data: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "photo")
    assert small("-o", "photo").exit_code == 0
    first = images.read_image(tmp_path / "photo" / "samples.png").pixels
    assert small("-o", "other").exit_code == 0
    assert np.array_equal(first, images.read_image(tmp_path / "other" / "samples.png").pixels)


@pytest.mark.slow
def test_json_gives_one_object_a_line(data: Path, tmp_path: Path) -> None:
    result = small("-o", "m", "--json", "--quiet")
    assert result.stderr == ""
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["stage"], line.get("step")) for line in lines] == [
        ("tokenizer", 3),
        ("tokenizer", 6),
        ("prior", 2),
        ("prior", 4),
        ("entropy", 2),
        ("finished", None),
    ]
    assert lines[:-1] == [
        json.loads(line) for line in (tmp_path / "m" / "log.jsonl").read_text().splitlines()
    ]
    told = lines[-1]["fingerprints"]
    assert [told["tokenizer"], told["prior"]] == list(fingerprints(tmp_path / "m"))
    assert set(told) == {"tokenizer", "prior", "entropy"}
    assert lines[-1]["unreadable"] == 0


@pytest.mark.slow
def test_no_progress_line_without_a_terminal(data: Path) -> None:
    result = small("-o", "m")
    assert "\x1b" not in result.stderr
    assert "images/s" not in result.stderr
    assert "\r" not in result.stderr


@pytest.mark.slow
def test_unreadable_images_are_told_and_no_failure(data: Path) -> None:
    (data / "a" / "00.png").write_bytes(b"nothing")
    (data / "b" / "03.png").write_bytes(b"")
    result = small("-o", "m", "--json")
    assert result.exit_code == 0, result.output
    assert "2 of 12 images could not be read and were left out." in result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["unreadable"] == 2


@pytest.mark.slow
def test_quiet_says_nothing(data: Path) -> None:
    result = small("-o", "m", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


# Stopping and going on


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"),
    [("tokenizer", signal.SIGINT), ("tokenizer", signal.SIGTERM), ("prior", signal.SIGTERM)],
)
def test_signal_saves_and_resume_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, number: int
) -> None:
    assert small("-o", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, stage, 1, number)
        result = small("-o", "m")
    assert result.exit_code == 130
    assert (
        result.stderr.splitlines()[-1]
        == "Interrupted. The state is saved; go on with: vqtok train --resume -o m"
    )
    assert signal.getsignal(number) not in (None, signal.SIG_IGN)
    assert weights.read_meta(tmp_path / "m" / f"{stage}.state.safetensors")["record"]["step"] == 1
    assert train("--resume", "-o", "m").exit_code == 0
    assert fingerprints(tmp_path / "m") == fingerprints(tmp_path / "whole")
    card = (tmp_path / "m" / "README.md").read_text().replace("# m", "# whole")
    assert "--resume" not in card


def test_second_signal_ends_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, "tokenizer", 1, signal.SIGINT)
    monkeypatch.setattr(loop._Trainer, "_save", lambda self: signal.raise_signal(signal.SIGINT))
    result = small("-o", "m")
    assert result.exit_code == 130
    assert "The state is saved" not in result.stderr
    assert not (tmp_path / "m" / "tokenizer.state.safetensors").exists()


def test_max_time_stops_with_success(data: Path, tmp_path: Path) -> None:
    result = small("-o", "my model", "--max-time", "0s")
    assert result.exit_code == 0
    assert (
        result.stderr.splitlines()[-1]
        == "Stopped after 0s. The state is saved; go on with: vqtok train --resume -o 'my model'"
    )
    assert not (tmp_path / "my model" / "README.md").exists()
    refused(small("-o", "x", "--max-time", "soon"), 2, "'soon' is no duration")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_steps_may_change_on_resume_and_are_remembered(data: Path, tmp_path: Path) -> None:
    assert small("-o", "m").exit_code == 0
    assert train("--resume", "-o", "m", "--steps", 9, "--max-time", "0s").exit_code == 0
    result = train("--resume", "-o", "m")
    assert result.exit_code == 0, result.output
    assert "tokenizer step 9" in result.stderr
    assert weights.read_meta(tmp_path / "m" / "tokenizer.state.safetensors")["record"]["step"] == 9
    refused(
        train("--resume", "-o", "m", "--batch", 5),
        1,
        "started with another tokenizer_training.batch",
    )
    refused(
        train("--resume", "-o", "m", "--preset", "tiny"), 2, "--preset does not go with --resume"
    )
    refused(train("--resume", "-o", "m", "--force"), 2, "--force does not go with --resume")
    refused(train("--resume", "-o", "nothing"), 1, "nothing holds no run to resume")


@pytest.mark.slow
def test_damage_is_two_lines(data: Path, tmp_path: Path) -> None:
    assert small("-o", "m", "--max-time", "0s").exit_code == 0
    path = tmp_path / "m" / "tokenizer.state.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    refused(train("--resume", "-o", "m"), 1, "damaged or truncated", "start anew with -f/--force")
    (tmp_path / "m" / "run.json").write_text("{")
    refused(train("--resume", "-o", "m"), 1, "run.json is damaged", "start anew with -f/--force")
    assert small("-o", "m", "--force").exit_code == 0


@pytest.mark.slow
def test_stages_one_after_the_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small("-o", "whole").exit_code == 0
    assert small("-o", "m", "--stage", "tokenizer").exit_code == 0
    assert (tmp_path / "m" / "README.md").exists()
    assert not (tmp_path / "m" / "samples.png").exists()
    with monkeypatch.context() as patch:
        stop_at(patch, "prior", 1, signal.SIGINT)
        result = train("--stage", "prior", "-o", "m")  # data and recipe are those of the run
    assert result.stderr.splitlines()[-1].endswith("vqtok train --resume --stage prior -o m")
    assert train("--stage", "prior", "--resume", "-o", "m").exit_code == 0
    assert fingerprints(tmp_path / "m") == fingerprints(tmp_path / "whole")
    refused(train("--stage", "prior", "-o", "m"), 1, "m holds a prior already")
    assert train("--stage", "prior", "-o", "m", "--force", "--prior-steps", 2).exit_code == 0
    assert fingerprints(tmp_path / "m")[0] == fingerprints(tmp_path / "whole")[0]
    refused(train("--stage", "prior", "-o", "new"), 1, "new holds no tokenizer")
    refused(train("--stage", "both"), 2, "there is no stage 'both'")


# What cannot work


def test_folder_that_holds_a_run_is_refused(data: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "vqtok-model")
    before = (tmp_path / "vqtok-model" / "tokenizer.safetensors").read_bytes()
    refused(train(), 1, "vqtok-model holds prior.safetensors already", "choose another -o")
    assert small("-o", "m", "--max-time", "0s").exit_code == 0
    refused(small("-o", "m"), 1, "m holds a run already", "--resume", "-f/--force")
    assert (tmp_path / "vqtok-model" / "tokenizer.safetensors").read_bytes() == before


@pytest.mark.slow
def test_bad_input_leaves_nothing_behind(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    before = set(tmp_path.rglob("*"))
    refused(train("nowhere", "-o", "m"), 1, "there is no nowhere")
    refused(
        train("bad", "-o", "m"),
        1,
        "the only image in bad cannot be read: ",
        "1.png is not an image",
    )
    refused(train("bad/1.png", "-o", "m"), 1, "vqtok: error: bad/1.png is not an image\n")
    refused(train("empty", "-o", "m"), 1, "holds no images")
    refused(small("-o", "file/below"), 1, "cannot write")
    refused(small("-o", "m", "--device", "abacus"), 2, "there is no device 'abacus'")
    refused(small("-o", "m", "--beta", 3), 2, "beta is 3.0, outside [0.1, 2.0]")
    refused(small("-o", "m", "--beta", 0.05), 2, "outside [0.1, 2.0]")
    refused(
        small("-o", "m", "--set", "prior.wdith=3"),
        2,
        "unknown key 'wdith'",
        "did you mean 'width'?",
    )
    refused(small("-o", "m", "--set", "prior.labels=['x']"), 2, "prior.labels cannot be set")
    refused(small("-o", "m", "--set", "prior"), 2, "is no setting")
    refused(small("-o", "m", "--preset", "huge"), 2, "there is no preset 'huge'")
    refused(small("-o", "m", "--size", 18), 2, "size 18 is no multiple of downsample 4")
    refused(
        train("data", "--recipe", "none.toml", "-o", "m"), 1, "cannot read the recipe none.toml"
    )
    (tmp_path / "wrong.toml").write_text("[tokenizer]\ncodebok_size = 4\n")
    refused(
        train("data", "--recipe", "wrong.toml", "-o", "m"),
        2,
        "wrong.toml has the unknown key",
        "did you mean 'codebook_size'?",
    )
    assert set(tmp_path.rglob("*")) - {tmp_path / "wrong.toml"} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_that_is_not_there(data: Path, tmp_path: Path) -> None:
    refused(small("-o", "m", "--device", "cuda"), 2, "no cuda device that torch can use")
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root"
)
def test_folder_without_permission(data: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(small("-o", "locked/m"), 1, "permission denied")


@pytest.mark.slow
def test_disk_that_fills_up_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = loop.save_weights

    def full(path: Path, stored: weights.Weights, force: bool = True) -> None:
        monkeypatch.setattr(
            os,
            "fsync",
            lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        save(path, stored, force)

    monkeypatch.setattr(loop, "save_weights", full)
    refused(small("-o", "m"), 1, "the disk is full")
    assert not list((tmp_path / "m").glob("*.safetensors"))
    assert not list((tmp_path / "m").glob(".vqtok*"))


@pytest.mark.slow
def test_divergence_is_two_lines(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = training.TokenizerTask.forward

    def spoiled(self: Any, batch: Any) -> loop.Step:
        step = forward(self, batch)
        return loop.Step(step.loss * float("nan"), step.metrics, step.indices)

    monkeypatch.setattr(training.TokenizerTask, "forward", spoiled)
    refused(
        small("-o", "m", "--steps", "12"),
        1,
        "10 steps in a row",
        "the loss is nan",
        "--set tokenizer_training.learning_rate=",
    )


def test_compile_without_a_compiler(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    refused(small("-o", "m", "--compile"), 2, "--compile needs a C++ compiler")


# Real processes


def spawn(*arguments: object) -> Warm:
    return Warm(TRAIN, ["train", *arguments])


def wait_for(stage: str, out: Path, process: Warm) -> None:
    """Returns when the log has a line of that stage."""
    for _ in range(6000):
        if process.poll() is not None:
            raise AssertionError(f"it ended too early: {process.communicate()}")
        log = out / "log.jsonl"
        if log.exists() and f'"stage": "{stage}"' in log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError("it takes too long")


LONG = (
    "data",
    "--recipe",
    "small.toml",
    "--steps",
    80,
    "--prior-steps",
    20,
    "--entropy-steps",
    2,
    "--set",
    "tokenizer_training.validate_every=20",
    "--set",
    "prior_training.validate_every=20",
)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_model(data: Path, tmp_path: Path) -> None:
    """Killed in its first stage; benchmarks/kill.py kills at any moment."""
    result = train(*LONG, "-o", "whole")
    assert result.exit_code == 0, result.output
    process = spawn(*LONG, "-o", "m")
    wait_for("tokenizer", tmp_path / "m", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    result = train("--resume", "-o", "m")
    assert result.exit_code == 0, result.output
    assert fingerprints(tmp_path / "m") == fingerprints(tmp_path / "whole")
    steps = [
        (line["stage"], line["step"])
        for line in map(json.loads, (tmp_path / "m" / "log.jsonl").read_text().splitlines())
    ]
    assert steps == [
        *(("tokenizer", step) for step in range(20, 81, 20)),
        ("prior", 20),
        ("entropy", 2),
    ]


@pytest.mark.slow
def test_signal_to_a_process(data: Path, tmp_path: Path) -> None:
    process = spawn(*LONG, "-o", "m")
    wait_for("tokenizer", tmp_path / "m", process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert output == ""
    assert (
        errors.splitlines()[-1]
        == "Interrupted. The state is saved; go on with: vqtok train --resume -o m"
    )
    assert "Traceback" not in errors


@pytest.mark.slow
def test_compiled_run_is_resumed_as_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What compiling gives: test_discriminator.py."""
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(call) or call)
    monkeypatch.setenv("CXX", sys.executable)  # a compiler is there, and not asked
    arguments = ("--compile", "--stage", "tokenizer")
    assert small(*arguments, "--max-time", "0s", "-o", "m").exit_code == 0
    assert json.loads((tmp_path / "m" / "run.json").read_text())["compiled"] is True
    assert training.resume_run(tmp_path / "m", training.RunSpec())[0].compiled
    assert train("--resume", "--stage", "tokenizer", "-o", "m").exit_code == 0
    assert len(compiled) == 2
