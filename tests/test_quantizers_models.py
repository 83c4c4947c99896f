"""Each quantizer inside a tokenizer: training by the command, saving, loading, and errors
before anything is touched.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_helpers import fails, small
from conftest import TOKENIZER, image, make_model

from vqtok import codec, weights
from vqtok.config import LEARNED
from vqtok.errors import FormatError
from vqtok.networks import vqvae

CASES = [(kind, levels) for kind in LEARNED for levels in (1, 3)]


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_a_loaded_model_gives_the_indices_of_the_saved_one(kind: str, levels: int, tmp_path: Path):
    config = replace(TOKENIZER, quantizer=kind, levels=levels, normalize=False)
    model = codec.load(make_model(tmp_path / "m", config, prior=None))
    torch.manual_seed(0)
    network = vqvae.VQVAE(config)  # as make_model made it
    network.load_state_dict(
        {name: value.half().float() for name, value in network.state_dict().items()}
    )
    network.eval()
    pixels = image(16, 24)
    with torch.no_grad():
        indices = network.encode(
            vqvae.to_float(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))
        )
    codes = model.encode(pixels)
    assert codes.indices.shape == (1, levels, 4, 6)
    assert codes.indices.tolist() == indices.tolist()
    assert model.decode(codes).shape == pixels.shape


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_train_makes_a_model_that_works(kind: str, levels: int, data: Path, tmp_path: Path):
    result = small(
        "-o",
        "m",
        "--stage",
        "tokenizer",
        "--quantizer",
        kind,
        "--set",
        f"tokenizer.levels={levels}",
        "--no-normalize",
    )
    assert result.exit_code == 0, result.output
    model = codec.load(tmp_path / "m")
    assert model.config.quantizer == kind
    codes = model.encode(data / "a" / "00.png")
    assert codes.indices.shape == (1, levels, 4, 4)
    assert model.decode(codes).shape == (16, 16, 3)


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quantizer", "fsq", "--codebook-size", "17"), "fsq cannot make 17 codes"),
        (("--quantizer", "lfq", "--codebook-size", "48"), "lfq cannot make 48 codes"),
        (("--quantizer", "lfq", "--codebook-size", "32"), "needs code dimension 5 or more, not 4"),
        (("--quantizer", "fqs"), "'fqs' is not known"),
    ],
)
def test_what_a_quantizer_cannot_be_is_told_before_a_run_begins(
    options: tuple[str, ...], message: str
):
    assert message in fails("train", "data", "-o", "m", "--recipe", "small.toml", *options, code=2)


def test_a_file_whose_quantizer_cannot_be_is_damaged(tmp_path: Path):
    make_model(tmp_path / "m")
    stored = weights.load_weights(tmp_path / "m" / "tokenizer.safetensors", "tokenizer")
    stored.meta["config"] |= {"quantizer": "fsq", "codebook_size": 17}
    weights.save_weights(tmp_path / "m" / "tokenizer.safetensors", stored)
    with pytest.raises(FormatError, match="fsq cannot make 17 codes"):
        codec.load(tmp_path / "m")
