"""Compact files on the command line: encode --compact, pack, unpack, truncate, decode, info;
and what is said where a prior is missing.
"""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import fails, ok
from conftest import TOKENIZER, image

import vqtok
from vqtok import codec, codes, images, weights
from vqtok.codes.compact import to_stream
from vqtok.config import EntropyConfig
from vqtok.priors import IntegerPrior

SETTINGS = EntropyConfig(codebook_size=16, levels=1, embedding=4, width=8, blocks=1, rank=4)


def add_entropy(model: Path, seed: int = 0, bias: int = 0, levels: int = 1) -> None:
    """An entropy prior for a toy model, which likes one index best where `bias` says so."""
    torch.manual_seed(seed)
    settings = replace(SETTINGS, levels=levels)
    tensors = IntegerPrior(settings).integers()
    tensors["readout.bias"][0, 3] += bias
    record = {
        "tokenizer": weights.tokenizer_fingerprint(model / "tokenizer.safetensors"),
        "metrics": {"bits": 4.0},
    }
    weights.save_weights(
        model / "entropy.safetensors",
        weights.Weights(tensors, {"kind": "entropy", "config": asdict(settings), "record": record}),
    )


@pytest.fixture
def coding(toy: Path) -> Path:
    """The toy model with an entropy prior, and an image whose codes it likes:
    one index in all places but 24, which keep zip from packing it as small.
    """
    add_entropy(toy, bias=100_000)
    indices = np.full((1, 1, 20, 30), 3, np.uint8)
    draw = np.random.default_rng(0)
    indices.reshape(-1)[draw.choice(600, 24, replace=False)] = draw.integers(0, 16, 24)
    fingerprint = weights.tokenizer_fingerprint(toy / "tokenizer.safetensors")
    one = codes.Codes(
        indices,
        "toy",
        fingerprint,
        16,
        TOKENIZER.downsample,
        3,
        ((80, 120),),
    )
    codes.write_codes("one.npz", one)
    images.write_image(Path("img.png"), image(80, 120))
    return toy


def form(path: str) -> str:
    return codes.read_codes_meta(path)["form"]


def test_pack_and_unpack_without_the_image(coding: Path):
    assert "coded" in ok("pack", "one.npz").stderr
    assert form("one.compact.npz") == "coded"
    assert os.path.getsize("one.compact.npz") < 300
    ok("unpack", "one.compact.npz", "-o", "again.npz")
    assert form("again.npz") == "plain"
    assert (
        codes.read_plain_codes("again.npz")
        == vqtok.read_codes("one.compact.npz")
        == codes.read_plain_codes("one.npz")
    )


def test_encode_compact_decodes_to_the_same_image(coding: Path):
    ok("encode", "img.png", "-o", "plain.npz")
    ok("encode", "img.png", "--compact", "--verify", "-o", "compact.npz")
    assert vqtok.read_codes("compact.npz") == codes.read_plain_codes("plain.npz")
    for name in ("plain", "compact"):
        ok("decode", f"{name}.npz", "-o", f"{name}.png")
    assert Path("plain.png").read_bytes() == Path("compact.png").read_bytes()


@pytest.mark.slow
def test_encode_tells_of_compact_files_where_the_model_codes_them(coding: Path):
    hint = "smaller still: --compact, or vqtok pack a.npz\n"
    assert ok("encode", "img.png", "-o", "a.npz").stderr.endswith(hint)
    ok("pack", "a.npz")
    for words in (
        ["--compact", "-o", "b.npz"],
        ["-q", "-o", "c.npz"],
        ["-o", "-"],
        ["--json", "-o", "d.npz"],
    ):
        assert "smaller still" not in ok("encode", "img.png", *words).stderr
    (coding / "entropy.safetensors").unlink()
    assert "smaller still" not in ok("encode", "img.png", "-o", "e.npz").stderr


def test_hints_are_quoted_and_not_given_where_the_file_grew(coding: Path):
    done = ok("encode", "img.png", "-o", "it's a name.npz")
    assert done.stderr.splitlines()[-1] == (
        "smaller still: --compact, or vqtok pack 'it'\"'\"'s a name.npz'"
    )
    images.write_image(Path("tiny.png"), np.zeros((4, 4, 3), np.uint8))
    done = ok("encode", "tiny.png")
    assert "x more bytes than tiny.png, " in done.stderr
    assert "smaller still" not in done.stderr


@pytest.mark.slow
def test_what_can_only_be_bit_packed_is_said(toy: Path):
    said = "the model toy has no entropy prior: bits are packed, not coded "
    for i in range(2):
        images.write_image(Path(f"in/{i}.png"), image(80, 120, seed=i))
    for words in (
        ["encode", "in", "--compact", "-o", "compact"],
        ["encode", "in", "--compact", "--bulk", "-o", "shards", "--workers", 0],
        ["pack", "compact", "-o", "packed"],
        ["pack", "shards"],
    ):
        assert ok(*words).stderr.count(said) == 1, words
    assert said not in ok("pack", "compact", "-f", "-q", "-o", "packed").stderr
    assert said not in ok("unpack", "compact", "-o", "plain").stderr
    add_entropy(toy, bias=100_000)
    for words in (["encode", "in", "--compact", "-o", "new"], ["pack", "compact", "-o", "new2"]):
        assert said not in ok(*words).stderr


