"""The README's promises: each of its commands runs, and it names every command and every option that matters."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import picture
from typer.testing import CliRunner

from vqtok import codes, images
from vqtok.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\$ (.*?)(?:\s+#.*)?$", README, re.MULTILINE)
COMMANDS = [part for line in LINES for part in line.split(" && ") if part.startswith("vqtok ")]
# Training lines run with a network and a number of steps that fit a test; what the line itself asks for stays.
SHORT = shlex.split(
    "--steps 2 --prior-steps 2 --entropy-steps 2 --batch 4 --width 8 --set tokenizer.encoder_blocks=1 --set tokenizer.decoder_blocks=1"
    " --set prior.width=8 --set prior.layers=2 --set data.validation_max=2"
)


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VQTOK_MODELS")
    for name in ("photo.jpg", "holiday/a.jpg", "holiday/b/c.png", "my-photos/1.png", "my-photos/2.png", "my-photos/3.png"):
        images.write(tmp_path / name, picture(96, 128))
    assert len(COMMANDS) >= 15
    for command in COMMANDS:
        line, _, redirected = command.partition(" > ")
        words = shlex.split(line)[1:]
        short = SHORT if words[0] == "train" and "--dry-run" not in words and "--resume" not in words else []
        result = CliRunner().invoke(app, [*words, *short])
        assert result.exit_code == 0, (command, result.output)
        if redirected:
            (tmp_path / redirected.strip()).write_bytes(result.stdout_bytes)
    assert codes.read(tmp_path / "photo2.npz") == codes.read(tmp_path / "photo.npz")


def test_the_readme_shows_every_command() -> None:
    for command in ("train", "encode", "decode", "truncate", "sample", "eval", "info", "models", "report", "view", "pack", "unpack"):
        assert f"vqtok {command}" in README, command
