"""What the last layer of a prior makes of features:
distributions that sum to one, and the mixture that knows gray levels.
"""

import math
from itertools import pairwise

import pytest
import torch

from vqtok.config import PriorConfig
from vqtok.priors import PixelCNN, cross_entropy
from vqtok.priors.outputs import LogisticMixture, OutputLayer, build_output
from vqtok.sampling import pixelcnn as sampling_pixelcnn
from vqtok.sampling import sample_grids
from vqtok.sampling.backends import TORCH

FEATURES = 6


def output(kind: str, K: int = 256, seed: int = 0) -> OutputLayer:
    torch.manual_seed(seed)
    made = build_output(PriorConfig(K, output=kind, mixtures=3), FEATURES)
    with torch.no_grad():
        made.weight.normal_(std=2.0)
    return made


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
@pytest.mark.parametrize("K", [2, 7, 256])
def test_probabilities_sum_to_one_and_nats_are_theirs(kind: str, K: int) -> None:
    made, features = output(kind, K), 3 * torch.randn(5, FEATURES)
    log_p = made(features).log_softmax(-1)  # (5, K)
    if kind == "logistic":
        # without any softmax
        torch.testing.assert_close(made(features).exp().sum(-1), torch.ones(5))
    for code in (0, K // 2, K - 1):
        torch.testing.assert_close(
            made.nats(features, torch.full((5,), code)), -log_p[:, code], atol=1e-4, rtol=1e-4
        )


@pytest.mark.slow
def test_the_mixture_is_the_integral_of_its_density() -> None:
    made = LogisticMixture(PriorConfig(8, output="logistic", mixtures=2), 1)
    with torch.no_grad():
        made.weight.zero_()
        # weights, means, log scales
        made.bias.copy_(torch.tensor([0.0, 1.0, -0.4, 0.5, -1.5, -2.0]))
    x = torch.linspace(-60, 60, 1_200_001, dtype=torch.float64)
    density = torch.zeros_like(x)
    for weight, mean, log_scale in zip(
        torch.tensor([0.0, 1.0]).softmax(0), (-0.4, 0.5), (-1.5, -2.0), strict=True
    ):
        z = (x - mean) / torch.tensor(log_scale, dtype=torch.float64).exp()
        density += (
            weight
            * torch.sigmoid(z)
            * torch.sigmoid(-z)
            / torch.tensor(log_scale, dtype=torch.float64).exp()
        )
    edges = [-60.0, *(-1 + (2 * k + 1) / 7 for k in range(7)), 60.0]
    wanted = [
        torch.trapezoid(density[(x >= a) & (x <= b)], x[(x >= a) & (x <= b)])
        for a, b in pairwise(edges)
    ]
    found = made(torch.zeros(1, 1)).exp()[0].double()
    torch.testing.assert_close(found, torch.stack(wanted), atol=2e-4, rtol=0)


def test_the_mixture_starts_nearly_uniform_and_stays_finite_far_away() -> None:
    torch.manual_seed(0)
    made = build_output(PriorConfig(256, output="logistic"), FEATURES)
    nats = made.nats(torch.randn(1000, FEATURES), torch.randint(256, (1000,))).detach()
    assert 7.9 < float(nats.mean()) / math.log(2) < 8.3
    far = output("logistic")
    features = (1e4 * torch.randn(20, FEATURES)).requires_grad_()
    far.nats(features, torch.randint(256, (20,))).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.slow
def test_a_neighbor_of_what_was_seen_is_likely_under_the_mixture_alone() -> None:
    """99 and 100 are kin: after learning that 100 is likely, the mixture finds 99 likelier than
    20; the softmax does not.
    """
    costs = {}
    for kind in ("softmax", "logistic"):
        torch.manual_seed(1)
        made = build_output(PriorConfig(256, output=kind), FEATURES)
        optimizer = torch.optim.Adam(made.parameters(), 0.05)
        features = torch.ones(1, FEATURES)
        for _ in range(100):
            loss = made.nats(features, torch.tensor([100])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        costs[kind] = [float(made.nats(features, torch.tensor([k])).detach()) for k in (99, 20)]
    assert costs["logistic"][0] + 3 < costs["logistic"][1]
    assert abs(costs["softmax"][0] - costs["softmax"][1]) < 1


@pytest.mark.slow
def test_a_pixelcnn_with_the_mixture_learns_and_samples_gray_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    prior = PixelCNN(PriorConfig(16, levels=3, width=8, layers=2, output="logistic", mixtures=2))
    grids = (torch.tensor([3, 8, 12])[:, None, None] + torch.randint(-1, 2, (64, 3, 4, 4))).clamp(
        0, 15
    )
    before = cross_entropy(prior, grids).mean()
    optimizer = torch.optim.Adam(prior.parameters(), 0.01)
    for _ in range(60):
        loss = prior.loss(grids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(cross_entropy(prior, grids).mean()) < float(before) * 0.75
    means = torch.tensor([3.0, 8.0, 12.0], dtype=torch.float64)
    for backend in (None, TORCH):  # NumPy's, and torch's
        if backend is not None:
            monkeypatch.setattr(sampling_pixelcnn, "pick_backend", lambda _: TORCH)
        drawn = sample_grids(prior.eval(), 16, (4, 4)).double()
        assert drawn.shape == (16, 3, 4, 4)
        torch.testing.assert_close(drawn.mean((0, 2, 3)), means, atol=1.0, rtol=0)


def test_gray_levels_that_are_close_start_with_vectors_that_are_close() -> None:
    torch.manual_seed(0)
    for output, kin in (("logistic", True), ("softmax", False)):
        prior = PixelCNN(PriorConfig(256, levels=2, width=32, layers=1, output=output))
        assert prior.context is not None
        for weight in (prior.embedding.weight[256:], prior.context.embedding.weight):
            assert 0.5 < float(weight.detach().std()) < 2
            near, far = ((weight[100] - weight[100 + d]).norm().item() for d in (1, 60))
            assert (near < 0.2 * far) == kin
