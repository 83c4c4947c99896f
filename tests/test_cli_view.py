"""`vqtok view` as typed, on a terminal and elsewhere."""

import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import fails, ok, save
from conftest import TOKENIZER, image, make_model
from test_pages import shown

from vqtok import codec, plots
from vqtok.evaluate import inspect_model
from vqtok.plots import palette

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "33")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")


def pixels(*words: object) -> np.ndarray:
    return shown(ok("view", "--always", *words).stdout.splitlines())


def test_a_image_is_shown_pixel_by_pixel():
    save("a.png", image(60, 50))
    done = ok("view", "a.png", "--always")
    assert (shown(done.stdout.splitlines()) == image(60, 50)).all()
    assert done.stderr == "a.png  50x60\n"


@pytest.mark.slow
def test_codes_are_shown_decoded(toy: Path):
    save("a.png", image(40, 60))
    ok("encode", "a.png")
    ok("encode", "a.png", "--compact", "-o", "c.npz")
    wanted = codec.load(toy, "cpu").decode(codec.load(toy, "cpu").encode(image(40, 60)))
    for name in ("a.npz", "c.npz"):
        assert np.abs(pixels(name).astype(int) - wanted).max() <= 1
    assert ok("view", "a.npz", "--always").stderr == "a.npz  60x40 decoded by toy\n"
    ok("sample", "-n", 2, "-o", "s.npz", "--size", "20x16")
    first, second = pixels("s.npz"), pixels("s.npz", "--picture", 2)
    assert first.shape == second.shape == (48, 60, 3)
    assert (first != second).any()
    assert "holds 2 images, not 3" in fails("view", "s.npz", "--picture", 3, "--always", code=2)


def test_grids_are_shown_in_colors_with_or_without_their_model(toy: Path):
    save("a.png", image(40, 60))
    ok("encode", "a.png")
    model = codec.load(toy, "cpu")
    indices = model.encode(image(40, 60)).indices[0, 0]
    wanted = inspect_model.index_colors(model)[0][indices]
    assert (pixels("a.npz", "--grid") == wanted.repeat(6, 0).repeat(6, 1)).all()
    (toy / "tokenizer.safetensors").unlink()
    done = ok("view", "a.npz", "--grid", "--always")
    assert (
        shown(done.stdout.splitlines()) == palette.by_number(indices).repeat(6, 0).repeat(6, 1)
    ).all()
    assert "its model is not here" in done.stderr
    assert "a.npz: the codes were made with model toy" in fails("view", "a.npz", "--always")


def test_levels_stand_side_by_side(tmp_path: Path):
    make_model(tmp_path / "models" / "three", replace(TOKENIZER, levels=3, normalize=False), None)
    save("a.png", image(40, 40))
    ok("encode", "a.png", "--model", "three")
    grid = codec.load("three", "cpu").encode(image(40, 40)).indices[0]
    colors = inspect_model.index_colors(codec.load("three", "cpu"))
    sheet = plots.sheet([colors[i][grid[i]] for i in range(3)], 2, gap=1, background=(0, 0, 0))
    got = pixels("a.npz", "--grid")
    scale = 60 // sheet.shape[1]
    assert (got[: scale * len(sheet)] == sheet.repeat(scale, 0).repeat(scale, 1)).all()
    assert (
        "40x40 decoded by three, 2 of 3 levels"
        in ok("view", "a.npz", "--levels", 2, "--always").stderr
    )


def test_nothing_is_shown_where_there_is_no_terminal():
    save("a.png")
    done = ok("view", "a.png")
    assert done.stdout == ""
    assert (
        done.stderr
        == "nothing is shown: standard output is no terminal (--always shows it all the same)\n"
    )


def test_terminals_of_fewer_colors(monkeypatch: pytest.MonkeyPatch):
    save("a.png")
    monkeypatch.delenv("COLORTERM")
    assert re.match(r"\x1b\[38;5;\d+;48;5;\d+m▀", ok("view", "a.png", "--always").stdout)
    monkeypatch.setenv("NO_COLOR", "1")
    assert re.fullmatch(r"[ .:\-=+*#%@\n]+", ok("view", "a.png", "--always").stdout)


def test_mistakes_are_two_lines():
    save("a.png")
    Path("b.png").write_bytes(b"no image")
    assert "a.png is no codes file" in fails("view", "a.png", "--grid", "--always", code=2)
    assert "b.png is not an image" in fails("view", "b.png", "--always")
    assert "c.png does not exist" in fails("view", "c.png", "--always")
    Path("d.npz").write_bytes(b"PK no zip")
    assert "d.npz" in fails("view", "d.npz", "--always")


@pytest.mark.slow
def test_on_a_terminal_it_fits_and_escapes_in_names_are_harmless():
    """A real pseudo-terminal of unknown colors:
    the image comes without --always, and the name's escape code does not.
    """
    name = "a\x1b[2J\x1b]0;owned\x07.png"
    save("plain.png", image(100, 100))
    os.rename("plain.png", name)
    ours, its = pty.openpty()
    environment = {
        **os.environ,
        "COLUMNS": "40",
        "LINES": "12",
        "PYTHONPATH": str(Path(plots.__file__).parents[2]),
    }
    done = subprocess.Popen(
        [sys.executable, "-m", "vqtok", "view", name],
        stdout=its,
        stderr=its,
        stdin=its,
        env=environment,
    )
    os.close(its)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # Linux says so when the other end is closed
        pass
    finally:
        os.close(ours)
    assert done.wait() == 0
    assert b"\x1b[2J" not in text
    assert b"\x1b]0" not in text
    lines = re.sub(r"\x1b\[[\d;]*m", "", text.decode()).splitlines()
    blocks = [line for line in lines if "▀" in line]
    assert len(blocks) == 9
    assert max(map(len, blocks)) == 18
    assert lines[-1].endswith(".png  100x100")
