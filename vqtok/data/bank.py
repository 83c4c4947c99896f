"""Holds all training images on the device, and makes a step's crops there: no thread holds Python's
lock while a GPU waits for images.

The host only says what is to be seen, five numbers an image (`plan`). The crops are those of
`Batches`, up to rounding: Lanczos resampling is linear, so a crop is two products of an image's
window with matrices of weights.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqtok.data.batches import Batches, OneSize
from vqtok.data.dataset import Dataset, convert_channels, read_whole
from vqtok.errors import InputError

SUPPORT = 3  # pixels that Lanczos looks at on each side, where it does not shrink
AT_ONCE = 256  # images decoded, then copied to the device together
LOOKED_AT = 32  # images by which the bytes of all are guessed before any is copied
THREADS = 16


@dataclass(frozen=True)
class Bank:
    """Images of any sizes, one after another in one buffer; some may be missing, because they
    cannot be read."""

    flat: Tensor  # uint8 (sum of H*W*C,), on the device
    offsets: Tensor  # int64 (N,): where each begins; on the device
    sizes: Tensor  # int64 (N, 2): H and W, 0 for one that cannot be read; on the device
    host_sizes: np.ndarray  # the same, on the host
    channels: int

    @property
    def readable(self) -> np.ndarray:
        """Returns which images can be read, bool (N,)."""
        return self.host_sizes[:, 0] > 0


def load_bank(
    dataset: Dataset, indices: np.ndarray, channels: int, device: torch.device, limit: int
) -> Bank | None:
    """Loads the images `indices` of a data set on the device, in that order; None where they take
    more than `limit` bytes.
    """
    if len(indices) > LOOKED_AT:
        some = indices[:: len(indices) // LOOKED_AT]
        guess = (
            sum(p.size for part in _decoded(dataset, some, channels) for p in part if p is not None)
            / len(some)
            * len(indices)
        )
        if guess > limit:
            return None
    parts: list[Tensor] = []
    sizes, lengths, total = [], [], 0
    for images in _decoded(dataset, indices, channels):
        sizes += [(0, 0) if image is None else image.shape[:2] for image in images]
        lengths += [0 if image is None else image.size for image in images]
        there = [image.ravel() for image in images if image is not None]
        if there:
            flat = np.concatenate(there)
            total += flat.size
            if total > limit:
                return None
            parts.append(torch.from_numpy(flat).to(device))
    if not parts:
        raise InputError(
            f"no image of {dataset.name} can be read",
            "check that the files are whole and are images",
        )
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    host_sizes = np.array(sizes, np.int64)
    to_device = [torch.from_numpy(array).to(device) for array in (offsets, host_sizes)]
    return Bank(torch.cat(parts), to_device[0], to_device[1], host_sizes, channels)


def _decoded(
    dataset: Dataset, indices: np.ndarray, channels: int
) -> Iterator[list[np.ndarray | None]]:
    """Yields images uint8 (H, W, C), in order, a few hundred at a time; None for an unreadable
    one.
    """

    def read(index: int) -> np.ndarray | None:
        try:
            return read_whole(dataset, index, channels)
        except InputError:
            return None

    with ThreadPoolExecutor(THREADS, thread_name_prefix="vqtok-data") as pool:
        for start in range(0, len(indices), AT_ONCE):
            some = indices[start : start + AT_ONCE]
            if isinstance(dataset, OneSize):
                yield list(convert_channels(dataset.images(some), channels))
            else:
                yield list(pool.map(read, map(int, some)))


class BankBatches:
    """Each step's crops out of a bank: the same images, boxes and mirror images that `batches`
    would cut on the host."""

    def __init__(self, bank: Bank, batches: Batches) -> None:
        assert len(bank.host_sizes) == len(batches.indices)
        self.bank, self.batches, self.size = bank, batches, batches.size
        sides = bank.host_sizes[bank.readable]  # (n, 2)
        # side of the largest box
        most = min(batches.size / batches.min_scale, float(sides.min(1).max()))
        reach = SUPPORT * max(1.0, most / self.size)
        # pixels that any crop looks at, per axis
        self.window = min(math.ceil(most + 2 * reach) + 3, int(sides.max()))

    def plan(self, step: int) -> Tensor:
        """Returns float64 (5, B): number of the image in the bank; top, left and side of its box in
        pixels; and 1 where it is mirrored.

        A pure function of the step, made on the host.
        """
        positions = self.batches.positions(step)
        images = self.batches.images(positions, self.bank.readable)
        H, W = self.bank.host_sizes[images].T
        factors, down, across = self.batches.draws(positions)
        top, left, side = self.batches.boxes(factors, down, across, H, W)
        mirrored = self.batches.mirrored(positions)
        return torch.from_numpy(np.stack([images, top, left, side, mirrored]).astype(np.float64))

    def crops(self, plan: Tensor) -> Tensor:
        """Makes float (B, C, size, size) of whole gray levels, 0 to 255, for a plan (5, B) on the
        bank's device.
        """
        bank, window = self.bank, self.window
        position = plan[0].long()
        top, left, side, mirrored = plan[1:]
        H, W = bank.sizes[position].double().unbind(1)
        reach = SUPPORT * (side / self.size).clamp(min=1.0)
        # (B,), of the window
        row = torch.minimum((top - reach).floor().clamp(min=0), (H - window).clamp(min=0))
        column = torch.minimum((left - reach).floor().clamp(min=0), (W - window).clamp(min=0))
        pixels = self._windows(position, row, column, H, W)  # (B, C, window, window)
        across = _weights(left - column, side, W - column, self.size, window)  # (B, size, window)
        across = torch.where(mirrored[:, None, None] > 0, across.flip(1), across)
        down = _weights(top - row, side, H - row, self.size, window)
        B, C = len(position), bank.channels
        with torch.autocast(plan.device.type, enabled=False):
            rows = torch.bmm(pixels.view(B, C * window, window), across.mT)  # (B, C*window, size)
            made = torch.matmul(down[:, None], rows.view(B, C, window, self.size))
        return made.add_(0.5).floor_().clamp_(0, 255)

    def _windows(
        self, position: Tensor, row: Tensor, column: Tensor, H: Tensor, W: Tensor
    ) -> Tensor:
        """Cuts float (B, C, window, window): the pixels from (row, column) on; beyond an image's
        edge the last pixels are repeated.
        """
        bank, steps = self.bank, torch.arange(self.window, device=position.device)
        rows = torch.minimum(row[:, None] + steps, H[:, None] - 1).long()  # (B, window)
        columns = torch.minimum(column[:, None] + steps, W[:, None] - 1).long()
        at = (
            bank.offsets[position][:, None, None]
            + (rows[:, :, None] * W.long()[:, None, None] + columns[:, None]) * bank.channels
        )
        return bank.flat[
            at[:, None] + torch.arange(bank.channels, device=position.device)[:, None, None]
        ].float()


def _weights(start: Tensor, side: Tensor, length: Tensor, size: int, window: int) -> Tensor:
    """Lanczos weights (B, size, window) that make `size` pixels of the `side` from `start` on, both
    in pixels of the window.

    start, side and length (where the image ends) are float64 (B,). As Pillow has them: the kernel
    is widened where it shrinks, and what of it lies outside the image is left out, the rest scaled
    up to a sum of 1.
    """
    scale = (side / size)[:, None]  # (B, 1)
    wide = scale.clamp(min=1.0)
    center = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * scale  # (B, size)
    low = (center - SUPPORT * wide + 0.5).floor().clamp(min=0)
    high = torch.minimum((center + SUPPORT * wide + 0.5).floor(), length[:, None])
    pixel = torch.arange(window, device=start.device)
    # positions in float64, their differences no longer
    distance = ((pixel - center[..., None] + 0.5) / wide[..., None]).float()
    weights = torch.sinc(distance) * torch.sinc(distance / SUPPORT) * (distance.abs() < SUPPORT)
    weights = weights * ((pixel >= low[..., None]) & (pixel < high[..., None]))
    return weights / weights.sum(-1, keepdim=True)
