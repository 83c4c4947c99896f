"""Checkpoints with the VQ-VAE paper's network: layouts, what they do not say, and bad ones."""

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import interop_helpers
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from cli_helpers import fails, ok
from cli_helpers import save as save_image
from conftest import TOKENIZER, image
from interop_helpers import as_floats, imported
from interop_helpers import save as save_source
from paper_helpers import PROGRAMS, Made, make

from vqtok import codec, interop, metrics, model_registry, weights
from vqtok.data.shapes import Shapes
from vqtok.errors import FormatError, ModelError, UsageError
from vqtok.interop.diffusers import to_vqmodel
from vqtok.interop.ranges import parse_range

HALF = "-0.5:0.5"


def check_same(made: Made, model: codec.Model) -> None:
    interop_helpers.check_same(made, model, half=0.5, size=(48, 32), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("kind", ["pt", "safetensors", "module"])
def test_a_layout_gives_its_own_networks_indices_and_images(name: str, kind: str, tmp_path: Path):
    made = make(name)
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "safetensors":  # sorted by name, not by place in the network
        safetensors.torch.save_file(
            {k: v.contiguous().clone() for k, v in made.net.tensors.items()}, path
        )
    elif kind == "module":
        state = {f"module._orig_mod.{k}": v for k, v in made.net.tensors.items()}
        torch.save({"epoch": 3, "model_state_dict": state, "optimizer": {"state": {}}}, path)
    else:
        torch.save(made.net.tensors, path)
    variant = made.program.variant
    model = imported(path, tmp_path / "m", input_range=HALF, variant=variant)
    check_same(made, model)
    assert model.config.downsample == (8 if name == "issue" else 4)


def test_no_vqmodel_of_diffusers_has_its_network(tmp_path: Path):
    folder = model_registry.ModelFolder("vq", tmp_path)
    with pytest.raises(ModelError, match="which has no paper network"):
        to_vqmodel(weights.Weights({}, {}), replace(TOKENIZER, network="paper"), folder)


@pytest.mark.slow
def test_a_known_program_needs_no_variant(tmp_path: Path):
    for name, program in (
        ("zalando", "zalandoresearch VQ-VAE"),
        ("misha", "MishaLaskin VQ-VAE"),
        ("ritheshkumar", "ritheshkumar95 VQ-VAE"),
        ("sonnet", "sonnet VQ-VAE"),
    ):
        made = make(name)
        torch.save(made.net.tensors, tmp_path / "x.pt")
        found = interop.convert_checkpoint(
            interop.read_checkpoint(tmp_path / "x.pt"), interop.ImportOptions(input_range=HALF)
        )
        assert found.weights.record["imported"]["program"] == program
        model = imported(tmp_path / "x.pt", tmp_path / name, input_range=HALF)
        check_same(made, model)


@pytest.mark.slow
def test_what_nothing_tells_is_said(tmp_path: Path):
    torch.save(make("copy").net.tensors, tmp_path / "x.pt")
    checkpoint = interop.read_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UsageError, match="does not say which range") as caught:
        interop.convert_checkpoint(checkpoint)
    assert "--input-range" in caught.value.fix
    assert "--try" in caught.value.fix
    found = interop.convert_checkpoint(checkpoint, interop.ImportOptions(input_range="0:1"))
    assert any("warning" in note and "does not tell" in note for note in found.notes)
    assert any("read as inplace,relu,none with pixels 0:1" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("0:1", (0.0,), (1.0,)),
        ("-1:1", (0.5,), (0.5,)),
        ("-0.5:0.5", (0.5,), (1.0,)),
        ("0:255", (0.0,), (1 / 255,)),
        ("0.1307:0.3081", (0.1307,), (0.3081,)),
        ("0.5,0.4,0.3:0.2,0.2,0.1", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
    ],
)
def test_ranges(text: str, mean: tuple[float, ...], std: tuple[float, ...]):
    found = parse_range(text)
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)


@pytest.mark.parametrize("text", ["", "1", "1:0:2", "0:0", "nan:1", "0.5:0", "a:b", "0,0:1,1"])
def test_no_ranges(text: str):
    with pytest.raises(UsageError):
        parse_range(text)


