"""Large pictures are worked on in tiles; what comes out is what would come out at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model, picture
from torch import nn

from vqtok import codec
from vqtok.config import TokenizerConfig
from vqtok.vqvae import VQVAE, Encoder, ResidualBlock, reach

CONFIGS = [
    TokenizerConfig(downsample=f, fold=fold, width=8, encoder_blocks=1, decoder_blocks=1, codebook_size=64, code_dim=4)
    for f, fold in ((2, 1), (4, 4), (8, 4), (16, 2))
]
LEVELS = TokenizerConfig(
    downsample=16, width=8, encoder_blocks=1, decoder_blocks=1, codebook_size=64, code_dim=4, levels=3, normalize=False
)


def stir(network: nn.Module) -> None:
    """Fresh residual blocks are the identity and see no neighbors: gives them weights."""
    torch.manual_seed(1)
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            nn.init.normal_(block.second.weight, std=0.2)


@pytest.fixture(params=[*CONFIGS, LEVELS], ids=lambda c: f"f{c.downsample}-fold{c.fold}-levels{c.levels}")
def stirred(request: pytest.FixtureRequest, tmp_path: Path) -> codec.Model:
    model = codec.load(make_model(tmp_path / "models" / "toy", request.param, None))
    stir(model.network)
    return model


@pytest.mark.parametrize(("h", "w", "f", "halo"), [(1, 1, 8, 3), (70, 3, 4, 2), (9, 200, 2, 1), (61, 64, 4, 5)])
def test_tiles_cover_the_grid_once_with_their_context(h: int, w: int, f: int, halo: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "PIXELS_AT_ONCE", 64**2)
    seen = np.zeros((h, w), int)
    for tile in codec.tiles(h, w, f, halo):
        seen[tile.core] += 1
        rows, columns = tile.core
        assert (rows.stop - rows.start) * (columns.stop - columns.start) * f * f <= 64**2
        for core, outer, length in zip(tile.core, tile.outer, (h, w), strict=True):
            assert outer == slice(max(0, core.start - halo), min(length, core.stop + halo))
        whole = np.arange(h * w).reshape(h, w)
        assert np.array_equal(whole[tile.outer][tile.inner], whole[tile.core])
    assert (seen == 1).all()


def test_tiled_equals_untiled(stirred: codec.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = picture(150, 210)
    codes = stirred.encode(pixels)
    decoded = stirred.decode(codes)
    monkeypatch.setattr(codec, "PIXELS_AT_ONCE", 48**2)
    assert len(list(codec.tiles(codes.indices.shape[2], codes.indices.shape[3], stirred.config.downsample, 0))) > 8
    assert np.array_equal(stirred.encode(pixels).indices, codes.indices)
    assert np.abs(stirred.decode(codes).astype(int) - decoded).max() <= 1       # float rounding, at most one gray level


def test_tiled_equals_untiled_at_every_number_of_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = codec.load(make_model(tmp_path / "models" / "toy", LEVELS, None))
    stir(model.network)
    codes = model.encode(picture(150, 210))
    whole = [model.decode(codes, levels) for levels in (1, 2)]
    monkeypatch.setattr(codec, "PIXELS_AT_ONCE", 48**2)
    for levels, decoded in enumerate(whole, 1):
        assert np.array_equal(model.encode(picture(150, 210), levels=levels).indices, codes.indices[:, :levels])
        assert np.abs(model.decode(codes, levels).astype(int) - decoded).max() <= 1


def test_tiles_of_pictures_that_share_a_grid_but_no_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = codec.load(make_model(tmp_path / "models" / "toy", LEVELS, None))
    pictures = [picture(*size, seed=i) for i, size in enumerate([(145, 200), (160, 193), (150, 208)])]
    expected = model.encode_batch(pictures)
    monkeypatch.setattr(codec, "PIXELS_AT_ONCE", 48**2)
    codes = model.encode_batch(pictures)
    assert codes == expected
    for decoded, original in zip(model.decode_all(codes), pictures, strict=True):
        assert decoded.shape == original.shape


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"f{c.downsample}-fold{c.fold}")
def test_reach_is_no_less_and_hardly_more_than_what_gradients_show(config: TokenizerConfig) -> None:
    network, f = VQVAE(config), config.downsample
    stir(network)
    for part in (network.encoder, network.decoder):
        assert isinstance(part, type(network.encoder) | type(network.decoder))
        bound = reach(part, f)
        side = 2 * bound + 3
        scale = f if isinstance(part, Encoder) else 1
        x = torch.randn(1, 3 if scale > 1 else config.code_dim, side * scale, side * scale, requires_grad=True)
        out = part(x)
        unit = out.shape[2] // side
        middle = side // 2
        out[:, :, middle * unit : (middle + 1) * unit, middle * unit : (middle + 1) * unit].abs().sum().backward()
        assert x.grad is not None
        touched = (x.grad.abs().sum((0, 1, 3)).reshape(side, scale).sum(1) > 0).nonzero()[:, 0]
        farthest = int((touched - middle).abs().max())
        assert bound - 1 <= farthest <= bound, (config, part.__class__)
