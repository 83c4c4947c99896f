"""ONNX export: what onnxruntime makes of the files is what vqtok makes of the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import fails, ok
from conftest import TOKENIZER, image, make_model
from newer_helpers import make_foreign

import vqtok
from vqtok import interop, model_registry, weights
from vqtok.interop import export_model

GOLDEN = Path(__file__).parent / "golden" / "format1"
KINDS = ["vq", "simvq", "fsq", "lfq", "pixels", "classic"]
SIZES = ((1, 1), (23, 30), (40, 17))


def sessions(path: Path) -> tuple[Any, Any]:
    runtime = pytest.importorskip("onnxruntime")
    contents = export_model(model_registry.find_model(str(path)), "onnx").contents
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    encoder, decoder = (
        runtime.InferenceSession(contents[f"{name}.onnx"], options)
        for name in ("encoder", "decoder")
    )
    return encoder, decoder


@pytest.mark.parametrize("name", [*KINDS, "run"])
def test_graphs_give_what_the_model_gives(name: str):
    path = GOLDEN / "tokenizers" / f"{name}.safetensors"
    path = path if path.exists() else GOLDEN / name
    encoder, decoder = sessions(path)
    model, rng = vqtok.load(path, "cpu"), np.random.default_rng(0)
    for H, W in SIZES:
        image = rng.integers(0, 256, (H, W, model.config.channels), np.uint8)
        codes = model.encode_batch([image])
        (found,) = encoder.run(None, {"image": image.transpose(2, 0, 1)[None]})
        np.testing.assert_array_equal(found, codes.indices)
        for levels in range(1, model.config.levels + 1):
            (decoded,) = decoder.run(None, {"indices": found[:, :levels]})
            whole = decoded[0].transpose(1, 2, 0)[:H, :W]
            assert np.abs(whole.astype(int) - model.decode(codes, levels)).max() <= 1


NETWORKS = ["paper", "magvit2", "magvit2-f2", "maskgit", "maskgit-3", "vqvae2", "lfq18"]


def network_of(name: str, folder: Path) -> Path:
    """A model with each network that training and import make."""
    if name in ("paper", "lfq18"):
        more = {
            "paper": {"network": "paper", "width": 16, "downsample": 8, "likelihood": "bce"},
            "lfq18": {"quantizer": "lfq", "codebook_size": 64, "levels": 3, "product": True}
            | {"code_dim": 18, "normalize": False},
        }[name]
        return make_model(folder, replace(TOKENIZER, **more), prior=None)
    made = make_foreign(name)
    torch.save(made.finished(), folder.with_suffix(".pt"))
    options = interop.ImportOptions(input_range=f"{made.low}:{made.high}")
    found = interop.convert_checkpoint(interop.read_checkpoint(folder.with_suffix(".pt")), options)
    weights.save_weights(folder / "tokenizer.safetensors", found.weights)
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_all_networks(name: str, tmp_path: Path):
    """Random weights: what differs is a near tie, and at most one index in 500 is."""
    path = network_of(name, tmp_path / "m")
    encoder, decoder = sessions(path)
    model = vqtok.load(path, "cpu")
    total = differ = 0
    for seed, (H, W) in enumerate(((1, 1), (23, 30), (40, 17), (64, 56))):
        pixels = image(H, W, model.config.channels, seed)
        codes = model.encode(pixels)
        (found,) = encoder.run(None, {"image": pixels.transpose(2, 0, 1)[None]})
        assert found.shape == codes.indices.shape
        total, differ = total + found.size, differ + int((found != codes.indices).sum())
        for levels in range(1, model.config.levels + 1):
            grid = codes.indices[:, :levels].astype(np.int64)
            (decoded,) = decoder.run(None, {"indices": grid})
            whole = decoded[0].transpose(1, 2, 0)[:H, :W]
            assert np.abs(whole.astype(int) - model.decode(codes, levels)).max() <= 1
    assert 500 * differ <= total


def test_a_batch_is_as_its_images_alone():
    encoder, decoder = sessions(GOLDEN / "run")
    images = np.random.default_rng(1).integers(0, 256, (3, 3, 16, 20), np.uint8)
    (indices,) = encoder.run(None, {"image": images})
    (decoded,) = decoder.run(None, {"indices": indices})
    for i in range(3):
        (alone,) = encoder.run(None, {"image": images[i : i + 1]})
        np.testing.assert_array_equal(alone[0], indices[i])
        (one,) = decoder.run(None, {"indices": alone})
        assert np.abs(one[0].astype(int) - decoded[i]).max() <= 1


def test_the_files_say_whose_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    line = json.loads(ok("export", GOLDEN / "run", "--to", "onnx", "-o", "out", "--json").stdout)
    assert line["to"] == "onnx"
    for name in ("encoder", "decoder"):
        loaded = onnx.load(Path("out", f"{name}.onnx"))
        onnx.checker.check_model(loaded, full_check=True)
        facts = {entry.key: entry.value for entry in loaded.metadata_props}
        assert facts["model"] == "run"
        assert facts["fingerprint"] == vqtok.load(GOLDEN / "run", "cpu").fingerprint
        assert (facts["downsample"], facts["channels"]) == ("4", "3")
    assert "encoder.onnx exists" in fails("export", GOLDEN / "run", "--to", "onnx", "-o", "out")
