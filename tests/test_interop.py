"""Checkpoints of three other programs to models and back, against an independent forward;
files that are damaged or hostile.
"""

import json
import os
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import interop_helpers
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import image
from interop_helpers import SOURCES, STAGES, D, K, Z, as_floats, check_same, imported, save

from vqtok import interop, model_registry, weights
from vqtok.config import TokenizerConfig, from_dict
from vqtok.errors import FormatError, InputError, ModelError, VqtokError


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_an_imported_model_does_what_its_program_does(name: str, tmp_path: Path):
    source, path = save(name, tmp_path / "theirs")
    model = imported(path, tmp_path / "ours")
    check_same(source, model)
    expected = (STAGES, source.attends, source.groups, Z, K, D, 1, 2, source.unit)
    made = model.config
    assert (
        made.stages,
        made.attention,
        made.groups,
        made.z_channels,
        made.codebook_size,
        made.code_dim,
        made.encoder_blocks,
        made.decoder_blocks,
        made.normalize,
    ) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_sizes_that_are_no_multiple_are_padded_and_cropped(name: str, tmp_path: Path):
    source, path = save(name, tmp_path / "theirs")
    model = imported(path, tmp_path / "ours")
    pixels = image(21, 30)
    codes = model.encode(pixels)
    padded = np.pad(pixels, ((0, 3), (0, 2), (0, 0)), mode="edge")
    assert np.array_equal(codes.indices[0, 0], source.encode(as_floats(padded)).numpy())
    assert model.decode(codes).shape == pixels.shape


