"""`vqtok eval` by level, beside codecs, with LPIPS, curves and sheets, as typed."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import fails, ok, run, save, size_of
from conftest import PRIOR, TOKENIZER, image, make_model
from safetensors.torch import save_file

from vqtok import images
from vqtok.evaluate import fid
from vqtok.losses import LPIPS, lpips

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """A model of four levels called `four`, and a folder of two photographs, one of them
    larger than a sheet shows.
    """
    save("in/a.png", image(70, 300))
    save("in/b.png", image(66, 66, seed=1))
    tokenizer = replace(TOKENIZER, levels=4, normalize=False)
    return make_model(tmp_path / "models" / "four", tokenizer, replace(PRIOR, levels=4, labels=()))


def lpips_file(name: str, backbone: lpips._Backbone = lpips.ALEX) -> Path:
    torch.manual_seed(0)
    network = LPIPS(backbone)
    tensors = {f"features.{key}": value for key, value in network.convs.state_dict().items()}
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, len(head), 1, 1)
        for i, head in enumerate(network.heads)
    }
    save_file(tensors | heads, name)
    return Path(name)


@pytest.mark.slow
def test_json_of_levels_and_codecs(four: Path):
    figures = json.loads(
        ok("eval", "in", "-m", four, "--json", "--levels", "1,2", "--codecs", "JPEG").stdout
    )
    assert [row["levels"] for row in figures["levels"]] == [1, 2, 4]
    assert (
        figures["levels"][-1].items()
        >= {
            key: figures[key] for key in ("psnr", "ms_ssim", "bpp", "bpp_packed", "bpp_coded")
        }.items()
    )
    assert figures["levels"][0]["lpips"] is figures["lpips"] is None
    assert {(row["codec"], row["levels"], row["times"]) for row in figures["codecs"]} == {
        ("jpeg", 1, 1),
        ("jpeg", 2, 1),
        ("jpeg", 4, 1),
        ("jpeg", 4, 2),
        ("jpeg", 4, 4),
    }
    assert set(figures["levels"][0]["needs"]) == {"jpeg"}


@pytest.mark.slow
def test_tables_of_levels_and_codecs(four: Path):
    done = ok("eval", "in", "-m", four, "--limit", "1", "--codecs", "jpeg,webp")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines if len(line) == 9 and line[0].isdigit()] == [
        "1",
        "2",
        "3",
        "4",
    ]
    assert "bit-packed" in done.stdout
    coders = [
        " ".join(line[:2]) if line[0] == "four," else line[0]
        for line in lines
        if line and line[0] in ("four,", "JPEG", "WebP")
    ]
    assert coders == [name for n in (1, 2, 4) for name in (f"four, {n}", "JPEG", "WebP")]
    assert "for the same MS-SSIM" in done.stdout
    bare = ok("eval", "in", "-m", four, "--limit", "1", "--codecs", "none").stdout
    assert "JPEG" not in bare


@pytest.mark.slow
def test_lpips_needs_weights_that_fit(four: Path):
    weights = lpips_file("alex.safetensors")
    done = ok(
        "eval",
        "in",
        "-m",
        four,
        "--lpips",
        weights,
        "--limit",
        "1",
        "--levels",
        "1",
        "--codecs",
        "jpeg",
    )
    assert re.search(r"\n +LPIPS +\d\.\d{4}\n", done.stdout)
    assert "for the same LPIPS" in done.stdout
    torch.save({"a": torch.zeros(2)}, "pickle.pt")
    wrong = {
        "missing": "missing does not exist",
        "pickle.pt": "pickle.pt",
        str(four / "tokenizer.safetensors"): "lacks the tensor",
    }
    for path, message in wrong.items():
        assert message in fails("eval", "in", "-m", four, "--lpips", path)
    save("small/a.png")
    assert "it needs 64 pixels a side" in ok("eval", "small", "--lpips", weights).stderr
    assert ok("eval", "small", "--lpips", weights, "-q").stderr == ""


@pytest.mark.slow
def test_curves_in_both_formats(four: Path):
    ok("eval", "in", "-m", four, "--plot", "new/rd.png", "--levels", "1,2", "--codecs", "jpeg,webp")
    root = ElementTree.fromstring(Path("new/rd.svg").read_bytes())
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {
        "four on 2 images of in",
        "vqtok four",
        "JPEG",
        "WebP",
        "MS-SSIM: higher is better",
        "bits per pixel, files",
    } <= set(texts)
    shapes = [
        element
        for tag in ("circle", "polygon")
        for element in root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    ]
    assert len(shapes) == 3 + 3 + 2 * 5  # legend, ours, theirs
    width, height = (int(root.attrib[side]) for side in ("width", "height"))
    assert size_of("new/rd.png") == (2 * width, 2 * height)
    assert "exists" in fails("eval", "in", "-m", four, "--plot", "new/rd.svg")
    Path("new/rd.svg").unlink()
    assert "rd.png exists" in fails("eval", "in", "-m", four, "--plot", "new/rd.svg")
    assert "cannot write curves" in fails("eval", "in", "-m", four, "--plot", "rd.pdf", code=2)
    assert "both write" in fails(
        "eval", "in", "-m", four, "--plot", "x.svg", "--sheet", "x.png", code=2
    )


@pytest.mark.slow
def test_sheet_shows_levels_and_codecs_pixel_by_pixel(four: Path):
    ok("eval", "in", "-m", four, "--sheet", "s.png", "--codecs", "jpeg")
    sheet = images.read_image(Path("s.png")).pixels
    original = images.read_image(Path("in/a.png")).pixels[:, 22:278]
    views = np.lib.stride_tricks.sliding_window_view(sheet, original.shape)
    # its middle 256 columns, in the first column
    assert any((views[top, 4, 0] == original).all() for top in range(len(views)))
    assert sheet.shape[1] > 4 * 256  # original, 1, 2, 4 levels, JPEG


def test_levels_that_the_model_has_not(four: Path):
    assert "has 4 levels" in fails("eval", "in", "-m", four, "--levels", "1,8", code=2)
    assert "cannot read the levels" in fails("eval", "in", "-m", four, "--levels", "all", code=2)
    assert "no codec 'bpg'" in fails("eval", "in", "-m", four, "--codecs", "bpg", code=2)


@pytest.mark.slow
def test_several_models_in_one_table_and_csv(four: Path):
    lines = ok("eval", "in", "-m", four, "-m", "toy", "--csv", "f.csv", "--codecs", "jpeg").stdout
    rows = [line.split() for line in lines.splitlines()]
    assert [row[:2] for row in rows if row and row[0] in ("four", "toy")] == [
        *(["four", str(n)] for n in (1, 2, 3, 4)),
        ["toy", "1"],
    ]
    table = list(csv.DictReader(Path("f.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["model"], row["coder"], row["levels"]) for row in table if row["times"] == ""] == [
        *(("four", "vqtok", str(n)) for n in (1, 2, 3, 4)),
        ("toy", "vqtok", "1"),
    ]
    assert {row["coder"] for row in table} == {"vqtok", "jpeg"}
    done = ok("eval", "in", "-m", four, "-m", "toy", "--json", "--codecs", "jpeg")
    both = json.loads(done.stdout)["models"]
    assert [figures["model"] for figures in both] == ["four", "toy"]
    for row in table:
        figures = both[row["model"] == "toy"]
        held = figures["levels"] if row["coder"] == "vqtok" else figures["codecs"]
        wanted = next(
            one
            for one in held
            if str(one["levels"]) == row["levels"] and str(one.get("times", "")) == row["times"]
        )
        assert float(row["psnr"]) == wanted["psnr"]
        assert [float(row["psnr_low"]), float(row["psnr_high"])] == wanted["intervals"]["psnr"]
        assert float(row["bpp"]) == wanted.get("bpp_plain", wanted["bpp"])
    message = fails("eval", "in", "-m", four, "-m", "nowhere")
    assert "there is no model 'nowhere'" in message
    assert "JPEG" not in message  # said before the first is measured
    assert "f.csv exists" in fails("eval", "in", "--csv", "f.csv")
    assert "shows one model" in fails(
        "eval", "in", "-m", four, "-m", "toy", "--sheet", "s.png", code=2
    )


@pytest.mark.slow
def test_dists_and_fid_as_typed(four: Path, monkeypatch: pytest.MonkeyPatch):
    vgg, alex = lpips_file("vgg.safetensors", lpips.VGG), lpips_file("alex.safetensors")
    halves = {name: torch.rand(1, 1475, 1, 1) for name in ("alpha", "beta")}
    save_file(halves, "dists.safetensors")
    short = ("--limit", "1", "--levels", "4", "--codecs", "none")
    ask = ("eval", "in", "-m", four, *short, "--dists", "dists.safetensors")
    by_lpips = json.loads(ok(*ask, "--lpips", vgg, "--json").stdout)
    beside = json.loads(ok(*ask, "--lpips", alex, "--vgg", vgg, "--json").stdout)
    assert 0 < by_lpips["dists"] == by_lpips["levels"][0]["dists"] == beside["dists"]
    assert "--vgg FILE" in fails(*ask, code=2)
    assert "--vgg FILE" in fails(*ask, "--lpips", alex, code=2)
    assert "--vgg serves --dists" in fails("eval", "in", "--vgg", vgg, code=2)
    assert "Inception-v3, lacks" in fails("eval", "in", "-m", four, *short, "--fid", vgg)

    class Network:  # the real one is in test_evaluate_networks.py
        def __init__(self, tensors: object, origin: str) -> None:
            pass

        def to(self, device: torch.device) -> "Network":
            return self

        def features(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)).repeat(1, 2)[:, :4]

    monkeypatch.setattr(fid, "Inception", Network)
    monkeypatch.setattr(fid, "FEATURES", 4)
    done = ok("eval", "in", "-m", four, "--codecs", "none", "--fid", vgg)
    assert re.search(r"\n +FID +\d+\.\d\d", done.stdout)
    assert "FID of 2 patches" in done.stderr
    assert "fewer than 2049 patches" in done.stderr


def test_small_images_are_compared_with_no_codec():
    done = run("eval", "--limit", "2", "--json")
    assert json.loads(done.stdout)["codecs"] == []
