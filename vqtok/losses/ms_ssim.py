"""Computes structural similarity as a loss: differentiable, of float images."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.config import LossConfig
from vqtok.errors import UsageError
from vqtok.losses.base import LossTerm

# of the scales, finest first (Wang et al. 2003, section 3.2)
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
LONGEST_KEPT = 512  # of the bands that stay in memory: 1 MiB
C1, C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # for values in [-1, 1], a range of 2
_kept_bands: dict[tuple[int, str, int | None], Tensor] = {}


class StructureTerm(LossTerm):
    """Computes 1 - MS-SSIM."""

    def __init__(self, config: LossConfig, file: Path | None, size: int) -> None:
        super().__init__(config, file, size)
        if size < WINDOW:
            raise UsageError(
                f"MS-SSIM needs images of {WINDOW} pixels, these have {size}",
                "choose a larger --size",
            )

    def forward(self, reconstruction: Tensor, images: Tensor, shared: bool) -> Tensor:
        return 1 - ms_ssim(reconstruction, images)


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Computes the mean multi-scale structural similarity (Wang et al. 2003) of images (B, C, H, W)
    in [-1, 1]; a scalar, 1 for equal ones.

    Each channel is compared by itself. Where the sides are too short for five scales with a
    window of 11, the coarsest are left out and the weights of the others scaled up to a sum
    of 1. Sides of at least 11.
    """
    assert min(x.shape[2:]) >= WINDOW, "images are smaller than the window"
    with torch.autocast(x.device.type, enabled=False):  # differences of squares in bf16 are noise
        return _ms_ssim(x.float(), y.float())


def _ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    scales = 1
    while scales < len(WEIGHTS) and min(x.shape[2:]) >> scales >= WINDOW:
        scales += 1
    weights = [w / sum(WEIGHTS[:scales]) for w in WEIGHTS[:scales]]
    x, y = x + 1, y + 1  # means must not be negative: luminance compares them by their ratio
    product = torch.ones((), device=x.device)
    for scale, weight in enumerate(weights):
        ssim, contrast = _ssim_terms(x, y)  # (B, C)
        term = ssim if scale == scales - 1 else contrast
        product = product * term.clamp(min=1e-4) ** weight  # negative ones have no power
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product.mean()


def _ssim_terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Computes means over the image of SSIM and of its contrast-structure term alone, each (B, C)
    (Wang et al. 2004, eq. 13).
    """
    planes = torch.cat([x, y, x * x, y * y, x * y], 1)  # (B, 5*C, H, W)
    mean_x, mean_y, xx, yy, xy = _blur(planes).chunk(5, 1)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    contrast = (2 * (xy - mean_x * mean_y) + C2) / (xx - mean_x**2 + yy - mean_y**2 + C2)
    return (luminance * contrast).mean((2, 3)), contrast.mean((2, 3))


def _blur(planes: Tensor) -> Tensor:
    """Filters each plane of (B, C, H, W) by the Gaussian window, without padding: (B, C, H - 10, W
    - 10).

    As two products with band matrices: on a CPU they take a twentieth of the time of
    convolutions with one channel.
    """
    H, W = planes.shape[2:]
    return _band(H, planes.device).T @ planes @ _band(W, planes.device)


def _band(length: int, device: torch.device) -> Tensor:
    """Returns a matrix (length, length - 10) whose column i holds the window from row i on.

    Short ones are made once: a run's crops are all of one size.
    """
    if length > LONGEST_KEPT:
        return _make_band(length, device)
    key = length, device.type, device.index
    if key not in _kept_bands:
        # a tensor made in inference mode is of no use to a training step
        with torch.inference_mode(False):
            _kept_bands[key] = _make_band(length, device)
    return _kept_bands[key]


def keep_bands(size: int, device: torch.device) -> None:
    """Makes what `ms_ssim` needs for images of size x size:
    a compiler that met it in the making would make it in each step.
    """
    for scale in range(len(WEIGHTS)):
        if size >> scale >= WINDOW:
            _band(size >> scale, device)


def _make_band(length: int, device: torch.device) -> Tensor:
    offsets = torch.arange(WINDOW, device=device) - WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    distance = torch.arange(length, device=device)[:, None] - torch.arange(
        length - WINDOW + 1, device=device
    )
    inside = (distance >= 0) & (distance < WINDOW)
    return torch.where(inside, (line / line.sum())[distance.clamp(0, WINDOW - 1)], 0.0)
