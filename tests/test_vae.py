"""The VAE: its divergence, its bounds, and that it learns."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import TOKENIZER, image
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vqtok.config import LIKELIHOODS, PRESETS
from vqtok.errors import UsageError
from vqtok.networks.vae import LOG_VARIANCES, VAE, divergence
from vqtok.networks.vqvae import to_float

CONFIG = replace(TOKENIZER, likelihood="heteroscedastic", normalize=False)


def make(seed: int = 0, **changes: object) -> VAE:
    torch.manual_seed(seed)
    return VAE(replace(CONFIG, **changes))  # type: ignore[arg-type]


def images(count: int = 2, height: int = 8, width: int = 12, channels: int = 3) -> Tensor:
    """Floats in [-1, 1], (count, channels, height, width)."""
    return torch.stack(
        [
            to_float(torch.from_numpy(image(height, width, channels, seed)).permute(2, 0, 1))
            for seed in range(count)
        ]
    )


def test_the_divergence_is_that_of_torch():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 4, 5), 2 * torch.randn(2, 3, 4, 5)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(divergence(mean, log_variance), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_loss_is_what_latents_and_images_take(likelihood: str):
    vae, x = make(likelihood=likelihood), images()
    bound = vae(x)
    bound.loss.backward()
    assert bound.reconstruction.shape == x.shape
    assert float(bound.loss.detach()) == pytest.approx(
        float(bound.kl.detach() + bound.nll.detach())
    )
    mean, log_variance = vae.encode(x)
    assert mean.shape == log_variance.shape == (2, 4, 2, 3)
    assert float(bound.kl.detach()) == pytest.approx(
        float(divergence(mean, log_variance).sum().detach()) / x.numel(), rel=1e-5
    )
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in vae.parameters())
    first = vae.encoder[1].weight.grad
    assert isinstance(first, Tensor)
    assert first.abs().sum() > 0


def test_the_bits_of_an_untrained_model_are_near_those_of_no_knowledge():
    """Latents say nothing yet, and pixels take about what a wide logistic around gray takes."""
    torch.manual_seed(0)
    vae, x = make(), images(8)
    bits = vae.bits(x)
    assert bits.shape == (8,)
    assert 7 < float(bits.mean()) < 9
    assert float(bits.mean()) == pytest.approx(float(vae(x).loss.detach()) / math.log(2), rel=0.05)


class Straight(nn.Module):
    """x -> a x, at a grid as large as the image;
    as an encoder with a fixed log variance behind it.
    """

    def __init__(self, factor: float, log_variance: float | None = None) -> None:
        super().__init__()
        self.factor, self.log_variance = factor, log_variance

    def forward(self, x: Tensor) -> Tensor:
        x = self.factor * x
        return (
            x
            if self.log_variance is None
            else torch.cat([x, torch.full_like(x, self.log_variance)], 1)
        )


def linear(noise: float, posterior: float) -> VAE:
    """z ~ N(0, 1), x ~ logistic around 0.3 z: one number a pixel;
    q(z | x) is wider than the true posterior.
    """
    vae = make(channels=1, likelihood="logistic", code_dim=1)
    vae.encoder, vae.decoder = Straight(2.0, posterior), Straight(0.3)  # type: ignore[assignment]
    nn.init.constant_(vae.likelihood.log_scale, noise)
    return vae


def exact(vae: VAE, x: Tensor) -> Tensor:
    """-log2 p of each pixel, by a sum over a fine grid of z: (B,) for images of one pixel."""
    z = torch.linspace(-8, 8, 8001)
    nats = vae.likelihood.nats(
        (0.3 * z)[:, None, None, None].expand(-1, len(x), 1, 1), x[:, 0, 0, 0].view(1, -1, 1, 1)
    ).squeeze()
    step = math.log(float(z[1] - z[0]))
    return -(Normal(0.0, 1.0).log_prob(z)[:, None] - nats + step).logsumexp(0) / math.log(2)


def test_more_samples_come_nearer_to_the_exact_bits():
    torch.manual_seed(0)
    vae = linear(noise=-2.0, posterior=0.5)
    x = to_float(torch.tensor([20, 100, 128, 200]).view(4, 1, 1, 1))
    with torch.no_grad():
        true = exact(vae, x)
        draws = {
            S: vae.bits(x.repeat(400, 1, 1, 1), S).view(400, 4).mean(0) for S in (1, 4, 32, 256)
        }
    assert (draws[1] > draws[4]).all()
    assert (draws[4] > draws[32]).all()
    assert (draws[32] > true - 0.02).all()
    torch.testing.assert_close(draws[256], true, atol=0.03, rtol=0)


def test_variances_are_bounded():
    vae = linear(noise=-2.0, posterior=1000.0)
    assert vae.encode(torch.zeros(1, 1, 1, 1))[1].item() == LOG_VARIANCES[1]
    assert torch.isfinite(vae(torch.zeros(1, 1, 1, 1)).loss)


def test_samples_are_images_and_the_generator_decides():
    vae = make().eval()
    one, same, other = (
        vae.sample(2, 3, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert one.shape == (2, 3, 12, 8)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    drawn = vae.sample(2, 3, 2, torch.Generator().manual_seed(0), pixels=True)
    levels = (drawn + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    assert (drawn - one).abs().mean() > 0.05  # the noise of the likelihood


def test_pixels_have_no_latents():
    with pytest.raises(UsageError, match="needs an encoder"):
        VAE(PRESETS["pixels"].tokenizer)


@pytest.mark.slow
def test_it_learns_a_few_images():
    vae, x = make(), images(4)
    optimizer = torch.optim.Adam(vae.parameters(), lr=4e-3)
    before = float(vae.bits(x).mean())
    for _ in range(40):
        optimizer.zero_grad()
        vae(x).loss.backward()
        optimizer.step()
    assert float(vae.bits(x).mean()) < before - 1
