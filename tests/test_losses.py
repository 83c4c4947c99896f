import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vqtok import losses
from vqtok.config import LIKELIHOODS, TokenizerConfig
from vqtok.losses import Likelihood, discretized_logistic

LEVELS = torch.arange(256) / 127.5 - 1  # every value a pixel can have
LOG_SCALES = (-1000.0, -30.0, -9.0, -5.0, -2.3, 0.0, 4.0, 12.0, 30.0, 1000.0)
MEANS = (-1e6, -3.0, -1.0, -0.501, 0.0, 1 / 255, 0.7, 1.0, 1.2, 1e6)


def build(likelihood: str, channels: int = 1) -> Likelihood:
    return losses.build_likelihood(TokenizerConfig(likelihood=likelihood, channels=channels))


def outputs_of(model: Likelihood, means: Tensor) -> Tensor:
    """What a decoder gives for these means (B, C, H, W), where it says of the scales
    that they are the channel's.
    """
    return torch.cat([means, *[torch.zeros_like(means)] * (model.outputs - 1)], 1)


def nll_of_levels(mean: float, log_scale: float) -> Tensor:
    """-log p in nats of each of the 256 values, (256,)."""
    means = torch.full((1, 1, 1, 256), mean)
    return discretized_logistic(
        means, torch.tensor([log_scale]), LEVELS.reshape(1, 1, 1, 256)
    ).flatten()


def brute_force(mean: np.ndarray, scale: float, image: np.ndarray) -> np.ndarray:
    """-log p from the definition in double precision, mirrored to the side where the two
    sigmoids do not both round to 1.
    """
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    centered = image - mean
    upper, lower = (centered + 1 / 255) / scale, (centered - 1 / 255) / scale
    upper = np.where(image > 1 - 1e-3, np.inf, upper)
    lower = np.where(image < -1 + 1e-3, -np.inf, lower)
    mirror = upper + lower > 0
    upper, lower = np.where(mirror, -lower, upper), np.where(mirror, -upper, lower)
    return -np.log(sigmoid(upper) - sigmoid(lower))


@pytest.mark.parametrize("log_scale", LOG_SCALES)
def test_discretized_logistic_sums_to_1(log_scale: float):
    for mean in MEANS:
        nll = nll_of_levels(mean, log_scale)
        assert torch.isfinite(nll).all(), mean
        assert torch.exp(-nll.double()).sum() == pytest.approx(1, abs=5e-4), mean


@pytest.mark.parametrize("log_scale", [-6.0, -4.0, -2.3, -1.0, 0.0, 2.0, 5.0])
def test_discretized_logistic_is_the_definition_in_double_precision(log_scale: float):
    draws = np.random.default_rng(0)
    image = np.broadcast_to(LEVELS.double().numpy(), (20, 256))
    mean = (
        (image + draws.normal(0, 3 * math.exp(log_scale), image.shape))
        .astype(np.float32)
        .astype(np.float64)
    )
    expected = brute_force(mean, math.exp(log_scale), image)
    found = discretized_logistic(
        torch.from_numpy(mean).float()[:, None, None],
        torch.tensor([log_scale]),
        torch.from_numpy(image.copy()).float()[:, None, None],
    )
    np.testing.assert_allclose(found.flatten(), expected.flatten(), rtol=2e-4, atol=1e-4)


def test_each_channel_has_its_own_scale():
    log_scale, shape = torch.tensor([-3.0, -1.0, 0.5]), (2, 3, 4, 5)
    mean, image = torch.rand(shape) * 2 - 1, LEVELS[torch.randint(256, shape)]
    found = discretized_logistic(mean, log_scale, image)
    for channel in range(3):
        one = discretized_logistic(
            mean[:, channel : channel + 1],
            log_scale[channel : channel + 1],
            image[:, channel : channel + 1],
        )
        assert torch.equal(found[:, channel : channel + 1], one)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_and_gradients_are_finite_at_extremes(likelihood: str):
    for output in (-1e6, -1.0, 0.0, 1.0, 1e6):
        for log_scale in (-1000.0, -9.0, 0.0, 30.0, 1000.0):
            finite_at(build(likelihood), output, log_scale)