def test_each_channel_may_have_its_own_mean(tmp_path: Path):
    made = make("zalando")
    torch.save(made.net.tensors, tmp_path / "x.pt")
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    model = imported(tmp_path / "x.pt", tmp_path / "m", input_range="0.4,0.5,0.6:0.2,0.3,0.25")
    pixels = image(32, 32)
    x = (as_floats(pixels, 0.5) + 0.5 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    codes = model.encode(pixels)
    wanted = made.encode(x)
    assert np.array_equal(codes.indices[0, 0], wanted.numpy())
    y = made.decode(wanted) * std.view(1, 3, 1, 1) + mean.view(1, 3, 1, 1)
    torch.testing.assert_close(model.output(codes, 0), 2 * y - 1, rtol=1e-4, atol=1e-3)


def broken(name: str, change: Any, tmp_path: Path) -> str:
    tensors = dict(make(name).net.tensors)
    change(tensors)
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(FormatError) as caught:
        interop.convert_checkpoint(
            interop.read_checkpoint(tmp_path / "x.pt"), interop.ImportOptions(input_range="0:1")
        )
    return str(caught.value)


def test_networks_that_are_none_are_refused(tmp_path: Path):
    def group_norm(t: dict[str, torch.Tensor]) -> None:
        t["_encoder._norm.weight"] = torch.ones(16)

    def second_codebook(t: dict[str, torch.Tensor]) -> None:
        t["_vq_vae._other_embedding.weight"] = torch.zeros(24, 12)

    def no_codebook(t: dict[str, torch.Tensor]) -> None:
        del t["_vq_vae._embedding.weight"]

    def kernel(t: dict[str, torch.Tensor]) -> None:
        t["_encoder._conv_3.weight"] = torch.zeros(16, 16, 5, 5)

    def channels(t: dict[str, torch.Tensor]) -> None:
        t["_encoder._conv_3.weight"] = torch.zeros(16, 9, 3, 3)

    def one_up(t: dict[str, torch.Tensor]) -> None:
        for leaf in ("weight", "bias"):
            del t[f"_decoder._conv_trans_1.{leaf}"]

    assert "is no convolution" in broken("zalando", group_norm, tmp_path)
    assert "2 that could be its codebook" in broken("zalando", second_codebook, tmp_path)
    assert "no codebook" in broken("zalando", no_codebook, tmp_path)
    assert "no 1x1, 3x3 or 4x4" in broken("zalando", kernel, tmp_path)
    assert "takes 9 channels" in broken("zalando", channels, tmp_path)
    assert "channels" in broken("zalando", one_up, tmp_path)


def test_an_order_that_numbers_contradict_is_refused(tmp_path: Path):
    def earlier(t: dict[str, torch.Tensor]) -> None:
        """A block stands between the two halvings."""
        for name in list(t):
            if name.startswith("encoder.4."):
                t[name.replace("encoder.4.", "encoder.2.")] = t.pop(name)

    assert "not the order" in broken("ritheshkumar", earlier, tmp_path)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["encoder.down.0.block.0.conv1.weight", "quantize.quant_resi.q.weight"], "VAR"),
        (
            ["encoder.down.0.x", "decoder.up.0.x", "encoder.conv_in.weight", "encoder.conv_out.x"],
            "lookup-free tokenizer without Open-MAGVIT2",
        ),
        (["encoder.down.0.x", "quantize.embed.weight", "quantize.proj.weight"], "Gumbel"),
        (["encoder.patcher3d.wavelets"], "Cosmos"),
        (["encoder.down.0.x", "quantizer.codebooks.0.weight"], "RQ-VAE"),
        (["latent_tokens", "encoder.transformer.0.weight"], "TiTok"),
    ],
)
def test_other_families_are_refused_by_name(names: list[str], what: str, tmp_path: Path):
    torch.save({"state_dict": {name: torch.zeros(3) for name in names}}, tmp_path / "x.pt")
    with pytest.raises(FormatError, match=what):
        interop.convert_checkpoint(interop.read_checkpoint(tmp_path / "x.pt"))


