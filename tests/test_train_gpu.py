"""The training step of a GPU, which never looks at its own numbers: run on a CPU, against the step of a CPU."""

import pytest
import torch
from torch import nn

from vqtok.losses import structure
from vqtok.train import runtime
from vqtok.train.average import Average
from vqtok.train.muon import MOMENTUM, Muon


@pytest.fixture
def sync_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run as they do on a GPU."""
    monkeypatch.setattr("vqtok.train.muon.sync_free", lambda device: True)
    monkeypatch.setattr(runtime, "sync_free", lambda device: True)


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [(32, 40), (40, 40), (40, 40), (40, 64), (64, 3)]
    network = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in sizes))
    return network.to(memory_format=torch.channels_last)        # type: ignore[call-overload]


def muon_steps(steps: int, spoiled: int = -1) -> tuple[nn.Sequential, Muon]:
    """A network after some steps of Muon, of which number `spoiled` has a gradient without end."""
    network = convolutions()
    optimizer = Muon(network.parameters(), 0.01, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    for step in range(steps):
        x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(step))
        (network(x).square().mean() * (float("nan") if step == spoiled else 1)).backward()
        ok = None if spoiled < 0 else torch.tensor(step != spoiled)
        optimizer.step(ok=ok)
        optimizer.zero_grad(set_to_none=True)
    return network, optimizer


# Muon, averages, bands

def test_muon_in_groups_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtok.train.muon.PRECISION", torch.float32)
    alone, one = muon_steps(3)
    monkeypatch.setattr("vqtok.train.muon.sync_free", lambda device: True)
    grouped, many = muon_steps(3)
    assert len(many._groups) == 3
    for a, b in zip(alone.parameters(), grouped.parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)
        for name, value in one.state[a].items():
            torch.testing.assert_close(many.state[b][name], value, atol=1e-6, rtol=1e-5)


def test_a_spoiled_step_of_muon_changes_nothing(sync_free: None) -> None:
    network, optimizer = muon_steps(3, spoiled=2)
    before, state = muon_steps(2, spoiled=9)
    for a, b in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(optimizer.state[a][name], value) for name, value in state.state[b].items())


def test_momenta_from_a_state_file_are_taken_up(sync_free: None) -> None:
    network, optimizer = muon_steps(1)
    weight = optimizer.matrices[0]
    optimizer.state[weight] = {"momentum": torch.ones_like(weight)}
    for matrix in network.parameters():
        matrix.grad = torch.zeros_like(matrix)
    optimizer.step()
    assert torch.allclose(optimizer.state[weight]["momentum"], torch.full_like(weight, MOMENTUM))


def test_averages_follow_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for free in (False, True):
        monkeypatch.setattr(runtime, "sync_free", lambda device, free=free: free)
        network = convolutions()
        average = Average(network, 0.9)
        for step in range(1, 4):
            with torch.no_grad():
                for p in network.parameters():
                    p.add_(step)
            average.schedule(step)
            average.update(None if step < 3 else torch.tensor(True))
        if free:
            before = {name: value.clone() for name, value in average.tensors.items()}
            average.update(torch.tensor(False))
            assert all(torch.equal(value, before[name]) for name, value in average.tensors.items())
        found.append(average.tensors)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-6)


def test_bands_are_made_once_and_serve_everywhere() -> None:
    structure._kept_bands.clear()
    x = torch.rand(1, 1, 24, 24)
    with torch.inference_mode():
        first = structure.ms_ssim(x, x * 0.9)
    y = (x * 0.9).requires_grad_()
    second = structure.ms_ssim(x, y)
    second.backward()
    assert torch.equal(first, second.detach())
    assert sorted(key[0] for key in structure._kept_bands) == [12, 24]
