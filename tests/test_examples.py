"""Each example runs as its page says, on tiny images, and the page shows its text."""

import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from bulk_helpers import contents, image_files, make_tar
from cli_helpers import ok, save, size_of
from conftest import image

import vqtok
from vqtok.bulk import CodesDataset

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
SHOWN = {
    "encode_ray.py": "scale.md",
    "look_alikes.py": "recipes.md",
    "read_codes.py": "format.md",
    "roundtrip.py": "recipes.md",
    "train_classes.py": "tokens.md",
    "train_litgpt.py": "tokens.md",
    "train_nanogpt.py": "tokens.md",
    "train_transformer.py": "transformer.md",
}

pytestmark = pytest.mark.usefixtures("toy")


def example(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.setattr("sys.argv", [name, *map(str, words)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.fixture
def shards(toy: Path) -> None:
    """Three images in codes/: 8x8, 9x8 and 8x8 places at the toy's f = 4;
    the last is a copy of the first.
    """
    for name, seed, width in (("a", 0, 32), ("b", 1, 36), ("c", 0, 32)):
        save(f"in/{name}.png", image(32, width, seed=seed))
    ok("encode", "in", "--bulk", "-o", "codes", "--workers", 0)


def test_all_examples_are_tested_short_and_on_a_page():
    assert sorted(SHOWN) == EXAMPLES
    tests = Path(__file__).read_text()
    for name in EXAMPLES:
        text = (ROOT / "examples" / name).read_text()
        assert f'"{name}", ' in tests
        assert sum(bool(line.strip()) for line in text.splitlines()) <= 40, name
        assert f"```python\n{text}```\n" in (ROOT / "docs" / SHOWN[name]).read_text(), name


def test_31_lines_train_a_transformer():
    """README and docs/transformer.md say so.

    The docstring, and what draws and writes the images, are not among them.
    """
    lines = [
        line
        for line in (ROOT / "examples" / "train_transformer.py").read_text().splitlines()
        if line.strip()
    ]
    draws = next(number for number, line in enumerate(lines) if line.startswith("new = "))
    training = [line for line in lines[1:draws] if "PIL" not in line]
    assert (len(training), len(lines) - 1 - len(training)) == (31, 7)


@pytest.mark.slow
@pytest.mark.usefixtures("shards")
def test_train_transformer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    example(monkeypatch, "train_transformer.py", "codes", "new.png", 2)
    first, bits, *_ = capsys.readouterr().out.removeprefix("step ").split(": ")
    assert first == "0"
    assert 4 < float(bits.split()[0]) < 6  # log2(K) = 4 bits, and a little more at the start
    assert size_of("new.png") == (8 * 32, 32)


def test_roundtrip(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    save("photo.jpg")
    example(monkeypatch, "roundtrip.py", "photo.jpg")
    # 5 x 8 codes of 4 bits for 20 x 30 pixels
    assert capsys.readouterr().out.startswith("1 of 1 levels: 0.267 bits per pixel, ")
    assert size_of("photo.1.png") == (30, 20)
    assert vqtok.read_codes("photo.npz") == vqtok.load("toy").encode("photo.jpg")


def test_read_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    save("photo.jpg")
    ok("encode", "photo.jpg")
    example(monkeypatch, "read_codes.py", "photo.npz")
    first, second = capsys.readouterr().out.splitlines()
    codes = vqtok.read_codes("photo.npz")
    assert first == f"1 x 5x8x1 indices below 16 (uint8), by model toy ({codes.fingerprint}), f = 4"
    assert second.startswith(f"level 1: {len(np.unique(codes.indices))} codes in use, ")


@pytest.mark.slow
def test_train_classes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Tokens of two classes, and an image of each drawn, imported and decoded."""
    for number in range(4):
        save(f"in/{'cat' if number % 2 else 'dog'}/{number}.png", image(16, 16, seed=number))
    ok("encode", "in", "--bulk", "-o", "codes", "--workers", 0)
    ok("export", "codes", "-o", "data", "--to", "bin", "--class-tokens", "--offset")
    example(monkeypatch, "train_classes.py", "data", 2)
    assert "step 0: " in capsys.readouterr().out
    ok("import-tokens", "data/drawn.npy", "-o", "drawn.npz")
    assert vqtok.read_codes("drawn.npz").shape == (2, 1, 4, 4)
    ok("decode", "drawn.npz", "-o", "drawn")


@pytest.mark.slow
def test_train_nanogpt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Windows run over the ends of images."""
    for number in range(4):
        save(f"in/{number}.png", image(16, 16, seed=number))
    ok("encode", "in", "--bulk", "-o", "codes", "--workers", 0)
    ok("export", "codes", "-o", "data", "--to", "bin", "--bos")
    example(monkeypatch, "train_nanogpt.py", "data", 2)
    assert "step 0: " in capsys.readouterr().out


@pytest.mark.slow
def test_train_litgpt():
    """20 images are two batches an epoch; five steps go on into the third epoch."""
    pytest.importorskip("litdata")
    for number in range(20):
        save(f"in/{'cat' if number % 2 else 'dog'}/{number}.png", image(16, 16, seed=number))
    ok("encode", "in", "--bulk", "-o", "codes", "--workers", 0)
    ok("export", "codes", "-o", "data", "--to", "litdata", "--class-tokens", "--offset")
    run = _start("train_litgpt.py", "data", 5)
    shown = run.communicate(timeout=300)[0]
    assert run.returncode == 0
    # log2(16 codes + 2 classes) = 4.2 bits, and more from random weights
    assert 3.5 < float(shown.removeprefix("step 0: ").split()[0]) < 8


@pytest.mark.slow
def test_encode_ray(toy: Path):
    """Two actors, one of which is killed in the middle: the same bytes as without Ray."""
    pytest.importorskip("ray")
    for i in range(6):
        make_tar(f"t-{i}.tar", image_files(40, first=40 * i))
    ok("encode", *(f"t-{i}.tar" for i in range(6)), "-o", "local", "--workers", 0)
    run = _start("encode_ray.py", "toy", Path("out").resolve(), 2, "t-{0..5}.tar")
    killed = _kill_an_actor(run, Path("out"))
    shown = run.communicate(timeout=300)[0]
    assert killed
    assert "240 images -> " in shown
    assert contents("out") == contents("local")
    assert len(CodesDataset("out")) == 240


def _start(name: str, *words: object) -> "subprocess.Popen[str]":
    """An example as a process of its own."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _kill_an_actor(run: "subprocess.Popen[str]", out: Path) -> bool:
    """Kills a worker of this run's Ray cluster once the first shard is written."""
    deadline = time.monotonic() + 240
    while run.poll() is None and time.monotonic() < deadline:
        if list(out.glob("*.jsonl")):
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    title = (folder / "cmdline").read_bytes()
                    if b"Encoder" in title and run.pid in _ancestors(folder):
                        os.kill(int(folder.name), signal.SIGKILL)
                        return True
        time.sleep(0.02)
    return False


def _ancestors(folder: Path) -> set[int]:
    """The numbers of the processes above one in /proc."""
    found = set[int]()
    while folder.name != "0" and folder.exists():
        status = (folder / "status").read_text()
        parent = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid"))
        found.add(int(parent))
        folder = folder.with_name(parent)
    return found


@pytest.mark.usefixtures("shards")
def test_look_alikes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    example(monkeypatch, "look_alikes.py", "codes", "a.png", 2)
    # itself and its copy, before b.png
    assert capsys.readouterr().out.split()[::2] == ["1.000", "1.000"]
