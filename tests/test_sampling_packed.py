"""Weights that are packed once for all that is sampled from a prior."""

import copy
import gc

import pytest
import torch
from test_priors import tiny

from vqtok.sampling import backends, pixelcnn, sample_grids


def test_weights_are_packed_once_and_again_when_they_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, one = list[object](), tiny()
    pack = pixelcnn.PackedWeights
    monkeypatch.setattr(pixelcnn, "PackedWeights", lambda given: made.append(given) or pack(given))
    first = sample_grids(one, 2, (4, 4))
    assert torch.equal(sample_grids(one, 2, (4, 4)), first)
    assert len(made) == 1
    with torch.no_grad():
        for weight in one.parameters():
            weight.mul_(-1.5)  # as an optimizer changes them
    changed = sample_grids(one, 2, (4, 4))
    assert len(made) == 2
    assert torch.equal(changed, sample_grids(copy.deepcopy(one), 2, (4, 4)))
    assert not torch.equal(changed, first)
    one.double()  # in place: other memory of another type
    sample_grids(one, 2, (4, 4))
    assert len(made) == 4


def test_packed_weights_leave_memory_with_their_tiny() -> None:
    one = tiny()
    sample_grids(one, 1, (4, 4))
    assert one in pixelcnn._packed
    before = len(pixelcnn._packed)
    del one
    gc.collect()
    assert len(pixelcnn._packed) < before


@pytest.mark.parametrize("amd", [True, False])
def test_products_of_any_size_are_numpys_on_an_amd(
    amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "is_amd", lambda: amd)
    a, b, out = torch.ones(64, 128), torch.ones(128, 128), torch.zeros(64, 128)
    (call,) = backends.NUMPY.matmul(a, b, out)
    call()
    assert (call.func is torch.mm) is not amd  # type: ignore[attr-defined]
    assert (out == 128).all()
