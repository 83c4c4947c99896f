"""`vqtok import` and `vqtok export` as typed, and the other commands on what they make."""

import json
import re
from pathlib import Path

import pytest
import torch
from cli_helpers import fails, ok, run, save, size_of
from conftest import image
from interop_helpers import SOURCES, Source
from interop_helpers import save as save_source

from vqtok import codec, weights
from vqtok.codes import read_plain_codes

pytestmark = pytest.mark.usefixtures("toy")
FILES = {"README.md", "tokenizer.safetensors"}


def imported(name: str = "taming") -> tuple[Source, Path]:
    """A model `m` of a source, and the file it comes from."""
    source, path = save_source(name, Path("theirs"))
    ok("import", path, "-o", "m", "-q")
    return source, path


@pytest.mark.parametrize("name", SOURCES)
def test_import_makes_a_model_that_encodes_and_decodes(name: str):
    source, path = save_source(name, Path("theirs"))
    options = ["--distance", "l2"] if name == "taming" else []  # or IBQ, which it warns of
    done = ok("import", path, "-o", "m", *options)
    wanted = re.escape(f"{path} -> m  ") + r".*, one of 40 codes for 4x4 pixels, \d+\.\d\d s\n"
    assert re.fullmatch(wanted, done.stderr)
    assert {file.name for file in Path("m").iterdir()} == FILES
    card = Path("m/README.md").read_text()
    assert card.startswith(
        f"# m ({weights.tokenizer_fingerprint(Path('m/tokenizer.safetensors'))})"
    )
    assert (
        "imported from "
        f"{weights.read_meta(Path('m/tokenizer.safetensors'))['record']['imported']['file']}"
    ) in card
    pixels = image(24, 32)
    save("a.png", pixels)
    ok("encode", "a.png", "--model", "m")
    indices = source.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    assert (read_plain_codes(Path("a.npz")).indices[0, 0] == indices.numpy()).all()
    ok("decode", "a.npz", "--model", "m", "-o", "b.png")
    assert size_of("b.png") == (32, 24)


def test_info_and_models_of_an_imported_model(toy: Path):
    _, path = save_source("taming", Path("theirs"))
    facts = json.loads(ok("import", path, "-o", toy.parent / "vqgan", "--json").stdout)
    assert facts["fingerprint"] == weights.tokenizer_fingerprint(
        toy.parent / "vqgan" / "tokenizer.safetensors"
    )
    assert (facts["input"], facts["source"]) == (str(path), "taming-transformers VQGAN")
    shown = ok("info", "vqgan").stdout
    for row in (
        "network +classic",
        "stages +32, 32, 64",
        "attention +2, 3",
        "z channels +8",
        "file +last.ckpt",
    ):
        assert re.search(rf"{row}\b", shown), row
    assert re.search(r"vqgan +4 +40 +1 +0\.333", ok("models").stdout)


