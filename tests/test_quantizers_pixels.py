"""The identity as a tokenizer: gray values are indices, nothing is
learned, and files are lossless.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import fails, ok
from conftest import image, make_model
from torch import Tensor
from train_helpers import Interrupt, contents, go, log

from vqtok import codec, quantizers, weights
from vqtok import train as training
from vqtok.codes import read_any_codes, to_bytes
from vqtok.config import PRESETS, TokenizerConfig
from vqtok.data import Shapes
from vqtok.errors import UsageError
from vqtok.networks.vqvae import VQVAE, to_float, to_uint8
from vqtok.train import run as train_run

DATA = Shapes(24, 12)
STEPS = {"steps": 2, "batch": 4, "warmup": 1, "validate_every": 1}


def identity(K: int = 256, channels: int = 3, **changes: Any) -> TokenizerConfig:
    config = replace(
        PRESETS["pixels"].tokenizer,
        codebook_size=K,
        channels=channels,
        levels=channels,
        code_dim=channels,
    )
    return replace(config, **changes)


def every_byte(channels: int = 3) -> Tensor:
    """uint8 (1, C, 16, 16): each value in each channel."""
    return torch.stack(
        [torch.arange(256, dtype=torch.uint8).roll(37 * c).reshape(16, 16) for c in range(channels)]
    )[None]


def network(config: TokenizerConfig) -> VQVAE:
    """As it is after a file: weights are float16 there."""
    network = VQVAE(config).eval()
    network.load_state_dict(
        {name: value.half().float() for name, value in network.state_dict().items()}
    )
    return network


# Gray values


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_are_their_own_indices(channels: int):
    x, vqvae = every_byte(channels), network(identity(channels=channels))
    output = vqvae(to_float(x))
    assert torch.equal(output.indices, x.long())
    assert torch.equal(vqvae.decode(output.indices), to_float(x))  # the very floats
    assert float(output.loss.detach()) == pytest.approx(0, abs=1e-6)
    assert vqvae.nll(to_float(x)).tolist() == pytest.approx([0], abs=1e-3)


def test_two_levels_say_what_is_above_one_half():
    x, vqvae = (
        torch.tensor([0, 100, 127, 128, 255], dtype=torch.uint8).reshape(1, 1, 1, 5),
        network(identity(2, 1)),
    )
    indices = vqvae.encode(to_float(x))
    assert indices.flatten().tolist() == [0, 0, 0, 1, 1]
    assert to_uint8(vqvae.decode(indices)).flatten().tolist() == [0, 0, 0, 255, 255]


@pytest.mark.parametrize("K", [2, 3, 4, 7, 16, 18, 100, 128, 200, 255, 256])
def test_values_go_to_the_nearest_of_even_steps(K: int):
    x, vqvae = every_byte(1), network(identity(K, 1))
    indices = vqvae.encode(to_float(x))
    exact = np.abs(x.flatten().numpy()[:, None] - np.arange(K) * 255 / (K - 1)).argmin(1)  # (256,)
    assert indices.flatten().tolist() == exact.tolist()
    # what is shown has the codes it was made from
    assert torch.equal(vqvae.encode(vqvae.decode(indices)), indices)
    assert len(set(to_uint8(vqvae.quantizer.codebooks()).flatten().tolist())) == K


def test_channels_that_are_not_known_are_as_gray_as_the_mean_of_those_that_are():
    vqvae = network(identity())
    indices = torch.tensor([10, 20, 250]).reshape(1, 3, 1, 1)
    shown = [to_uint8(vqvae.decode(indices[:, :n])).flatten().tolist() for n in (1, 2, 3)]
    assert shown == [[10, 10, 10], [10, 20, 15], [10, 20, 250]]


def test_an_entry_speaks_of_its_own_channel():
    books = quantizers.build_quantizer(identity(4)).codebooks()
    assert books.shape == (3, 4, 3)
    for channel in range(3):
        torch.testing.assert_close(books[channel, :, channel], torch.tensor([-1, -1 / 3, 1 / 3, 1]))
        assert not books[channel, :, [c for c in range(3) if c != channel]].any()


@pytest.mark.parametrize("K", [2, 5, 64])
def test_the_scale_is_that_of_what_rounding_leaves(K: int):
    """No other scale of the logistic says the pixels in clearly fewer bits."""
    x, vqvae = to_float(every_byte()), network(identity(K))
    with torch.no_grad():
        nats = float(vqvae.nll(x))
        for other in (-0.7, 0.7):
            vqvae.likelihood.log_scale.add_(other)
            assert float(vqvae.nll(x)) > nats
            vqvae.likelihood.log_scale.sub_(other)


# Settings


@pytest.mark.parametrize(
    "changes",
    [
        {"downsample": 2},
        {"fold": 2, "downsample": 2},
        {"levels": 1},
        {"code_dim": 8},
        {"channels": 1},
        {"normalize": True, "levels": 1},
        {"codebook_size": 257},
        {"codebook_size": 1},
        {"likelihood": "bce"},
        {"likelihood": "heteroscedastic"},
    ],
)
def test_settings_that_are_no_identity_are_refused(changes: dict[str, Any]):
    with pytest.raises(UsageError):
        replace(identity(), **changes)


def test_no_other_quantizer_goes_without_downsampling():
    with pytest.raises(UsageError, match="downsample is 1"):
        TokenizerConfig(downsample=1, fold=1)


def test_no_network_is_built():
    assert list(VQVAE(identity()).state_dict()) == ["quantizer.palette", "likelihood.log_scale"]


def test_each_number_of_gray_levels_has_a_fingerprint(tmp_path: Path):
    made = [
        make_model(tmp_path / f"{K}-{C}", identity(K, C), prior=None)
        for K in (2, 128, 255, 256)
        for C in (1, 3)
    ]
    assert len(
        {weights.tokenizer_fingerprint(folder / "tokenizer.safetensors") for folder in made}
    ) == len(made)


# Files


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (20, 30), (77, 31), (3, 500)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_file_gives_the_image_back(
    size: tuple[int, int], channels: int, precision: str, tmp_path: Path
):
    model = codec.load(
        make_model(tmp_path / "m", identity(channels=channels), prior=None), precision=precision
    )
    pixels = image(*size, channels)
    codes = model.encode(pixels)
    assert codes.indices.shape == (1, channels, *size)
    for file in (codes, model.pack(codes)):
        read = read_any_codes(to_bytes(file))
        np.testing.assert_array_equal(model.decode(model.unpack(read)), pixels)


def test_a_image_that_is_worked_on_in_parts_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = codec.load(make_model(tmp_path / "m", identity(), prior=None))
    monkeypatch.setattr("vqtok.codec.model.PIXELS_AT_ONCE", 64)
    for size in [(37, 20), (3, 500)]:
        np.testing.assert_array_equal(model.decode(model.encode(image(*size))), image(*size))


# Training


def settings(**values: Any) -> dict[str, Any]:
    base = {
        "prior": {"width": 8, "layers": 2},
        "data": {"size": 12, "prior_size": 12, "validation_max": 4},
        "entropy": {"embedding": 4, "width": 8, "blocks": 1, "rank": 4},
        "prior_training": STEPS,
        "entropy_training": STEPS,
    }
    return training.merge([base, values])


def recipe(**values: Any) -> Any:
    return train_run.fit_to_data(PRESETS["pixels"].override(settings(**values)), DATA)


@pytest.mark.slow
def test_the_tokenizer_is_there_at_once_and_the_priors_learn(tmp_path: Path):
    listener = Interrupt()
    assert go(tmp_path, recipe(), DATA, listener)
    assert {line["stage"] for line in log(tmp_path)} == {"prior", "entropy"}
    assert any("nothing is learned" in note for note in listener.notes)
    assert not (tmp_path / "tokenizer.state.safetensors").exists()
    model = codec.load(tmp_path)
    pixels = image(9, 14)
    np.testing.assert_array_equal(
        model.decode(model.unpack(model.pack(model.encode(pixels)))), pixels
    )
    coder = model.entropy_coder  # an untrained one loses to packed bits
    assert coder is not None
    grids = model.encode(pixels).indices
    np.testing.assert_array_equal(
        coder.prior.decode(coder.prior.encode(grids), *grids.shape[1:]), grids
    )
    assert model.sample()[0].shape == (12, 12, 3)
    assert model.record["metrics"]["mse"] == 0


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_files(tmp_path: Path):
    go(tmp_path / "whole", recipe(), DATA)
    assert not go(tmp_path / "parts", recipe(), DATA, Interrupt("prior", 1))
    assert go(tmp_path / "parts", recipe(), DATA, resume=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_settings_follow_the_images_and_binarize(tmp_path: Path):
    np.save(tmp_path / "gray.npy", np.stack([image(12, 12, 1, seed=i) for i in range(6)]))
    text = "\n".join(
        [
            "[data]",
            "size = 12",
            "prior_size = 12",
            "[prior]",
            "width = 8",
            "layers = 2",
            "[prior_training]",
            "batch = 2",
            "[entropy]",
            "width = 8",
            "rank = 4",
            "[entropy_training]",
            "batch = 2",
        ]
    )
    (tmp_path / "small.toml").write_text(text)
    steps = ("--stage", "tokenizer", "-o", "m", "--recipe", "small.toml")
    ok("train", "gray.npy", "--preset", "pixels", "--codebook-size", "2", *steps)
    config = codec.load(tmp_path / "m").config
    assert (config.channels, config.levels, config.code_dim, config.codebook_size) == (1, 1, 1, 2)
    assert (
        "1.000 bits per pixel"
        in ok(
            "train",
            "gray.npy",
            "--preset",
            "pixels",
            "--codebook-size",
            "2",
            *steps[2:],
            "--dry-run",
        ).stdout
    )
    assert "--preset pixels" in fails(
        "train", "gray.npy", "--quantizer", "pixels", "-o", "other", code=2
    )
    assert "--preset pixels" in fails(
        "train", "gray.npy", "--preset", "pixels", "--levels", "2", "-o", "other", code=2
    )


@pytest.mark.slow
@pytest.mark.parametrize("K", [2, 256])
def test_every_command_takes_such_a_model(K: int, tmp_path: Path):
    from vqtok import images

    for i in range(6):
        images.write_image(tmp_path / "data" / f"{i}.png", image(12, 12, seed=i))
    go(tmp_path / "models" / "m", recipe(tokenizer={"codebook_size": K}), DATA)
    ok("encode", "data/0.png", "--model", "m", "-o", "a.npz")
    ok("encode", "data/0.png", "--model", "m", "--compact", "-o", "b.npz")
    for name in ("a", "b"):
        ok("decode", f"{name}.npz", "-o", f"{name}.png")
        assert (
            K == 2
            or images.read_image(Path(f"{name}.png")).pixels.tolist()
            == images.read_image(Path("data/0.png")).pixels.tolist()
        )
        ok("report", f"{name}.npz", "-o", f"{name}.html")
        ok("view", f"{name}.npz", "--always")
        ok("info", f"{name}.npz")
    ok("encode", "data", "--bulk", "--model", "m", "-o", "shards")
    ok("eval", "data", "--model", "m")
    ok("report", "models/m", "-o", "m.html")
    ok("sample", "--model", "m", "-n", "2", "-o", "s.png")
    ok("info", "m")
