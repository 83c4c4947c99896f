"""Training of both priors: the training set is encoded once, then each learns windows of its index grids."""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqtok import __version__, distributed, weights
from vqtok.codec import place
from vqtok.codes import index_dtype
from vqtok.config import EntropyConfig, PriorConfig, Recipe, StageConfig
from vqtok.data import Dataset, convert, whole
from vqtok.errors import InputError, TrainingError
from vqtok.images import pad
from vqtok.priors import IntegerPrior, Prior, build, largest_sum
from vqtok.train import state
from vqtok.train.loop import Run, Status, Step, Stop, Task, Validation
from vqtok.vqvae import VQVAE, to_float

LABEL_DROPOUT = 0.1         # so that one prior also samples without a label
PIXELS_AT_ONCE = 2**20      # encoded in one go
AT_ONCE = 256               # pictures that a process encodes before all look whether to stop


@dataclass(frozen=True)
class Grids:
    """Index grids of many pictures, of any shapes, one after another in one array: a list of arrays takes 100 bytes more for each."""

    flat: np.ndarray        # all indices, in the smallest unsigned dtype
    shapes: np.ndarray      # int64 (N, 3): L, h, w; h and w are 0 for a picture that cannot be read
    starts: np.ndarray      # int64 (N,): where each begins in `flat`
    labels: np.ndarray      # int64 (N,), -1 for none

    @classmethod
    def of(cls, flat: np.ndarray, shapes: np.ndarray, labels: np.ndarray) -> "Grids":
        """Grids that follow one another without gaps."""
        ends = shapes.astype(np.int64).prod(1).cumsum()
        return cls(flat, shapes.astype(np.int64), np.concatenate([[0], ends[:-1]]).astype(np.int64), labels)

    @classmethod
    def of_list(cls, grids: Sequence[np.ndarray], labels: np.ndarray) -> "Grids":
        """From one array (L, h, w) each."""
        return cls.of(np.concatenate([g.ravel() for g in grids]), np.array([g.shape for g in grids]), labels)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> np.ndarray:
        """One grid (L, h, w)."""
        shape, start = self.shapes[i], int(self.starts[i])
        return self.flat[start : start + int(shape.prod())].reshape(shape)

    def take(self, which: np.ndarray) -> "Grids":
        """Some of the grids; the indices themselves are shared."""
        return Grids(self.flat, self.shapes[which], self.starts[which], self.labels[which])

    def known(self) -> "Grids":
        """Those of readable pictures."""
        return self.take(self.shapes.prod(1).nonzero()[0])


@torch.inference_mode()
def encode_dataset(network: VQVAE, dataset: Dataset, mirror: bool, run: Run) -> Grids | None:
    """Encodes every whole picture, and its mirror image after it where `mirror` says so: entries 2i and 2i + 1.

    A picture that cannot be read gets an empty grid. None after an early stop. Each of several processes encodes the next few of the
    pictures; all of them get all grids.
    """
    network.eval()
    flat, shapes, started, size = bytearray(), [], time.monotonic(), distributed.size()
    dtype, copies, count = index_dtype(network.config.codebook_size), 2 if mirror else 1, len(dataset)

    def report(done: int) -> None:
        rate = done / max(time.monotonic() - started, 1e-9)
        run.listener.status(Status("indices", min(done, count), count, rate, max(0, count - done) / rate))

    for start in range(0, count, AT_ONCE * size):
        begin = start + AT_ONCE * distributed.rank()
        numbers = range(begin, min(begin + AT_ONCE, count))
        indices, some = _encode_part(network, dataset, numbers, copies, run.stop, lambda done, start=start: report(start + size * done))
        if distributed.highest(len(some) < copies * len(numbers))[0]:
            return None
        flat += b"".join(distributed.all_bytes(indices.astype(dtype).tobytes()))
        shapes += [np.frombuffer(part, np.int64).reshape(-1, 3) for part in distributed.all_bytes(some.tobytes())]
    labels = np.array([dataset.label(i) for i in range(count)], np.int64).repeat(copies)
    return Grids.of(np.frombuffer(flat, dtype), np.concatenate(shapes), labels)


