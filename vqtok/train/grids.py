"""Encodes, stores and batches the index grids that priors train on."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vqtok import distributed, weights
from vqtok.codes import index_dtype
from vqtok.config import Recipe
from vqtok.data import Dataset, convert_channels, read_whole
from vqtok.errors import InputError, TrainingError
from vqtok.images import pad
from vqtok.networks.vqvae import VQVAE, to_float
from vqtok.train import state
from vqtok.train.context import RunContext, Status, Stop

PIXELS_AT_ONCE = 2**20  # encoded in one go
AT_ONCE = 256  # images that a process encodes before all look whether to stop


@dataclass(frozen=True)
class Grids:
    """Holds index grids of many images and shapes one after another in one array: a list of arrays
    takes 100 bytes more for each.
    """

    flat: np.ndarray  # all indices, in the smallest unsigned dtype
    shapes: np.ndarray  # int64 (N, 3): L, h, w; h and w are 0 for an image that cannot be read
    starts: np.ndarray  # int64 (N,): where each begins in `flat`
    labels: np.ndarray  # int64 (N,), -1 for none

    @classmethod
    def of(cls, flat: np.ndarray, shapes: np.ndarray, labels: np.ndarray) -> "Grids":
        """Makes Grids of indices that follow one another without gaps."""
        ends = shapes.astype(np.int64).prod(1).cumsum()
        return cls(
            flat, shapes.astype(np.int64), np.concatenate([[0], ends[:-1]]).astype(np.int64), labels
        )

    @classmethod
    def of_list(cls, grids: Sequence[np.ndarray], labels: np.ndarray) -> "Grids":
        """Makes Grids of one array (L, h, w) for each image."""
        return cls.of(
            np.concatenate([g.ravel() for g in grids]), np.array([g.shape for g in grids]), labels
        )

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> np.ndarray:
        """Returns one grid (L, h, w)."""
        shape, start = self.shapes[i], int(self.starts[i])
        return self.flat[start : start + int(shape.prod())].reshape(shape)

    def select(self, which: np.ndarray) -> "Grids":
        """Selects some of the grids; the indices themselves are shared."""
        return Grids(self.flat, self.shapes[which], self.starts[which], self.labels[which])

    def known(self) -> "Grids":
        """Selects the grids of readable images."""
        return self.select(self.shapes.prod(1).nonzero()[0])


@torch.inference_mode()
def encode_dataset(network: VQVAE, dataset: Dataset, mirror: bool, run: RunContext) -> Grids | None:
    """Encodes every whole image, and its mirror image after it where `mirror` says so:
    entries 2i and 2i + 1.

    An image that cannot be read gets an empty grid. None after an early stop.
    Each of several processes encodes the next few of the images; all of them get all grids.
    """
    network.eval()
    flat, shapes, started, size = bytearray(), [], time.monotonic(), distributed.world_size()
    dtype, copies, count = (
        index_dtype(network.config.codebook_size),
        2 if mirror else 1,
        len(dataset),
    )

    def report(done: int) -> None:
        rate = done / max(time.monotonic() - started, 1e-9)
        run.listener.status(
            Status("indices", min(done, count), count, rate, max(0, count - done) / rate)
        )

    for start in range(0, count, AT_ONCE * size):
        begin = start + AT_ONCE * distributed.rank()
        numbers = range(begin, min(begin + AT_ONCE, count))
        indices, some = _encode_part(
            network,
            dataset,
            numbers,
            copies,
            run.stop,
            lambda done, start=start: report(start + size * done),
        )
        if distributed.all_reduce_max(len(some) < copies * len(numbers))[0]:
            return None
        flat += b"".join(distributed.all_gather_bytes(indices.astype(dtype).tobytes()))
        shapes += [
            np.frombuffer(part, np.int64).reshape(-1, 3)
            for part in distributed.all_gather_bytes(some.tobytes())
        ]
    labels = np.array([dataset.label(i) for i in range(count)], np.int64).repeat(copies)
    return Grids.of(np.frombuffer(flat, dtype), np.concatenate(shapes), labels)


def _encode_part(
    network: VQVAE,
    dataset: Dataset,
    numbers: range,
    copies: int,
    stop: Stop,
    report: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes some images, each followed by its mirror image: int64 indices, and the shapes (n, 3)
    of their grids.

    Fewer than those of all after an early stop. `report` hears how many are done.
    """
    parts, shapes, done = [np.empty(0, np.int64)], [np.empty((0, 3), np.int64)], 0
    device = next(network.parameters()).device
    for group in _same_shape(_images(dataset, numbers, network.config.channels)):
        if stop.requested:
            break
        shape = (network.config.levels, 0, 0)
        if group[0].size:
            both = [group, [image[:, ::-1] for image in group]][:copies]
            # (n, copies, L, h, w)
            encoded = np.stack([_encode(network, images, device) for images in both], 1)
            parts.append(encoded.ravel())
            shape = encoded.shape[2:]
        shapes.append(np.tile(np.array(shape, np.int64), (copies * len(group), 1)))
        done += len(group)
        report(done)
    return np.concatenate(parts), np.concatenate(shapes)