def test_a_cosmos_state_dict_is_refused_by_name(tmp_path: Path):
    """Its wavelets are no tensors: 3 x 4 x 4 channels go in, and there is no codebook."""
    first = {"encoder.conv_in.weight": torch.zeros(128, 48, 3, 3)}
    names = ("encoder.down.0.block.0.conv1.weight", "quant_conv.weight", "post_quant_conv.weight")
    torch.save(first | {name: torch.zeros(3) for name in names}, tmp_path / "x.pt")
    with pytest.raises(FormatError, match="Cosmos") as caught:
        interop.convert_checkpoint(interop.read_checkpoint(tmp_path / "x.pt"))
    assert "vqtok pack" in caught.value.fix


def test_a_torchscript_program_is_refused_by_name(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.jit", "w") as archive:
        archive.writestr("x/data.pkl", b"")
        archive.writestr("x/code/__torch__.py", b"")
    with pytest.raises(FormatError, match="TorchScript"):
        interop.read_checkpoint(tmp_path / "x.jit")


# IBQ: taming's names, the code of the largest inner product


@pytest.mark.slow
def test_ibq_is_imported_with_distance_dot(tmp_path: Path):
    source, path = save_source("taming", tmp_path / "theirs")
    x = image(24, 32)
    folder = tmp_path / "m"
    model = imported(path, folder, distance="dot")
    # what source.encode does, with the largest inner product in place of the distance
    z = model.encoder(torch.from_numpy(x).permute(2, 0, 1)[None].float() / 127.5 - 1)[0]
    wanted = (z.permute(1, 2, 0) @ source.codebook().T).argmax(-1)
    found = model.encode(x).indices[0, 0]
    assert np.array_equal(found, wanted.numpy())
    nearest = imported(path, folder, distance="l2").encode(x).indices[0, 0]
    assert (found != nearest).mean() > 0.2
    unsure = interop.convert_checkpoint(interop.read_checkpoint(path))
    assert any("IBQ" in note and "--distance dot" in note for note in unsure.notes)
    for distance in ("l2", "dot"):
        asked = interop.ImportOptions(distance=distance)
        assert not interop.convert_checkpoint(interop.read_checkpoint(path), asked).notes


@pytest.mark.slow
def test_tamings_moving_averages_are_left_out(tmp_path: Path):
    source, path = save_source("taming", tmp_path / "theirs")
    codes = source.tensors["quantize.embedding.weight"]
    more = {
        "quantize.embedding.cluster_size": torch.ones(len(codes)),
        "quantize.embedding.embed_avg": codes + 1,
    }
    torch.save({"state_dict": source.tensors | more}, path)
    model = imported(path, tmp_path / "m")
    pixels = image(24, 32)
    wanted = source.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    assert np.array_equal(model.encode(pixels).indices[0, 0], wanted.numpy())


# Wrappers


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "first_stage_model.", "a.b.model."])
def test_prefixes(prefix: str, tmp_path: Path):
    source, path = save_source("taming", tmp_path / "theirs")
    torch.save({"state_dict": {prefix + k: v for k, v in source.tensors.items()}}, path)
    pixels = image(24, 32)
    wanted = source.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    found = imported(path, tmp_path / "m").encode(pixels).indices[0, 0]
    assert np.array_equal(found, wanted.numpy())


@pytest.mark.slow
def test_weights_of_a_name(tmp_path: Path):
    source, path = save_source("taming", tmp_path / "theirs")
    other = {name: value + 1 for name, value in source.tensors.items()}
    dotless = {f"model_ema.{k.replace('.', '')}": v for k, v in other.items()}
    both = source.tensors | dotless
    files = {
        "dict": {"model": source.tensors, "ema": other, "args": 3},
        "prefix": {f"model.{k}": v for k, v in source.tensors.items()}
        | {f"ema.{k}": v for k, v in other.items()},
        "lit": {"state_dict": both},
    }
    name = "encoder.conv_in.weight"
    for kind, content in files.items():
        torch.save(content, path)
        for part, wanted in (("ema", other), ("model", source.tensors)):
            if kind == "lit" and part == "model":
                part = None
            options = interop.ImportOptions(part=part)
            found = interop.convert_checkpoint(interop.read_checkpoint(path, part), options)
            ours = found.weights.tensors["encoder.first.weight"]
            assert np.array_equal(ours, wanted[name].numpy()), (kind, part)
            if kind != "lit" or part:
                assert any(f"{part!r}" in note for note in found.notes), (kind, part, found.notes)
    with pytest.raises(UsageError, match="no weights named 'best'"):
        interop.convert_checkpoint(
            interop.read_checkpoint(path, "best"), interop.ImportOptions(part="best")
        )


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.serialization, "safe_globals"), reason="torch before 2.5 has no safe_globals"
)
def test_options_of_a_training_run_beside_the_tensors(tmp_path: Path):
    import argparse

    source, path = save_source("llamagen", tmp_path / "theirs")
    content = {"model": source.tensors, "args": argparse.Namespace(lr=1e-4), "steps": 7}
    torch.save(content, path)
    assert imported(path, tmp_path / "m").config.normalize