def test_info_and_models_show_the_entropy_prior(toy: Path):
    assert json.loads(ok("info", "toy", "--json").stdout)["entropy_prior"] is None
    assert json.loads(ok("models", "--json").stdout)["entropy_prior"] is False
    size = json.loads(ok("models", "--json").stdout)["bytes"]
    add_entropy(toy)
    facts = json.loads(ok("info", "toy", "--json").stdout)
    assert facts["entropy_prior"]["record"]["metrics"] == {"bits": 4.0}
    listed = json.loads(ok("models", "--json").stdout)
    assert listed["entropy_prior"] is True
    assert listed["bytes"] == size + (toy / "entropy.safetensors").stat().st_size == facts["bytes"]
    assert "entropy prior" in ok("info", "toy").stdout
    assert "validation crops" in ok("models").stderr


def test_info_names_no_model_whose_entropy_prior_is_another(coding: Path):
    ok("pack", "one.npz")
    packed = ("info", "one.compact.npz")
    prior = json.loads(ok(*packed, "--json").stdout)["prior"]
    assert json.loads(ok(*packed, "--json").stdout)["model_path"] == str(coding)
    add_entropy(coding, seed=1)
    assert json.loads(ok(*packed, "--json").stdout)["model_path"] is None
    assert f"no model here with the entropy prior {prior}" in " ".join(ok(*packed).stdout.split())
    assert json.loads(ok("info", "one.npz", "--json").stdout)["model_path"] == str(coding)
    here = weights.fingerprint(
        weights.load_weights(coding / "entropy.safetensors", "entropy").tensors
    )[: len(prior)]
    said = fails("decode", "one.compact.npz")
    assert (
        f"the codes need the entropy prior {prior} of model toy, but the one here is {here}" in said
    )
    (coding / "entropy.safetensors").unlink()
    assert json.loads(ok(*packed, "--json").stdout)["model_path"] is None


def test_indices_alone_for_readers_without_strings(coding: Path):
    ok("pack", "one.npz")
    for source in ("one.npz", "one.compact.npz"):
        ok("unpack", source, "--indices-only", "-f")
        name = source.replace(".npz", ".indices.npz")
        with np.load(name, allow_pickle=False) as file:
            assert file.files == ["indices"]  # no string in it
            np.testing.assert_array_equal(
                file["indices"], codes.read_plain_codes("one.npz").indices
            )
        assert "the member meta is missing" in fails("decode", name)
    ok("encode", "img.png", "--bulk", "--workers", 0, "-o", "shards")
    assert "does not go with codes shards" in fails("unpack", "shards", "--indices-only", code=2)


def test_verify_refuses_what_would_not_come_back(coding: Path, monkeypatch: pytest.MonkeyPatch):
    broken = codec.Model.pack
    monkeypatch.setattr(
        codec.Model,
        "pack",
        lambda self, plain: broken(
            self, codes.Codes(**{**vars(plain), "indices": plain.indices ^ 1})
        ),
    )
    assert "would not decode" in fails("encode", "img.png", "--compact", "--verify")


def test_bit_packed_without_a_prior_and_where_it_is_smaller(toy: Path):
    images.write_image(Path("img.png"), image(80, 120))
    ok("encode", "img.png", "--compact")
    assert form("img.npz") == "packed"
    assert json.loads(ok("info", "img.npz", "--json").stdout)["form"] == "packed"
    add_entropy(toy, bias=100_000)
    ok("pack", "img.npz")
    assert form("img.compact.npz") == "packed"  # this prior expects another index everywhere


