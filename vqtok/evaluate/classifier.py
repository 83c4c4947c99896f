"""Trains a small classifier on a data set, to judge samples by: which class it sees, and features.

A plain convolutional network on images of SIDE pixels at most, the same for every data set. It is
no tool for users of a model, and is kept nowhere: the same data and seed give it again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok import images
from vqtok.data import Dataset, counter_rng, read_whole
from vqtok.errors import InputError

SIDE = 32  # larger images are shrunk to it: two minutes on two cores, in place of an hour
STEPS = 3000  # of BATCH: six passes over 60,000 images
BATCH = 128
WIDTHS = (48, 96, 192)
PEAK_RATE = 0.01  # of AdamW, in the middle of a triangle
WEIGHT_DECAY = 0.02
SMOOTHING = 0.1  # of labels
SHIFT = 2  # pixels that a training image is moved by at most, to each side
AT_ONCE = 500  # images looked at together
_ORDER, _PLACE, _MIRROR = 101, 102, 103  # kinds of draws
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pool:
    """Images of one size as the classifier sees them, and their classes."""

    pixels: np.ndarray  # uint8 (N, H, W, C)
    targets: np.ndarray  # int64 (N,), -1 for none
    names: tuple[str, ...]  # of the classes

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, which: np.ndarray) -> "Pool":
        return Pool(self.pixels[which], self.targets[which], self.names)


def read_pool(
    dataset: Dataset, channels: int, size: tuple[int, int], limit: int | None = None
) -> Pool:
    """Reads the first `limit` images of a data set, resized to (H, W).

    Images that cannot be read are left out. InputError where none is left.
    """
    pixels, targets = [], []
    for i in range(len(dataset) if limit is None else min(limit, len(dataset))):
        try:
            image = read_whole(dataset, i, channels)
        except InputError:
            continue
        pixels.append(fit_to(image, size))
        targets.append(dataset.label(i))
    if not pixels:
        raise InputError(
            f"no image of {dataset.name} can be read",
            "check that the files are whole and are images",
        )
    return Pool(np.stack(pixels), np.array(targets, np.int64), tuple(dataset.labels))


def judged_size(height: int, width: int) -> tuple[int, int]:
    """Returns the size at which images of (height, width) are judged: the longer side is SIDE at
    most.
    """
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def fit_to(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cuts the middle of an image uint8 (H, W, C) to the shape of a size (H, W), and resizes it."""
    (H, W), (height, width) = image.shape[:2], size
    scale = min(H / height, W / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (H - rows) // 2, (W - columns) // 2
    return images.resize_to(image[top : top + rows, left : left + columns], height, width)


def quarter_turns(pool: Pool) -> Pool:
    """Returns the images cut to squares, each turned by 0 to 3 quarters, in turn: that is the
    class.
    """
    side = min(pool.pixels.shape[1:3])
    square = np.stack([fit_to(image, (side, side)) for image in pool.pixels])
    targets = np.arange(len(square)) % 4
    for quarters in range(1, 4):
        chosen = targets == quarters
        square[chosen] = np.rot90(square[chosen], quarters, axes=(1, 2))
    return Pool(square, targets, ("0", "90", "180", "270"))


class Classifier(nn.Module):
    """Maps images (B, C, H, W) in [-1, 1] to features (B, F), and those to logits (B, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        # halved at once: at full resolution two layers cost more than all others
        layers: list[nn.Module] = [nn.Conv2d(channels, WIDTHS[0], 4, 2, padding=1, bias=False)]
        for inputs, width in zip((0, *WIDTHS), WIDTHS, strict=False):
            if inputs:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                layers.append(nn.Conv2d(inputs, width, 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(width, momentum=0.2), nn.ReLU()]
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(width, momentum=0.2), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).float().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    @torch.inference_mode()
    def judge(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the classes seen in images uint8 (N, H, W, C), int64 (N,), and the features,
        float32 (N, F).
        """
        self.eval()
        seen, features = [], []
        for start in range(0, len(pixels), AT_ONCE):
            found = self.features(_to_input(pixels[start : start + AT_ONCE]))
            seen.append(self.head(found).argmax(1))
            features.append(found)
        return torch.cat(seen).numpy(), torch.cat(features).numpy()


def train_classifier(
    pool: Pool, seed: int = 0, mirror: bool = True, progress: Progress | None = None
) -> Classifier:
    """Trains a classifier on the images of a pool that have a class, on the CPU.

    Images are moved by up to SHIFT pixels, and half of them mirrored if `mirror`. Equal pool, seed
    and number of threads give equal weights on one machine.
    """
    pool = pool.select(np.flatnonzero(pool.targets >= 0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(pool.pixels.shape[3], len(pool.names))
    network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_RATE, weight_decay=WEIGHT_DECAY)
    targets = torch.from_numpy(pool.targets)
    fast = _has_bf16()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * _triangle(step / STEPS)
        x, chosen = _batch(pool, seed, step, mirror)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            logits = network(x)
        loss = F.cross_entropy(logits.float(), targets[chosen], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress(step + 1, STEPS)
    return network.eval()


def _triangle(part: float) -> float:
    """Rises in the first fifth, then falls."""
    return min(part / 0.2, (1 - part) / 0.8) + 1e-3


def _batch(pool: Pool, seed: int, step: int, mirror: bool) -> tuple[Tensor, Tensor]:
    """Draws a step's images (B, C, H, W), moved and mirrored, and their numbers (B,)."""
    positions = step * BATCH + np.arange(BATCH)
    n = len(pool)
    chosen = np.array([_epoch(seed, p // n, n)[p % n] for p in positions.tolist()])
    H, W = pool.pixels.shape[1:3]
    padded = np.pad(
        pool.pixels[chosen], ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge"
    )
    places = counter_rng.bits(seed, _PLACE, positions) % (2 * SHIFT + 1) ** 2
    down, right = np.divmod(places.astype(np.int64), 2 * SHIFT + 1)
    rows = (down[:, None] + np.arange(H))[:, :, None]
    columns = right[:, None] + np.arange(W)
    if mirror:
        turned = counter_rng.bits(seed, _MIRROR, positions) % 2 == 1
        columns = np.where(turned[:, None], columns[:, ::-1], columns)
    moved = padded[np.arange(BATCH)[:, None, None], rows, columns[:, None]]
    return _to_input(moved), torch.from_numpy(chosen)


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, n: int) -> np.ndarray:
    """Returns the order of one pass over n images."""
    return counter_rng.permutation(seed + epoch, _ORDER, n)


def _to_input(pixels: np.ndarray) -> Tensor:
    """Converts uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1], channels last."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return x.to(torch.float32).div_(127.5).sub_(1)


def _has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself; where it does not, float32 is faster."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
