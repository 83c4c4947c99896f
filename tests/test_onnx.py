"""ONNX export: what onnxruntime makes of the files is what vqtok makes of the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import fails, ok

import vqtok
from vqtok import model_registry
from vqtok.interop import export_model

GOLDEN = Path(__file__).parent / "golden" / "format1"
KINDS = ["vq", "simvq", "fsq", "lfq", "pixels", "classic"]
SIZES = ((1, 1), (23, 30), (40, 17))


def sessions(path: Path) -> tuple[Any, Any]:
    pytest.importorskip("onnx")
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


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    said = fails("export", GOLDEN / "run", "--to", "onnx", "-o", "out")
    assert "vqtok[onnx]" in said
