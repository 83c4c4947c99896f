"""Open-MAGVIT2, MaskGIT-VQGAN, VQ-VAE-2: their own networks' indices and images; bad files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import fails, ok
from cli_helpers import save as save_image
from conftest import image
from newer_helpers import MADE, Foreign, make_foreign
from torch import Tensor

from vqtok import codec, interop, weights
from vqtok.errors import FormatError, UsageError
from vqtok.evaluate.baseline_coders import grid_bytes
from vqtok.quantizers import ProductQuantizer


def imported(path: Path, folder: Path, **options: Any) -> codec.Model:
    found = interop.convert_checkpoint(
        interop.read_checkpoint(path), interop.ImportOptions(**options)
    )
    weights.save_weights(folder / "tokenizer.safetensors", found.weights)
    return codec.load(folder)


def options_of(name: str, made: Foreign) -> dict[str, str]:
    """VQ-VAE-2's range is asked for."""
    return {"input_range": f"{made.low}:{made.high}"} if name.startswith("vqvae2") else {}


def check_same(made: Foreign, model: codec.Model) -> None:
    f = model.config.downsample
    for seed, (h, w) in enumerate(((6, 4), (4, 8), (8, 8))):
        pixels = image(h * f, w * f, seed=seed)
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        codes = model.encode(pixels)
        wanted = made.encode(x * (made.high - made.low) + made.low)
        assert np.array_equal(codes.indices[0], wanted.numpy())
        assert len(wanted.unique()) > 3
        shown = (made.decode(wanted) - made.low) / (made.high - made.low)
        shown = (255 * shown[0].clamp(0, 1)).round().permute(1, 2, 0).numpy()
        assert np.abs(shown - model.decode(codes)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_a_layout_gives_its_own_networks_indices_and_images(
    name: str, wrapped: bool, tmp_path: Path
):
    made, path = make_foreign(name), tmp_path / "x.pt"
    tensors: dict[str, Any] = made.finished()
    if wrapped:
        tensors = {"state_dict": {f"module.{key}": value for key, value in tensors.items()}}
    torch.save(tensors, path)
    check_same(made, imported(path, tmp_path / "m", **options_of(name, made)))


@pytest.mark.slow
def test_codes_of_18_bits_pass_through_all_files(tmp_path: Path):
    torch.save(make_foreign("magvit2").finished(), tmp_path / "x.pt")
    model = imported(tmp_path / "x.pt", tmp_path / "m")
    assert model.config.codebook_size == 1 << 18
    codes = model.encode(image(32, 48))
    assert codes.indices.dtype == np.uint32
    assert codes.indices.max() >= 1 << 16
    assert model.unpack(model.pack(codes)) == codes
    sizes = grid_bytes(codes)
    assert sizes["packed"] == -(-18 * codes.indices.size // 8)
    assert sizes["png"] > 0
    # as the transformers of that program see them: 6 bits, and 12
    assert np.array_equal((codes.indices & 63) + ((codes.indices >> 6) << 6), codes.indices)


@pytest.mark.slow
def test_moving_averages_are_taken_where_asked_for(tmp_path: Path):
    made, path = make_foreign("magvit2-f2"), tmp_path / "x.ckpt"
    other = {name: value * 1.5 for name, value in made.finished().items()}
    flat = {f"model_ema.{name.replace('.', '')}": value for name, value in other.items()}
    loss = {"loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}
    torch.save({"state_dict": made.finished() | flat | loss}, path)
    ours = "encoder.first.weight"
    for part, wanted in ((None, made.finished()), ("model", made.finished()), ("ema", other)):
        found = interop.convert_checkpoint(
            interop.read_checkpoint(path, part), interop.ImportOptions(part=part)
        )
        theirs = wanted["encoder.conv_in.weight"].numpy()
        assert np.array_equal(found.weights.tensors[ours], theirs)
        assert any(f"its weights '{part or 'model'}' are taken" in note for note in found.notes)


def test_vqvae2_asks_for_the_range_and_decodes_from_its_top(tmp_path: Path):
    made, path = make_foreign("vqvae2"), tmp_path / "x.pt"
    torch.save(made.finished(), path)
    with pytest.raises(UsageError, match="does not say which range"):
        interop.convert_checkpoint(interop.read_checkpoint(path))
    model = imported(path, tmp_path / "m", input_range="-1:1")
    assert (model.config.downsample, model.config.levels) == (8, 5)
    codes = model.encode(image(40, 48))
    for levels in range(1, 5):  # the missing places are the mean of their codes
        assert model.decode(codes, levels).shape == (40, 48, 3)
    quantizer = model.quantizer
    assert isinstance(quantizer, ProductQuantizer)
    mean = quantizer.codebooks()[1].mean(0)[6:12]
    marks = quantizer.depth
    torch.testing.assert_close(marks[0, 6:12], mean)
    assert not marks[4].any()


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, *shape: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("magvit2", drop("encoder.mid_block.1.conv2.weight"), "lacks the tensor encoder.mid_block"),
        ("magvit2", put("encoder.extra.weight", 3), "has no place for"),
        ("magvit2", put("encoder.conv_out.weight", 30, 64, 1, 1), "shape|30 bits"),
        ("magvit2", put("decoder.adaptive.0.gamma.weight", 64), "2 axes"),
        ("magvit2", put("decoder.up.1.upsample.conv1.weight", 255, 64, 3, 3), "2x2 positions"),
        ("maskgit", drop("quantize.embedding.weight"), "lacks the tensor quantize"),
        ("maskgit", put("decoder.up.0.block.7.conv1.weight", 2, 2, 3, 3), "has no place for"),
        ("maskgit", put("encoder.down.1.block.0.nin_shortcut.weight", 64, 32, 1, 1), "shortcut"),
        ("maskgit", put("quantize.embedding.weight", 40), "2 axes"),
        ("maskgit", put("quantize.embedding.weight", 2, 100_000), "100000 dimensions"),
        ("maskgit", put("encoder.down.0.block.0.conv1.weight", 99_999, 1, 1, 1), "99999 channels"),
        ("maskgit", put("encoder.down.1.block.0.conv2.bias", 3), "shape"),
        ("vqvae2", drop("upsample_t.weight"), "lacks the tensor upsample_t"),
        ("vqvae2", put("quantize_b.embed", 6, 25), "25 at the bottom"),
        ("vqvae2", put("dec.blocks.9.weight", 6), "has no place for"),
        ("vqvae2", put("enc_b.blocks.0.weight", 8, 3, 5, 5), "shape"),
    ],
)
def test_damaged_files_are_refused(
    name: str, change: Callable[[dict[str, Tensor]], object], said: str, tmp_path: Path
):
    tensors = make_foreign(name).finished()
    change(tensors)
    torch.save(tensors, tmp_path / "x.pt")
    options = {"input_range": "-1:1"} if name == "vqvae2" else {}
    with pytest.raises(FormatError, match=said) as caught:
        imported(tmp_path / "x.pt", tmp_path / "m", **options)
    assert caught.value.fix
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_the_command_imports_tries_encodes_and_decodes():
    save_image("a.png", image(40, 56))
    for name, more in (("magvit2", []), ("maskgit", []), ("vqvae2", ["--input-range=-1:1"])):
        torch.save(make_foreign(name).finished(), "x.pt")
        ok("import", "x.pt", "-o", name, *more, "--try", "a.png")
        assert Path(name, "try.png").is_file()
        ok("encode", "a.png", "--model", name, "--compact", "-o", f"{name}.npz")
        ok("decode", f"{name}.npz", "--model", name, "-o", f"{name}.png")
        ok("info", f"{name}.npz")
        assert "variant" in fails(
            "import", "x.pt", "-o", "n", "--variant", "plain,relu,none", code=2
        )
    torch.save(make_foreign("magvit2").finished(), "x.pt")
    assert "signs" in fails("import", "x.pt", "-o", "n", "--distance", "l2", code=2)
