"""What the tests of the README and of the pages share:
their `$ vqtok ...` lines, and running one.
"""

import re
import shlex
from pathlib import Path

import interop_helpers
import pytest
from cli_helpers import runner
from conftest import image

from vqtok import images, model_registry, weights
from vqtok.cli import app

ROOT = Path(__file__).resolve().parents[1]
# Training lines run with a network and a number of steps that fit a test;
# what the line itself asks for stays.
FEW = (
    "--prior-steps 2 --entropy-steps 2 --set prior.width=8 --set prior.layers=2 --set "
    "prior_training.batch=4 --set data.prior_size=32"
)
SMALL = (
    "--steps 2 --batch 4 --width 8 --size 32 --set tokenizer.encoder_blocks=1 --set "
    "tokenizer.decoder_blocks=1 --set data.validation_max=2 --set entropy.width=8 --set "
    "entropy_training.batch=4"
)
IMAGES = (
    "photo.jpg",
    "holiday/a.jpg",
    "holiday/b/c.png",
    *(f"my-photos/{i}.png" for i in range(3)),
)


def lines(text: str) -> list[str]:
    """The commands of a page, in order, without the remarks behind them."""
    found = re.findall(r"^\$ (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    return [part for line in found for part in line.split(" && ") if "vqtok " in part]


def make_images(folder: Path) -> None:
    for seed, name in enumerate(IMAGES):
        size = (96, 128) if name == IMAGES[0] else (64, 80)
        images.write_image(folder / name, image(*size, seed=seed))


def make_checkpoints(folder: Path) -> None:
    """What `vqtok import` lines name, laid out as each program does it."""
    for program, name in (
        ("taming", "last.ckpt"),
        ("llamagen", "vq_ds16_c2i.pt"),
        ("diffusers", "vqvae"),
    ):
        _, path = interop_helpers.save(program, folder / program)
        path.rename(folder / name)


_read: dict[Path, tuple[weights.Packed, tuple[weights.Weights, str]]] = {}


def read_models_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled models are read and hashed once, not for each line of a page."""
    load, unpack = model_registry.load_packed, model_registry._unpack

    def load_once(path: Path, kind: str) -> weights.Packed:
        if not path.is_relative_to(ROOT / "models"):
            return load(path, kind)
        if path not in _read:
            packed = load(path, kind)
            _read[path] = packed, unpack(packed)
        return _read[path][0]

    def unpack_once(packed: weights.Packed) -> tuple[weights.Weights, str]:
        known = (done for kept, done in _read.values() if kept is packed)
        return next(known, None) or unpack(packed)

    monkeypatch.setattr(model_registry, "load_packed", load_once)
    monkeypatch.setattr(model_registry, "_unpack", unpack_once)


def run_line(line: str) -> None:
    """Runs a line as a shell would, as far as pages need it:
    `cat FILE |`, pipes between commands, and `> FILE`.
    """
    command, _, redirected = line.partition(" > ")
    data = b""
    for part in command.split(" | "):
        program, *words = shlex.split(part)
        data = Path(words[0]).read_bytes() if program == "cat" else _vqtok(words, data)
    if redirected:
        Path(redirected.strip()).write_bytes(data)


def _vqtok(words: list[str], given: bytes) -> bytes:
    result = runner().invoke(app, [*words, *_short(words)], input=given)
    assert result.exit_code == 0, (words, result.output)
    return result.stdout_bytes


def _short(words: list[str]) -> list[str]:
    """What makes a training or a study short.

    A tokenizer that is there already keeps its network.
    """
    if words[0] == "study":
        return ["--budget", "1s", "--test-pictures", "10", "--samples", "4"]
    if words[0] == "encode" and "--effort" in words:
        return ["--effort", "3"]  # 4 takes ten times as long: test_effort.py
    if words[0] != "train" or "--resume" in words:
        return []
    if "--init" in words or "--stage" in words:
        return shlex.split(FEW)
    # k-means of the codebook takes as many vectors as four times its size
    codes = "" if "--codebook-size" in words else "--codebook-size 64"
    return shlex.split(f"{FEW} {SMALL} {codes}")
