"""Defines the variational autoencoder, the VQ-VAE's counterpart with Gaussian latents (Kingma and
Welling 2014, arXiv 1312.6114).

Encoder, decoder and likelihood are those of the VQ-VAE: what differs is how a latent is said.
`VAE.bits` counts every bit.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vqtok import losses
from vqtok.config import TokenizerConfig
from vqtok.errors import UsageError
from vqtok.networks.vqvae import Decoder, Encoder

LOG_VARIANCES = (-14.0, 6.0)  # of q: float32 holds both e^-14 and what the loss makes of e^6


@dataclass(frozen=True)
class VAEOutput:
    """Holds one training step's view of a batch; loss = kl + nll is a bound on -log p(x), in nats
    per dimension of the images.
    """

    reconstruction: Tensor  # (B, C, H, W) in [-1, 1]
    kl: Tensor  # scalar: what the latents take
    nll: Tensor  # scalar: what the images take beyond them
    loss: Tensor  # scalar


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Computes KL(N(mean, variance) | N(0, 1)) in nats of each number, in the shape of the two
    (Kingma and Welling 2014, appendix B).
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


class VAE(nn.Module):
    """Encodes images to a Gaussian latent of D numbers at each position of the grid, with a
    standard normal prior; the config's quantizer is not used.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        """Raises UsageError where the config is that of the identity."""
        super().__init__()
        if config.is_pixels:
            raise UsageError(
                "a VAE needs an encoder, and the pixels have none",
                "choose another preset or quantizer",
            )
        self.config = config
        self.encoder = Encoder(replace(config, code_dim=2 * config.code_dim))
        self.decoder = Decoder(config)
        self.likelihood = losses.build_likelihood(config)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log variance of q(z | x), each (B, D, h, w); images (B, C, H, W) in [-1,
        1], H and W multiples of f.
        """
        mean, log_variance = self.encoder(images).float().chunk(2, 1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def forward(self, images: Tensor) -> VAEOutput:
        """Computes the negative evidence lower bound of a batch, by one draw of z that the gradient
        passes through.
        """
        mean, log_variance = self.encode(images)
        output = self.decoder(_reparameterize(mean, log_variance)).float()
        kl, nll = (
            divergence(mean, log_variance).sum() / images.numel(),
            self.likelihood.nll(output, images),
        )
        return VAEOutput(self.likelihood.mean(output), kl, nll, kl + nll)

    @torch.no_grad()
    def bits(self, images: Tensor, samples: int = 1) -> Tensor:
        """Computes an upper bound on -log2 p(x) / (C*H*W) of each image, (B,) bits per dimension;
        the draws make it a little random.

        One sample: KL in closed form plus -log2 p(x | z). More: the importance-weighted
        bound, which falls towards the exact value as their number grows (Burda et al. 2016,
        arXiv 1509.00519, eq. 8).
        """
        mean, log_variance = self.encode(images)
        if samples == 1:
            nats = divergence(mean, log_variance).sum((1, 2, 3)) + self._nll(
                _reparameterize(mean, log_variance), images
            )
        else:
            weights = torch.stack(
                [self._log_weight(mean, log_variance, images) for _ in range(samples)]
            )  # (S, B)
            nats = math.log(samples) - weights.logsumexp(0)
        return nats / (images[0].numel() * math.log(2))

    def _nll(self, z: Tensor, images: Tensor) -> Tensor:
        """Computes -log p(x | z) in nats, (B,)."""
        return self.likelihood.nats(self.decoder(z).float(), images).sum((1, 2, 3))

    def _log_weight(self, mean: Tensor, log_variance: Tensor, images: Tensor) -> Tensor:
        """Computes log p(x, z) / q(z | x) for one draw of z, (B,): the constants of the two
        Gaussians cancel.
        """
        z = _reparameterize(mean, log_variance)
        prior = -0.5 * z.square()
        posterior = -0.5 * ((z - mean).square() / log_variance.exp() + log_variance)
        return (prior - posterior).sum((1, 2, 3)) - self._nll(z, images)

    @torch.no_grad()
    def sample(
        self, n: int, h: int, w: int, generator: torch.Generator | None = None, pixels: bool = False
    ) -> Tensor:
        """Decodes n images (n, C, h*f, w*f) in [-1, 1] of latents from the prior: the likelihood's
        mean, or with `pixels` drawn from it.
        """
        position = self.likelihood.log_scale.device
        z = torch.randn(
            n,
            self.config.code_dim,
            h,
            w,
            generator=generator,
            device=generator.device if generator else position,
        ).to(position)
        output = self.decoder(z).float()
        return self.likelihood.sample(output, generator) if pixels else self.likelihood.mean(output)


def _reparameterize(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Draws z ~ q(z | x), differentiable in both (Kingma and Welling 2014, section 2.4)."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
