"""`export --to safetensors-taming`: the tensors of taming-transformers, and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from cli_helpers import fails, ok
from conftest import image
from interop_helpers import save
from newer_helpers import make_foreign

from vqtok import codec, interop, weights

pytestmark = pytest.mark.usefixtures("toy")
TO = ("--to", "safetensors-taming")


def imported(name: str, *options: str) -> codec.Model:
    ok("import", save(name, Path("theirs"))[1], "-o", "m", *options)
    return codec.load("m")


@pytest.mark.slow
def test_the_file_has_tamings_tensors_and_config():
    source, path = save("taming", Path("theirs"))
    ok("import", path, "-o", "m", "--distance", "l2")
    facts = json.loads(ok("export", "m", "-o", "back", *TO, "--json").stdout)
    assert facts["bytes"] == sum(file.stat().st_size for file in Path("back").iterdir())
    found = safetensors.torch.load_file("back/model.safetensors")
    assert found.keys() == source.tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in source.tensors.items())
    text = Path("back/config.yaml").read_text()
    assert text.splitlines()[:4] == [
        "model:",
        "  target: taming.models.vqgan.VQModel",
        "  params:",
        "    embed_dim: 4",
    ]
    for line in (
        "    n_embed: 40",
        "      z_channels: 8",
        "      ch: 32",
        "      ch_mult: [1, 1, 2]",
        "      num_res_blocks: 1",
        "      attn_resolutions: [64]",
        "      double_z: false",
    ):
        assert line in text.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["taming", "llamagen", "dot"])
def test_import_reads_it_back(name: str):
    """LlamaGen's network too, with its codes on the unit sphere."""
    distance = {"taming": "l2", "dot": "dot"}.get(name)
    options = ["--distance", distance] if distance else []
    model = imported(name if name == "llamagen" else "taming", *options)
    ok("export", "m", "-o", "back", *TO)
    ok("import", "back", "-o", "again", "--distance", distance or "l2")
    again, pixels = codec.load("again"), image(24, 32)
    codes = model.encode(pixels)
    assert np.array_equal(again.encode(pixels).indices, codes.indices)
    assert np.array_equal(again.decode(again.codes(codes.indices)), model.decode(codes))
    target = "src.IBQ.models.ibqgan.VQModel" if name == "dot" else "taming.models.vqgan.VQModel"
    assert target in Path("back/config.yaml").read_text()


@pytest.mark.slow
def test_what_taming_has_no_room_for_is_told():
    assert "has no folded network" in fails("export", "toy", "-o", "back", *TO)
    imported("diffusers")
    assert "normalizes in 32 groups, and this one in 16" in fails("export", "m", "-o", "b", *TO)
    torch.save(make_foreign("maskgit").finished(), "x.pt")
    ok("import", "x.pt", "-o", "g")
    assert "takes pixels in -1:1" in fails("export", "g", "-o", "b", *TO)
    assert "pixels in another range" in fails("export", "g", "-o", "b")
    torch.save(make_foreign("magvit2").finished(), "x.pt")
    ok("import", "x.pt", "-o", "o")
    assert "has no magvit2 network" in fails("export", "o", "-o", "b", *TO)
    assert not Path("b").exists()
    assert not Path("back").exists()


@pytest.mark.slow
def test_a_model_trained_here_goes_there():
    """Any network that taming has, whoever trained it."""
    _, path = save("taming", Path("theirs"))
    found = interop.convert_checkpoint(interop.read_checkpoint(path)).weights
    found.meta["config"]["quantizer"] = "ema"
    weights.save_weights(Path("e") / "tokenizer.safetensors", found)
    ok("export", "e", "-o", "back", *TO)
