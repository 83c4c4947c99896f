"""DISTS and FID against the authors' programs, and the intervals of means.

The recorded figures are what DISTS_pytorch 0.1 and pytorch-fid 0.3.0 (torchvision 0.28.0, torch
2.13.0) compute with the weights that these tests draw.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from vqtok.errors import FormatError, UsageError
from vqtok.evaluate import comparator, dists, fid
from vqtok.losses import LPIPS, lpips


def chance(shape: tuple[int, ...], name: str, draw: np.random.Generator) -> np.ndarray:
    """Weights that keep features alive through many layers."""
    if len(shape) == 4:
        spread = np.float32((2 / np.prod(shape[1:])) ** 0.5)
        return draw.standard_normal(shape, dtype=np.float32) * spread
    if name.endswith(("running_var", "bn.weight")):
        return draw.uniform(0.7, 1.3, shape).astype(np.float32)
    return (draw.standard_normal(shape) * 0.1).astype(np.float32)


# DISTS


@pytest.fixture(scope="module")
def vgg() -> LPIPS:
    network, draw = LPIPS(lpips.VGG), np.random.default_rng(0)
    for key, value in sorted(network.convs.state_dict().items()):
        value.copy_(torch.from_numpy(chance(tuple(value.shape), key, draw)))
    return network


def channel_weights(path: Path, size: int = 1475) -> Path:
    draw = np.random.default_rng(1)
    shape = (1, size, 1, 1)
    names = ("alpha", "beta")
    save_file({n: draw.uniform(0, 1, shape).astype(np.float32) for n in names}, path)
    return path


@pytest.mark.slow
def test_dists_is_the_authors(tmp_path: Path, vgg: LPIPS):
    network = dists.load_dists(channel_weights(tmp_path / "w.safetensors"), vgg)
    draw = np.random.default_rng(2)
    x, y = (torch.from_numpy(draw.uniform(-1, 1, (2, 3, 45, 70))).float() for _ in range(2))
    assert network(x, y).tolist() == pytest.approx([0.0874839, 0.0902119], abs=2e-6)
    assert network(x, x).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_dists_needs_vgg_and_its_own_weights(tmp_path: Path, vgg: LPIPS):
    path = channel_weights(tmp_path / "w.safetensors")
    for wrong in (None, LPIPS(lpips.ALEX)):
        with pytest.raises(UsageError, match="VGG-16"):
            dists.load_dists(path, wrong)
    with pytest.raises(FormatError, match="taken for DISTS"):
        dists.load_dists(channel_weights(tmp_path / "short.safetensors", 1472), vgg)


# FID


def inception_weights() -> tuple[dict[str, np.ndarray], np.random.Generator]:
    names = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    shapes = {}
    for name, shape in fid._shapes().items():
        shapes |= {
            f"{name}.{part}": shape if part == "conv.weight" else shape[:1] for part in names
        }
    draw = np.random.default_rng(0)
    return {name: chance(shapes[name], name, draw) for name in sorted(shapes)}, draw


@pytest.mark.slow
def test_inception_is_the_one_of_pytorch_fid():
    weights, draw = inception_weights()
    x = torch.from_numpy(draw.uniform(0, 1, (1, 3, 40, 56)).astype(np.float32))
    found = fid.Inception(weights, "w").features(2 * x - 1)[0].double()
    assert found[:6].tolist() == pytest.approx(
        [0.19771, 2.943509, 0.045624, 0.044827, 0.0, 2.316953], abs=2e-4
    )
    assert float(found.sum()) == pytest.approx(1822.15344, rel=1e-4)
    assert float(found.square().sum().sqrt()) == pytest.approx(68.951005, rel=1e-4)
    del weights["Mixed_7c.branch_pool.bn.bias"]
    with pytest.raises(FormatError, match=r"w, taken for FID's Inception-v3, lacks"):
        fid.Inception(weights, "w")


def sums(mean: np.ndarray, covariance: np.ndarray, count: int = 100) -> fid.FeatureSums:
    products = (count - 1) * covariance + count * np.outer(mean, mean)
    return fid.FeatureSums(count, count * mean, products)


def test_frechet_distance_of_normal_distributions():
    draw = np.random.default_rng(0)
    turn = np.linalg.qr(draw.standard_normal((5, 5)))[0]
    a, b = draw.uniform(0, 2, (2, 5))
    b[0] = 0  # a direction in which one set does not vary
    means = draw.standard_normal((2, 5))
    one, other = sums(means[0], turn * a @ turn.T), sums(means[1], turn * b @ turn.T)
    # where the covariances commute
    wanted = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert fid.frechet_distance(one, other) == pytest.approx(wanted)
    assert fid.frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert fid.frechet_distance(one, fid.FeatureSums(1, means[0], np.eye(5))) is None


def test_statistics_are_those_of_all_features_together():
    features = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    held = fid.FeatureSums(0, np.zeros(4), np.zeros((4, 4)))
    held.add(features[:7])
    held.add(features[7:])
    mean, covariance = held.statistics()
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-5)
    np.testing.assert_allclose(covariance, np.cov(features, rowvar=False), rtol=1e-5)


def test_patches_lie_side_by_side_and_half_a_patch_further():
    assert fid.patches(200, 900) == [(slice(0, 200), slice(0, 900))]
    cuts = [(rows.start, columns.start) for rows, columns in fid.patches(512, 768)]
    assert cuts[:6] == [(top, left) for top in (0, 256) for left in (0, 256, 512)]
    assert cuts[6:] == [(128, 128), (128, 384)]


# Intervals


@pytest.mark.slow
def test_intervals_are_the_normal_ones_of_many_images():
    draw = np.random.default_rng(3)
    found = [comparator.Quality(30 + x, 0.5, 0.9, None) for x in draw.standard_normal(400)]
    found += [comparator.Quality(math.inf, 1, 1, None)] * 5  # exact: not in the mean
    low, high = comparator.intervals(found)["psnr"]
    mean = comparator.mean_quality(found).psnr
    values = np.array([q.psnr for q in found[:400]])
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=half / 10)
    assert set(comparator.intervals(found)) == {"psnr", "ssim", "ms_ssim"}
    assert comparator.intervals(found[:1]) == {}
