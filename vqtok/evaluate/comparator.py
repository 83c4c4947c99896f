"""Compares an image with its original."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from vqtok import metrics
from vqtok.data import convert_channels
from vqtok.evaluate.dists import DISTS
from vqtok.losses import LPIPS
from vqtok.networks.vqvae import to_float

# pixels of the shorter side that LPIPS asks for: its judgements were collected on patches of 64x64;
# DISTS, too, was learned on larger images
SMALLEST = 64
RESAMPLES = 1000  # of the images, for an interval
DRAWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Quality:
    """Figures of one image, or their means over several."""

    psnr: float  # dB
    ssim: float
    ms_ssim: float
    lpips: float | None  # None without its weights, and for images too small for it
    dists: float | None = None  # likewise


MEASURES = tuple(measure.name for measure in fields(Quality))


class Comparator:
    """Compares images uint8 (H, W, C) with their originals, by LPIPS and by DISTS too where their
    networks are given.
    """

    def __init__(
        self, network: LPIPS | None, device: torch.device, dists: DISTS | None = None
    ) -> None:
        self.network = None if network is None else network.to(device)
        self.dists = None if dists is None else dists.to(device)
        self.device = device
        # an original, and its features in a network: it is compared many times
        self._last: dict[nn.Module, tuple[np.ndarray, list[Tensor]]] = {}

    def distance(self, original: np.ndarray, image: np.ndarray) -> float | None:
        """Returns the LPIPS of two images in color (gray is repeated); None without a network, or
        for images too small.
        """
        return self._between(self.network, original, image)

    def quality(
        self, original: np.ndarray, image: np.ndarray, distance: float | None = None
    ) -> Quality:
        """Returns all figures; `distance` passes an LPIPS that is already known."""
        ssim, ms_ssim = metrics.similarities(original, image)
        distance = self.distance(original, image) if distance is None else distance
        dists = self._between(self.dists, original, image)
        return Quality(metrics.psnr(original, image), ssim, ms_ssim, distance, dists)

    def _between(
        self, network: LPIPS | DISTS | None, original: np.ndarray, image: np.ndarray
    ) -> float | None:
        if network is None or min(original.shape[:2]) < SMALLEST:
            return None
        with torch.inference_mode():
            last = self._last.get(network)
            if last is None or last[0] is not original:
                last = self._last[network] = original, network.features(self._tensor(original))
            return float(network.between(last[1], network.features(self._tensor(image))))

    def _tensor(self, image: np.ndarray) -> Tensor:
        """Converts to float (1, 3, H, W) in [-1, 1]."""
        color = np.ascontiguousarray(convert_channels(image, 3).transpose(2, 0, 1))
        return to_float(torch.from_numpy(color)[None].to(self.device))


def mean_quality(found: Sequence[Quality]) -> Quality:
    """Averages over images; LPIPS and DISTS over those that have one, PSNR over those that differ
    from their originals: that of an exact image is infinite. Infinite where all are exact.
    """
    assert found
    means = {name: values.mean() for name, values in _columns(found).items()}
    return Quality(
        psnr=float(means.get("psnr", math.inf)),
        ssim=float(means["ssim"]),
        ms_ssim=float(means["ms_ssim"]),
        lpips=float(means["lpips"]) if "lpips" in means else None,
        dists=float(means["dists"]) if "dists" in means else None,
    )


def intervals(found: Sequence[Quality]) -> dict[str, tuple[float, float]]:
    """Computes 95 % confidence intervals of the means, by the bootstrap's percentiles: 1,000 draws
    of as many images with replacement (seed 0).

    A measure that fewer than two images have is left out.
    """
    bounds = {}
    for name, values in _columns(found).items():
        if len(values) > 1:
            low, high = np.percentile(_resampled_means(values), (2.5, 97.5))
            bounds[name] = float(low), float(high)
    return bounds


def _resampled_means(values: np.ndarray) -> np.ndarray:
    """Draws RESAMPLES means of as many values with replacement, some MiB of draws at a time."""
    rng, n = np.random.default_rng(0), len(values)
    at_once = max(1, DRAWS_AT_ONCE // n)
    counts = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    return np.concatenate([values[rng.integers(0, n, (rows, n))].mean(1) for rows in counts])


def _columns(found: Sequence[Quality]) -> dict[str, np.ndarray]:
    """Returns the finite values of each measure that was taken."""
    columns = {}
    for name in MEASURES:
        values = [getattr(quality, name) for quality in found]
        kept = [value for value in values if value is not None and value != math.inf]
        if kept:
            columns[name] = np.array(kept)
    return columns


def count_exact(found: Sequence[Quality]) -> int:
    """Counts the images that equal their originals."""
    return sum(q.psnr == math.inf for q in found)
