"""Trains the tokenizer: images in, encoder, codebook and decoder out."""

import math
import os
import shutil
import warnings
from collections.abc import Callable, Generator, Hashable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqtok import distributed, losses, plots
from vqtok._version import __version__
from vqtok.codec import load_tokenizer, to_device
from vqtok.config import LOSSES, Recipe
from vqtok.data import Batches, Dataset, read_whole
from vqtok.data.bank import BankBatches, load_bank
from vqtok.data.decoded_cache import cache_budget
from vqtok.errors import TrainingError, UsageError
from vqtok.losses.likelihood import PIXEL_VARIANCE
from vqtok.losses.ms_ssim import keep_bands
from vqtok.metrics import usage_perplexity
from vqtok.networks.vqvae import VQVAE, VQVAEOutput, to_float, to_uint8
from vqtok.quantizers.codebook import in_chunks
from vqtok.train.adversary import Adversary
from vqtok.train.context import RunContext
from vqtok.train.draws import draw
from vqtok.train.state import Learner
from vqtok.train.task import Step, Task, Validation
from vqtok.train.window import stacked
from vqtok.weights import Weights, codes_fingerprint, save_weights

INITIAL_VECTORS = 20_000  # k-means on fewer leaves codes dead from the start (DESIGN.md, leads)
SHEET_IMAGES = 16
BANK_SHARE = 4  # part of a GPU's free memory that the images may take: a fourth


class Batch(NamedTuple):
    """Holds what the host says about a step of the tokenizer."""

    step: int
    images: Tensor  # uint8 (B, C, size, size), or a plan of the bank, float64 (5, B)
    depths: Tensor | None  # as Draws
    rows: Tensor | None