def finite_at(model: Likelihood, output: float, log_scale: float) -> None:
    with torch.no_grad():
        model.log_scale.fill_(log_scale)
    outputs = torch.full((1, model.outputs, 1, 256), output, requires_grad=True)
    loss = model(outputs, LEVELS.reshape(1, 1, 1, 256))
    loss.backward()
    assert torch.isfinite(loss.detach())
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()
    assert model.log_scale.grad is not None
    assert torch.isfinite(model.log_scale.grad).all()


# Bits


def test_bits_of_a_distribution_that_knows_nothing():
    bits = [
        float(nll_of_levels(0.0, log_scale).mean()) / math.log(2)
        for log_scale in np.arange(-3, 1, 0.1)
    ]
    # all values equally often: no distribution needs less, and a logistic comes near
    assert min(bits) >= 8
    assert min(bits) < 8.3


def test_bits_of_black_and_white_are_1_and_of_what_is_known_0():
    edges = torch.tensor([0, 255])
    assert (nll_of_levels(0.0, 25.0)[edges] / math.log(2)).tolist() == pytest.approx([1, 1])
    assert nll_of_levels(float(LEVELS[77]), -9.0)[77] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_scale_learns_the_noise(likelihood: str):
    torch.manual_seed(0)
    model = build(likelihood, channels=3)
    means = torch.full((1, 3, 64, 64), 0.1)
    scales = torch.tensor([0.02, 0.05, 0.2])
    uniform = torch.rand_like(means)
    noise = (uniform.log() - (-uniform).log1p()) * scales[:, None, None]  # logistic
    images = (((means + noise).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    outputs = torch.logit((means + 1) / 2) if likelihood == "bce" else means
    optimizer = torch.optim.Adam([model.log_scale], lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        model(outputs_of(model, outputs), images).backward()
        optimizer.step()
    torch.testing.assert_close(model.log_scale.exp().detach(), scales, rtol=0.08, atol=0)


@pytest.mark.parametrize("likelihood", ["mse", "l1", "bce"])
def test_the_scale_changes_neither_loss_nor_network(likelihood: str):
    model = build(likelihood)
    output, image = (
        torch.randn(2, 1, 4, 6, requires_grad=True),
        LEVELS[torch.randint(256, (2, 1, 4, 6))],
    )
    error, loss = model.error(output, image), model(output, image)
    assert torch.equal(error, loss)
    assert torch.equal(torch.autograd.grad(error, output)[0], torch.autograd.grad(loss, output)[0])


def test_logistic_trains_on_the_bits_it_reports():
    model = build("logistic", channels=3)
    output, image = 2 * torch.randn(2, 3, 4, 6), LEVELS[torch.randint(256, (2, 3, 4, 6))]
    assert output.abs().max() > 1
    assert torch.equal(model(output, image), model.nll(output, image))


def test_the_decoder_says_the_scale_of_each_pixel():
    model = build("heteroscedastic", channels=3)
    mean, log_scale = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)
    image = LEVELS[torch.randint(256, (2, 3, 4, 6))]
    with torch.no_grad():
        model.log_scale.copy_(torch.tensor([-3.0, -2.0, 0.0]))
        found = model.nats(torch.cat([mean, log_scale], 1), image)
    for place in [(0, 0, 0, 0), (1, 2, 3, 5), (1, 1, 0, 4)]:
        scale = log_scale[place] + model.log_scale[place[1]].detach()
        one = discretized_logistic(
            mean[place].reshape(1, 1, 1, 1), scale.reshape(1), image[place].reshape(1, 1, 1, 1)
        )
        assert found[place] == pytest.approx(float(one), rel=1e-5)


def test_scales_of_single_pixels_are_bounded():
    model = build("heteroscedastic")
    for raw, bound in [(-1000.0, -7.0), (1000.0, 2.0)]:
        output = torch.tensor([0.3, raw]).reshape(1, 2, 1, 1)
        assert float(model.logistic(output)[1].detach()) == bound
        expected = discretized_logistic(
            output[:, :1], torch.tensor([bound]), torch.ones(1, 1, 1, 1)
        )
        assert torch.equal(model.nats(output, torch.ones(1, 1, 1, 1)).detach(), expected)


def test_a_scale_for_each_pixel_takes_fewer_bits_than_one_for_all():
    torch.manual_seed(0)
    # even columns are known well, odd ones are not
    scales = torch.tensor([0.01, 0.3]).repeat(1, 1, 32, 32)
    uniform = torch.rand_like(scales)
    images = ((torch.logit(uniform) * scales).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
    best = min(
        float(discretized_logistic(torch.zeros_like(scales), torch.tensor([s]), images).mean())
        for s in np.arange(-5, 0, 0.1)
    )
    model = build("heteroscedastic")
    each = model.nll(
        torch.cat([torch.zeros_like(scales), scales.log() - model.log_scale.detach()], 1), images
    )
    assert float(each.detach()) / math.log(2) < best / math.log(2) - 0.5


@pytest.mark.parametrize("likelihood", ["mse", "logistic", "heteroscedastic"])
def test_drawn_pixels_have_the_frequencies_that_the_nats_say(likelihood: str):
    model = build(likelihood)
    with torch.no_grad():
        model.log_scale.fill_(-3.0)
    output = outputs_of(model, torch.full((1, 1, 200, 200), 0.9))
    drawn = model.sample(output, torch.Generator().manual_seed(0))
    levels = ((drawn + 1) * 127.5).round().long()
    assert torch.equal(drawn, LEVELS[levels])
    expected = (
        torch.exp(-model.nats(output[..., :16, :16], LEVELS.reshape(1, 1, 16, 16)))
        .detach()
        .flatten()
    )
    found = torch.bincount(levels.flatten(), minlength=256) / levels.numel()
    assert expected[255] > 0.1  # the tail
    torch.testing.assert_close(found, expected, atol=0.006, rtol=0)
    assert torch.equal(drawn, model.sample(output, torch.Generator().manual_seed(0)))


# Values


def test_mse_and_l1_of_a_known_error():
    output, image = (
        torch.zeros(1, 1, 1, 4),
        torch.tensor([1.0, -1.0, 0.5, 0.0]).reshape(1, 1, 1, 4),
    )
    # As pixels in [0, 1] the errors are 1/2, 1/2, 1/4 and 0.
    assert float(build("mse").error(output, image)) == pytest.approx(
        (0.25 + 0.25 + 0.0625) / 4 / 0.0633
    )
    assert float(build("l1").error(output, image)) == pytest.approx((0.5 + 0.5 + 0.25) / 4 / 0.21)


def test_bce_of_known_logits():
    model, zero = build("bce"), torch.zeros(1, 1, 1, 256)
    levels = LEVELS.reshape(1, 1, 1, 256)
    # a fair coin takes one bit, whatever the value
    assert float(model.error(zero, levels)) == pytest.approx(math.log(2))
    logit, target = math.log(0.8 / 0.2), 0.3
    found = model.error(torch.full((1, 1, 1, 1), logit), torch.full((1, 1, 1, 1), 2 * target - 1))
    assert float(found) == pytest.approx(-target * math.log(0.8) - (1 - target) * math.log(0.2))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_mean_lies_in_the_images_range(likelihood: str):
    model = build(likelihood)
    outputs = outputs_of(model, torch.tensor([-50.0, -1.0, 0.0, 0.5, 50.0]).reshape(1, 1, 1, 5))
    expected = (
        [-1, math.tanh(-0.5), 0, math.tanh(0.25), 1] if likelihood == "bce" else [-1, -1, 0, 0.5, 1]
    )
    assert model.mean(outputs).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_right_output_costs_less_than_a_wrong_one(likelihood: str, channels: int):
    model = build(likelihood, channels)
    image = LEVELS[torch.randint(20, 236, (2, channels, 5, 7))]
    output = outputs_of(model, torch.logit((image + 1) / 2) if likelihood == "bce" else image)
    assert model(output, image) < model(output.flip(2), image)
    assert model.nll(output, image) < model.nll(output.flip(2), image)
    assert model.log_scale.shape == (channels,)
