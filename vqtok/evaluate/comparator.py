"""Compares an image with its original."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqtok import metrics
from vqtok.data import convert_channels
from vqtok.losses import LPIPS
from vqtok.networks.vqvae import to_float

# pixels of the shorter side that LPIPS asks for: its judgements were collected on patches of 64x64
SMALLEST = 64


@dataclass(frozen=True)
class Quality:
    """Figures of one image, or their means over several."""

    psnr: float  # dB
    ssim: float
    ms_ssim: float
    lpips: float | None  # None without its weights, and for images too small for it


class Comparator:
    """Compares images uint8 (H, W, C) with their originals, by LPIPS too where its network is
    given.
    """

    def __init__(self, network: LPIPS | None, device: torch.device) -> None:
        self.network = None if network is None else network.to(device)
        self.device = device
        # an original, and its features: it is compared many times
        self._last: tuple[np.ndarray, list[Tensor]] | None = None

    def distance(self, original: np.ndarray, image: np.ndarray) -> float | None:
        """Returns the LPIPS of two images in color (gray is repeated); None without a network, or
        for images too small.
        """
        if self.network is None or min(original.shape[:2]) < SMALLEST:
            return None
        with torch.inference_mode():
            if self._last is None or self._last[0] is not original:
                self._last = original, self.network.features(self._tensor(original))
            return float(
                self.network.between(self._last[1], self.network.features(self._tensor(image)))
            )

    def quality(
        self, original: np.ndarray, image: np.ndarray, distance: float | None = None
    ) -> Quality:
        """Returns all figures; `distance` passes an LPIPS that is already known."""
        ssim, ms_ssim = metrics.similarities(original, image)
        distance = self.distance(original, image) if distance is None else distance
        return Quality(metrics.psnr(original, image), ssim, ms_ssim, distance)

    def _tensor(self, image: np.ndarray) -> Tensor:
        """Converts to float (1, 3, H, W) in [-1, 1]."""
        color = np.ascontiguousarray(convert_channels(image, 3).transpose(2, 0, 1))
        return to_float(torch.from_numpy(color)[None].to(self.device))


def mean_quality(found: Sequence[Quality]) -> Quality:
    """Averages over images; LPIPS over those that have one, PSNR over those that differ from
    their originals: that of an exact image is infinite. Infinite where all are exact.
    """
    assert found
    distances = [q.lpips for q in found if q.lpips is not None]
    differing = [q.psnr for q in found if q.psnr != math.inf]
    ssim, ms_ssim = (float(v) for v in np.mean([(q.ssim, q.ms_ssim) for q in found], axis=0))
    return Quality(
        float(np.mean(differing)) if differing else math.inf,
        ssim,
        ms_ssim,
        float(np.mean(distances)) if distances else None,
    )


def count_exact(found: Sequence[Quality]) -> int:
    """Counts the images that equal their originals."""
    return sum(q.psnr == math.inf for q in found)