def test_export_writes_what_import_reads():
    imported()
    done = ok("export", "m", "-o", "back")
    assert re.fullmatch(
        r"m -> back  diffusers VQModel, \d+ tensors, .+, \d+\.\d\d s\n", done.stderr
    )
    assert {file.name for file in Path("back").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    facts = json.loads(ok("export", "m", "-o", "back", "-f", "--json", "--to", "diffusers").stdout)
    assert facts["bytes"] == sum(file.stat().st_size for file in Path("back").iterdir())
    ok("import", "back", "-o", "again")
    prints = [
        weights.tokenizer_fingerprint(Path(name) / "tokenizer.safetensors")
        for name in ("m", "again")
    ]
    assert prints[0] == prints[1]


def test_normalize_is_for_who_knows_better():
    _, path = save_source("llamagen", Path("theirs"))
    for option, wanted in (("--normalize", True), ("--no-normalize", False)):
        ok("import", path, "-o", "m", "-f", option)
        assert weights.read_meta(Path("m/tokenizer.safetensors"))["config"]["normalize"] is wanted


def test_nothing_is_replaced_unless_asked_for():
    _, path = imported()
    assert "m/tokenizer.safetensors exists" in fails("import", path, "-o", "m")
    Path("m/prior.safetensors").write_bytes(b"of another tokenizer")
    Path("m/notes.txt").write_text("mine")
    ok("import", path, "-o", "m", "--force")
    assert {file.name for file in Path("m").iterdir()} == FILES | {"notes.txt"}
    ok("export", "m", "-o", "back")
    assert "back/diffusion_pytorch_model.safetensors exists" in fails("export", "m", "-o", "back")
    assert (
        run("import", path, "-o", "n", "--quiet").output
        == run("export", "m", "-o", "o", "--quiet").output
        == ""
    )


def test_errors_are_two_lines_and_leave_nothing():
    Path("x.ckpt").write_bytes(b"nothing")
    torch.save({"model": {"a": torch.zeros(1)}}, "y.pt")
    assert "x.ckpt is no checkpoint" in fails("import", "x.ckpt", "-o", "m")
    assert "y.pt holds no tokenizer that vqtok knows" in fails("import", "y.pt", "-o", "m")
    assert "none.pt" in fails("import", "none.pt", "-o", "m")
    assert "no layers that fold pixels" in fails("export", "toy", "-o", "back")
    assert "cannot export to 'caffe'" in fails(
        "export", "toy", "-o", "back", "--to", "caffe", code=2
    )
    assert "there is no model" in fails("export", "nobody", "-o", "back")


def test_a_image_too_large_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch):
    imported()
    monkeypatch.setattr("vqtok.networks.whole_image.MEMORY_LIMIT", 30 * 30 * 4 * 5 * 64)
    save("in/a.png", image(16, 16))
    save("in/b.png", image(64, 64))
    done = run("encode", "in", "-o", "out", "--model", "m")
    assert done.exit_code == 1
    assert "vqtok: error: in/b.png: an image of 64x64 takes about" in done.stderr
    assert [file.name for file in Path("out").rglob("*.npz")] == ["a.npz"]
    done = run("encode", "in", "-o", "bulk", "--bulk", "--model", "m", "--workers", 0)
    assert done.exit_code == 1
    assert "an image of 64x64 takes about" in done.stderr
    figures = json.loads(run("eval", "in", "--model", "m", "--json").stdout)
    assert (figures["pictures"], figures["skipped"]) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("normalized", [False, True])
def test_a_prior_is_trained_for_an_imported_model_and_sampled(data: Path, normalized: bool):
    imported("llamagen" if normalized else "taming")
    ok(
        "train",
        "data",
        "--stage",
        "prior",
        "-o",
        "m",
        "--prior-steps",
        "2",
        "--set",
        "prior.width=8",
        "--set",
        "prior.layers=1",
        "--set",
        "prior_training.batch=2",
        "-q",
    )
    card = Path("m/README.md").read_text()
    assert "imported from" in card
    assert "bits per index" in card
    ok("sample", "--model", "m", "-o", "s.png", "-n", "1", "--size", "16")
    ok("report", "m", "-o", "r.html")
    assert codec.load("m").labels == ("a", "b")


@pytest.mark.slow
def test_an_imported_model_is_fine_tuned(data: Path):
    imported()
    ok(
        "train",
        "data",
        "--stage",
        "tokenizer",
        "-o",
        "tuned",
        "--init",
        "m",
        "--steps",
        "2",
        "--batch",
        "2",
        "--size",
        "16",
        "-q",
    )
    before, after = (
        weights.load_weights(Path(name) / "tokenizer.safetensors", "tokenizer")
        for name in ("m", "tuned")
    )
    assert after.tensors.keys() == before.tensors.keys()
    assert (after.tensors["encoder.first.weight"] != before.tensors["encoder.first.weight"]).any()


@pytest.mark.slow
def test_a_classic_network_is_trained_from_scratch_resumed_and_exported(data: Path):
    settings = [
        "network=classic",
        "fold=1",
        "shortcut=false",
        "stages=[8, 8, 16]",
        "attention=[2]",
        "groups=4",
        "z_channels=4",
        "quantizer=vq",
        "decoder_blocks=2",
    ]
    asked = [word for setting in settings for word in ("--set", f"tokenizer.{setting}")]
    ok(
        "train",
        "data",
        "--recipe",
        "small.toml",
        *asked,
        "--stage",
        "tokenizer",
        "--steps",
        "3",
        "-o",
        "run",
        "-q",
    )
    ok("train", "--resume", "--stage", "tokenizer", "--steps", "6", "-o", "run", "-q")
    assert weights.read_meta(Path("run/tokenizer.safetensors"))["config"]["stages"] == [8, 8, 16]
    ok("export", "run", "-o", "theirs")
    ok("import", "theirs", "-o", "back")
    save("a.png", image(16, 16))
    for name in ("run", "back"):
        ok("encode", "a.png", "-m", name, "-o", f"{name}.npz")
    assert (
        read_plain_codes(Path("run.npz")).indices == read_plain_codes(Path("back.npz")).indices
    ).all()
