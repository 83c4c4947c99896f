"""Training of the prior: the training set is encoded once, then the PixelCNN learns windows of its index grids."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtok import __version__, weights
from vqtok.codec import place
from vqtok.config import Recipe
from vqtok.data import Dataset, whole
from vqtok.errors import TrainingError
from vqtok.images import pad
from vqtok.priors import PixelCNN
from vqtok.train.loop import Run, Step, Task, Validation
from vqtok.vqvae import VQVAE, to_float

LABEL_DROPOUT = 0.1         # so that one prior also samples without a label
PIXELS_AT_ONCE = 2**20      # encoded in one go


@dataclass(frozen=True)
class Grids:
    """Index grids of many pictures, of any shapes."""

    indices: list[np.ndarray]       # each (L, h, w)
    labels: np.ndarray              # int64 (N,), -1 for none

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, which: np.ndarray) -> "Grids":
        return Grids([self.indices[i] for i in which], self.labels[which])


@torch.inference_mode()
def encode_dataset(network: VQVAE, dataset: Dataset, mirror: bool, run: Run) -> Grids:
    """Encodes every whole picture, and its mirror image after it where `mirror` says so: entries 2i and 2i + 1."""
    network.eval()
    f, channels, grids, labels = network.config.downsample, network.config.channels, [], []
    for shape, group in _same_shape(dataset, channels, f):
        x = to_float(torch.from_numpy(np.stack(group).transpose(0, 3, 1, 2).copy()).to(run.device))
        both = [x, x.flip(3)] if mirror else [x]
        encoded = [network.encode(v.contiguous(memory_format=torch.channels_last)).cpu().numpy() for v in both]
        dtype = np.uint8 if network.config.codebook_size <= 256 else np.uint16
        grids += [e[i].astype(dtype) for i in range(shape[0]) for e in encoded]
        if run.stop.due:
            break
    for i in range(len(dataset)):
        labels += [dataset.label(i)] * (2 if mirror else 1)
    return Grids(grids, np.array(labels[: len(grids)], np.int64))


def _same_shape(dataset: Dataset, channels: int, f: int) -> Iterator[tuple[tuple[int, ...], list[np.ndarray]]]:
    """Runs of neighboring pictures, padded to the grid, that share a shape and fit in PIXELS_AT_ONCE."""
    group: list[np.ndarray] = []
    for i in range(len(dataset)):
        picture = pad(whole(dataset, i, channels), f)
        full = (len(group) + 1) * picture.shape[0] * picture.shape[1] > PIXELS_AT_ONCE
        if group and (full or picture.shape != group[0].shape):
            yield (len(group), *group[0].shape), group
            group = []
        group.append(picture)
    if group:
        yield (len(group), *group[0].shape), group


def save_grids(path: Path, grids: Grids, tokenizer: str) -> None:
    """Writes the grids with the fingerprint of their tokenizer, so that resuming need not encode again."""
    flat = np.concatenate([g.ravel() for g in grids.indices])
    shapes = np.array([g.shape for g in grids.indices], np.int32)
    tensors = {"indices": flat, "shapes": shapes, "labels": grids.labels}
    meta = {"format": 1, "kind": "state", "config": {}, "record": {"tokenizer": tokenizer}}
    weights.save(path, weights.Weights(tensors, meta), force=True)


def load_grids(path: Path, tokenizer: str) -> Grids | None:
    """What `save_grids` wrote; None when there is nothing, or it is another tokenizer's."""
    if not path.exists():
        return None
    stored = weights.load(path, "state")
    if stored.meta["record"].get("tokenizer") != tokenizer:
        return None
    shapes = stored.tensors["shapes"]
    ends = np.cumsum(shapes.prod(1))
    pieces = np.split(stored.tensors["indices"], ends[:-1])
    return Grids([p.reshape(s) for p, s in zip(pieces, shapes, strict=True)], stored.tensors["labels"])


