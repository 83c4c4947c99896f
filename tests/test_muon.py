"""Muon: what its steps are, who gets them, and that a run with it can be resumed."""

from pathlib import Path

import pytest
import torch
from torch import nn
from train_helpers import Interrupt, contents, go, recipe_for

from vqtok.data import Shapes
from vqtok.train.muon import Muon, orthogonal

DATA = Shapes(40, 32)
MUON = {
    "tokenizer": {"width": 32},
    "tokenizer_training": {"optimizer": "muon", "learning_rate": 1e-3},
}


def test_singular_values_come_near_one():
    for shape in ((40, 300), (300, 40), (64, 64)):
        torch.manual_seed(0)
        matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
        found = torch.linalg.svdvals(orthogonal(matrix))
        assert found.max() < 1.3
        assert found.median() > 0.6


def test_steps_are_orthogonal_and_of_the_size_of_adamw():
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 32, 3)
    before, bias = (p.detach().clone() for p in conv.parameters())
    optimizer = Muon(conv.parameters(), 0.01, betas=(0.9, 0.99), weight_decay=0.0)
    assert [id(p) for p in optimizer.matrices] == [id(conv.weight)]
    conv(torch.randn(2, 64, 8, 8)).square().sum().backward()
    gradient = conv.weight.grad
    assert gradient is not None
    optimizer.step()
    assert not any(torch.equal(p, bias) for p in conv.parameters())  # it is AdamW's
    step = (conv.weight.detach() - before).flatten(1)  # (32, 576)
    assert float(step.square().mean().sqrt()) < 0.01 * 0.2 * 1.2
    assert torch.linalg.svdvals(step).min() > 0.5 * torch.linalg.svdvals(step).max()
    assert float((step * gradient.flatten(1)).sum()) < 0, "a step goes down"
    optimizer.zero_grad()
    assert all(p.grad is None for p in conv.parameters())


def test_one_learning_rate_reaches_all():
    network = nn.Sequential(nn.Conv2d(64, 32, 3), nn.Conv2d(32, 3, 1))
    optimizer = Muon(network.parameters(), 0.01)
    before = [p.detach().clone() for p in network.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    network(torch.randn(1, 64, 8, 8)).sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_network_without_large_convolutions_is_all_adamws():
    torch.manual_seed(0)
    one, two = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    two.load_state_dict(one.state_dict())
    x = torch.randn(1, 4, 5, 5)
    for network, kind in ((one, Muon), (two, torch.optim.AdamW)):
        optimizer = kind(network.parameters(), 0.01, weight_decay=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(one.weight, two.weight)


@pytest.mark.slow
def test_a_run_with_muon_resumes_bit_by_bit(tmp_path: Path):
    recipe = recipe_for(DATA, **MUON)
    go(tmp_path / "whole", recipe, DATA, stage="tokenizer")
    go(tmp_path / "parts", recipe, DATA, Interrupt("tokenizer", 3), stage="tokenizer")
    go(tmp_path / "parts", recipe, DATA, stage="tokenizer", resume=True)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    state = contents(tmp_path / "whole")["tokenizer.state.safetensors"]
    assert any(name.endswith(".momentum") for name in state)
    assert any(name.endswith(".exp_avg") for name in state)
