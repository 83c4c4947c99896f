import math

import numpy as np
import pytest

from vqtok import metrics
from vqtok.errors import InputError

C1, C2 = 6.5025, 58.5225  # (0.01 * 255)^2 and (0.03 * 255)^2
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def noisy_pair(
    H: int, W: int, C: int = 1, noise: float = 25, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A smooth gradient with texture, and the same with noise."""
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(H) * 0.7, np.arange(W) * 0.9)[..., None] + np.arange(C) * 20
    a = np.clip(slope % 200 + rng.normal(20, 12, (H, W, C)), 0, 255).astype(np.uint8)
    return a, np.clip(a + rng.normal(3, noise, a.shape), 0, 255).astype(np.uint8)


def reference_maps(
    a: np.ndarray, b: np.ndarray, window: tuple[int, int] = (11, 11)
) -> tuple[np.ndarray, np.ndarray]:
    """Contrast-structure and luminance straight from the definition:
    a 2-D Gaussian over each window, central moments.
    """
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in window)
    weights = np.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = (np.lib.stride_tricks.sliding_window_view(p.astype(np.float64), window) for p in (a, b))
    mean_x, mean_y = ((p * weights).sum((2, 3), keepdims=True) for p in (x, y))
    variance_x, variance_y = (
        ((p - m) ** 2 * weights).sum((2, 3)) for p, m in ((x, mean_x), (y, mean_y))
    )
    covariance = ((x - mean_x) * (y - mean_y) * weights).sum((2, 3))
    mean_x, mean_y = mean_x[..., 0, 0], mean_y[..., 0, 0]
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return (2 * covariance + C2) / (variance_x + variance_y + C2), luminance


def reference_ms_ssim(a: np.ndarray, b: np.ndarray, scales: int) -> float:
    value, weights = 1.0, WEIGHTS[:scales]
    for scale, weight in enumerate(weights):
        cs, luminance = reference_maps(a, b)
        factor = (cs * luminance).mean() if scale == scales - 1 else cs.mean()
        value *= factor ** (weight / sum(weights))
        H, W = a.shape[0] // 2, a.shape[1] // 2
        a, b = (p[: 2 * H, : 2 * W].reshape(H, 2, W, 2).mean((1, 3)) for p in (a, b))
    return value


def test_psnr_follows_its_definition():
    a = np.full((3, 5, 3), 100, np.uint8)
    assert metrics.psnr(a, a + np.uint8(1)) == pytest.approx(20 * math.log10(255))
    b = a.copy()
    b[0, 0, 0] = 130  # mean squared error 900 / 45 = 20
    assert metrics.psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 20))


def test_psnr_does_not_wrap_around():
    black, white = np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 255, np.uint8)
    assert metrics.psnr(black, white) == metrics.psnr(white, black) == pytest.approx(0)


def test_squared_error_is_exact_over_many_bands(monkeypatch: pytest.MonkeyPatch):
    a, b = noisy_pair(37, 21, 3)
    monkeypatch.setattr(metrics, "_BAND", 200)  # three rows a band, the last band shorter
    assert metrics.squared_error(a, b) == sum(
        (int(x) - int(y)) ** 2 for x, y in zip(a.flat, b.flat, strict=True)
    )


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 50, 1), (31, 77, 3), (200, 180, 3)])
def test_equal_images_are_perfect(shape: tuple[int, int, int]):
    a = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    assert (metrics.psnr(a, a.copy()), metrics.ssim(a, a.copy()), metrics.ms_ssim(a, a.copy())) == (
        math.inf,
        1,
        1,
    )


@pytest.mark.parametrize(("x", "y"), [(0, 255), (100, 120), (7, 7)])
@pytest.mark.parametrize("shape", [(1, 1), (4, 30), (16, 16), (180, 177)])
def test_flat_images_leave_the_luminance_term(x: int, y: int, shape: tuple[int, int]):
    a, b = np.full((*shape, 1), x, np.uint8), np.full((*shape, 1), y, np.uint8)
    luminance = (2 * x * y + C1) / (x * x + y * y + C1)
    assert metrics.ssim(a, b) == pytest.approx(luminance)
    # flat: each finer scale's factor is 1
    weight = WEIGHTS[4] / sum(WEIGHTS) if min(shape) >= 176 else 1
    assert metrics.ms_ssim(a, b) == pytest.approx(luminance**weight)


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((19, 26), (11, 11)),
        ((11, 11), (11, 11)),
        ((6, 30), (6, 11)),
        ((30, 1), (11, 1)),
        ((3, 4), (3, 4)),
    ],
)
def test_ssim_equals_its_definition(shape: tuple[int, int], window: tuple[int, int]):
    a, b = noisy_pair(*shape)
    cs, luminance = reference_maps(a[..., 0], b[..., 0], window)
    assert metrics.ssim(a, b) == pytest.approx(float((cs * luminance).mean()), abs=1e-9)


def test_ssim_is_the_same_whatever_the_bands(monkeypatch: pytest.MonkeyPatch):
    a, b = noisy_pair(41, 23, 3)
    whole = metrics.ssim(a, b), metrics.ms_ssim(a, b)
    monkeypatch.setattr(metrics, "_BAND", 23 * 4)
    assert (metrics.ssim(a, b), metrics.ms_ssim(a, b)) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((176, 181), 5),
        ((190, 175), 4),
        ((88, 99), 4),
        ((87, 120), 3),
        ((44, 60), 3),
        ((43, 50), 2),
        ((22, 25), 2),
        ((21, 90), 1),
    ],
)
def test_ms_ssim_equals_its_definition(shape: tuple[int, int], scales: int):
    a, b = noisy_pair(*shape)
    assert metrics.ms_ssim(a, b) == pytest.approx(
        reference_ms_ssim(a[..., 0], b[..., 0], scales), abs=1e-9
    )


@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_colors_are_averaged(name: str):
    a, b = noisy_pair(40, 50, 3)
    b[..., 2] = a[..., 2]
    measure = getattr(metrics, name)
    channels = [measure(a[..., c : c + 1], b[..., c : c + 1]) for c in range(3)]
    assert channels[2] == 1 > max(channels[:2])
    assert measure(a, b) == pytest.approx(sum(channels) / 3)


def test_more_noise_scores_lower_and_order_does_not_matter():
    pairs = [noisy_pair(60, 70, 3, noise) for noise in (2, 10, 40)]
    for measure in (metrics.psnr, metrics.ssim, metrics.ms_ssim):
        scores = [measure(a, b) for a, b in pairs]
        assert scores == sorted(scores, reverse=True)
        assert measure(*pairs[1]) == pytest.approx(measure(*pairs[1][::-1]))


def test_ms_ssim_of_a_negative_is_zero_not_nan():
    a = np.random.default_rng(0).integers(0, 256, (50, 50, 1), dtype=np.uint8)
    assert metrics.ssim(a, 255 - a) < 0
    assert metrics.ms_ssim(a, 255 - a) == 0


@pytest.mark.parametrize(
    "other",
    [
        np.zeros((4, 5, 1), np.uint8),
        np.zeros((5, 4, 3), np.uint8),
        np.zeros((4, 5, 3)),
        np.zeros((4, 5), np.uint8),
    ],
)
@pytest.mark.parametrize("name", ["psnr", "ssim", "ms_ssim", "squared_error"])
def test_images_that_do_not_compare_are_refused(name: str, other: np.ndarray):
    with pytest.raises(InputError, match="cannot compare"):
        getattr(metrics, name)(np.zeros((4, 5, 3), np.uint8), other)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 4, 0), (5, 4), (1, 5, 4, 3)])
@pytest.mark.parametrize("name", ["psnr", "ssim", "ms_ssim"])
def test_what_is_no_image_is_refused_even_twice(name: str, shape: tuple[int, ...]):
    with pytest.raises(InputError, match="uint8"):
        getattr(metrics, name)(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("counts", "usage", "perplexity"),
    [
        ([7] * 64, 1, 64),
        ([0, 9, 0, 0], 0.25, 1),
        ([3, 1], 1, 4 / 27**0.25),  # exp(-(3/4 log 3/4 + 1/4 log 1/4)) = 4 / 3^(3/4)
        ([2, 1, 1, 0], 0.75, 2**1.5),  # entropy 1.5 bits
        ([2**31 - 1] * 8, 1, 8),  # a sum that int32 does not hold
        ([0, 0], 0, 0),
    ],
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_usage_and_perplexity(counts: list[int], usage: float, perplexity: float, dtype: type):
    assert metrics.usage_perplexity(np.array(counts, dtype)) == pytest.approx((usage, perplexity))


def test_bits_per_pixel():
    assert metrics.bits_per_pixel(48 * 32 * 10, 768 * 512 // 2) == pytest.approx(10 / 128)


def test_normalized_error_is_one_for_the_mean_and_zero_for_a_copy():
    x = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3)).astype(np.float64)
    assert metrics.normalized_error(
        float(((x - x.mean()) ** 2).sum()), float(x.var()), x.size
    ) == pytest.approx(1)
    assert metrics.normalized_error(0, float(x.var()), x.size) == 0
    assert metrics.normalized_error(50, 2, 100) == 0.25


def test_normalized_error_of_data_that_never_vary():
    assert metrics.normalized_error(0, 0, 10) == 0
    assert metrics.normalized_error(1, 0, 10) == math.inf


@pytest.mark.parametrize(("H", "W", "C"), [(9, 40, 1), (47, 30, 3), (180, 190, 3)])
def test_both_similarities_at_once(H: int, W: int, C: int):
    a, b = noisy_pair(H, W, C)
    assert metrics.similarities(a, b) == (metrics.ssim(a, b), metrics.ms_ssim(a, b))
    with pytest.raises(InputError):
        metrics.similarities(a, b[1:])
