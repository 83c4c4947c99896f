"""The classic network: its settings, whole images, bounded memory, gradients."""

import shlex
import tomllib
from dataclasses import replace
from typing import Any

import pytest
import torch

from vqtok.config import TokenizerConfig
from vqtok.errors import InputError, UsageError
from vqtok.networks import vqgan, whole_image
from vqtok.networks.vqvae import VQVAE

CLASSIC = TokenizerConfig(
    downsample=4,
    fold=1,
    width=8,
    encoder_blocks=1,
    decoder_blocks=2,
    shortcut=False,
    quantizer="vq",
    codebook_size=16,
    code_dim=4,
    network="classic",
    stages=(8, 16, 16),
    attention=(1, 3),
    groups=4,
    z_channels=6,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": (8, 16)},
        {"stages": ()},
        {"stages": (8, 16, 18)},
        {"stages": (8, 16, 4096)},
        {"width": 16},
        {"fold": 2},
        {"shortcut": True},
        {"groups": 0},
        {"groups": 3},
        {"z_channels": 0},
        {"attention": (4,)},
        {"attention": (-1,)},
        {"attention": (1, 1)},
        {"encoder_blocks": 0},
        {"decoder_blocks": 0},
        {"network": "folded"},
    ],
    ids=str,
)
def test_settings_that_make_no_classic_network_are_usage_errors(changes: dict[str, Any]):
    with pytest.raises(UsageError):
        replace(CLASSIC, **changes)


@pytest.mark.parametrize("network", ["classic", "magvit2"])
@pytest.mark.parametrize("downsample", [4, 16])
def test_the_fix_for_missing_stages_names_all_that_is_needed(network: str, downsample: int):
    """`train --network classic` alone said: 0 stages do not make downsample 16."""
    values: dict[str, Any] = {"downsample": downsample, "network": network}
    with pytest.raises(UsageError, match="needs the channels of its stages") as caught:
        TokenizerConfig(**values)
    words = shlex.split(caught.value.command_fix)
    settings = [word.removeprefix("tokenizer.") for word in words if "=" in word]
    more: dict[str, Any] = tomllib.loads("\n".join(settings))
    values |= more | {"stages": tuple(more["stages"])}
    TokenizerConfig(**values)  # raises nothing
    assert caught.value.fix == f"set for example {', '.join(settings)}"


def network(seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(CLASSIC).eval()


def test_many_images_give_what_each_gives_alone(monkeypatch: pytest.MonkeyPatch):
    made, x = network(), torch.rand(3, 3, 16, 24) * 2 - 1
    runs: list[int] = []
    run = vqgan.Encoder.run_batch
    monkeypatch.setattr(
        vqgan.Encoder, "run_batch", lambda self, x: runs.append(len(x)) or run(self, x)
    )
    monkeypatch.setattr(made.encoder, "limits", replace(vqgan.LIMITS, pixels_at_once=2 * 16 * 24))
    with torch.inference_mode():
        together, alone = made.encoder(x), torch.cat([made.encoder(part) for part in x.split(1)])
        torch.testing.assert_close(together, alone)
        assert made.decode(made.encode(x)).shape == x.shape
    assert runs[:2] == [2, 1]


def test_a_distant_pixel_changes_every_vector():
    made, x = network(), torch.zeros(1, 3, 32, 32)
    other = x.clone()
    other[..., 31, 31] = 1
    with torch.inference_mode():
        assert (made.encoder(x) != made.encoder(other)).any(1).all()


def test_a_image_too_large_for_memory_is_an_input_error(monkeypatch: pytest.MonkeyPatch):
    made = network()
    need = vqgan._bytes_per_pixel(CLASSIC)
    # the second stage's 16 channels, at the first one's resolution
    assert need == 4 * vqgan.TENSORS * 16
    monkeypatch.setattr(whole_image, "MEMORY_LIMIT", need * 16 * 16)
    with torch.inference_mode():
        made.decode(made.encode(torch.zeros(2, 3, 16, 16)))
        with pytest.raises(InputError, match="an image of 20x16 takes about"):
            made.encoder(torch.zeros(1, 3, 16, 20))
        with pytest.raises(InputError, match="an image of 16x20 takes about"):
            made.decoder(torch.zeros(1, 4, 5, 4))


def test_every_weight_learns():
    made = network().train()
    made(torch.rand(2, 3, 16, 16) * 2 - 1).loss.backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []
