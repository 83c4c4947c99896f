"""`vqtok study` as typed: what it prints, what it refuses, and how it goes on."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_helpers import fails, ok, run, snapshot
from study_helpers import shrink, write_images

from vqtok import study
from vqtok.cli import app
from vqtok.cli.train import Listener
from vqtok.study import page
from vqtok.study.systems import Shape

COMMANDS: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

WORDS = (
    "study",
    "--data",
    "data.npz",
    "-o",
    "out",
    "--budget",
    "1s",
    "--systems",
    "vq-pixelcnn",
    "--samples",
    "2",
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQTOK_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    shrink(monkeypatch)
    write_images(Path("data.npz"))


@pytest.mark.slow
def test_a_study_prints_its_table():
    result = ok(*WORDS)
    words = ("system", "bits/dim", "vq-pixelcnn", "bound, code length", "PixelSNAIL", "2.85")
    assert [word for word in words if word not in result.stdout] == []
    assert "a coder without a model takes 8.00" in result.stderr
    assert {path.name for path in Path("out").iterdir()} == {
        "data",
        "tokenizer-vq",
        "vq-pixelcnn",
        "study.json",
        "study.md",
        "report.html",
        "samples.png",
        "samples-vq-pixelcnn.png",
    }
    stored = json.loads(Path("out", page.JSON).read_text())["systems"][0]
    # a busy machine starts slowly, but no step begins after the time
    assert 0.7 < stored["training_seconds"] < 30
    assert stored["steps"] > 0
    shown = ok("sample", "--model", "out/vq-pixelcnn", "-n", "2")
    assert "8x8" in shown.stderr
    before = snapshot(Path("out/vq-pixelcnn"))
    lines = ok(*WORDS, "--resume", "--json", "--quiet").stdout.splitlines()
    assert [json.loads(line)["bits"] for line in lines] == [stored["bits"]]
    assert snapshot(Path("out/vq-pixelcnn")) == before


def test_every_option_reaches_the_study(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}

    def note(
        plan: study.Plan, stop: object, listener: object, device: object, resume: bool
    ) -> study.Study:
        seen.update(plan=plan, device=str(device), resume=resume)
        return study.Study((), Shape(8, 3), plan.samples)

    monkeypatch.setattr(study, "run_study", note)
    words = [
        "--data",
        "x",
        "--budget",
        "2m",
        "--output",
        "o",
        "--systems",
        "vae,fvsbn",
        "--test-pictures",
        "7",
        "--samples",
        "5",
        "--seed",
        "3",
        "--device",
        "cpu",
        "--resume",
        "--json",
        "--quiet",
    ]
    options = {max(p.opts, key=len) for p in COMMANDS["study"].params} - {"--help"}
    assert options == {word for word in words if word.startswith("--")} | {"--force"}
    assert ok("study", *words).output == ""
    plan = seen["plan"]
    assert (plan.data, plan.budget, plan.folder, plan.test_images, plan.samples, plan.seed) == (
        "x",
        120.0,
        Path("o"),
        7,
        5,
        3,
    )
    assert [system.name for system in plan.systems] == ["fvsbn", "vae"]
    assert (seen["device"], seen["resume"]) == ("cpu", True)


def test_nothing_is_downloaded():
    error = fails("study", "--data", "cifar10", "-o", "out")
    assert "there is no cifar10: vqtok downloads nothing" in error
    assert "VQTOK_DATA" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "soon"), "'soon' is no duration"),
        (("--budget", "0.1s"), "trains nothing"),
        (("--systems", "pixelcnm"), "there is no system 'pixelcnm'"),
        (("--resume", "--force"), "--force does not go with --resume"),
        (("--device", "abacus"), "there is no device 'abacus'"),
    ],
)
def test_what_makes_no_sense(words: tuple[str, ...], message: str):
    assert message in fails("study", "--data", "data.npz", "-o", "out", *words, code=2)


def test_images_that_are_too_large(tmp_path: Path):
    write_images(tmp_path / "large.npz", 8, 80)
    assert "80x80" in fails("study", "--data", "large.npz", "-o", "out", code=2)


def test_a_study_is_not_replaced_unasked():
    Path("out").mkdir()
    Path("out", page.JSON).write_text("{}")
    assert "out holds a study already" in fails(*WORDS)


@pytest.mark.slow
def test_interrupted_and_gone_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["vqtok", *WORDS, "-f"])
    original = Listener.status

    def status(self: Listener, status: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original(self, status)  # type: ignore[arg-type]

    with monkeypatch.context() as once:
        once.setattr(Listener, "status", status)
        result = run(*WORDS, "-f")
    assert result.exit_code == 130
    again = " ".join(["vqtok", *WORDS, "--resume"])
    assert f"go on with: {again}" in result.stderr
    assert json.loads(Path("out", page.JSON).read_text())["systems"] == []
    assert json.loads(ok(*WORDS, "--resume", "--json").stdout)["steps"] > 0


def test_all_systems_have_a_name_and_a_sentence_of_their_own():
    assert (
        len({system.name for system in study.SYSTEMS})
        == len({system.what for system in study.SYSTEMS})
        == len(study.SYSTEMS)
    )
