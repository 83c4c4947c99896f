"""Levels that are parts of a vector (product quantization), and networks that need them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import fails, small
from conftest import TOKENIZER, image, make_model
from torch import Tensor

from vqtok import codec, quantizers
from vqtok.codec.effort import beam_search
from vqtok.config import LEARNED, TokenizerConfig
from vqtok.errors import UsageError
from vqtok.networks.vqvae import VQVAE
from vqtok.quantizers import ProductQuantizer

EVERY = pytest.mark.parametrize("kind", LEARNED)


def make(kind: str, levels: int = 3, dim: int = 12, dropout: float = 0.0) -> ProductQuantizer:
    config = TokenizerConfig(
        quantizer=kind,
        codebook_size=16,
        code_dim=dim,
        levels=levels,
        product=True,
        normalize=False,
        level_dropout=dropout,
    )
    torch.manual_seed(0)
    quantizer = quantizers.build_quantizer(config)
    assert isinstance(quantizer, ProductQuantizer)
    quantizer.initialize(torch.randn(500, dim))
    return quantizer


def grid(dim: int = 12) -> Tensor:
    return torch.randn(2, dim, 4, 5, generator=torch.Generator().manual_seed(3))


@EVERY
def test_each_level_quantizes_its_part_alone(kind: str):
    quantizer, z = make(kind).eval(), grid()
    with torch.no_grad():
        quantizer.depth.normal_()
        quantized = quantizer(z)
        for level, part in enumerate(z.chunk(3, 1)):
            alone = quantizer.quantizers[level](part)
            assert torch.equal(quantized.indices[:, level : level + 1], alone.indices)
    for count in (1, 2, 3):
        sums = sum(
            quantizer.codebooks()[level][quantized.indices[:, level]] for level in range(count)
        )
        wanted = (sums + quantizer.depth[count - 1]).permute(0, 3, 1, 2)  # type: ignore[union-attr]
        torch.testing.assert_close(quantizer.lookup(quantized.indices[:, :count]), wanted)
    torch.testing.assert_close(quantizer.lookup(quantized.indices), quantized.vectors)


@EVERY
def test_a_beam_finds_what_the_quantizer_finds(kind: str):
    quantizer, z = make(kind).eval(), grid()
    with torch.no_grad():
        found = beam_search(quantizer.codebooks(), z, 4)
        errors = [
            (quantizer.lookup(indices) - quantizer.depth[-1][:, None, None] - z).square().mean()
            for indices in (found, quantizer(z).indices)
        ]
    assert float(errors[0]) <= float(errors[1]) + 1e-6  # fsq and lfq bound before they round


@EVERY
def test_dropped_levels_are_zeros_and_their_mark(kind: str):
    quantizer, z = make(kind, dropout=1.0).train(), grid()
    with torch.no_grad():
        quantizer.depth.normal_()
    found = quantizer(z, torch.tensor([1, 3]))
    for image_number, count in enumerate((1, 3)):
        indices = found.indices[image_number : image_number + 1, :count]
        torch.testing.assert_close(found.vectors[image_number], quantizer.lookup(indices)[0])
    z.requires_grad_()
    quantized = quantizer(z)
    (quantized.vectors.sum() + quantized.loss).backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
    assert int(quantizer.update_codebook()) >= 0


def test_lfq_in_groups_has_the_bits_of_one_index():
    """Two levels of 9 bits are what one level of 18 is: the first counts ones."""
    config = TokenizerConfig(
        quantizer="lfq", codebook_size=512, code_dim=18, levels=2, product=True, normalize=False
    )
    groups = quantizers.build_quantizer(config).eval()
    whole = quantizers.build_quantizer(
        replace(config, codebook_size=1 << 18, levels=1, product=False)
    ).eval()
    with torch.no_grad():
        for module in [*groups.modules(), *whole.modules()]:
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(torch.eye(len(module.weight)))
                module.bias.zero_()
        z = grid(18)
        parts, index = groups(z).indices, whole(z).indices[:, 0]
    assert torch.equal(parts[:, 0] + 512 * parts[:, 1], index)
    assert int(index.max()) > 1 << 16


@pytest.mark.parametrize(
    "changes",
    [{"levels": 1}, {"levels": 5}, {"levels": 4, "normalize": True, "code_dim": 4}],
    ids=str,
)
def test_parts_that_cannot_be_are_usage_errors(changes: dict[str, object]):
    good = TokenizerConfig(code_dim=12, levels=3, product=True, normalize=False)
    with pytest.raises(UsageError):
        replace(good, **changes)


@pytest.mark.parametrize("kind", ["vq", "lfq"])
def test_a_model_of_product_levels_goes_through_files(kind: str, tmp_path: Path):
    config = replace(
        TOKENIZER, quantizer=kind, levels=3, product=True, code_dim=12, normalize=False
    )
    model = codec.load(make_model(tmp_path / "m", config, prior=None))
    pixels = image(16, 24)
    codes = model.encode(pixels, effort=2)
    assert codes.indices.shape == (1, 3, 4, 6)
    assert model.unpack(model.pack(codes)) == codes
    for levels in (1, 2, 3):
        assert model.decode(codes, levels).shape == pixels.shape
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    assert model.reconstruct(batch, 2).shape == (1, 3, 16, 24)
    whole = model.encode_batch([pixels]).indices
    assert np.array_equal(model.encode(pixels).indices, whole)


SETTINGS = {
    "magvit2": "stages=[8,8,16] groups=4 width=8 fold=1 shortcut=false encoder_blocks=1 "
    "decoder_blocks=1",
    "vqvae2": "levels=5 product=true code_dim=20 downsample=8 hidden=4 width=8",
}


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("network", SETTINGS)
def test_the_networks_are_trained(network: str, tmp_path: Path):
    settings = [
        word for text in SETTINGS[network].split() for word in ("--set", f"tokenizer.{text}")
    ]
    words = ["--stage", "tokenizer", "--network", network, "--no-normalize", *settings]
    result = small("-o", "m", *words)
    assert result.exit_code == 0, result.output
    model = codec.load(tmp_path / "m")
    assert model.config.network == network
    codes = model.encode(image(16, 24))
    assert model.decode(codes).shape == (16, 24, 3)


@pytest.mark.usefixtures("data")
def test_what_vqvae2_needs_is_told():
    said = fails("train", "data", "-o", "m", "--network", "vqvae2", code=2)
    assert "5 product levels" in said
    assert "product=true" in said


def test_vqvae2_looks_the_top_up_in_the_quantizer_that_it_has():
    config = TokenizerConfig(
        downsample=8,
        width=8,
        quantizer="ema",
        codebook_size=8,
        code_dim=20,
        levels=5,
        product=True,
        normalize=False,
        network="vqvae2",
        hidden=4,  # type: ignore[call-arg]
    )
    torch.manual_seed(0)
    network = VQVAE(config).eval()
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        before = network.encoder(x)
        network.quantizer.quantizers[0].codebook.add_(1.0)  # type: ignore[union-attr, index]
        after = network.encoder(x)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])
    assert not any("codes" in name for name in network.state_dict())