def grids() -> dict[str, np.ndarray]:
    """Index grids (1, 1, 20, 30) of many kinds: of one color, stripes, a gradient, noise."""
    rows, columns = np.mgrid[:20, :30]
    draw = np.random.default_rng(0)
    found = {
        "liked": np.full((20, 30), 3),
        "flat": np.full((20, 30), 9),
        "stripes": columns % 5,
        "halves": np.where(rows < 10, 1, 14),
        "gradient": (rows + columns) // 4,
        "noise": draw.integers(0, 16, (20, 30)),
        "few": np.where(draw.random((20, 30)) < 0.03, 5, 9),
    }
    return {name: grid[None, None].astype(np.uint8) for name, grid in found.items()}


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("name", grids())
def test_compact_is_never_larger(toy: Path, prior: bool, name: str):
    if prior:
        add_entropy(toy, bias=100_000)
    fingerprint = weights.tokenizer_fingerprint(toy / "tokenizer.safetensors")
    for size in ((80, 120), (4, 4)):
        grid = grids()[name][:, :, : size[0] // 4, : size[1] // 4]
        one = codes.Codes(grid, "toy", fingerprint, 16, TOKENIZER.downsample, 3, (size,))
        codes.write_codes("one.npz", one, force=True)
        ok("pack", "one.npz", "-f")
        assert os.path.getsize("one.compact.npz") <= os.path.getsize("one.npz")
        assert vqtok.read_codes("one.compact.npz") == one
        ok("unpack", "one.compact.npz", "-f", "-o", "back.npz")
        assert Path("back.npz").read_bytes() == Path("one.npz").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("color", [0, 130, 255])
def test_encode_compact_of_one_color_is_never_larger(coding: Path, color: int):
    images.write_image(Path("flat.png"), np.full((480, 640, 3), color, np.uint8))
    ok("encode", "flat.png")
    ok("encode", "flat.png", "--compact", "--verify", "-o", "small.npz")
    assert os.path.getsize("small.npz") <= os.path.getsize("flat.npz")
    # a limit that the form written keeps is no error
    size = os.path.getsize("small.npz")
    ok("encode", "flat.png", "--compact", "--max-bytes", size, "-o", "limited.npz")
    assert Path("limited.npz").read_bytes() == Path("small.npz").read_bytes()
    fails("encode", "flat.png", "--compact", "--max-bytes", size - 1, "-o", "less.npz")


def test_truncate_keeps_the_form(coding: Path):
    ok("pack", "one.npz")
    ok("truncate", "one.compact.npz", "--levels", "1", "-o", "cut.npz")
    assert Path("cut.npz").read_bytes() == Path("one.compact.npz").read_bytes()


def test_info_needs_no_model(coding: Path):
    ok("pack", "one.npz")
    (coding / "entropy.safetensors").unlink()
    (coding / "tokenizer.safetensors").unlink()
    facts = json.loads(ok("info", "one.compact.npz", "--json").stdout)
    assert (facts["form"], facts["grid"], facts["model_path"], facts["index_bytes"]) == (
        "coded",
        [30, 20, 1],
        None,
        facts["index_bytes"],
    )


def test_a_missing_prior_is_named(coding: Path):
    ok("pack", "one.npz")
    prior = json.loads(ok("info", "one.compact.npz", "--json").stdout)["prior"]
    (coding / "entropy.safetensors").unlink()
    for command in ("decode", "unpack"):
        message = fails(command, "one.compact.npz")
        assert prior in message
        assert "toy" in message
    add_entropy(coding, seed=1)
    message = fails("decode", "one.compact.npz")
    assert prior in message
    assert (
        weights.fingerprint(
            weights.load_weights(coding / "entropy.safetensors", "entropy").tensors
        )[:4]
        in message
    )


def test_a_prior_of_another_tokenizer_is_refused(coding: Path):
    stored = weights.load_weights(coding / "entropy.safetensors", "entropy")
    weights.save_weights(
        coding / "entropy.safetensors",
        weights.Weights(stored.tensors, {**stored.meta, "record": {"tokenizer": "00000000"}}),
    )
    assert "of another tokenizer" in fails("pack", "one.npz")


@pytest.mark.slow
def test_damage_is_an_error_and_never_a_wrong_image(coding: Path):
    ok("encode", "img.png", "--compact", "-o", "c.npz", "--verify")
    stored = codes.read_any_codes("c.npz")
    assert isinstance(stored, codes.Compact)
    stream, draw = to_stream(stored), np.random.default_rng(0)
    for _ in range(30):
        at = int(draw.integers(30, len(stream)))
        with zipfile.ZipFile("bad.npz", "w") as archive:
            archive.writestr("c", stream[:at] + bytes([stream[at] ^ 255]) + stream[at + 1 :])
        assert fails("decode", "bad.npz").count("\n") == 2


def test_the_coder_codes_once_for_every_number_of_levels(
    coding: Path, monkeypatch: pytest.MonkeyPatch
):
    model = vqtok.load("toy")
    assert model.entropy_coder is not None
    prior, calls = model.entropy_coder.prior, list[int]()
    code = prior.code
    monkeypatch.setattr(prior, "code", lambda grids: calls.append(1) or code(grids))
    pack = model.pack_levels(model.encode(np.zeros((16, 16, 3), np.uint8)))
    for _ in range(3):
        pack(1)
    assert len(calls) == 1


@pytest.mark.slow
def test_coding_imports_no_torch(coding: Path):
    """pack, unpack, truncate of compact files, and reading them in the library."""
    code = """
import sys, vqtok
from vqtok.__main__ import main
for words in ("pack one.npz -o coded.npz", "unpack coded.npz -o back.npz",
              "truncate coded.npz --levels 1 -o cut.npz"):
    sys.argv[1:] = words.split()
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
    assert "torch" not in sys.modules, words
vqtok.read_codes("coded.npz")
assert "torch" not in sys.modules, "read_codes"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert codes.form(codes.read_any_codes("coded.npz")) == "coded"
    assert vqtok.read_codes("back.npz") == vqtok.read_codes("one.npz")
    assert Path("cut.npz").exists()
