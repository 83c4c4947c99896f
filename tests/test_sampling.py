"""The sampler on a CPU: logits of the full pass, the torch backend's draws, and those of the first
release, for equal seeds.
"""

import numpy as np
import pytest
import torch
from test_priors import GRIDS, tiny
from torch import Tensor

from vqtok import load
from vqtok.priors import PixelCNN
from vqtok.sampling import backends, pixelcnn, sample_grids
from vqtok.sampling.backends import NUMPY, TORCH, Backend, pick_backend
from vqtok.sampling.categorical import sample_categorical, sample_categorical_numpy
from vqtok.sampling.pixelcnn import PixelCNNSampler

BACKENDS = pytest.mark.parametrize("backend", [NUMPY, TORCH], ids=["numpy", "torch"])


def sampled_logits(prior: PixelCNN, indices: Tensor, labels: Tensor | None) -> Tensor:
    """(n, L, h, w, K) from the sampler, fed with given indices; only every second column's logits
    are asked for: the rest are 0.
    """
    n, L, h, w = indices.shape
    logits = torch.zeros(n, L, h, w, prior.config.codebook_size)
    with torch.inference_mode():
        sampler = PixelCNNSampler(prior, n, h, w, prior.label_rows(labels, n, indices.device))
        for level in range(L):
            cursor = sampler.start_level(level, indices)
            grid = sampler.backend.native(indices[:, level])
            for i in range(h):
                cursor.next_row(grid[:, i - 1] if i else None)
                for j in range(w):
                    cursor.next_column(grid[:, i, j - 1] if j else None)
                    if j % 2 == 0:
                        logits[:, level, i, j] = torch.as_tensor(cursor.logits())
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("small", [0, backends.SMALL], ids=["torch-products", "numpy-products"])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("levels", [1, 3])
@BACKENDS
def test_logits_equal_full_pass(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, levels: int, kernel: int, small: int
) -> None:
    monkeypatch.setattr(backends, "SMALL", small)
    monkeypatch.setattr(pixelcnn, "pick_backend", lambda _: backend)
    prior = tiny(levels, kernel=kernel)
    for h, w in GRIDS:
        for labels in (None, torch.tensor([0, 2, -1, 1]), torch.tensor([1])):
            indices = torch.randint(11, (4 if labels is None else len(labels), levels, h, w))
            with torch.no_grad():
                full = prior(indices, labels)
            full[:, :, :, 1::2] = 0
            found = sampled_logits(prior, indices, labels)
            torch.testing.assert_close(found, full, atol=2e-5, rtol=0)


OPTIONS = [
    {},
    {"temperature": 0.7},
    {"temperature": 0},
    {"top_k": 3},
    {"top_p": 0.8},
    {"top_k": 5, "top_p": 0.9, "temperature": 1.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("n", [1, 5])
def test_both_backends_draw_the_same(
    monkeypatch: pytest.MonkeyPatch, n: int, levels: int, options: dict
) -> None:
    prior = tiny(levels)
    known = torch.full((n, levels, 5, 7), -1)
    known[:, :, 1, 2:5] = torch.randint(11, (n, levels, 3))
    known[0, :, 3:] = 4
    ways = [{}, {"labels": 2}, {"known": known, "labels": -1}, {"levels": 1}]
    in_numpy = [sample_grids(prior, n, (5, 7), seed=3, **way, **options) for way in ways]
    monkeypatch.setattr(pixelcnn, "pick_backend", lambda _: TORCH)
    for grid, way in zip(in_numpy, ways, strict=True):
        assert torch.equal(grid, sample_grids(prior, n, (5, 7), seed=3, **way, **options)), way


def test_a_prior_in_double_is_sampled_in_torch() -> None:
    prior = tiny()
    assert (pick_backend(prior), pick_backend(tiny().double())) == (NUMPY, TORCH)
    assert torch.equal(
        sample_grids(prior, 2, (4, 5), seed=1), sample_grids(tiny().double(), 2, (4, 5), seed=1)
    )


def test_the_choice_in_numpy_is_the_choice() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 40):
        for temperature in (1.0, 0.3, 5.0, 1e-320, 0):
            logits = torch.randn(count, 300, generator=generator) * 4
            for _ in range(20):
                uniform = torch.rand(count, generator=generator, dtype=torch.float64)
                in_numpy = sample_categorical_numpy(logits.numpy(), uniform.numpy(), temperature)
                assert (
                    in_numpy.tolist() == sample_categorical(logits, uniform, temperature).tolist()
                )


@pytest.mark.parametrize("count", [1, 2])
def test_the_choice_in_numpy_never_draws_the_impossible(count: int) -> None:
    logits = np.array([[-1e9, 0.0, -1e9]] * count, np.float32)
    for uniform in (0.0, 1 - 2**-53, 1.0):
        assert sample_categorical_numpy(logits, np.full(count, uniform)).tolist() == [1] * count
    assert (
        sample_categorical_numpy(np.zeros((count, 3), np.float32), np.full(count, 0.5), 0).tolist()
        == [0] * count
    )  # the first of equals


@pytest.mark.slow
def test_equal_seeds_draw_what_they_always_drew() -> None:
    """Of `cifar10` since its prior of 14,000 steps."""
    cifar10 = load("cifar10", "cpu").prior
    grids = sample_grids(cifar10, 2, (4, 8), labels=[3, 8], seed=11)
    assert grids.flatten(1).tolist() == [
        [55, 55, 55, 29, 123, 297, 260, 27, 245, 245, 27, 343, 212, 487, 333, 183,
         245, 245, 245, 26, 190, 174, 344, 245, 245, 55, 245, 25, 190, 86, 362, 498],
        [386, 186, 186, 186, 227, 107, 124, 14, 186, 338, 38, 237, 303, 107, 400, 124,
         327, 44, 124, 339, 279, 395, 250, 49, 110, 26, 356, 219, 404, 406, 74, 38],
    ]  # fmt: skip
    photo = load("photo", "cpu").prior
    assert sample_grids(photo, 1, (3, 4), seed=11, levels=3).flatten(2)[0].tolist() == [
        [116, 279, 135, 59, 273, 729, 712, 50, 735, 635, 74, 786],
        [347, 1000, 757, 384, 315, 836, 665, 90, 329, 413, 787, 664],
        [354, 216, 645, 55, 233, 137, 789, 1018, 312, 420, 857, 430],
    ]
