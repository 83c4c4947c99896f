"""Large images are worked on in parts; what comes out is what would come out at once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image, make_model
from torch import Tensor, nn

from vqtok import codec
from vqtok.codec import model as codec_model
from vqtok.config import TokenizerConfig
from vqtok.networks.streaming import Tiling, stream
from vqtok.networks.vqvae import VQVAE, ResidualBlock

CONFIGS = [
    TokenizerConfig(
        downsample=f,
        fold=fold,
        width=8,
        encoder_blocks=1,
        decoder_blocks=1,
        codebook_size=64,
        code_dim=4,
        shortcut=shortcut,
    )
    for f, fold, shortcut in ((2, 1, True), (4, 4, True), (8, 4, False), (16, 2, True))
]
CONFIGS.append(
    replace(CONFIGS[2], shortcut=True, decoder_widths=(4, 8, 16), decoder_depths=(2, 0, 1))
)  # of its own shape: fold 2
LEVELS = TokenizerConfig(
    downsample=16,
    width=8,
    encoder_blocks=1,
    decoder_blocks=1,
    codebook_size=64,
    code_dim=4,
    levels=3,
    normalize=False,
)


def stir(network: nn.Module) -> None:
    """Fresh residual blocks are the identity and see no neighbors: gives them weights."""
    torch.manual_seed(1)
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            nn.init.normal_(block.second.weight, std=0.2)


@pytest.fixture(
    params=[*CONFIGS, LEVELS], ids=lambda c: f"f{c.downsample}-fold{c.fold}-levels{c.levels}"
)
def stirred(request: pytest.FixtureRequest, tmp_path: Path) -> codec.Model:
    model = codec.load(make_model(tmp_path / "models" / "toy", request.param, None))
    stir(model.network)
    return model


def cut_into(x: Tensor, axis: int, length: int) -> list[Tensor]:
    return [part.contiguous(memory_format=torch.channels_last) for part in x.split(length, axis)]


# A network that gets its input part by part


@pytest.mark.slow
@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"f{c.downsample}-fold{c.fold}")
def test_in_parts_equals_at_once(config: TokenizerConfig, axis: int) -> None:
    """Parts of one code and of several, first and last ones shorter than a kernel reaches,
    and one part that is all.
    """
    network, f = (
        VQVAE(config)
        .eval()
        .to(  # type: ignore[call-overload]
            memory_format=torch.channels_last
        ),
        config.downsample,
    )
    stir(network)
    torch.manual_seed(2)
    for part, x, unit in (
        (network.encoder, torch.randn(2, 3, 9 * f, 7 * f), f),
        (network.decoder, torch.randn(2, 4, 9, 7), 1),
    ):
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            whole = part(x)
            for most in (1, 2, 3, 6, 9):
                parts = list(
                    stream(part, cut_into(x.clone(), axis, most * unit), axis, most * unit)
                )
                assert len(parts) > 1 or most >= 6
                torch.testing.assert_close(torch.cat(parts, axis), whole, rtol=1e-5, atol=1e-5)


def test_parts_stay_small_to_the_end() -> None:
    """The last part brings out all that is still held:
    it goes through the later layers in pieces.
    """
    config = TokenizerConfig(
        downsample=4, width=8, encoder_blocks=1, decoder_blocks=6, codebook_size=16, code_dim=4
    )
    decoder = VQVAE(config).eval().decoder
    x = torch.randn(1, 4, 40, 3)
    with torch.inference_mode():
        lengths = [part.shape[2] for part in stream(decoder, cut_into(x, 2, 4), 2, 4)]
    assert sum(lengths) == 160
    assert max(lengths) <= 1.5 * 16 + 4  # the last layers may add a few rows after the cut


def test_the_input_is_left_as_it_was() -> None:
    network, x = VQVAE(CONFIGS[0]).eval(), torch.randn(1, 3, 8, 8)
    before = x.clone()
    with torch.inference_mode():
        for length in (2, 8):
            list(stream(network.encoder, x.split(length, 2), 2, length))
    assert torch.equal(x, before)


# How a grid is cut


@pytest.mark.parametrize(
    ("h", "w", "n"),
    [(1, 1, 1), (70, 3, 1), (9, 200, 1), (61, 64, 1), (1, 5000, 1), (61, 64, 5), (3, 900, 2)],
)
def test_cuts_cover_the_grid_once(h: int, w: int, n: int) -> None:
    f, pixels = 4, 64**2
    cut = Tiling.of(h, w, f, pixels, n)
    seen, sizes = np.zeros((h, w), int), []
    for part in cut.tiles:
        seen[cut.slices(part)] += 1
        sizes.append(seen[cut.slices(part)].size)
        assert part.stop - part.start <= cut.max_length
    assert (seen == 1).all()
    assert max(sizes) * n * f * f <= (4 if cut.max_length == 1 else 2) * pixels
    assert cut.slices(cut.tiles[-1], f)[cut.axis - 2] == slice(
        cut.tiles[-1].start * f, cut.tiles[-1].stop * f
    )


# The library


@pytest.mark.slow
@pytest.mark.parametrize("size", [(150, 210), (210, 150), (20, 1500)])
def test_cut_up_equals_whole(
    stirred: codec.Model, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = image(*size)
    codes = stirred.encode(pixels)
    decoded = stirred.decode(codes)
    output = stirred.output(codes, 0)
    monkeypatch.setattr(codec_model, "PIXELS_AT_ONCE", 48**2)
    h, w = codes.indices.shape[2:]
    assert len(Tiling.of(h, w, stirred.config.downsample, 48**2).tiles) > 4
    assert np.array_equal(stirred.encode(pixels).indices, codes.indices)
    # float rounding, at most one gray level
    assert np.abs(stirred.decode(codes).astype(int) - decoded).max() <= 1
    torch.testing.assert_close(stirred.output(codes, 0), output, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_cut_up_equals_whole_at_every_number_of_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = codec.load(make_model(tmp_path / "models" / "toy", LEVELS, None))
    stir(model.network)
    codes = model.encode(image(150, 210))
    whole = [model.decode(codes, levels) for levels in (1, 2)]
    monkeypatch.setattr(codec_model, "PIXELS_AT_ONCE", 48**2)
    for levels, decoded in enumerate(whole, 1):
        assert np.array_equal(
            model.encode(image(150, 210), levels=levels).indices, codes.indices[:, :levels]
        )
        assert np.abs(model.decode(codes, levels).astype(int) - decoded).max() <= 1


# a part of an image, and two of three images
@pytest.mark.slow
@pytest.mark.parametrize("at_once", [48**2, 2 * 160 * 208])
def test_images_that_share_a_grid_but_no_size(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = codec.load(make_model(tmp_path / "models" / "toy", LEVELS, None))
    images = [image(*size, seed=i) for i, size in enumerate([(145, 200), (160, 193), (150, 208)])]
    expected = model.encode_batch(images)
    monkeypatch.setattr(codec_model, "PIXELS_AT_ONCE", at_once)
    codes = model.encode_batch(images)
    assert codes == expected
    for decoded, original in zip(model.decode_all(codes), images, strict=True):
        assert decoded.shape == original.shape


def test_shortcuts_in_place_are_the_shortcuts() -> None:
    """To the bit: one writing is for training, the other for use."""
    network = VQVAE(CONFIGS[3])
    for layer in network.modules():
        if hasattr(layer, "add_shortcut"):
            assert isinstance(layer, nn.Conv2d)
            x = torch.randn(2, layer.in_channels, 6, 4)
            y = (
                nn.Conv2d.forward(layer, x)
                if layer.stride[0] == 2
                else torch.randn(2, layer.out_channels, 6, 4)
            )
            added = y.detach().clone()
            layer.add_shortcut(added, x)  # type: ignore[operator]
            assert torch.equal(added, y + layer.shortcut(x))  # type: ignore[operator]
