"""`vqtok report` as typed, and its pages in a real browser."""

import json
import re
import shutil
import webbrowser
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser, browser
from cli_helpers import fails, ok, run, save, spoil
from conftest import image, make_model
from test_pages import CARD, HOSTILE, Reader, check_page, write_run

from vqtok import codec, codes, weights
from vqtok.evaluate import inspect_model
from vqtok.pages import codes as codes_page
from vqtok.priors import cross_entropy

pytestmark = pytest.mark.usefixtures("toy")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)


def page(path: str = "report.html") -> Reader:
    return check_page(Path(path).read_bytes())


def run_folder(toy: Path, name: str = "run") -> Path:
    """A run that has come to its weights."""
    folder = write_run(Path(name), [10, 20, 30])
    for part in ("tokenizer", "prior"):
        shutil.copy(toy / f"{part}.safetensors", folder)
    return folder


@pytest.mark.slow
def test_report_of_a_run(toy: Path):
    run_folder(toy)
    done = ok("report", "run", "--samples", 3)
    assert re.fullmatch(r"run run -> report\.html  \d+ kB, \d+\.\d s\n", done.stderr)
    assert done.stdout == ""
    read = page()
    for title in (
        "Training run run",
        "Reconstructions",
        "Tokenizer: curves",
        "Codebook",
        "Samples",
        "Timings",
        "Settings",
    ):
        assert title in read.text
    assert "in 4 validation images" in read.text
    assert read.text.count("3 samples at temperature") == len(inspect_model.TEMPERATURES)
    assert [i["type"] for i in read.attributes("input")] == ["range", "range", "range", "number"]


@pytest.mark.slow
def test_report_of_a_run_without_weights_and_with_a_foreign_prior(toy: Path):
    write_run(Path("new"), [10])
    ok("report", "new", "-o", "new.html")
    assert "no weights are there yet" in page("new.html").text
    run_folder(make_model(Path("other"), seed=1), "run")
    shutil.copy(toy / "prior.safetensors", "run/prior.safetensors")
    ok("report", "run")
    assert re.search("no samples: .* is the prior of another tokenizer", page().text)


def test_report_of_a_model(toy: Path):
    (toy / "README.md").write_text(CARD)
    ok("report", "toy", "--samples", 2)
    read = page()
    for part in ("Model toy", "cat, dog, eel", "2 samples of the prior", "| levels | in files |"):
        assert part in read.text
    assert "measured by vqtok eval" not in read.text
    assert "Quality over bits" not in read.text
    ok("report", toy, "--samples", 0, "-o", "-", "-q")
    assert (
        "Codebook"
        not in check_page(ok("report", toy, "--samples", 0, "-o", "-", "-q").stdout_bytes).text
    )


def test_curves_of_a_model_from_figures(toy: Path):
    row = {"bpp_packed": 0.1, "ms_ssim": 0.5}
    codecs = [{"codec": "webp", "bpp": 0.1, "ms_ssim": 0.6}]
    figures = {
        "fingerprint": "00000000",
        "levels": [row, row | {"bpp_packed": 0.2}],
        "codecs": codecs,
    }
    Path("figures.json").write_text(json.dumps(figures))
    ok("report", "toy", "--samples", 0, "--figures", "figures.json")
    for part in (
        "WebP",
        "vqtok toy",
        "As measured by vqtok eval: figures.json",
        "the figures were measured with another model (00000000)",
    ):
        assert part in page().text
    (toy / "figures.json").write_text(json.dumps(figures | {"codecs": []}))
    ok("report", "toy", "--samples", 0, "-f")  # beside the card they need no option
    assert "As measured by vqtok eval: figures.json" in page().text
    assert "WebP" not in page().text
    assert len(page().attributes("svg")) == 1
    Path("figures.json").write_text("[]")
    assert "holds no figures of a model" in fails(
        "report", "toy", "--figures", "figures.json", "-f"
    )


@pytest.mark.slow
def test_report_of_codes_plain_and_compact(toy: Path):
    save("a.png", image(21, 30))
    ok("encode", "a.png")
    ok("encode", "a.png", "--compact", "-o", "c.npz")
    for name, form in (("a.npz", "plain"), ("c.npz", "packed")):
        ok("report", name, "-f")
        read = page()
        for part in (
            f"Codes {name}",
            "Index grid",
            "the prior that samples are drawn from",
            "whole file",
            form,
            "30x21",
        ):
            assert part in read.text
        assert f"{Path(name).stat().st_size:,}" in read.text
        assert len(read.attributes("img")) == 4
    assert (
        "standard input"
        in check_page(
            ok("report", "-", "-o", "-", stdin=Path("a.npz").read_bytes()).stdout_bytes
        ).text
    )
    (toy / "prior.safetensors").unlink()
    ok("report", "a.npz", "-f")
    assert "Map of bits" not in Path("report.html").read_text()


