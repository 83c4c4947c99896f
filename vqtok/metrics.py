"""Measures how near two images are (PSNR, SSIM, MS-SSIM on uint8), and how well a codebook is used.

NumPy only.
"""

import math

import numpy as np

from vqtok.errors import InputError

PEAK = 255.0
WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, section III-C
# keep the quotients finite where a window is black or flat
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
# Wang et al. 2003, section 3.2; finest scale first
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# values filtered at once: keeps the maps in the cache and a 200-megapixel
# image within a few hundred MB
_BAND = 2**18


def squared_error(a: np.ndarray, b: np.ndarray) -> int:
    """Sums the squared differences of two images, exactly.

    Both are uint8 (H, W, C); raises InputError where they are not.
    """
    _check_pair(a, b)
    total, rows = 0, max(1, _BAND // a[0].size)
    for top in range(0, len(a), rows):
        difference = a[top : top + rows].astype(np.int64) - b[top : top + rows]
        total += int((difference * difference).sum())
    return total


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the peak signal-to-noise ratio in dB over all channels; infinite for equal images.
    uint8 (H, W, C); InputError otherwise.
    """
    error = squared_error(a, b)
    return 10 * math.log10(PEAK**2 * a.size / error) if error else math.inf


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Computes structural similarity, at most 1: the mean over the channels of each channel's SSIM
    (not the SSIM of the luma).

    Gaussian window of 11x11 with sigma 1.5, kept inside the image;
    a side below 11 pixels shortens the window to that side.
    Both are uint8 (H, W, C); raises InputError where they are not. Wang et al. 2004, eq. 13.
    """
    _check_pair(a, b)
    return float(np.mean([_similarity(a[..., c], b[..., c])[0] for c in range(a.shape[2])]))


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Computes multi-scale structural similarity in [0, 1]: the mean over the channels of each
    channel's MS-SSIM.

    Five scales where the shorter side has 176 pixels or more. Below that, only the scales whose
    shorter side still holds the 11-pixel window (88: four, 44: three, 22: two, else one, which
    is SSIM), with their weights renormalized to sum 1: figures of small images compare only
    with figures of the same size. A factor below 0 counts as 0. Between scales, 2x2 means; an
    odd last row or column is dropped. Both are uint8 (H, W, C); raises InputError where they are
    not. Wang et al. 2003, eq. 7.
    """
    return similarities(a, b)[1]


def similarities(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Computes SSIM and MS-SSIM, as `ssim` and `ms_ssim` give them, in the time of one: the finest
    scale is SSIM. InputError as there.
    """
    _check_pair(a, b)
    single, several = np.mean(
        [_similarities(a[..., c], b[..., c]) for c in range(a.shape[2])], axis=0
    )
    return float(single), float(several)


def usage_perplexity(counts: np.ndarray) -> tuple[float, float]:
    """Computes how a codebook is used: (part of the codes used at all, in [0, 1]; perplexity, from
    1 to K).

    counts (K,) says how often each code was chosen. Perplexity is exp of the entropy in nats: the
    number of codes that, equally used, would carry as much. Both are 0 where nothing was counted.
    """
    assert counts.ndim == 1
    assert counts.size
    assert counts.min() >= 0
    total = counts.sum(dtype=np.float64)
    if total == 0:
        return 0.0, 0.0
    p = counts[counts > 0] / total
    return p.size / counts.size, float(np.exp(-(p * np.log(p)).sum()))


def bits_per_pixel(bits: float, pixels: int) -> float:
    """Computes the bits spent for each pixel (of H*W; channels do not count)."""
    assert pixels > 0
    return bits / pixels


def normalized_error(squared_error: float, variance: float, count: int) -> float:
    """Computes the mean squared error over the variance of the data: 0 is perfect, 1 is what the
    mean color of the data set gives.

    squared_error is the sum over `count` values (images times H*W*C); variance is the data's, per
    value and in the same units (0..255 for both, or 0..1 for both). Data that never vary give 0
    when reproduced exactly and infinity otherwise.
    """
    assert count > 0
    assert squared_error >= 0
    assert variance >= 0
    if variance == 0:
        return math.inf if squared_error else 0.0
    return squared_error / count / variance


def _check_pair(a: np.ndarray, b: np.ndarray) -> None:
    for image in (a, b):
        if image.dtype != np.uint8 or image.ndim != 3 or image.size == 0:
            raise InputError(
                f"cannot compare an array {image.shape} of {image.dtype}",
                "give images as uint8 (H, W, C)",
            )
    if a.shape != b.shape:
        raise InputError(
            f"cannot compare images of shapes {a.shape} and {b.shape}",
            "give two of equal size and channels",
        )


def _gaussian(size: int) -> np.ndarray:
    """Returns weights (size,) of sum 1, centered."""
    weights = np.exp(-((np.arange(size) - (size - 1) / 2) ** 2) / (2 * SIGMA**2))
    return weights / weights.sum()


def _filter_rows(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Computes weighted sums along the last axis, inside the image only: (H, W) -> (H, W -
    len(kernel) + 1).
    """
    # One pass over the flat array: np.correlate has unrolled loops for up to 11 taps.
    # Sums that straddle rows are cut off.
    flat = np.correlate(x.ravel(), kernel, "full")[len(kernel) - 1 :]
    return flat.reshape(x.shape)[:, : x.shape[1] - len(kernel) + 1]


def _similarity(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Averages SSIM and its contrast-structure factor over all windows, for one channel (H, W)."""
    H, W = a.shape
    down, along = _gaussian(min(WINDOW, H)), _gaussian(min(WINDOW, W))
    rows, overlap = max(1, _BAND // W), len(down) - 1
    similarity = structure = 0.0
    for top in range(0, H - overlap, rows):
        band = slice(top, top + rows + overlap)
        cs, luminance = _maps(a[band].astype(np.float64), b[band].astype(np.float64), down, along)
        structure += float(cs.sum())
        similarity += float((cs * luminance).sum())
    windows = (H - len(down) + 1) * (W - len(along) + 1)
    return similarity / windows, structure / windows


def _maps(
    a: np.ndarray, b: np.ndarray, down: np.ndarray, along: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes contrast-structure and luminance of each window (Wang et al. 2004, eq. 6 and 13)."""

    def blur(x: np.ndarray) -> np.ndarray:
        return _filter_rows(_filter_rows(x, along).T, down).T

    mean_a, mean_b = blur(a), blur(b)
    product, squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    # only the sum of the variances is needed
    covariance, variances = blur(a * b) - product, blur(a * a + b * b) - squares
    return (2 * covariance + C2) / (variances + C2), (2 * product + C1) / (squares + C1)


def _similarities(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Computes SSIM and MS-SSIM of one channel (H, W)."""
    weights = SCALE_WEIGHTS[: _scales(min(a.shape))]
    single, value = 0.0, 1.0
    for scale, weight in enumerate(weights):
        if scale:
            a, b = _halve(a), _halve(b)
        similarity, structure = _similarity(a, b)
        single = single if scale else similarity
        # luminance counts at the coarsest scale only
        factor = similarity if scale == len(weights) - 1 else structure
        value *= max(factor, 0.0) ** (weight / sum(weights))
    return single, value


def _scales(side: int) -> int:
    count = 1
    while count < len(SCALE_WEIGHTS) and side >> count >= WINDOW:
        count += 1
    return count


def _halve(x: np.ndarray) -> np.ndarray:
    """Averages 2x2 values: (H, W) -> float64 (H // 2, W // 2)."""
    H, W = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    return sum(
        (x[i:H:2, j:W:2] * 0.25 for i in (0, 1) for j in (0, 1)), start=np.zeros((H // 2, W // 2))
    )