def _encode_part(
    network: VQVAE, dataset: Dataset, numbers: range, copies: int, stop: Stop, report: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of some pictures and their mirror images, one after another, int64, and the shapes (n, 3) of their grids.

    Fewer than those of all after an early stop. `report` hears how many are done.
    """
    parts, shapes, done = [np.empty(0, np.int64)], [np.empty((0, 3), np.int64)], 0
    device = next(network.parameters()).device
    for group in _same_shape(_pictures(dataset, numbers, network.config.channels)):
        if stop.here:
            break
        shape = (network.config.levels, 0, 0)
        if group[0].size:
            both = [group, [picture[:, ::-1] for picture in group]][:copies]
            encoded = np.stack([_encode(network, pictures, device) for pictures in both], 1)     # (n, copies, L, h, w)
            parts.append(encoded.ravel())
            shape = encoded.shape[2:]
        shapes.append(np.tile(np.array(shape, np.int64), (copies * len(group), 1)))
        done += len(group)
        report(done)
    return np.concatenate(parts), np.concatenate(shapes)


def _encode(network: VQVAE, pictures: Sequence[np.ndarray], device: torch.device) -> np.ndarray:
    """Indices (n, L, h, w) of pictures uint8 (H, W, C) of one size, padded as `vqtok encode` does it."""
    padded = np.stack([pad(picture, network.config.downsample) for picture in pictures]).transpose(0, 3, 1, 2)
    x = to_float(torch.from_numpy(np.ascontiguousarray(padded)).to(device))
    return network.encode(x.contiguous(memory_format=torch.channels_last)).cpu().numpy()


def _pictures(dataset: Dataset, numbers: range, channels: int) -> Iterator[np.ndarray]:
    """Some pictures, whole; one without pixels in place of each that cannot be read."""
    many = getattr(dataset, "pictures", None)       # data in arrays gives many at once: 5 times as fast for the built-in shapes
    if many is not None and numbers:
        yield from convert(many(np.array(numbers)), channels)
        return
    for i in numbers:
        try:
            yield whole(dataset, i, channels)
        except InputError:
            yield np.empty((0, 0, channels), np.uint8)


def _same_shape(pictures: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Runs of neighboring pictures that share a shape and fit in PIXELS_AT_ONCE."""
    group: list[np.ndarray] = []
    for picture in pictures:
        full = (len(group) + 1) * picture.shape[0] * picture.shape[1] > PIXELS_AT_ONCE
        if group and (full or picture.shape != group[0].shape):
            yield group
            group = []
        group.append(picture)
    if group:
        yield group


def save_grids(path: Path, grids: Grids, tokenizer: str) -> None:
    """Writes all grids with the fingerprint of their tokenizer, so that resuming need not encode again; the first process does."""
    if not distributed.first():
        return
    tensors = {"indices": grids.flat, "shapes": grids.shapes.astype(np.int32), "labels": grids.labels}
    meta = {"format": 1, "kind": "state", "config": {}, "record": {"tokenizer": tokenizer}}
    weights.save(path, weights.Weights(tensors, meta), force=True)


def load_grids(path: Path, tokenizer: str, count: int) -> Grids | None:
    """What `save_grids` wrote, in the first process; None when there is nothing, or it is of another tokenizer or not `count` grids.

    Raises TrainingError for a damaged file.
    """
    fix = "delete this file: it is then made again"
    stored = distributed.weights_from_first(lambda: state.read(path, fix) if path.exists() else None)
    if stored is None or stored.record.get("tokenizer") != tokenizer:
        return None
    flat, shapes, labels = (stored.tensors.get(name, np.empty(0)) for name in ("indices", "shapes", "labels"))
    kinds = (flat.dtype.kind, shapes.dtype.kind, labels.dtype.kind) == ("u", "i", "i")
    if not kinds or shapes.ndim != 2 or shapes.shape != (len(labels), 3) or shapes.astype(np.int64).prod(1).sum() != flat.size:
        raise TrainingError(f"{path} is damaged", fix)
    return Grids.of(flat, shapes, labels) if len(labels) == count else None


class GridBatches:
    """Windows of index grids; each batch is a pure function of the step. `share` is as in `Batches`."""

    def __init__(
        self, grids: Grids, batch: int, window: tuple[int, int], seed: int, label_dropout: float, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.grids, self.size, self.window, self.share = grids, batch, window, share
        self.seed, self.label_dropout = seed, label_dropout
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices int64 (B, L, h, w) and labels (B,)."""
        rank, count = self.share
        items = [self._item(position) for position in range(step * self.size + rank, (step + 1) * self.size, count)]
        return np.stack([item[0] for item in items]).astype(np.int64), np.array([item[1] for item in items], np.int64)

    def _item(self, position: int) -> tuple[np.ndarray, int]:
        epoch, place = divmod(position, len(self.grids))
        index = int(self._order(epoch)[place])
        grid = self.grids[index]
        draw = np.random.default_rng([self.seed, 1, position])
        top, left = (int(draw.integers(n - m + 1)) for n, m in zip(grid.shape[1:], self.window, strict=True))
        label = -1 if draw.random() < self.label_dropout else int(self.grids.labels[index])
        return grid[:, top : top + self.window[0], left : left + self.window[1]], label

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch != epoch:
            self._epoch, self._permutation = epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.grids))
        return self._permutation


def window_of(grids: Grids, recipe: Recipe) -> tuple[int, int]:
    """Rows and columns that the prior learns at a time: `prior_size` pixels, or the smallest picture where that is smaller."""
    side = max(1, recipe.data.prior_size // recipe.tokenizer.downsample)
    smallest = grids.shapes[:, 1:].min(0)
    return min(side, int(smallest[0])), min(side, int(smallest[1]))


class GridTask(Task):
    """A network that learns how likely index grids are: windows of the training grids, and of the validation grids."""

    def __init__(self, recipe: Recipe, dataset: Dataset, tokenizer: str, parts: tuple[Grids, Grids], run: Run) -> None:
        self.recipe, self.dataset, self.tokenizer, self.run = recipe, dataset, tokenizer, run
        if len(parts[0]) == 0:
            raise InputError(f"no picture of {dataset.name} can be read to train the {self.name} on", "give more pictures")
        torch.manual_seed(recipe.seed)
        self.window = window_of(parts[0], recipe)
        self.network = place(self.make(), run.device)
        dropout = LABEL_DROPOUT if recipe.prior.labels else 0.0
        batch = self.stage.batch
        share = distributed.rank(), distributed.size()
        self._batches = GridBatches(parts[0], batch, self.window, recipe.seed, dropout, share)
        held_out = Grids.of_list([_pad_grid(parts[1][i], self.window) for i in range(len(parts[1]))], parts[1].labels)
        self._validation = GridBatches(held_out, batch, self.window, recipe.seed, 0.0)

    @property
    @abstractmethod
    def stage(self) -> StageConfig:
        """How it is trained."""

    @property
    @abstractmethod
    def config(self) -> PriorConfig | EntropyConfig:
        """The network's settings, from which it can be built again."""

    @abstractmethod
    def make(self) -> nn.Module:
        """The network, with random weights."""

    @abstractmethod
    def loss(self, indices: Tensor, labels: Tensor) -> Tensor:
        """Mean nats an index, a scalar; indices (B, L, h, w), labels (B,)."""

    def prepare(self) -> None:
        pass

    def batches(self, start: int, stop: int) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        for step in range(start, stop):
            yield self._batches.batch(step)

    def forward(self, batch: tuple[np.ndarray, np.ndarray]) -> Step:
        if distributed.size() > 1:      # each process drops other features: to draw for all would cost each of them as much as all
            torch.manual_seed(torch.initial_seed() + distributed.rank())
        loss = self.loss(*self._to_device(batch))
        return Step(loss, {"bits": loss / math.log(2)})

    def _to_device(self, batch: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(batch[0]).to(self.run.device), torch.from_numpy(batch[1]).to(self.run.device)

    def validate(self) -> Validation:
        steps = max(1, len(self._validation.grids) // self._validation.size)
        total = [float(self.loss(*self._to_device(self._validation.batch(step)))) for step in range(steps)]
        bits = sum(total) / len(total) / math.log(2)
        return Validation(bits, {"bits": bits})

    def summary(self, window: dict[str, float], counts: Tensor) -> tuple[dict[str, float], str]:
        raw = math.log2(self.recipe.tokenizer.codebook_size)
        return {}, f"An index takes {window.get('bits', 0) / max(window.get('steps', 1), 1):.2f} bits where it took {raw:.2f}."

    def _file(self, tensors: dict[str, np.ndarray], record: dict[str, Any]) -> weights.Weights:
        """The file of these tensors, with the fingerprint of the tokenizer whose indices they know."""
        record = {
            **record, "data": self.dataset.name, "seed": self.recipe.seed, "version": __version__,
            "tokenizer": self.tokenizer, "grid": list(self.window),
        }
        return weights.Weights(tensors, {"format": 1, "kind": self.name, "config": asdict(self.config), "record": record})


class PriorTask(GridTask):
    """The network that `vqtok sample` draws from."""

    name = "prior"
    network: Prior

    @property
    def stage(self) -> StageConfig:
        return self.recipe.prior_training

    @property
    def config(self) -> PriorConfig:
        return self.recipe.prior.for_grid(*self.window)

    def make(self) -> Prior:
        return build(self.config)

    def loss(self, indices: Tensor, labels: Tensor) -> Tensor:
        return self.network.loss(indices, labels)

    def release(self, record: dict[str, Any]) -> weights.Weights:
        """float16 tensors."""
        state = self.network.state_dict().items()
        return self._file({name: value.detach().cpu().half().numpy() for name, value in state}, record)


class EntropyTask(GridTask):
    """The integer prior that compact files are coded with; it starts from the tokenizer's codebooks."""

    name = "entropy"
    network: IntegerPrior

    def __init__(
        self, recipe: Recipe, dataset: Dataset, tokenizer: str, parts: tuple[Grids, Grids], run: Run, codebooks: Tensor
    ) -> None:
        super().__init__(recipe, dataset, tokenizer, parts, run)
        self.codebooks = codebooks.to(run.device)       # (L, K, D)

    @property
    def stage(self) -> StageConfig:
        return self.recipe.entropy_training

    @property
    def config(self) -> EntropyConfig:
        return self.recipe.entropy

    def make(self) -> IntegerPrior:
        return IntegerPrior(self.config)

    def prepare(self) -> None:
        self.network.start(self.codebooks)

    def loss(self, indices: Tensor, labels: Tensor) -> Tensor:
        return self.network.bits(indices).mean() * math.log(2)

    def release(self, record: dict[str, Any]) -> weights.Weights:
        """Integers, and the largest sum that they allow: what is exact is proved before it is written."""
        tensors = self.network.integers()
        return self._file(tensors, {**record, "largest_sum": largest_sum(tensors)})


def _pad_grid(grid: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """A validation grid may be smaller than every training grid: its edge is repeated."""
    missing = [max(0, m - n) for n, m in zip(grid.shape[1:], window, strict=True)]
    return np.pad(grid, [(0, 0), (0, missing[0]), (0, missing[1])], mode="edge")