def test_parts_of_a_file_are_all_of_it():
    save("a.png")
    ok("encode", "a.png")
    ok("encode", "a.png", "--compact", "-o", "c.npz")
    for name in ("a.npz", "c.npz"):
        data = Path(name).read_bytes()
        parts = codes_page.breakdown(data, codes.read_any_codes(data), None)
        assert sum(part.bytes for part in parts) == len(data)
        assert all(part.bytes > 0 for part in parts)


@pytest.mark.slow
def test_bits_of_the_integer_prior_are_those_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.undo()
    model = codec.load("photo", "cpu")
    found_codes = model.encode(image(96, 128))
    found = inspect_model.index_bits(model, found_codes)
    assert found is not None
    size = sum(map(len, model.pack(found_codes).streams))
    assert found[0].shape == found_codes.indices.shape
    # the coder's state, and rounding to words
    assert found[0].sum() / 8 == pytest.approx(size, abs=12)


def test_bits_of_the_float_prior_are_its_cross_entropy(toy: Path):
    model = codec.load(toy, "cpu")
    found_codes = model.encode(image(20, 30))
    found = inspect_model.index_bits(model, found_codes)
    assert found is not None
    wanted = cross_entropy(model.prior, torch.from_numpy(found_codes.indices.astype(np.int64)))
    assert found[0].sum() == pytest.approx(float(wanted[0]), rel=1e-5)


def test_tiles_are_what_the_middle_of_an_even_grid_decodes_to(toy: Path):
    model = codec.load(toy, "cpu")
    tiles = inspect_model.code_tiles(model)
    assert tiles.shape == (16, 4, 4, 3)
    grid = codes.Codes(
        np.full((1, 1, 3, 3), 5, np.uint8), "toy", model.fingerprint, 16, 4, 3, ((12, 12),)
    )
    assert np.abs(model.decode(grid)[4:8, 4:8].astype(int) - tiles[5]).max() <= 1
    assert (inspect_model.count_codes([grid, grid]) == 18 * (np.arange(16) == 5)).all()


@pytest.mark.slow
def test_hostile_names_stay_text(toy: Path):
    name = HOSTILE.replace("/", "_").replace("\udcff", "")[:80]
    run_folder(toy, name)
    (Path(name) / "run.json").write_text(json.dumps({"command": HOSTILE}))
    ok("report", name, "--samples", 0)
    read = page()
    assert "<img src=x onerror=alert(2)>" in read.text
    save("a.png")
    ok("encode", "a.png", "-o", "<b onclick=x>.npz")
    ok("report", "<b onclick=x>.npz", "-f")
    assert "Codes <b onclick=x>.npz" in page().text


def test_nothing_is_overwritten_and_mistakes_are_two_lines(toy: Path):
    Path("report.html").write_text("mine")
    save("a.png")
    ok("encode", "a.png")
    assert "report.html exists" in fails("report", "toy")
    assert "there is no model 'none'" in fails("report", "none", "-o", "x.html")
    assert "does not exist" in fails("report", "none.npz", "-o", "x.html")
    assert "--open needs a file" in fails("report", "toy", "-o", "-", "--open", code=2)
    assert "it is HTML" in fails("report", "toy", "-o", "page.png", code=2)
    assert "--model says what decodes" in fails(
        "report", "toy", "--model", "toy", "-o", "x.html", code=2
    )
    assert "--figures are those of a model" in fails(
        "report", "a.npz", "--figures", "f.json", "-o", "x.html", code=2
    )
    assert "a.png" in fails("report", "a.png", "-o", "x.html")
    weights.save_weights(
        toy / "tokenizer.safetensors",
        weights.load_weights(make_model(Path("o"), seed=2) / "tokenizer.safetensors", "tokenizer"),
    )
    assert "a.npz: the codes were made with model toy" in fails("report", "a.npz", "-o", "x.html")
    spoil(toy / "tokenizer.safetensors", "truncated")
    fails("report", "toy", "-o", "x.html")
    assert Path("report.html").read_text() == "mine"
    ok("report", "o", "--samples", 0, "-f")
    page()