# The command


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_the_command_asks_tries_and_says():
    torch.save(make("zalando").net.tensors, "x.pt")
    save_image("a.png", image(40, 40))
    said = fails("import", "x.pt", "-o", "m", code=2)
    assert "does not say which range its pixels have" in said
    assert "-0.5:0.5" in said
    assert not Path("m").exists()
    done = ok("import", "x.pt", "-o", "m", f"--input-range={HALF}", "--try", "a.png", "--json")
    facts = json.loads(done.stdout)
    assert facts["tried"][0]["input_range"] == HALF
    assert Path("m/try.png").is_file()
    assert any("read as inplace,relu,none" in note for note in facts["notes"])
    assert "is no range" in fails("import", "x.pt", "-o", "n", "--input-range", "x", code=2)
    assert "no variant" in fails(
        "import", "x.pt", "-o", "n", "--input-range", "0:1", "--variant", "x", code=2
    )
    ok("encode", "a.png", "--model", "m")
    ok("decode", "a.npz", "--model", "m", "-o", "b.png")


@pytest.mark.slow
@pytest.mark.usefixtures("toy", "data")
def test_the_papers_network_is_trained():
    small = ["--steps", "3", "--batch", "2", "--size", "16", "--codebook-size", "16"]
    small += ["--set", "tokenizer.width=8"]
    ok("train", "data", "--stage", "tokenizer", "--network", "paper", "-o", "p", *small)
    facts = weights.read_meta(Path("p/tokenizer.safetensors"))["config"]
    assert facts["network"] == "paper"
    save_image("a.png", image(24, 40))
    ok("encode", "a.png", "--model", "p")
    ok("decode", "a.npz", "--model", "p", "-o", "b.png")


# The real file, where it is at hand


REAL = Path(os.environ.get("VQTOK_FOREIGN_FILE", "none"))


@pytest.mark.skipif(not REAL.is_file(), reason="VQTOK_FOREIGN_FILE names no vqvae-f4-k512.pt")
def test_the_real_file(tmp_path: Path):
    t = torch.load(REAL, map_location="cpu", weights_only=True)

    def side(x: torch.Tensor, name: str) -> torch.Tensor:
        for i in range(2):
            stem = f"{name}._blocks.residual.residual_blocks.residual_{i}._block"
            x = F.relu(x)
            y = F.relu(F.conv2d(x, t[f"{stem}.conv_1.weight"], padding=1))
            x = x + F.conv2d(y, t[f"{stem}.conv_2.weight"])
        return F.relu(x)

    def conv(x: torch.Tensor, name: str, stride: int = 1, padding: int = 1) -> torch.Tensor:
        return F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], stride, padding)

    def encode(x: torch.Tensor) -> torch.Tensor:
        e = "encoder._blocks.conv"
        x = F.relu(conv(F.relu(conv(x, f"{e}_1", 2)), f"{e}_2", 2))
        z = conv(side(conv(x, f"{e}_3"), "encoder"), "pre_vq_conv", padding=0)
        z = z[0].permute(1, 2, 0)
        return (z[..., None, :] - t["vq_vae.codebook.weight"]).square().sum(-1).argmin(-1)

    model = imported(REAL, tmp_path / "m", input_range=HALF)
    for seed in range(3):
        pixels = image(64, 48, seed=seed)
        wanted = encode(as_floats(pixels, 0.5))
        codes = model.encode(pixels)
        assert np.array_equal(codes.indices[0, 0], wanted.numpy())
    tiles = Shapes(n=4, size=32).images(np.arange(4))
    shown = np.concatenate(list(tiles), 1)
    assert metrics.psnr(model.decode(model.encode(shown)), shown) > 20
