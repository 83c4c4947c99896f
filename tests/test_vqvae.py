import math
from dataclasses import replace

import pytest
import torch
from conftest import image
from torch import Tensor, nn

from vqtok.config import LEARNED, LIKELIHOODS, TokenizerConfig
from vqtok.networks.vqvae import VQVAE, Downsample, ResidualBlock, Upsample, to_float, to_uint8

SMALL = TokenizerConfig(
    downsample=4, width=8, encoder_blocks=1, decoder_blocks=1, codebook_size=16, code_dim=4
)
SHAPES = [
    (downsample, fold) for downsample in (2, 4, 8, 16) for fold in (1, 2, 4) if fold <= downsample
]


def make(config: TokenizerConfig = SMALL, seed: int = 0) -> VQVAE:
    """A network in which every layer does something:
    at its start a residual block is the identity.
    """
    torch.manual_seed(seed)
    network = VQVAE(config).eval()
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() == 4:
                value.normal_(0, value[0].numel() ** -0.5)
    return network


def images(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Floats in [-1, 1], (count, channels, height, width)."""
    return torch.stack(
        [
            to_float(torch.from_numpy(image(height, width, channels, seed)).permute(2, 0, 1))
            for seed in range(count)
        ]
    )


def reach(config: TokenizerConfig, first: int, last: int) -> tuple[int, int]:
    """First and last pixel along one axis that codes first..last see;
    worked out from the layers as the docstrings give them.
    """
    stages = int(math.log2(config.downsample // config.fold))
    for stage in range(stages, -1, -1):
        # two 3x3 a block
        first, last = first - 2 * config.encoder_blocks, last + 2 * config.encoder_blocks
        if stage:
            first, last = 2 * first - 1, 2 * last + 2  # 4x4, stride 2, padding 1
    # the first 3x3, then the folded pixels
    return (first - 1) * config.fold, (last + 2) * config.fold - 1


# Pixels


def test_every_gray_level_survives_the_way_to_floats_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(levels)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), levels)
    assert torch.equal(to_uint8(floats + 0.49 / 127.5), levels)
    assert torch.equal(to_uint8(floats - 0.49 / 127.5), levels)
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


# Shapes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("downsample", "fold"), SHAPES)
def test_height_and_width_keep_their_places(downsample: int, fold: int, channels: int):
    network = make(replace(SMALL, downsample=downsample, fold=fold, channels=channels, width=4))
    x = images(2, 2 * downsample, 5 * downsample, channels)
    with torch.no_grad():
        indices = network.encode(x)
        assert network.encoder(x).shape == (2, 4, 2, 5)
        assert indices.shape == (2, 1, 2, 5)
        assert network.decode(indices).shape == x.shape
        assert network(x).reconstruction.shape == x.shape


def test_one_code_is_one_block_of_pixels():
    network = make()
    with torch.no_grad():
        assert network.encode(images(1, 4, 4)).shape == (1, 1, 1, 1)
        assert network.decode(torch.zeros(1, 1, 1, 7, dtype=torch.int64)).shape == (1, 3, 4, 28)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("quantizer", LEARNED)
def test_forward_is_encode_and_decode(likelihood: str, quantizer: str):
    network, x = (
        make(replace(SMALL, likelihood=likelihood, quantizer=quantizer)),
        images(2, 12, 20),
    )
    with torch.no_grad():
        output = network(x)
        indices = network.encode(x)
        assert torch.equal(output.indices, indices)
        torch.testing.assert_close(network.decode(indices), output.reconstruction)
        assert output.reconstruction.abs().max() <= 1
        assert torch.isfinite(output.loss)


def test_residual_blocks_start_as_the_identity():
    torch.manual_seed(0)
    blocks = [module for module in VQVAE(SMALL).modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 2
    for block in blocks:
        x = torch.randn(1, block.first.in_channels, 3, 5)
        assert torch.equal(block(x), x)


def paths(config: TokenizerConfig, part: str) -> Tensor:
    """What the layers of one kind give where all weights are 0, for features (1, C, 4,
    6) that differ everywhere.
    """
    kind = {"down": Downsample, "up": Upsample}[part]
    layer = next(module for module in VQVAE(config).modules() if isinstance(module, kind))
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer(torch.arange(layer.in_channels * 24.0).reshape(1, layer.in_channels, 4, 6))


def test_a_shortcut_keeps_means_going_down_and_values_going_up():
    config = replace(SMALL, downsample=8, fold=4)
    down, up = paths(config, "down"), paths(config, "up")
    x = torch.arange(8 * 24.0).reshape(8, 4, 6)
    assert down.shape == (1, 16, 2, 3)
    # folded channels: 4 a channel, (row, column)
    assert float(down[0, 2, 1, 2].detach()) == float((x[1, 2, 4] + x[1, 2, 5]) / 2)
    assert float(down[0, 3, 1, 2].detach()) == float((x[1, 3, 4] + x[1, 3, 5]) / 2)
    assert up.shape == (1, 32, 4, 6)
    values = torch.arange(16 * 24.0).reshape(16, 4, 6)
    finer = nn.functional.pixel_shuffle(up, 2)[0, 0, :2, :2]
    assert torch.equal(finer, torch.stack([values[0, 0, 0].repeat(2), values[1, 0, 0].repeat(2)]))


def test_without_shortcuts_a_change_of_resolution_is_a_convolution():
    network = VQVAE(replace(SMALL, downsample=16, shortcut=False))
    assert not any(isinstance(module, Downsample | Upsample) for module in network.modules())
    assert set(network.state_dict()) == set(VQVAE(replace(SMALL, downsample=16)).state_dict())


# Locality


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize(
    ("downsample", "fold", "blocks"), [(4, 4, 1), (4, 2, 2), (8, 4, 0), (8, 2, 1), (2, 1, 1)]
)
def test_a_code_sees_a_bounded_neighborhood(
    downsample: int, fold: int, blocks: int, shortcut: bool
):
    config = replace(
        SMALL, downsample=downsample, fold=fold, encoder_blocks=blocks, width=4, shortcut=shortcut
    )
    network, (row, column) = make(config), (8, 12)
    x = torch.randn(1, 3, 20 * downsample, 24 * downsample, requires_grad=True)
    network.encoder(x)[0, :, row, column].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0).nonzero()  # (pixels, 2)
    assert (seen[:, 0].min(), seen[:, 0].max()) == reach(config, row, row)
    assert (seen[:, 1].min(), seen[:, 1].max()) == reach(config, column, column)


def test_changes_far_away_change_no_index():
    network, x = make(), images(1, 96, 160)
    top, bottom = reach(SMALL, 4, 9)
    left, right = reach(SMALL, 10, 19)
    assert top > 0 < left
    assert bottom < 95
    assert right < 159
    other = 2 * torch.rand_like(x) - 1
    other[..., top : bottom + 1, left : right + 1] = x[..., top : bottom + 1, left : right + 1]
    with torch.no_grad():
        before, after = network.encode(x), network.encode(other)
    same = before == after
    assert same[0, 0, 4:10, 10:20].all()
    assert same.float().mean() < 0.6  # and elsewhere they did change


def test_a_crop_is_encoded_as_the_whole_is():
    network, x = make(), images(1, 96, 160)
    crop = x[..., 16:80, 40:136]
    margin = 4  # codes that see beyond the crop
    assert reach(SMALL, margin, margin)[0] >= 0
    with torch.no_grad():
        whole, part = network.encode(x)[..., 4:20, 10:34], network.encode(crop)
    assert torch.equal(
        whole[..., margin:-margin, margin:-margin], part[..., margin:-margin, margin:-margin]
    )
    assert part.unique().numel() > 4


def test_a_code_changes_its_surroundings_only():
    network, indices = make(), torch.randint(16, (1, 1, 20, 28))
    other = indices.clone()
    other[0, 0, 5, 19] = (other[0, 0, 5, 19] + 1) % 16
    with torch.no_grad():
        changed = (network.decode(indices) != network.decode(other)).any(1)[0].nonzero()
    rows, columns = changed.float().add(0.5).div(4).T
    assert (rows - 5.5).abs().max() < 6
    assert (columns - 19.5).abs().max() < 6
    assert len(changed) > 16


# The same indices whatever the circumstances


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batch_size_and_threads_change_no_index(memory_format: torch.memory_format):
    network, x = make(replace(SMALL, width=16, codebook_size=64)), images(5, 36, 52)
    network = network.to(memory_format=memory_format)  # type: ignore[call-overload]
    x, found, vectors = x.contiguous(memory_format=memory_format), {}, {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in (1, 5):
            with torch.no_grad():
                vectors[threads, batch] = torch.cat(
                    [network.encoder(part) for part in x.split(batch)]
                )
                found[threads, batch] = torch.cat([network.encode(part) for part in x.split(batch)])
    reference = found[1, 5]
    assert all(torch.equal(indices, reference) for indices in found.values())
    assert reference.unique().numel() > 20
    # Sums in another order round differently:
    # what holds is a bound, and equality wherever two codes are not as near as that.
    assert max(float((z - vectors[1, 5]).abs().max()) for z in vectors.values()) < 1e-5


def test_contiguous_and_channels_last_give_the_same_indices():
    network, x = make(), images(2, 36, 52)
    with torch.no_grad():
        plain = network.encode(x)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert torch.equal(network.encode(x.contiguous(memory_format=torch.channels_last)), plain)


# What is kept, and what is learned


@pytest.mark.parametrize("quantizer", LEARNED)
def test_the_release_holds_all_that_decoding_needs_and_no_training_state(quantizer: str):
    network, x = make(replace(SMALL, quantizer=quantizer)), images(1, 12, 20)
    network.quantizer.initialize(torch.randn(100, 4))
    state = network.release_state()
    left_out = set(network.state_dict()) - set(state)
    assert "quantizer.average.initialized" in left_out
    assert all(name.startswith("quantizer.average.") for name in left_out)
    other = make(replace(SMALL, quantizer=quantizer), seed=1)
    del other.quantizer.average
    other.load_state_dict(state)  # strict: nothing is missing
    with torch.no_grad():
        indices = network.encode(x)
        assert torch.equal(other.encode(x), indices)
        assert torch.equal(other.decode(indices), network.decode(indices))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("likelihood", "quantizer"),
    [(likelihood, "ema") for likelihood in LIKELIHOODS]
    + [("mse", quantizer) for quantizer in LEARNED if quantizer != "ema"],
)
def test_a_small_network_learns_a_few_images_by_heart(likelihood: str, quantizer: str):
    torch.manual_seed(0)
    network, x = (
        VQVAE(replace(SMALL, likelihood=likelihood, quantizer=quantizer, width=16)),
        images(2, 16, 16),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    with torch.no_grad():
        network.quantizer.initialize(network.encoder(x).permute(0, 2, 3, 1).flatten(0, 2))
    losses, errors = [], []
    for _ in range(60):
        output = network(x)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        network.quantizer.update_codebook()
        losses.append(output.loss.item())
        errors.append((output.reconstruction.detach() - x).square().mean().item())
    assert losses[-1] < losses[0]
    assert errors[-1] < 0.2 * errors[0]
