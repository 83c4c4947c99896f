"""Encoding and decoding without torch: which runtime is taken, and that it gives what torch gives.

Where onnxruntime is not installed, a stand-in that is torch takes its place, and what needs the
runtime itself is left out.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import fails, ok, save
from conftest import TOKENIZER, image, make_levels, make_model
from test_cli_pack import add_entropy
from test_onnx import GOLDEN, KINDS

import vqtok
from vqtok import codec, model_registry, onnx, weights
from vqtok.cli import start
from vqtok.config import TokenizerConfig
from vqtok.errors import ModelError
from vqtok.meta_init import init_empty_weights
from vqtok.networks.vqvae import VQVAE
from vqtok.onnx import protobuf, session, tokenizer

FINITE = {"normalize": False, "code_dim": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "product": {"levels": 2, "product": True, "code_dim": 8},
    "residual simvq": {"quantizer": "simvq", "levels": 3, "normalize": False},
    "residual fsq": {"quantizer": "fsq", "levels": 2, "codebook_size": 64, **FINITE},
    "lfq": {"quantizer": "lfq", "codebook_size": 64, **FINITE},
    "own decoder": {"decoder_widths": (8, 16), "decoder_depths": (1, 2)},
    "no shortcut": {"shortcut": False, "likelihood": "heteroscedastic"},
    "paper": {"network": "paper", "width": 16, "downsample": 8, "likelihood": "bce"},
    "vqvae2": {"network": "vqvae2", "width": 16, "downsample": 8, "levels": 5, "product": True}
    | {"code_dim": 20, "normalize": False},
    "classic": {"network": "classic", "stages": (8, 16, 16), "attention": (2, 3), "groups": 4}
    | {"z_channels": 5, "middle_blocks": 3, "fold": 1, "shortcut": False, "width": 8},
    "magvit2": {"network": "magvit2", "stages": (8, 16, 16), "groups": 4, "fold": 1}
    | {"shortcut": False, "width": 8},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_graph_asks_for_the_tensors_of_the_network(name: str):
    settings = replace(TOKENIZER, **CONFIGS[name])
    with init_empty_weights():
        state = VQVAE(settings).release_state()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert onnx.tensor_shapes(settings) == shapes


def test_a_damaged_config_takes_no_memory():
    """32 codebooks of 2^18 codes in 1,024 dimensions would be 32 GiB."""
    large = {"quantizer": "lfq", "codebook_size": 2**18, "levels": 32, "code_dim": 1024}
    settings = TokenizerConfig(normalize=False, **large)  # type: ignore[arg-type]
    assert len(onnx.tensor_shapes(settings)) > 100
    with pytest.raises(ModelError, match="too large"):
        onnx.build_decoder({}, settings)


def test_a_network_without_a_graph_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer, "NETWORKS", {})
    with pytest.raises(ModelError, match="no ONNX graph is known of the network folded"):
        onnx.tensor_shapes(TOKENIZER)


def test_messages_are_those_of_onnx():
    """The bytes that the package onnx 1.23 gives for the same."""
    made = protobuf.node("Clip", ["x"], "y", {"a": -1, "b": [1, 300], "c": 0.5, "d": "s"})
    assert b"".join(made).hex() == (
        "0a01781201791a01792204436c69702a110a016118ffffffffffffffffff01a001022a0b0a0162400140ac02a0"
        "01072a0b0a0163150000003fa001012a090a0164220173a00103"
    )
    tensor = protobuf.tensor("w", np.array([[1, -2]], np.float16))
    assert b"".join(tensor).hex() == "08010802100a4201774a04003c00c0"
    info = protobuf.value_info("x", protobuf.UINT8, ["B", 3])
    assert b"".join(info).hex() == "0a0178120f0a0d080212090a031201420a020803"


def test_weights_stay_beside_a_graph_that_is_not_for_a_file():
    folder = model_registry.find_model(str(GOLDEN / "run"))
    stored = weights.load_weights(folder.tokenizer, "tokenizer")
    settings = weights.tokenizer_config(folder.tokenizer)
    for build in (onnx.build_encoder, onnx.build_decoder):
        inside, graph = build(stored.tensors, settings), build(stored.tensors, settings, apart=True)
        data = graph.model("g", {})
        size = len(inside.model("g", {}))
        assert len(data) < size - 0.8 * sum(array.nbytes for array in graph.arrays.values()) / 2
        assert graph.arrays
        assert all(array.flags.c_contiguous for array in graph.arrays.values())
        held = {id(tensor) for tensor in stored.tensors.values()}
        kept = [id(array) in held for array in graph.arrays.values()]
        assert any(kept), "float16 weights are copied nowhere"
        assert all(array.tobytes()[:64] not in data for array in graph.arrays.values())


# Which runtime


@pytest.mark.parametrize(
    ("runtime", "device", "precision", "gpu", "without"),
    [
        (None, None, "fp32", False, True),
        ("auto", "auto", "fp32", False, True),
        ("onnxruntime", "cpu", "fp32", True, True),
        ("torch", "cpu", "fp32", False, False),
        (None, None, "fp32", True, False),
        (None, "cuda", "fp32", False, False),
        (None, "cpu", "bf16", False, False),
    ],
)
def test_the_runtime_is_chosen_by_device_precision_and_variable(
    runtime: str | None,
    device: str | None,
    precision: str,
    gpu: bool,
    without: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(session, "is_installed", lambda: True)
    monkeypatch.setattr(start, "may_have_gpu", lambda: gpu)
    monkeypatch.delenv("VQTOK_RUNTIME")
    if runtime:
        monkeypatch.setenv("VQTOK_RUNTIME", runtime)
    assert start.ModelOptions(None, device, precision).without_torch() == without
    monkeypatch.setattr(session, "is_installed", lambda: False)
    if runtime != "onnxruntime":
        assert not start.ModelOptions(None, device, precision).without_torch()


def test_a_runtime_that_is_not_there_is_an_error(toy: Path, monkeypatch: pytest.MonkeyPatch):
    save("a.png")
    monkeypatch.setenv("VQTOK_RUNTIME", "tensorrt")
    assert "choose auto, onnxruntime or torch" in fails("encode", "a.png", code=2)
    monkeypatch.setenv("VQTOK_RUNTIME", "onnxruntime")
    monkeypatch.setattr(session, "is_installed", lambda: False)
    assert "vqtok[fast]" in fails("encode", "a.png", code=2)


def test_a_gpu_is_suspected_where_its_driver_is(monkeypatch: pytest.MonkeyPatch):
    if sys.platform == "darwin":
        pytest.skip("there are no such drivers")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidiactl")
    assert start.may_have_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not start.may_have_gpu()


# What it gives


class Standin:
    """Runs a graph of the toy model by torch."""

    runs = 0

    def __init__(self, graph: bytes, arrays: Mapping[str, np.ndarray]) -> None:
        assert b"Conv" in graph
        assert all(name.encode() in graph for name in arrays)

    def run(self, name: str, value: np.ndarray) -> np.ndarray:
        Standin.runs += 1
        model = vqtok.load(None, "cpu")
        if name == "image":
            return model.encode_batch([value[0].transpose(1, 2, 0)]).indices.astype(np.int64)
        codes = model.codes(value)
        return model.decode_all(codes)[0].transpose(2, 0, 1)[None]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands take onnxruntime, or the stand-in."""
    monkeypatch.setenv("VQTOK_RUNTIME", "auto")
    monkeypatch.setattr(start, "may_have_gpu", lambda: False)
    monkeypatch.setattr(Standin, "runs", 0)
    monkeypatch.setattr(session, "is_installed", lambda: True)
    monkeypatch.setattr(session, "start", lambda: "0.0")
    monkeypatch.setattr(codec, "start", lambda: "0.0")
    monkeypatch.setattr(session, "Session", Standin)