class GridBatches:
    """Windows of index grids; each batch is a pure function of the step."""

    def __init__(self, grids: Grids, batch: int, window: tuple[int, int], seed: int, label_dropout: float) -> None:
        self.grids, self.size, self.window = grids, batch, window
        self.seed, self.label_dropout = seed, label_dropout

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices int64 (B, L, h, w) and labels (B,)."""
        items = [self._item(position) for position in range(step * self.size, (step + 1) * self.size)]
        return np.stack([item[0] for item in items]).astype(np.int64), np.array([item[1] for item in items], np.int64)

    def _item(self, position: int) -> tuple[np.ndarray, int]:
        epoch, place = divmod(position, len(self.grids))
        index = int(self._order(epoch)[place])
        grid = self.grids.indices[index]
        draw = np.random.default_rng([self.seed, 1, position])
        top, left = (int(draw.integers(n - m + 1)) for n, m in zip(grid.shape[1:], self.window, strict=True))
        label = -1 if draw.random() < self.label_dropout else int(self.grids.labels[index])
        return grid[:, top : top + self.window[0], left : left + self.window[1]], label

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._permutation = epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.grids))
        return self._permutation


def window_of(grids: Grids, recipe: Recipe) -> tuple[int, int]:
    """Rows and columns that the prior learns at a time: `prior_size` pixels, or the smallest picture where that is smaller."""
    side = max(1, recipe.data.prior_size // recipe.tokenizer.downsample)
    smallest = np.array([g.shape[1:] for g in grids.indices]).min(0)
    return min(side, int(smallest[0])), min(side, int(smallest[1]))


class PriorTask(Task):
    """A PixelCNN, windows of the training grids, and windows of the validation grids."""

    name = "prior"

    def __init__(self, recipe: Recipe, dataset: Dataset, tokenizer: str, parts: tuple[Grids, Grids], run: Run) -> None:
        self.recipe, self.dataset, self.tokenizer, self.run = recipe, dataset, tokenizer, run
        if len(parts[0]) == 0:
            raise TrainingError("there is no picture to train the prior on", "give more pictures")
        torch.manual_seed(recipe.seed)
        self.prior = place(PixelCNN(recipe.prior), run.device)
        self.network = self.prior
        self.window = window_of(parts[0], recipe)
        dropout = LABEL_DROPOUT if recipe.prior.labels else 0.0
        batch = recipe.prior_training.batch
        self._batches = GridBatches(parts[0], batch, self.window, recipe.seed, dropout)
        held_out = Grids([_pad_grid(g, self.window) for g in parts[1].indices], parts[1].labels)
        self._validation = GridBatches(held_out, batch, self.window, recipe.seed, 0.0)

    def prepare(self) -> None:
        pass

    def batches(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step in range(start, stop):
            yield self._batches.batch(step)

    def forward(self, batch: tuple[np.ndarray, np.ndarray]) -> Step:
        loss = self.prior.loss(*self._to_device(batch))
        return Step(loss, {"bits": loss / math.log(2)})

    def _to_device(self, batch: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(batch[0]).to(self.run.device), torch.from_numpy(batch[1]).to(self.run.device)

    def validate(self) -> Validation:
        steps = max(1, len(self._validation.grids) // self._validation.size)
        total = [float(self.prior.loss(*self._to_device(self._validation.batch(step)))) for step in range(steps)]
        bits = sum(total) / len(total) / math.log(2)
        return Validation(bits, {"bits": bits})

    def summary(self, window: dict[str, float], counts: Tensor) -> tuple[dict[str, float], str]:
        raw = math.log2(self.recipe.prior.codebook_size)
        return {}, f"An index takes {window.get('bits', 0) / max(window.get('steps', 1), 1):.2f} bits where it took {raw:.2f}."

    def release(self, record: dict[str, Any]) -> weights.Weights:
        """float16 tensors, with the fingerprint of the tokenizer whose indices they know."""
        state = self.prior.state_dict().items()
        tensors = {name: value.detach().cpu().half().numpy() for name, value in state}
        record = {
            **record, "data": self.dataset.name, "seed": self.recipe.seed, "version": __version__,
            "tokenizer": self.tokenizer, "grid": list(self.window),
        }
        meta = {"format": 1, "kind": "prior", "config": self.recipe.to_dict()["prior"], "record": record}
        return weights.Weights(tensors, meta)


def _pad_grid(grid: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """A validation grid may be smaller than every training grid: its edge is repeated."""
    missing = [max(0, m - n) for n, m in zip(grid.shape[1:], window, strict=True)]
    return np.pad(grid, [(0, 0), (0, missing[0]), (0, missing[1])], mode="edge")
