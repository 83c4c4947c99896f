"""Trains both priors: each learns windows of the training set's index grids."""

import math
from abc import abstractmethod
from collections.abc import Generator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqtok import distributed, weights
from vqtok._version import __version__
from vqtok.codec import to_device
from vqtok.config import EntropyConfig, PriorConfig, Recipe, StageConfig
from vqtok.data import Dataset
from vqtok.errors import InputError
from vqtok.integer_prior import largest_sum
from vqtok.priors import IntegerPrior, Prior, build_prior
from vqtok.priors.base import start_from_codebooks
from vqtok.threads import is_small
from vqtok.train.context import RunContext
from vqtok.train.grids import GridBatches, Grids, window_of
from vqtok.train.task import Step, Task, Validation


class GridTask(Task):
    """Trains a network on the likelihood of index grids: windows of the training grids, and of the
    validation grids. It may start from the tokenizer's codebooks (L, K, D).
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        tokenizer: str,
        parts: tuple[Grids, Grids],
        run: RunContext,
        codebooks: Tensor,
    ) -> None:
        self.recipe, self.dataset, self.tokenizer, self.run = recipe, dataset, tokenizer, run
        self.codebooks = codebooks.to(run.device)
        if len(parts[0]) == 0:
            raise InputError(
                f"no image of {dataset.name} can be read to train the {self.name} on",
                "give more images",
            )
        torch.manual_seed(recipe.seed)
        self.window = window_of(parts[0], recipe)
        self.network = to_device(self.make(), run.device)
        dropout = recipe.prior_training.label_dropout if recipe.prior.labels else 0.0
        batch = self.stage.batch
        self.one_thread = is_small(self.network, batch * self.window[0] * self.window[1])
        share = distributed.rank(), distributed.world_size()
        self._batches = GridBatches(parts[0], batch, self.window, recipe.seed, dropout, share)
        held_out = Grids.of_list(
            [_pad_grid(parts[1][i], self.window) for i in range(len(parts[1]))], parts[1].labels
        )
        self._validation = GridBatches(held_out, batch, self.window, recipe.seed, 0.0)

    @property
    @abstractmethod
    def stage(self) -> StageConfig:
        """Returns the settings that it is trained by."""

    @property
    @abstractmethod
    def config(self) -> PriorConfig | EntropyConfig:
        """Returns the network's settings, from which it can be built again."""

    @abstractmethod
    def make(self) -> nn.Module:
        """Builds the network, with random weights."""

    @abstractmethod
    def loss(self, indices: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean nats an index, a scalar; indices (B, L, h, w), labels (B,)."""

    def on_start(self) -> None:
        pass

    def batches(
        self, start: int, stop: int
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        for step in range(start, stop):
            yield self._batches.batch(step)

    def forward(self, batch: tuple[np.ndarray, np.ndarray]) -> Step:
        # each process drops other features: to draw for all would cost each of them as much as all
        if distributed.world_size() > 1:
            torch.manual_seed(torch.initial_seed() + distributed.rank())
        loss = self.loss(*self._to_device(batch))
        return Step(loss, {"bits": loss / math.log(2)})

    def _to_device(self, batch: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(batch[0]).to(self.run.device), torch.from_numpy(batch[1]).to(
            self.run.device
        )

    def validate(self) -> Validation:
        steps = max(1, len(self._validation.grids) // self._validation.size)
        total = [
            float(self.loss(*self._to_device(self._validation.batch(step))))
            for step in range(steps)
        ]
        bits = sum(total) / len(total) / math.log(2)
        return Validation(bits, {"bits": bits})

    def window_summary(
        self, window: dict[str, float], counts: Tensor
    ) -> tuple[dict[str, float], str]:
        raw = math.log2(self.recipe.tokenizer.codebook_size)
        return (
            {},
            (
                f"An index takes {window.get('bits', 0) / max(window.get('steps', 1), 1):.2f} bits "
                f"where it took {raw:.2f}."
            ),
        )

    def _file(self, tensors: dict[str, np.ndarray], record: dict[str, Any]) -> weights.Weights:
        """Makes the file of these tensors, with the fingerprint of the tokenizer whose indices they
        know.
        """
        record = {
            **record,
            "data": self.dataset.name,
            "seed": self.recipe.seed,
            "version": __version__,
            "tokenizer": self.tokenizer,
            "grid": list(self.window),
        }
        return weights.Weights(
            tensors,
            {"format": 1, "kind": self.name, "config": asdict(self.config), "record": record},
        )


class PriorTask(GridTask):
    """Trains the network that `vqtok sample` draws from; it starts from the tokenizer's
    codebooks.
    """

    name = "prior"
    network: Prior

    def on_start(self) -> None:
        # gray values are not learned, and fvsbn places its first vectors by the code's number
        if not self.recipe.tokenizer.is_pixels and self.config.architecture != "fvsbn":
            start_from_codebooks(self.network, self.codebooks)

    @property
    def stage(self) -> StageConfig:
        return self.recipe.prior_training

    @property
    def config(self) -> PriorConfig:
        return self.recipe.prior.for_grid(*self.window)

    def make(self) -> Prior:
        return build_prior(self.config)

    def loss(self, indices: Tensor, labels: Tensor) -> Tensor:
        return self.network.loss(indices, labels)

    def release(self, record: dict[str, Any]) -> weights.Weights:
        """Returns the weights file, in float16, with the recipe's settings of drawing."""
        if chosen := self.recipe.sampling.changes():
            record = {**record, "sampling": chosen}
        state = self.network.state_dict().items()
        return self._file(
            {name: value.detach().cpu().half().numpy() for name, value in state}, record
        )


class EntropyTask(GridTask):
    """Trains the integer prior that compact files are coded with; it starts from the tokenizer's
    codebooks.
    """

    name = "entropy"
    network: IntegerPrior

    @property
    def stage(self) -> StageConfig:
        return self.recipe.entropy_training

    @property
    def config(self) -> EntropyConfig:
        return self.recipe.entropy

    def make(self) -> IntegerPrior:
        return IntegerPrior(self.config)

    def on_start(self) -> None:
        self.network.init_from_codebooks(self.codebooks)

    def loss(self, indices: Tensor, labels: Tensor) -> Tensor:
        return self.network.bits(indices).mean() * math.log(2)

    def release(self, record: dict[str, Any]) -> weights.Weights:
        """Integers, and the largest sum that they allow:
        what is exact is proved before it is written.
        """
        tensors = self.network.integers()
        return self._file(tensors, {**record, "largest_sum": largest_sum(tensors)})


def _pad_grid(grid: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Repeats the edge of a validation grid that is smaller than every training grid."""
    missing = [max(0, m - n) for n, m in zip(grid.shape[1:], window, strict=True)]
    return np.pad(grid, [(0, 0), (0, missing[0]), (0, missing[1])], mode="edge")