def both_codes(
    monkeypatch: pytest.MonkeyPatch, path: Path, *more: object
) -> tuple[bytes, bytes, int]:
    """Codes files by torch and by the other runtime, and how often that ran."""
    written = []
    for runtime in ("torch", "auto"):
        monkeypatch.setenv("VQTOK_RUNTIME", runtime)
        Standin.runs = 0
        ok("encode", path, *more, "-o", "out.npz", "-f")
        written.append(Path("out.npz").read_bytes())
    return written[0], written[1], Standin.runs


@pytest.mark.usefixtures("fast")
def test_files_are_those_of_torch(toy: Path, monkeypatch: pytest.MonkeyPatch):
    add_entropy(toy)
    pixels = save("a.png")
    for more in ((), ("--compact",), ("--verify",)):
        torch, other, runs = both_codes(monkeypatch, pixels, *more)
        assert (torch == other, runs) == (True, 1), more
    ok("encode", pixels, "--compact", "-o", "a.npz")
    ok("decode", "a.npz", "-o", "fast.png")
    monkeypatch.setenv("VQTOK_RUNTIME", "torch")
    ok("decode", "a.npz", "-o", "torch.png")
    assert Path("fast.png").read_bytes() == Path("torch.png").read_bytes()


@pytest.mark.usefixtures("fast")
def test_codes_find_their_model_behind_another_of_its_name(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ok("encode", save("a.png"), "-o", "a.npz")
    make_model(tmp_path / "first" / "toy", seed=1)
    there = f"{tmp_path / 'first'}{os.pathsep}{toy.parent}"
    monkeypatch.setenv("VQTOK_MODELS", there)
    said = ok("decode", "a.npz", "-o", "again.png", "--verbose").stderr
    assert str(toy) in said
    monkeypatch.setenv("VQTOK_MODELS", str(tmp_path / "first"))
    assert "the model toy here is" in fails("decode", "a.npz", "-o", "none.png")


@pytest.mark.usefixtures("fast")
def test_levels_are_kept_and_refused_as_torch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_levels(tmp_path / "models" / "toy", 3)
    monkeypatch.setenv("VQTOK_MODEL", "toy")
    monkeypatch.setattr(model_registry, "bundled_models", lambda: tmp_path / "none")
    path = save("a.png")
    torch, other, runs = both_codes(monkeypatch, path, "--levels", 2)
    assert (torch == other, runs) == (True, 1)
    ok("encode", path, "-o", "a.npz")
    ok("decode", "a.npz", "--levels", 1, "-o", "1.png")
    assert "3 levels, not 4" in fails("decode", "a.npz", "--levels", 4, "-o", "4.png")


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("limit", ["PIXELS_MAX", "FEATURES_MAX", "SCORES_MAX", "ENTRIES_MAX"])
def test_what_is_too_large_goes_to_torch(limit: str, toy: Path, monkeypatch: pytest.MonkeyPatch):
    path = save("a.png")
    torch, _, _ = both_codes(monkeypatch, path)
    monkeypatch.setattr(f"vqtok.codec.fast.{limit}", 10)
    said = ok("encode", path, "-o", "b.npz", "--verbose").stderr
    assert Path("b.npz").read_bytes() == torch
    assert "onnxruntime 0.0" in said
    assert "fp32, torch " in said


@pytest.mark.usefixtures("fast")
def test_a_runtime_that_fails_leaves_the_work_to_torch(toy: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> np.ndarray:
        raise RuntimeError("no kernel")

    path = save("a.png")
    torch, _, _ = both_codes(monkeypatch, path)
    monkeypatch.setattr(Standin, "run", broken)
    ok("encode", path, "-o", "b.npz")
    assert Path("b.npz").read_bytes() == torch
    ok("decode", "b.npz")


@pytest.mark.usefixtures("fast")
def test_effort_and_other_models_go_to_torch(toy: Path, monkeypatch: pytest.MonkeyPatch):
    path = save("a.png")
    said = ok("encode", path, "--effort", 1, "--verbose").stderr
    assert "onnxruntime" not in said
    monkeypatch.setattr(tokenizer, "NETWORKS", {})
    said = ok("encode", path, "-f", "--verbose").stderr
    assert "onnxruntime" not in said


@pytest.mark.usefixtures("fast")
def test_a_damaged_model_is_named_as_torch_names_it(toy: Path, monkeypatch: pytest.MonkeyPatch):
    stored = weights.load_weights(toy / "tokenizer.safetensors", "tokenizer")
    del stored.tensors["decoder.0.bias"]
    weights.save_weights(toy / "tokenizer.safetensors", stored)
    save("a.png")
    assert "lacks the tensor decoder.0.bias" in fails("encode", "a.png")


def test_a_runtime_that_cannot_be_imported_is_none(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = codec.load_fast(model_registry.find_model(), codec.load_stored)
    assert isinstance(found, vqtok.Model)


# With onnxruntime itself


@pytest.mark.parametrize("name", [*KINDS, "run"])
def test_the_runtime_gives_what_torch_gives(name: str):
    pytest.importorskip("onnxruntime")
    path = GOLDEN / "tokenizers" / f"{name}.safetensors"
    folder = model_registry.find_model(str(path if path.exists() else GOLDEN / name))
    found = codec.load_fast(folder, codec.load_stored)
    assert isinstance(found, codec.FastModel)
    model = codec.load(folder, "cpu")
    for H, W in ((1, 1), (23, 30)):
        pixels = image(H, W, model.config.channels)
        codes = found.encode_batch([pixels, pixels])
        assert codes == model.encode_batch([pixels, pixels])
        for mine, theirs in zip(found.decode_all(codes), model.decode_all(codes), strict=True):
            assert mine.shape == theirs.shape
            assert np.abs(mine.astype(int) - theirs).max() <= 1


def test_commands_start_without_torch(toy: Path):
    pytest.importorskip("onnxruntime")
    add_entropy(toy)
    save("a.png")
    script = """
import sys
from vqtok.cli import main
for words in ("encode a.png", "decode a.npz", "encode a.png --compact -o b.npz", "decode b.npz"):
    sys.argv = ["vqtok", *words.split(), "--device", "cpu"]
    try:
        main()
    except SystemExit as done:
        assert not done.code, words
    assert "torch" not in sys.modules, words
"""
    environment = {**os.environ, "VQTOK_RUNTIME": "onnxruntime"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