@pytest.mark.slow
def test_a_large_image_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vqtok.codec.model.PIXELS_AT_ONCE", 64)
    source, path = save("taming", tmp_path / "theirs")
    check_same(source, imported(path, tmp_path / "ours"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_export_and_import_again_give_equal_tensors(name: str, tmp_path: Path):
    _, path = save(name, tmp_path / "theirs")
    model = imported(path, tmp_path / "ours")
    interop.export_model(model_registry.find_model(str(tmp_path / "ours"))).write(
        tmp_path / "back", force=False
    )
    before = weights.load_weights(tmp_path / "ours" / "tokenizer.safetensors", "tokenizer")
    after = interop.convert_checkpoint(interop.read_checkpoint(tmp_path / "back")).weights
    # VQModel does not normalize: the codebook is exported on the unit sphere
    if name == "llamagen":
        codebook = torch.from_numpy(before.tensors["quantizer.codebook"])
        before.tensors["quantizer.codebook"] = torch.nn.functional.normalize(
            codebook, dim=1
        ).numpy()
        before.config["normalize"] = False
    assert after.tensors.keys() == before.tensors.keys()
    for key, value in before.tensors.items():
        np.testing.assert_allclose(
            after.tensors[key], value, rtol=1e-6 if name == "llamagen" else 0, atol=0
        )
    assert from_dict(TokenizerConfig, json.loads(json.dumps(after.config)), "x") == from_dict(
        TokenizerConfig, before.config, "x"
    )
    again = imported(tmp_path / "back", tmp_path / "again")
    pixels = image(24, 32)
    assert np.array_equal(again.encode(pixels).indices, model.encode(pixels).indices)


@pytest.mark.slow
def test_what_export_writes_is_what_diffusers_names(tmp_path: Path):
    source, path = save("diffusers", tmp_path / "theirs")
    imported(path, tmp_path / "ours")
    interop.export_model(model_registry.find_model(str(tmp_path / "ours"))).write(
        tmp_path / "back", force=False
    )
    found = safetensors.torch.load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors")
    assert found.keys() == source.tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in source.tensors.items())
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    assert settings["down_block_types"] == [
        "DownEncoderBlock2D",
        "AttnDownEncoderBlock2D",
        "AttnDownEncoderBlock2D",
    ]
    assert settings["up_block_types"] == [
        "AttnUpDecoderBlock2D",
        "AttnUpDecoderBlock2D",
        "UpDecoderBlock2D",
    ]
    numbers = {
        "block_out_channels": [32, 32, 64],
        "layers_per_block": 1,
        "latent_channels": Z,
        "num_vq_embeddings": K,
        "vq_embed_dim": D,
        "norm_num_groups": 16,
        "mid_block_add_attention": False,
        "in_channels": 3,
        "out_channels": 3,
    }
    assert {key: settings[key] for key in numbers} == numbers


@pytest.mark.slow
def test_older_names_of_attention_in_diffusers(tmp_path: Path):
    _, path = save("diffusers", tmp_path / "theirs")
    source = interop_helpers.diffusers(old=True)
    assert any("proj_attn" in name for name in source.tensors)
    safetensors.torch.save_file(source.tensors, path / "diffusion_pytorch_model.safetensors")
    check_same(source, imported(path, tmp_path / "ours"))


@pytest.mark.slow
def test_the_same_tensors_in_other_containers(tmp_path: Path):
    """A state dict in a safetensors file, alone in a torch file, as float16 and bfloat16,
    and beside worse weights.
    """
    source, path = save("taming", tmp_path)
    wanted = interop.convert_checkpoint(interop.read_checkpoint(path)).weights.tensors
    safetensors.torch.save_file(source.tensors, tmp_path / "plain.safetensors")
    torch.save(OrderedDict(source.tensors), tmp_path / "plain.pt")
    worse = {name: value * 0 for name, value in source.tensors.items()}
    torch.save({"ema": source.tensors, "model": worse, "steps": 3}, tmp_path / "ema.pt")
    for name in ("plain.safetensors", "plain.pt", "ema.pt"):
        found = interop.convert_checkpoint(interop.read_checkpoint(tmp_path / name)).weights.tensors
        assert all(np.array_equal(found[key], value) for key, value in wanted.items()), name
    for dtype, kept in ((torch.float16, np.float16), (torch.bfloat16, np.float32)):
        torch.save(
            {"state_dict": {name: value.to(dtype) for name, value in source.tensors.items()}},
            tmp_path / "half.pt",
        )
        found = interop.convert_checkpoint(
            interop.read_checkpoint(tmp_path / "half.pt")
        ).weights.tensors["encoder.first.weight"]
        assert found.dtype == kept
        assert np.array_equal(
            found, source.tensors["encoder.conv_in.weight"].to(dtype).float().numpy()
        )


@pytest.mark.slow
def test_normalize_is_the_programs_unless_told(tmp_path: Path):
    _, path = save("llamagen", tmp_path)
    checkpoint = interop.read_checkpoint(path)
    assert [
        interop.convert_checkpoint(checkpoint, interop.ImportOptions(asked)).weights.config[
            "normalize"
        ]
        for asked in (None, True, False)
    ] == [True, True, False]


# What cannot be imported


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path):
    source, _ = save("taming", tmp_path)
    torch.save(
        {"state_dict": source.tensors, "callbacks": {Evil: {}, "x": Evil()}}, tmp_path / "evil.ckpt"
    )
    with pytest.raises(FormatError, match="holds more than tensors") as caught:
        interop.read_checkpoint(tmp_path / "evil.ckpt")
    assert "save_file" in caught.value.fix
    assert not Path("ran").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.serialization, "safe_globals"), reason="torch before 2.5 has no safe_globals"
)
@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_a_checkpoint_of_lightning_names_its_callbacks(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As taming-transformers' own do: the class is the key of the callback's state,
    here also an object of it.
    """
    source, path = save("taming", tmp_path / "theirs")
    name = f"{package}.callbacks.model_checkpoint"
    module = ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = kind  # type: ignore[attr-defined]
    callback = kind()
    callback.best = 0.5  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        parts = name.split(".")
        for end in range(1, len(parts)):
            patch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        patch.setitem(sys.modules, name, module)
        whole = {
            **torch.load(path, weights_only=True),
            "callbacks": {kind: {"best_model_score": torch.tensor(0.3)}},
            "extra": callback,
        }
        torch.save(whole, path)
    check_same(source, imported(path, tmp_path / "ours"))
    assert name not in sys.modules
    # the stand-ins were for that call alone
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path, weights_only=True)


@pytest.mark.slow
def test_damaged_files_are_vqtok_errors(tmp_path: Path):
    _, path = save("llamagen", tmp_path)
    whole, bad = path.read_bytes(), tmp_path / "bad.pt"
    draw = np.random.default_rng(0)
    cases = [
        b"",
        b"PK",
        b"PK\3\4" + bytes(100),
        b"\x80\x02}.",
        b"text",
        whole[:-1],
        whole[:1000],
        whole[: len(whole) // 2],
    ]
    start = whole.index(b"data.pkl")
    for _ in range(25):  # anywhere in the pickle
        data = bytearray(whole)
        for place in draw.integers(start, start + 6000, 4):
            data[place] = draw.integers(256)
        cases.append(bytes(data))
    errors = 0
    for data in cases:
        bad.write_bytes(data)
        try:
            interop.convert_checkpoint(interop.read_checkpoint(bad))
        except VqtokError:
            errors += 1
    assert errors >= 25
    with pytest.raises(InputError):
        interop.read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="holds several checkpoints"):
        interop.read_checkpoint(tmp_path)


def test_a_zip_that_grows_and_tensors_larger_than_their_file(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(FormatError, match="a zip file, but not one"):
        interop.read_checkpoint(tmp_path / "bomb.pt")
    torch.save(
        {"model": {"encoder.conv_in.weight": torch.zeros(1).expand(2**40)}}, tmp_path / "huge.pt"
    )
    with pytest.raises(FormatError, match="larger than the file"):
        interop.read_checkpoint(tmp_path / "huge.pt")


def spoiled(change: str) -> dict[str, Any]:
    """A LlamaGen checkpoint with one thing wrong."""
    tensors: dict[str, Any] = dict(SOURCES["llamagen"]().tensors)
    if change == "missing":
        del tensors["decoder.conv_blocks.1.res.1.conv2.bias"]
    elif change == "shape":
        tensors["decoder.mid.0.conv1.weight"] = torch.zeros(64, 64, 3, 1)
    elif change == "more":
        tensors["encoder.norm_in.weight"] = torch.zeros(3)
    elif change == "codebook":
        del tensors["quantize.embedding.weight"]
    elif change == "flat codebook":
        tensors["quantize.embedding.weight"] = torch.zeros(())
    elif change == "nan":
        tensors["encoder.conv_out.bias"][0] = torch.nan
    elif change == "whole numbers":
        tensors["encoder.conv_in.bias"] = torch.zeros(32, dtype=torch.int64)
    elif change == "no blocks":
        tensors = {"encoder.conv_blocks.0.downsample.conv.bias": torch.zeros(1)}
    elif change == "one stage":
        tensors = {
            name: value
            for name, value in tensors.items()
            if ".conv_blocks." not in name or "encoder.conv_blocks.0." in name
        }
    elif change == "nothing known":
        tensors = {"weight": torch.zeros(1)}
    return tensors


SPOILED = {
    "missing": "lacks the tensor decoder.conv_blocks.1.res.1.conv2.bias",
    "shape": "tensor decoder.mid.0.conv1.weight has the shape",
    "more": "has the tensor encoder.norm_in.weight",
    "codebook": "lacks the tensor quantize.embedding.weight",
    "flat codebook": "codebook size is 0",
    "nan": "NaN",
    "whole numbers": "lacks the tensor encoder.conv_in.bias",
    "no blocks": "no residual blocks",
    "one stage": "downsample is 1",
    "nothing known": "no tokenizer that vqtok knows",
}


@pytest.mark.parametrize("change", SPOILED)
def test_what_is_missing_wrong_or_too_much_is_named(change: str, tmp_path: Path):
    torch.save({"model": spoiled(change)}, tmp_path / "x.pt")
    with pytest.raises(FormatError, match=SPOILED[change]):
        interop.convert_checkpoint(interop.read_checkpoint(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no config.json"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("[" * 10**5, "is damaged"),
        ('{"norm_type": "spatial"}', "spatial"),
        ('{"act_fn": "gelu"}', "gelu"),
        ('{"norm_num_groups": "x"}', "norm_num_groups is 'x'"),
        ('{"norm_num_groups": 7}', "make no 7 equal groups"),
        ('{"norm_num_groups": -1}', "groups is -1"),
    ],
)
def test_a_config_of_diffusers_that_is_missing_or_wrong(
    content: str | None, message: str, tmp_path: Path
):
    _, path = save("diffusers", tmp_path)
    (path / "config.json").unlink()
    if content is not None:
        (path / "config.json").write_text(content)
    with pytest.raises(VqtokError, match=message):
        interop.convert_checkpoint(interop.read_checkpoint(path))


@pytest.mark.slow
def test_models_that_no_vqmodel_can_be(model: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="no layers that fold pixels"):
        interop.export_model(model_registry.find_model("toy"))
    _, path = save("taming", tmp_path / "theirs")
    stored = interop.convert_checkpoint(interop.read_checkpoint(path)).weights
    for changes, message in (
        ({"likelihood": "bce"}, "the likelihood bce"),
        ({"levels": 2}, "several levels"),
    ):
        meta = {**stored.meta, "config": {**stored.config, **changes}}
        weights.save_weights(
            tmp_path / "other" / "tokenizer.safetensors", weights.Weights(stored.tensors, meta)
        )
        with pytest.raises(ModelError, match=message):
            interop.export_model(model_registry.find_model(str(tmp_path / "other")))
