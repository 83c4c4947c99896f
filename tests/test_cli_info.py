"""`vqtok eval`, `vqtok info` and `vqtok models` as typed."""

import json
import os
import re
from pathlib import Path

import pytest
from cli_helpers import fails, ok, run, save, size_of, spoil
from conftest import image, make_model

from vqtok import codes, weights
from vqtok.cli import output

pytestmark = pytest.mark.usefixtures("toy")


def test_eval_says_which_images_failed():
    save("in/a.png", image(12, 16))
    Path("in/b.png").write_bytes(b"no image")
    done = run("eval", "in", "--json")
    assert done.exit_code == 1
    figures = json.loads(done.stdout)
    assert (figures["pictures"], figures["skipped"], figures["model"], figures["data"]) == (
        1,
        1,
        "toy",
        "in",
    )
    assert re.fullmatch(
        r"vqtok: error: in/b\.png is not an image\n  fix: .*\n1 of 2 failed\n", done.stderr
    )


@pytest.mark.slow
def test_eval_table_json_and_sheet():
    table = ok("eval", "--limit", "3", "--sheet", "new/sheet.png").stdout
    title, *rows = [line.strip() for line in table.splitlines() if line.strip()]
    assert title.startswith("toy on the first ")
    assert title.endswith(" of 2,000 built-in images of 32x32 with 6 labels")
    assert ["images", "3"] in [row.split() for row in rows]
    for name in (
        "PSNR, dB",
        "SSIM",
        "MS-SSIM",
        "codes used",
        "perplexity",
        "bits per pixel, raw",
        "bits per dimension",
    ):
        assert any(row.startswith(name) for row in rows)
    width, height = size_of("new/sheet.png")
    assert height > 3 * 128
    assert width > 2 * 128
    figures = json.loads(ok("eval", "--limit", "3", "--json").stdout)
    assert f"{figures['psnr']:.2f}" in table
    assert figures["bpp"] == 0.25


def test_json_has_no_word_for_infinity(capsysbinary: pytest.CaptureFixture[bytes]):
    output.print_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": {"d": float("-inf")}})
    assert json.loads(capsysbinary.readouterr().out) == {
        "a": None,
        "b": [None, 1.5],
        "c": {"d": None},
    }


def test_info_of_codes_weights_and_models(toy: Path):
    save("a.png")
    ok("encode", "a.png")
    facts = json.loads(ok("info", "a.npz", "--json").stdout)
    fingerprint = weights.tokenizer_fingerprint(toy / "tokenizer.safetensors")
    assert (
        facts.items()
        >= {
            "kind": "codes",
            "model": "toy",
            "fingerprint": fingerprint,
            "model_path": str(toy),
            "pictures": 1,
            "grid": [8, 5, 1],
            "codebook_size": 16,
            "downsample": 4,
            "channels": 3,
            "sizes": [[30, 20]],
            "bytes": Path("a.npz").stat().st_size,
        }.items()
    )
    by_name = json.loads(ok("info", "toy", "--json").stdout)
    assert (
        by_name
        == json.loads(ok("info", toy, "--json").stdout)
        == json.loads(ok("info", toy / "tokenizer.safetensors", "--json").stdout)
    )
    assert (by_name["fingerprint"], by_name["bpp"], by_name["prior"]["config"]["labels"]) == (
        fingerprint,
        0.25,
        ["cat", "dog", "eel"],
    )
    assert json.loads(ok("info", toy / "prior.safetensors", "--json").stdout)["kind"] == "prior"
    text = ok("info", "a.npz").stdout
    assert re.search(r"grid +8x5x1\n", text)
    assert re.search(rf"decodes with +{re.escape(str(toy))}\n", text)
    text = ok("info", "toy").stdout
    assert re.search(r"\n +labels +cat, dog, eel\n", text)
    toy.rename(toy.with_name(".gone"))
    (toy.with_name(".gone") / "tokenizer.safetensors").unlink()
    assert "no model here" in ok("info", "a.npz").stdout


def test_models_lists_all_and_says_which_are_damaged(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bare = make_model(tmp_path / "models" / "bare", prior=None)
    listed = {m["name"]: m for m in map(json.loads, ok("models", "--json").stdout.splitlines())}
    assert set(listed) == {"bare", "toy"}
    assert (
        listed["toy"].items()
        >= {
            "prior": True,
            "labels": ["cat", "dog", "eel"],
            "bpp": 0.25,
            "validation": {"psnr": 10.0},
        }.items()
    )
    assert listed["bare"]["prior"] is False
    table = ok("models").stdout
    assert re.search(r"toy +4 +16 +1 +0\.250 +10\.00 +3 +yes ", table)
    spoil(bare / "tokenizer.safetensors", "truncated")
    done = run("models")
    assert done.exit_code == 1
    assert "toy" in done.stdout
    assert "bare/tokenizer.safetensors" in done.stderr
    monkeypatch.setenv("VQTOK_MODELS", "nowhere")
    assert "no model here" in fails("models")


def test_environment_names_models_and_device(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save("a.png")
    elsewhere = make_model(tmp_path / "elsewhere" / "second", seed=4)
    monkeypatch.setenv("VQTOK_MODELS", f"{tmp_path / 'models'}{os.pathsep}{tmp_path / 'elsewhere'}")
    monkeypatch.setenv("VQTOK_MODEL", "second")
    ok("encode", "a.png")
    assert codes.read_plain_codes(Path("a.npz")).model == "second"
    ok("encode", "a.png", "-f", "-m", "toy")
    assert codes.read_plain_codes(Path("a.npz")).model == "toy"
    monkeypatch.setenv("VQTOK_MODEL", str(elsewhere))
    ok("encode", "a.png", "-f")
    assert codes.read_plain_codes(Path("a.npz")).model == "second"
    monkeypatch.setenv("VQTOK_DEVICE", "tpu")
    assert "no device 'tpu'" in fails("encode", "a.png", "-f", code=2)
    ok("encode", "a.png", "-f", "--device", "cpu")


def test_info_shows_the_range_of_deep_images():
    save("a.png", image(12, 16).astype("uint16")[..., 0] * 16)
    ok("encode", "a.png", "--range", "0:4095")
    assert json.loads(ok("info", "a.npz", "--json").stdout)["range"] == [0.0, 4095.0]
    assert re.search(r"range +0, 4095", ok("info", "a.npz").stdout)


def test_a_sheet_among_the_images_is_refused():
    save("in/a.png", image(12, 16))
    said = fails("eval", "in", "--sheet", "in/sheet.png", code=2)
    assert "lies in the folder of images in" in said
    assert not Path("in/sheet.png").exists()
    ok("eval", "in", "--sheet", "sheet.png")
