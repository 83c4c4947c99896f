"""The gate of the prior with its dropout, written out:
the same values and gradients as autograd's, and honest draws. On how many threads priors train.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok import config, threads
from vqtok.config import PriorConfig
from vqtok.priors import PixelCNN, pixelcnn
from vqtok.priors.pixelcnn import gate, gate_and_drop
from vqtok.train import loop


def values(B: int = 2, C: int = 3, h: int = 4, w: int = 5) -> Tensor:
    """(B, 2C, h, w), channels last as all features of the prior."""
    torch.manual_seed(3)
    return torch.randn(B, 2 * C, h, w).to(memory_format=torch.channels_last)


def test_gate_without_dropout_is_the_gate() -> None:
    v = values()
    assert torch.equal(gate_and_drop(v, 0.0), gate(v))


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_of_the_gate(dropout: float) -> None:
    v = values().double().requires_grad_()

    def call(x: Tensor) -> Tensor:
        torch.manual_seed(5)  # the same factors at each call
        return gate_and_drop(x, dropout)

    assert torch.autograd.gradcheck(call, v)


def test_gradient_equals_autograd_with_the_same_factors() -> None:
    v = values(4, 8, 6, 7).requires_grad_()
    torch.manual_seed(5)
    result = gate_and_drop(v, 0.4)
    factors = (result / gate(v)).detach().round(decimals=3)
    upstream = torch.randn_like(result)
    (ours,) = torch.autograd.grad(result, v, upstream)
    (theirs,) = torch.autograd.grad(gate(v) * factors, v, upstream)
    assert torch.allclose(ours, theirs, atol=2e-3)
    assert ours.is_contiguous(memory_format=torch.channels_last), (
        "another layout is copied by the convolution"
    )


@pytest.mark.parametrize("dropout", [0.1, 0.2, 0.75])
def test_dropout_drops_its_part_and_keeps_the_mean(dropout: float) -> None:
    torch.manual_seed(1)
    kept = pixelcnn._dropout_mask(torch.empty(8, 2 * 64, 16, 16), dropout)  # 131,072 factors
    assert kept.shape == (8, 64, 16, 16)
    assert kept.unique().tolist() == pytest.approx([0, 1 / (1 - dropout)], rel=1e-4)
    # 4 standard deviations
    assert (kept == 0).float().mean().item() == pytest.approx(dropout, abs=0.006)
    flat = kept.permute(0, 2, 3, 1).flatten() - 1
    for shift in (1, 2, 3, 4, 64):
        assert abs((flat[shift:] * flat[:-shift]).mean() / flat.square().mean()) < 0.012, (
            "neighbors are independent"
        )


def test_dropout_follows_the_seed_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    prior = PixelCNN(PriorConfig(codebook_size=8, width=8, layers=2, dropout=0.5))
    indices = torch.randint(8, (2, 1, 4, 4))

    def loss(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return prior.loss(indices).detach()

    with torch.no_grad():
        prior.readout[0].weight.mul_(50)  # type: ignore[operator, union-attr]
    assert torch.equal(loss(1), loss(1))
    assert not torch.equal(loss(1), loss(2))
    prior.eval()
    assert torch.equal(loss(1), loss(2))
    assert F.softmax(prior(indices), -1).sum(-1).allclose(torch.ones(2, 1, 4, 4))


@pytest.mark.parametrize(("preset", "small"), [("tiny", True), ("cifar", False)])
def test_small_priors_train_on_one_thread(
    preset: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, used = config.PRESETS[preset], list[int]()
    with torch.device("meta"):
        network = PixelCNN(recipe.prior)
    assert threads.is_small(network, recipe.prior_training.batch * 8 * 8) == small

    def run(*_: object) -> Any:
        return SimpleNamespace(train=lambda resume: used.append(torch.get_num_threads()))

    monkeypatch.setattr(loop, "_Trainer", run)
    task: Any = SimpleNamespace(one_thread=small)
    where: Any = SimpleNamespace(device=torch.device("cpu"))
    with threads.threads(2):
        loop.train(task, recipe.prior_training, where, False)
        assert torch.get_num_threads() == 2
    assert used == [1 if small else 2]