def _encode(network: VQVAE, images: Sequence[np.ndarray], device: torch.device) -> np.ndarray:
    """Encodes images uint8 (H, W, C) of one size to indices (n, L, h, w), padded as `vqtok encode`
    does it.
    """
    padded = np.stack([pad(image, network.config.downsample) for image in images]).transpose(
        0, 3, 1, 2
    )
    x = to_float(torch.from_numpy(np.ascontiguousarray(padded)).to(device))
    return network.encode(x.contiguous(memory_format=torch.channels_last)).cpu().numpy()


def _images(dataset: Dataset, numbers: range, channels: int) -> Iterator[np.ndarray]:
    """Reads some images, whole; one without pixels takes the place of each that cannot be read."""
    # data in arrays gives many at once: 5 times as fast for the built-in shapes
    many = getattr(dataset, "images", None)
    if many is not None and numbers:
        yield from convert_channels(many(np.array(numbers)), channels)
        return
    for i in numbers:
        try:
            yield read_whole(dataset, i, channels)
        except InputError:
            yield np.empty((0, 0, channels), np.uint8)


def _same_shape(images: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yields lists of successive images of one shape, at most PIXELS_AT_ONCE pixels each."""
    group: list[np.ndarray] = []
    for image in images:
        full = (len(group) + 1) * image.shape[0] * image.shape[1] > PIXELS_AT_ONCE
        if group and (full or image.shape != group[0].shape):
            yield group
            group = []
        group.append(image)
    if group:
        yield group


def save_grids(path: Path, grids: Grids, tokenizer: str) -> None:
    """Writes all grids with the fingerprint of their tokenizer, so that resuming need not encode
    again; the first process does.
    """
    if not distributed.is_main_process():
        return
    tensors = {
        "indices": grids.flat,
        "shapes": grids.shapes.astype(np.int32),
        "labels": grids.labels,
    }
    meta = {"format": 1, "kind": "state", "config": {}, "record": {"tokenizer": tokenizer}}
    weights.save_weights(path, weights.Weights(tensors, meta), force=True)


def load_grids(path: Path, tokenizer: str, count: int) -> Grids | None:
    """Reads what `save_grids` wrote, in the first process; None where there is nothing, or it is of
    another tokenizer or not `count` grids.

    Raises TrainingError for a damaged file.
    """
    fix = "delete this file: it is then made again"
    stored = distributed.broadcast_weights(
        lambda: state.read_state(path, fix) if path.exists() else None
    )
    if stored is None or stored.record.get("tokenizer") != tokenizer:
        return None
    flat, shapes, labels = (
        stored.tensors.get(name, np.empty(0)) for name in ("indices", "shapes", "labels")
    )
    kinds = (flat.dtype.kind, shapes.dtype.kind, labels.dtype.kind) == ("u", "i", "i")
    if (
        not kinds
        or shapes.ndim != 2
        or shapes.shape != (len(labels), 3)
        or shapes.astype(np.int64).prod(1).sum() != flat.size
    ):
        raise TrainingError(f"{path} is damaged", fix)
    return Grids.of(flat, shapes, labels) if len(labels) == count else None


class GridBatches:
    """Cuts windows of index grids into batches; each batch is a pure function of the step.

    `share` is as in `Batches`.
    """

    def __init__(
        self,
        grids: Grids,
        batch: int,
        window: tuple[int, int],
        seed: int,
        label_dropout: float,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.grids, self.size, self.window, self.share = grids, batch, window, share
        self.seed, self.label_dropout = seed, label_dropout
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Makes the batch of a step: indices int64 (B, L, h, w) and labels (B,)."""
        rank, count = self.share
        items = [
            self._item(position)
            for position in range(step * self.size + rank, (step + 1) * self.size, count)
        ]
        return np.stack([item[0] for item in items]).astype(np.int64), np.array(
            [item[1] for item in items], np.int64
        )

    def _item(self, position: int) -> tuple[np.ndarray, int]:
        epoch, number = divmod(position, len(self.grids))
        index = int(self._order(epoch)[number])
        grid = self.grids[index]
        draw = np.random.default_rng([self.seed, 1, position])
        top, left = (
            int(draw.integers(n - m + 1)) for n, m in zip(grid.shape[1:], self.window, strict=True)
        )
        label = -1 if draw.random() < self.label_dropout else int(self.grids.labels[index])
        return grid[:, top : top + self.window[0], left : left + self.window[1]], label

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch != epoch:
            self._epoch, self._permutation = (
                epoch,
                np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.grids)),
            )
        return self._permutation


def window_of(grids: Grids, recipe: Recipe) -> tuple[int, int]:
    """Returns the rows and columns that the prior learns at a time: `prior_size` pixels, or the
    smallest image where that is smaller.
    """
    side = max(1, recipe.data.prior_size // recipe.tokenizer.downsample)
    smallest = grids.shapes[:, 1:].min(0)
    return min(side, int(smallest[0])), min(side, int(smallest[1]))