def test_open_hands_the_file_to_the_browser(monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    ok("report", "toy", "--samples", 0, "--open")
    assert opened == [Path("report.html").resolve().as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert (
        "no browser can be started here"
        in run("report", "toy", "--samples", 0, "--open", "-f").stderr
    )


@needs_browser
@pytest.mark.slow
def test_a_run_in_a_real_browser(toy: Path):
    """It opens from file:// in both schemes without a complaint or a request;
    sliders move by keys, and show what they say.
    """
    run_folder(toy)
    ok("report", "run", "--samples", 2)
    with browser() as chrome:
        backgrounds = []
        for dark in (False, True):
            chrome.open(Path("report.html"), dark=dark)
            assert chrome.run(
                "[...document.images].filter(i => !i.hidden).every(i => "
                "i.complete && i.naturalWidth > 0)"
            )
            assert chrome.run("document.documentElement.scrollWidth <= innerWidth")
            backgrounds.append(chrome.run("getComputedStyle(document.body).backgroundColor"))
            _move_sliders(chrome)
            assert chrome.complaints() == []
            assert chrome.image()[:4] == b"\x89PNG"
        assert backgrounds[0] != backgrounds[1]
        chrome.open(Path("report.html"), width=360)
        assert chrome.run("document.documentElement.scrollWidth <= innerWidth")


def _move_sliders(chrome: Browser) -> None:
    clip = "getComputedStyle(document.querySelector('.pair:not([hidden]) .after')).clipPath"
    name = "document.querySelector('.compare .name').textContent"
    assert (chrome.run(clip), chrome.run(name)) == ("inset(0px 0px 0px 50%)", "step 30")
    chrome.run("document.querySelector('.wipe').focus()")
    # focus shows
    assert chrome.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    chrome.press("ArrowRight")
    assert chrome.run(clip) == "inset(0px 0px 0px 49%)"
    chrome.press("End")
    assert chrome.run(clip) == "inset(0px 0px 0px 0%)"
    chrome.press("Tab")
    assert chrome.run("document.activeElement.className") == "choose"
    chrome.press("ArrowLeft")
    assert chrome.run(name) == "step 20"
    assert chrome.run("document.querySelectorAll('.pair:not([hidden])').length") == 1
    told = "document.querySelector('.explorer output').textContent"
    chrome.run("document.querySelector('.explorer input[type=range]').focus()")
    before = int(chrome.run("document.activeElement.value"))
    chrome.press("ArrowLeft" if before else "ArrowRight")
    assert chrome.run(told).startswith(f"Code {before - 1 if before else 1}: ")
    drawn = (
        "[...document.querySelector('canvas').getContext('2d').getImageData(40, 40, 1, 1).data][3]"
    )
    assert chrome.run(drawn) == 255


@needs_browser
@pytest.mark.slow
def test_hostile_text_runs_nothing_in_a_real_browser(toy: Path):
    folder = run_folder(toy)
    (folder / "run.json").write_text(json.dumps({"command": HOSTILE}))
    with (folder / "log.jsonl").open("a") as log:
        log.write(
            json.dumps({"stage": "tokenizer", "step": 40, HOSTILE: 1.5, "loss": HOSTILE}) + "\n"
        )
    ok("report", "run", "--samples", 0)
    # What an attacker could have put there is refused by the policy, even
    # where escaping had failed.
    page = Path("report.html").read_text(encoding="utf-8")
    Path("broken.html").write_text(
        page.replace(
            "<main>",
            "<main><img src=x onerror='document.title=1'><script>document.title=2</script>",
        )
    )
    with browser() as chrome:
        chrome.open(Path("report.html"))
        assert chrome.complaints() == []
        chrome.open(Path("broken.html"))
        assert chrome.run("document.title") == "Training run run"
        assert len(chrome.complaints()) >= 2


def test_codes_that_are_damaged_are_named_once(toy: Path):
    """Here `bad.npz: codes: damaged` was said, and of standard input `codes: damaged`."""
    bad = Path("bad.npz")
    bad.write_bytes(b"PK junk")
    assert "error: bad.npz: damaged" in fails("report", bad)
    assert "--samples are those of a model" in fails("report", bad, "--samples", 3, code=2)
    for words in (("report",), ("info",), ("decode", "-o", "n.png"), ("pack", "-o", "n.npz")):
        told = fails(words[0], "-", *words[1:], stdin=bad.read_bytes())
        assert "error: standard input: damaged" in told
