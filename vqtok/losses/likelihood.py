"""Defines reconstruction likelihoods: what the decoder's output says about an image, and how wrong
that is.

Images are floats in [-1, 1], (B, C, H, W). Each likelihood gives a loss for training and a
mean for showing. Each also learns one scale per channel of a discretized logistic around that
mean, so that bits per dimension are real numbers for every model; `heteroscedastic` has the
decoder say the scale of each pixel.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import GRAY_LEVELS, LIKELIHOODS, TokenizerConfig

# Variance of CIFAR-10's training pixels in [0, 1] (van den Oord's notebook divides by it too), and
# the mean distance of the same pixels from their median: with them a loss of 1 means "no better
# than a gray image", for mse as for l1.
PIXEL_VARIANCE = 0.0633
PIXEL_DEVIATION = 0.21
HALF_BIN = 1 / 255  # half the distance of two gray levels in [-1, 1]
# narrower than e^-9 a bin holds all there is, and float32 no longer knows its edges; wider, none
LOG_SCALES = (-9.0, 30.0)
# of one pixel; below, a single wrong guess costs more than a thousand nats
# (PixelCNN++ stops there, too)
PIXEL_LOG_SCALES = (-7.0, 2.0)


def discretized_logistic(mean: Tensor, log_scale: Tensor, image: Tensor) -> Tensor:
    """Computes -log p in nats of each pixel value, the logistic density integrated over its bin
    (Salimans et al. 2017, eq. 2).

    mean and image are (B, C, H, W), log_scale (C,) or (B, C, H, W).
    The lowest and highest value take the tails.
    """
    scale = torch.exp(-log_scale.clamp(*LOG_SCALES))
    scale = scale[:, None, None] if scale.dim() == 1 else scale  # (C, 1, 1) or (B, C, H, W)
    lowest, highest = image < -1 + HALF_BIN, image > 1 - HALF_BIN
    return -log_bin_probability(image - mean, scale, HALF_BIN, lowest, highest)


def log_bin_probability(
    centered: Tensor, scale: Tensor, half: float, lowest: Tensor, highest: Tensor
) -> Tensor:
    """Computes log p of bins of width 2 * half under logistic distributions of 1 / scale;
    `centered` is the middle of the bin less the mean. The lowest and the highest bin take the
    tails.

    log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), exact and
    stable in float32, with l - u from its definition: the difference of the rounded two is 0 for
    means far outside the range of values.
    """
    upper, lower = (centered + half) * scale, (centered - half) * scale
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-2 * half * scale))
    inside = torch.where(lowest, F.logsigmoid(upper), inside)
    return torch.where(highest, F.logsigmoid(-lower), inside)


class Likelihood(nn.Module):
    """Defines p(x | z_q) for decoder outputs (B, n*C, H, W) and images (B, C, H, W)."""

    outputs = 1  # n: numbers that the decoder gives for each value of an image
    first_scale = 0.1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((channels,), math.log(self.first_scale)))

    def mean(self, output: Tensor) -> Tensor:
        """Returns the image to show, in [-1, 1]."""
        return output.clamp(-1, 1)

    def logistic(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean (B, C, H, W) and log scale, (C,) or (B, C, H, W), of the discretized
        logistic.
        """
        return self.mean(output), self.log_scale

    def nats(self, output: Tensor, image: Tensor) -> Tensor:
        """Computes -log p of each value, (B, C, H, W)."""
        return discretized_logistic(*self.logistic(output.float()), image)

    def nll(self, output: Tensor, image: Tensor) -> Tensor:
        """Computes -log p in nats per dimension, a scalar; over log 2 it is bits per dimension."""
        return self.nats(output, image).mean()

    @torch.no_grad()
    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws images (B, C, H, W) in [-1, 1] from p, each value a gray level: the logistic's
        inverse CDF of uniform draws.
        """
        mean, log_scale = self.logistic(output.float())
        scale = log_scale.clamp(*LOG_SCALES).exp()
        scale = scale[:, None, None] if scale.dim() == 1 else scale
        device = mean.device if generator is None else generator.device
        uniform = torch.rand(mean.shape, generator=generator, device=device).to(mean.device)
        drawn = mean + scale * torch.logit(uniform, eps=1e-6)
        return drawn.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)

    def forward(self, output: Tensor, image: Tensor) -> Tensor:
        """Computes the training loss, a scalar.

        Only the scale learns from the likelihood: the term has the value 0.
        """
        nll = self.nll(output.detach(), image)
        return self.error(output, image) + (nll - nll.detach())

    def error(self, output: Tensor, image: Tensor) -> Tensor:
        raise NotImplementedError


class MeanSquared(Likelihood):
    """Models pixels by a Gaussian of fixed variance."""

    def error(self, output: Tensor, image: Tensor) -> Tensor:
        # 4: [-1, 1] is twice as wide as [0, 1]
        return F.mse_loss(output, image) / (4 * PIXEL_VARIANCE)


class MeanAbsolute(Likelihood):
    """Models pixels by a Laplace distribution of fixed scale."""

    def error(self, output: Tensor, image: Tensor) -> Tensor:
        return F.l1_loss(output, image) / (2 * PIXEL_DEVIATION)


class Charbonnier(Likelihood):
    """Uses sqrt(d^2 + e^2), the L1 distance without its corner (Charbonnier et al. 1994): a Laplace
    distribution, smooth at its mean.
    """

    EPSILON = 1 / 255  # half a gray level in [-1, 1]: smaller errors are rounded away anyway

    def error(self, output: Tensor, image: Tensor) -> Tensor:
        distance = ((output - image).square() + self.EPSILON**2).sqrt() - self.EPSILON
        return distance.mean() / (2 * PIXEL_DEVIATION)


class Bernoulli(Likelihood):
    """Uses the binary cross-entropy in nats per dimension; outputs are logits."""

    def mean(self, output: Tensor) -> Tensor:
        return 2 * torch.sigmoid(output) - 1

    def error(self, output: Tensor, image: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, (image + 1) / 2)


class Logistic(Likelihood):
    """Models pixels by a discretized logistic; network and scale both learn from it."""

    def logistic(self, output: Tensor) -> tuple[Tensor, Tensor]:
        # Not around the clamped mean: one beyond white makes white likelier, and the
        # network has learned to say so.
        return output, self.log_scale

    def forward(self, output: Tensor, image: Tensor) -> Tensor:
        return self.nll(output, image)


class Heteroscedastic(Logistic):
    """Models pixels by a discretized logistic whose scale the decoder gives, too: (B, 2C, H, W) are
    C means, then C log scales beside the channel's own.

    Flat parts of an image are known far better than edges: one scale for both wastes bits.
    """

    outputs = 2
    # the best for gray values that are all equally likely: an untrained network takes about 8 bits
    first_scale = 0.3

    def mean(self, output: Tensor) -> Tensor:
        return output.chunk(2, 1)[0].clamp(-1, 1)

    def logistic(self, output: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = output.chunk(2, 1)
        return mean, (log_scale + self.log_scale[:, None, None]).clamp(*PIXEL_LOG_SCALES)


def output_channels(config: TokenizerConfig) -> int:
    """Returns the channels of what the decoder gives."""
    return config.channels * LIKELIHOODS[config.likelihood].load().outputs


def build_likelihood(config: TokenizerConfig) -> Likelihood:
    """Builds the likelihood that a tokenizer's config names."""
    likelihood: Likelihood = LIKELIHOODS[config.likelihood].load()(config.channels)
    if config.is_pixels:
        nn.init.constant_(likelihood.log_scale, _rounding_log_scale(config.codebook_size))
    return likelihood


def _rounding_log_scale(K: int) -> float:
    """Returns the log scale of a logistic whose deviation is that of rounding to K gray levels in
    [-1, 1]; the narrowest where nothing is lost.
    """
    if K == GRAY_LEVELS:
        return LOG_SCALES[0]
    deviation = 2 / (K - 1) / math.sqrt(12)
    return math.log(deviation * math.sqrt(3) / math.pi)
