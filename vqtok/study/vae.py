"""Trains the VAE with the training loop of all networks, and reads and writes its weights."""

import math
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtok import config, weights
from vqtok._version import __version__
from vqtok.codec import to_device
from vqtok.config import Recipe, TokenizerConfig
from vqtok.data import Batches, Dataset, read_whole, split_indices
from vqtok.networks.vae import VAE
from vqtok.networks.vqvae import to_float
from vqtok.train.context import RunContext
from vqtok.train.task import Step, Task, Validation
from vqtok.weights import Weights

NAME = "vae"
FILE = f"{NAME}.safetensors"


class VaeTask(Task):
    """Trains a VAE on whole images of one size, and validates it on images set aside."""

    name = NAME

    def __init__(self, recipe: Recipe, dataset: Dataset, run: RunContext) -> None:
        self.recipe, self.dataset, self.run = recipe, dataset, run
        torch.manual_seed(recipe.seed)
        self.vae = to_device(VAE(recipe.tokenizer), run.device)
        self.network = self.vae
        training, aside = split_indices(
            dataset, recipe.data.validation, recipe.data.validation_max, recipe.seed
        )
        data, channels = recipe.data, recipe.tokenizer.channels
        self._batches = Batches(
            dataset,
            training,
            recipe.tokenizer_training.batch,
            data.size,
            recipe.seed,
            data.flip,
            1.0,
            channels,
        )
        self._validation = torch.from_numpy(
            np.stack([read_whole(dataset, int(i), channels) for i in aside]).transpose(0, 3, 1, 2)
        )

    def on_start(self) -> None:
        pass

    def batches(self, start: int, stop: int) -> Generator[np.ndarray, None, None]:
        with closing(self._batches.prefetch(start, stop)) as batches:
            for images, _ in batches:
                yield images

    def _floats(self, images: np.ndarray | Tensor) -> Tensor:
        """Moves uint8 (B, C, H, W) to the device as float in [-1, 1]."""
        return to_float(torch.as_tensor(images).to(self.run.device)).contiguous(
            memory_format=torch.channels_last
        )

    def forward(self, batch: np.ndarray) -> Step:
        bound = self.vae(self._floats(batch))
        return Step(bound.loss, {"bits": bound.loss / math.log(2), "kl": bound.kl / math.log(2)})

    def validate(self) -> Validation:
        # the same latents' noise each time; a step draws from a seed of its own
        torch.manual_seed(self.recipe.seed)
        parts = self._validation.split(self.recipe.tokenizer_training.batch)
        bits = float(torch.cat([self.vae.bits(self._floats(some)) for some in parts]).mean())
        return Validation(bits, {"bits": bits})

    def release(self, record: dict[str, Any]) -> Weights:
        """Returns float16 tensors."""
        tensors = {
            name: value.detach().cpu().half().numpy()
            for name, value in self.network.state_dict().items()
        }
        record = {
            **record,
            "data": self.dataset.name,
            "pictures": len(self.dataset),
            "seed": self.recipe.seed,
            "version": __version__,
        }
        return Weights(
            tensors,
            {
                "format": 1,
                "kind": NAME,
                "config": self.recipe.to_dict()["tokenizer"],
                "record": record,
            },
        )


def load_vae(folder: Path, device: torch.device) -> VAE:
    """Loads the VAE of a run's folder, in float32. Raises FormatError, InputError."""
    path = folder / FILE
    stored = weights.load_weights(path, NAME)
    network = VAE(config.from_dict(TokenizerConfig, stored.meta["config"], str(path)))
    weights.check_tensors(
        stored.tensors,
        {name: tuple(value.shape) for name, value in network.state_dict().items()},
        str(path),
    )
    network.load_state_dict(
        {name: torch.from_numpy(value).float() for name, value in stored.tensors.items()}
    )
    return to_device(network.eval(), device)
