"""Training of the tokenizer: pictures in, encoder, codebook and decoder out."""

import math
import os
import shutil
from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtok import __version__, report
from vqtok.codec import place
from vqtok.config import Recipe
from vqtok.data import Batches, Dataset, whole
from vqtok.errors import TrainingError, UsageError
from vqtok.metrics import usage_perplexity
from vqtok.train.loop import Run, Step, Task, Validation
from vqtok.vqvae import VQVAE, to_float, to_uint8
from vqtok.weights import Weights, fingerprint

INITIAL_VECTORS = 20_000        # k-means on fewer leaves codes dead from the start (DESIGN.md, leads)
SHEET_PICTURES = 16


class TokenizerTask(Task):
    """A VQ-VAE, crops of the training pictures, and center crops of the validation pictures."""

    name = "tokenizer"

    def __init__(self, recipe: Recipe, dataset: Dataset, parts: tuple[np.ndarray, np.ndarray], run: Run, compiled: bool) -> None:
        self.recipe, self.dataset, self.run = recipe, dataset, run
        torch.manual_seed(recipe.seed)
        self.vqvae = place(VQVAE(recipe.tokenizer), run.device)
        self.network = self.vqvae
        self.codes = recipe.tokenizer.codebook_size
        data, stage = recipe.data, recipe.tokenizer_training
        self._batches = Batches(
            dataset, parts[0], stage.batch, data.size, recipe.seed, data.flip, data.min_scale, recipe.tokenizer.channels
        )
        crops = [center_crop(whole(dataset, int(i), recipe.tokenizer.channels), data.size) for i in parts[1]]
        self._validation = torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).copy())     # (V, C, size, size)
        self._call: Any = _compile(self.vqvae) if compiled else self.vqvae

    def prepare(self) -> None:
        quantizer = self.vqvae.quantizer
        if quantizer.needs_vectors():
            quantizer.initialize(self._vectors(max(INITIAL_VECTORS, 4 * self.codes)))

    @torch.no_grad()
    def _vectors(self, count: int) -> Tensor:
        """Encoder outputs (N, D) on training batches, N >= count."""
        parts, have, step = [], 0, 0
        while have < count:
            pictures, _ = self._batches.batch(step)
            z = self.vqvae.encoder(self._to_device(pictures))
            parts.append(z.permute(0, 2, 3, 1).flatten(0, 2))
            have, step = have + len(parts[-1]), step + 1
        return torch.cat(parts)

    def _to_device(self, pictures: np.ndarray | Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float in [-1, 1] on the device."""
        return to_float(torch.as_tensor(pictures).to(self.run.device)).contiguous(memory_format=torch.channels_last)

    def batches(self, start: int, stop: int) -> Generator[np.ndarray, None, None]:
        with closing(self._batches.prefetch(start, stop)) as batches:
            for pictures, _ in batches:
                yield pictures

    def forward(self, batch: np.ndarray) -> Step:
        pictures = self._to_device(batch)
        try:
            output = self._call(pictures)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().splitlines()[0]
            raise TrainingError(f"torch.compile fails here: {reason}", "leave --compile out") from None
        error = (output.reconstruction.detach() - pictures).square().mean() / 4       # of pixels in [0, 1]
        return Step(output.loss, {"mse": error}, output.indices)

    def after_step(self) -> dict[str, float]:
        return {"restarts": self.vqvae.quantizer.learn()}

    def summary(self, window: dict[str, float], counts: Tensor) -> tuple[dict[str, float], str]:
        usage, perplexity = usage_perplexity(counts.cpu().numpy())
        psnr = -10 * math.log10(max(window.get("mse", 0.0) / max(window.get("steps", 1), 1), 1e-12))
        figures = {"psnr": psnr, "usage": usage, "perplexity": perplexity}
        return figures, self._sentence(usage, perplexity, int(window.get("restarts", 0)))

    def _sentence(self, usage: float, perplexity: float, restarts: int) -> str:
        """How the codebook does and what was done about dead codes since the last validation."""
        used = round(usage * self.codes)
        text = f"{used} of {self.codes} codes are in use ({usage:.1%}), as if {perplexity:.0f} were used equally often"
        if restarts:
            return f"{text}; {restarts} times a dead code was moved onto a vector of the batch."
        return f"{text}; no code was restarted."

    def validate(self) -> Validation:
        losses, errors, shown = [], [], []
        for pictures in self._validation.split(self.recipe.tokenizer_training.batch):
            x = self._to_device(pictures)
            output = self.network(x)
            back = to_uint8(output.reconstruction)
            losses.append(float(output.loss) * len(x))
            difference = back.cpu().float() - pictures.float()
            errors.append(difference.square().mean((1, 2, 3)) / 255**2)      # (B,)
            if sum(map(len, shown)) < SHEET_PICTURES:
                shown.append(back.cpu())
        mse = torch.cat(errors)
        metrics = {
            "loss": sum(losses) / len(self._validation),
            "mse": float(mse.mean()),
            "psnr": float(-10 * mse.clamp(min=1e-12).log10().mean()),
        }
        return Validation(metrics["mse"], metrics, self._sheet(torch.cat(shown)))

    def _sheet(self, back: Tensor) -> np.ndarray:
        """Originals over reconstructions, uint8 (H, W, 3)."""
        columns = min(8, len(back))
        count = min(SHEET_PICTURES, len(back)) // columns * columns
        original = [p.permute(1, 2, 0).numpy() for p in self._validation[:count]]       # each (H, W, C)
        decoded = [p.permute(1, 2, 0).numpy() for p in back[:count]]
        order = [part[i : i + columns] for i in range(0, count, columns) for part in (original, decoded)]
        scale = max(1, 96 // self.recipe.data.size)
        return report.sheet([picture for row in order for picture in row], columns, scale=scale)

    def release(self, record: dict[str, Any]) -> Weights:
        """float16 tensors: half the download, and decoding rounds to 8 bits anyway."""
        state = self.vqvae.release_state().items()
        tensors = {name: value.detach().cpu().half().numpy() for name, value in state}
        record = {
            **record, "data": self.dataset.name, "pictures": len(self.dataset), "seed": self.recipe.seed, "version": __version__,
            "size": self.recipe.data.size, "fingerprint": fingerprint(tensors),
        }
        meta = {"format": 1, "kind": "tokenizer", "config": self.recipe.to_dict()["tokenizer"], "record": record}
        return Weights(tensors, meta)


def _compile(network: VQVAE) -> Any:
    """The compiled network. It is compiled at the first step, where a missing compiler would show as a page of traceback."""
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    if not any(map(shutil.which, compilers)):
        raise UsageError("--compile needs a C++ compiler, and there is none", "install g++ or clang++, or leave --compile out")
    return torch.compile(network)


def center_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle size x size of a picture (H, W, C); edges are repeated where it is smaller."""
    for axis in (0, 1):
        missing = size - picture.shape[axis]
        if missing > 0:
            widths = [(0, 0)] * 3
            widths[axis] = (missing // 2, missing - missing // 2)
            picture = np.pad(picture, widths, mode="edge")
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return picture[top : top + size, left : left + size]