class TokenizerTask(Task):
    """Trains a VQ-VAE on crops of the training images; validates on center crops of the validation
    images.
    """

    name = "tokenizer"

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        parts: tuple[np.ndarray, np.ndarray],
        run: RunContext,
        compiled: bool,
    ) -> None:
        self.recipe, self.dataset, self.run = recipe, dataset, run
        torch.manual_seed(recipe.seed)
        self.vqvae = to_device(VQVAE(recipe.tokenizer), run.device)
        self.network = self.vqvae
        self._learns_codes = not recipe.tokenizer_training.freeze_encoder
        if not self._learns_codes:
            self.vqvae.freeze_encoder()
            self.frozen = ("encoder.", "quantizer.")
        self.codes = recipe.tokenizer.codebook_size * recipe.tokenizer.levels
        self.criterion = to_device(
            losses.Criterion(recipe.losses, run.spec.perceptual_path, recipe.data.size), run.device
        )
        if recipe.losses.ms_ssim:
            keep_bands(recipe.data.size, run.device)
        if run.bf16:
            self.criterion.keep_cast(torch.bfloat16)
        self.adversary = Adversary(recipe, run) if recipe.losses.adversarial else None
        data, stage = recipe.data, recipe.tokenizer_training
        self._batches = Batches(
            dataset,
            parts[0],
            stage.batch,
            data.size,
            recipe.seed,
            data.flip,
            data.min_scale,
            recipe.tokenizer.channels,
            share=(distributed.rank(), distributed.world_size()),
            keep=cache_budget() // distributed.local_world_size(),
        )
        crops = [
            center_crop(read_whole(dataset, int(i), recipe.tokenizer.channels), data.size)
            for i in parts[1]
        ]
        # (V, C, size, size)
        self._validation = torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).copy())
        self._bank = self._load_bank(parts[0])
        self._rows: Tensor | None = None
        self._perceptual = True  # whether that distance is asked for in this step
        self._call: Any = (
            _compile(self._reconstruct, self.vqvae, run.device) if compiled else self._reconstruct
        )

    def _load_bank(self, indices: np.ndarray) -> BankBatches | None:
        """Loads the training images to the device, where they have room there."""
        limit = bank_limit(self.run.device)
        bank = (
            load_bank(self.dataset, indices, self.recipe.tokenizer.channels, self.run.device, limit)
            if limit
            else None
        )
        if bank is None:
            return None
        self.run.listener.note(
            f"{len(indices):,} images lie on the device, {bank.flat.numel() / 2**30:.2f} GiB."
        )
        return BankBatches(bank, self._batches)

    def learners(self) -> list[Learner]:
        return [self.adversary.learner] if self.adversary is not None else []

    def on_start(self) -> None:
        quantizer = self.vqvae.quantizer
        if self.run.spec.init:
            # it has no training state
            first = load_tokenizer(Path(self.run.spec.init))
            self.vqvae.load_state_dict(first.state_dict(), strict=False)
            if self._learns_codes:
                quantizer.adopt_codebook()
        if self._learns_codes and quantizer.needs_init():
            quantizer.initialize(self._vectors(max(INITIAL_VECTORS, 4 * quantizer.codebook_size)))

    @torch.no_grad()
    def _vectors(self, count: int) -> Tensor:
        """Encodes training batches to vectors (N, D), N >= count; the same in all processes."""
        parts, have, step = [], 0, 0
        while have < count:
            images, _ = self._batches.batch(step)
            z = self.vqvae.encoder(self._to_device(images))
            parts.append(
                distributed.gather_all_rows(
                    z.permute(0, 2, 3, 1).flatten(0, 2), z.shape[2] * z.shape[3]
                )
            )
            have, step = have + len(parts[-1]), step + 1
        return torch.cat(parts)

    def _to_device(self, images: np.ndarray | Tensor) -> Tensor:
        """Moves uint8 (B, C, H, W), or a plan of the bank, to the device as float in [-1, 1]."""
        given = torch.as_tensor(images).to(self.run.device)
        if given.dtype == torch.float64:
            assert self._bank is not None
            given = self._bank.crops(given)
        return to_float(given).contiguous(memory_format=torch.channels_last)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        stage, quantizer = self.recipe.tokenizer_training, self.vqvae.quantizer
        images = distributed.local_count(stage.batch)
        vectors = (self.recipe.data.size // self.recipe.tokenizer.downsample) ** 2
        with closing(self._shown(start, stop)) as shown:
            for step, arrays in enumerate(shown, start):
                drawn = draw(quantizer, self.run.seed, step, images, vectors)
                yield Batch(step, arrays, drawn.depths, drawn.rows)

    def _shown(self, start: int, stop: int) -> Generator[Tensor, None, None]:
        """Describes each step's images, for `Batch`."""
        if self._bank is not None:
            for step in range(start, stop):
                yield self._bank.plan(step)
            return
        with closing(self._batches.prefetch(start, stop)) as batches:
            for images, _ in batches:
                yield torch.from_numpy(images)

    def schedule(self, step: int) -> Hashable:
        self._perceptual = (
            step >= self.recipe.losses.perceptual_start * self.recipe.tokenizer_training.steps
        )
        if self.adversary is None:
            return self._perceptual
        self.adversary.schedule(step)
        return self._perceptual, self.adversary.active, self.adversary.learns

    def forward(self, batch: Batch) -> Step:
        self._rows = batch.rows
        images = self._to_device(batch.images)
        try:
            output, terms = self._call(images, batch.depths, self._perceptual)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().splitlines()[0]
            raise TrainingError(
                f"torch.compile fails here: {reason}", "leave --compile out"
            ) from None
        if self.adversary is not None:
            terms |= self.adversary.generator_terms(output.reconstruction, images)
        # of pixels in [0, 1]
        error = (output.reconstruction.detach() - images).square().mean() / 4
        return Step(
            output.loss + sum(terms.values()),
            {"mse": error, **terms},
            self._numbered(output.indices),
        )

    def _reconstruct(
        self, images: Tensor, depths: Tensor | None, perceptual: bool
    ) -> tuple[VQVAEOutput, dict[str, Tensor]]:
        """Computes the network's output and the criterion's terms: all that is compiled."""
        output = self.vqvae(images, depths)
        return output, self.criterion(
            output.reconstruction, images, shared=True, perceptual=perceptual
        )

    def _numbered(self, indices: Tensor) -> Tensor:
        """Numbers indices (B, L, h, w) so that levels differ: level l's come after all K of the
        level before.
        """
        K, L = self.recipe.tokenizer.codebook_size, self.recipe.tokenizer.levels
        return indices + K * torch.arange(L, device=indices.device)[:, None, None]

    def auxiliary_step(self) -> dict[str, Tensor]:
        return self.adversary.compute_gradients() if self.adversary is not None else {}

    def after_step(self, ok: Tensor | None = None) -> dict[str, Tensor]:
        figures = self.adversary.update(ok) if self.adversary is not None else {}
        if self._learns_codes:
            figures |= {"restarts": self.vqvae.quantizer.update_codebook(self._rows, ok)}
        return figures

    def window_summary(
        self, window: dict[str, float], counts: Tensor
    ) -> tuple[dict[str, float], str]:
        by_level = counts.cpu().numpy().reshape(self.recipe.tokenizer.levels, -1)  # (L, K)
        usage, perplexity = min(usage_perplexity(level) for level in by_level)
        psnr = -10 * math.log10(max(window.get("mse", 0.0) / max(window.get("steps", 1), 1), 1e-12))
        figures = {"psnr": psnr, "usage": usage, "perplexity": perplexity}
        return figures, self._sentence(usage, perplexity, int(window.get("restarts", 0)))

    def _sentence(self, usage: float, perplexity: float, restarts: int) -> str:
        """Says how the codebook with the fewest codes in use does, and what was done about dead
        codes.
        """
        K, L = self.recipe.tokenizer.codebook_size, self.recipe.tokenizer.levels
        where = f" of the level that uses the fewest, of {L}," if L > 1 else ""
        used = round(usage * K)
        text = (
            f"{used} of {K} codes{where} are in use ({usage:.1%}), "
            f"as if {perplexity:.0f} were used equally often"
        )
        if restarts:
            return f"{text}; {restarts} times a dead code was moved onto a vector of the batch."
        return f"{text}; no code was restarted."

    def validate(self) -> Validation:
        sums: dict[str, float] = {}
        shown: list[Tensor] = []
        for images in self._validation.split(self.recipe.tokenizer_training.batch):
            x = self._to_device(images)
            output = self.network(x)
            figures = {"loss": output.loss}
            for depth in self._depths():
                back = (
                    output.reconstruction
                    if depth == output.indices.shape[1]
                    else self.vqvae.decode(output.indices[:, :depth])
                )
                suffix = "" if depth == output.indices.shape[1] else f"_{depth}"
                figures |= {
                    f"{name}{suffix}": value
                    for name, value in self._measure(images, x, back).items()
                }
            # one wait for the device
            for name, value in zip(figures, stacked(figures.values()).tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value * len(x)
            if sum(map(len, shown)) < SHEET_IMAGES:
                shown.append(to_uint8(output.reconstruction).cpu())
        metrics = {name: value / len(self._validation) for name, value in sums.items()}
        # The score knows nothing of what the adversary wants:
        # by it, the weights from just before that would stay for ever.
        asked = self.adversary is not None and self.adversary.active
        return Validation(self._score(metrics), metrics, self._sheet(torch.cat(shown)), keep=asked)

    def _depths(self) -> list[int]:
        """Returns the numbers of levels that validation looks at: 1, 2, 4, ..., and all."""
        L = self.recipe.tokenizer.levels
        return [2**i for i in range(L.bit_length()) if 2**i < L] + [L]

    def _measure(self, images: Tensor, x: Tensor, back: Tensor) -> dict[str, Tensor]:
        """Computes figures of reconstructions, means over the batch: x are the images, uint8 (B, C,
        H, W), as floats.
        """
        difference = to_uint8(back).float() - images.to(back.device).float()
        mse = difference.square().mean((1, 2, 3)) / 255**2  # (B,)
        return {
            "mse": mse.mean(),
            "psnr": -10 * mse.clamp(min=1e-12).log10().mean(),
            **self.criterion(back, x),
        }

    def _score(self, metrics: dict[str, float]) -> float:
        """Computes what the best weights minimize: the mean over the depths of the error and the
        criterion's terms.
        """
        wanted = ("mse", *LOSSES)
        parts = [
            value / PIXEL_VARIANCE if name.startswith("mse") else value
            for name, value in metrics.items()
            if name.startswith(wanted)
        ]
        return sum(parts) / len(self._depths())

    def _sheet(self, back: Tensor) -> np.ndarray:
        """Originals over reconstructions, uint8 (H, W, 3)."""
        columns = min(8, len(back))
        count = min(SHEET_IMAGES, len(back)) // columns * columns
        original = [p.permute(1, 2, 0).numpy() for p in self._validation[:count]]  # each (H, W, C)
        decoded = [p.permute(1, 2, 0).numpy() for p in back[:count]]
        order = [
            part[i : i + columns] for i in range(0, count, columns) for part in (original, decoded)
        ]
        scale = max(1, 96 // self.recipe.data.size)
        return plots.sheet([image for row in order for image in row], columns, scale=scale)

    def release(self, record: dict[str, Any]) -> Weights:
        """Returns the weights file in float16: half the download, and decoding rounds to 8 bits
        anyway.
        """
        state = self.vqvae.release_state().items()
        tensors = {name: value.detach().cpu().half().numpy() for name, value in state}
        record = {
            **record,
            "data": self.dataset.name,
            "pictures": len(self.dataset),
            "seed": self.recipe.seed,
            "version": __version__,
            "size": self.recipe.data.size,
            **({} if self.dataset.range is None else {"range": list(self.dataset.range)}),
        }
        meta = {
            "format": 1,
            "kind": "tokenizer",
            "config": self.recipe.to_dict()["tokenizer"],
            "record": record,
            **({"codes": self.run.spec.codes} if self.run.spec.codes else {}),
        }
        record["fingerprint"] = codes_fingerprint(Weights(tensors, meta))
        return Weights(tensors, meta)


def write_pixel_tokenizer(
    recipe: Recipe, dataset: Dataset, parts: tuple[np.ndarray, np.ndarray], run: RunContext
) -> None:
    """Writes the tokenizer file of a quantizer that has nothing to learn, where it is not there
    yet; the first process does.
    """
    path = run.folder / "tokenizer.safetensors"
    if not distributed.is_main_process() or path.exists():
        return
    task = TokenizerTask(recipe, dataset, parts, run, compiled=False)
    task.network.eval()
    with torch.no_grad():
        metrics = task.validate().metrics
    save_weights(path, task.release({"step": 0, "seconds": 0.0, "metrics": metrics}), force=True)
    run.listener.note("The tokenizer is the identity: nothing is learned, and its file is written.")


def bank_limit(device: torch.device) -> int:
    """Returns the bytes of the device that training images may take; 0 where the host cuts the
    crops, as a CPU does beside its steps.
    """
    return torch.cuda.mem_get_info(device)[0] // BANK_SHARE if device.type == "cuda" else 0


def _compile(call: Callable[..., Any], network: VQVAE, device: torch.device) -> Any:
    """Compiles the call at the first step, where a missing compiler would show as a page of
    traceback.

    On a GPU as one graph. On a CPU without the quantizer:
    its search has nothing to fuse, and a compiler would take NumPy's quick argmax out of it.
    """
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    if not any(map(shutil.which, compilers)):
        raise UsageError(
            "--compile needs a C++ compiler, and there is none",
            "install g++ or clang++, or leave --compile out",
        )
    whole = not in_chunks(device) and distributed.world_size() == 1
    if not whole:
        network.quantizer.forward = torch.compiler.disable(  # type: ignore[method-assign]
            network.quantizer.forward
        )
        # The decoder gets what the quantizer gives:
        # torch 2.13 looks at its gradient before compiling, and warns itself that it does.
        warnings.filterwarnings(
            "ignore", "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed"
        )
    return torch.compile(call, fullgraph=whole)


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Cuts the middle size x size of an image (H, W, C); edges are repeated where it is smaller."""
    for axis in (0, 1):
        missing = size - image.shape[axis]
        if missing > 0:
            widths = [(0, 0)] * 3
            widths[axis] = (missing // 2, missing - missing // 2)
            image = np.pad(image, widths, mode="edge")
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]
