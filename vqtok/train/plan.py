"""Plans a run: sizes, costs and expected time, measured here before anything is written."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqtok import losses
from vqtok.codec import to_device
from vqtok.config import ENTROPY_CODES_MAX, Recipe
from vqtok.data import Dataset
from vqtok.networks.vqvae import VQVAE
from vqtok.priors import IntegerPrior, build_prior
from vqtok.threads import is_small, one_thread
from vqtok.train.runtime import keep_memory


def plan(
    recipe: Recipe,
    dataset: Dataset,
    stage: str,
    device: torch.device,
    perceptual: Path | None = None,
) -> dict[str, Any]:
    """Measures images, bits and multiply-adds per pixel, and for each stage the parameters, steps
    and expected seconds.

    `perceptual` is the file of that loss. The seconds are those of the steps;
    decoding images, validation and encoding for the prior come on top.
    """
    keep_memory()
    tokenizer = VQVAE(recipe.tokenizer)
    costs = multiply_adds_by_part(tokenizer)
    stages: dict[str, Any] = {}
    if stage in ("tokenizer", "all") and not recipe.tokenizer.is_pixels:
        batch, side = recipe.tokenizer_training.batch, recipe.data.size
        images = torch.rand(batch, recipe.tokenizer.channels, side, side) * 2 - 1
        criterion = losses.Criterion(recipe.losses, perceptual, side)
        seconds = _seconds(_Tokenizing(tokenizer, criterion), images, recipe.precision, device)
        stages["tokenizer"] = _stage(tokenizer, recipe.tokenizer_training.steps, batch, seconds)
    if stage in ("prior", "all"):
        prior, batch = (
            build_prior(recipe.prior.for_grid(*_window(recipe, dataset))),
            recipe.prior_training.batch,
        )
        indices = torch.randint(
            recipe.prior.codebook_size, (batch, recipe.prior.levels, *_window(recipe, dataset))
        )
        stages["prior"] = _stage(
            prior,
            recipe.prior_training.steps,
            batch,
            _prior_seconds(prior, indices, recipe, device),
        )
    if stage in ("entropy", "all") and recipe.tokenizer.codebook_size <= ENTROPY_CODES_MAX:
        entropy, batch = _Coding(recipe.entropy), recipe.entropy_training.batch
        indices = torch.randint(
            recipe.entropy.codebook_size, (batch, recipe.entropy.levels, *_window(recipe, dataset))
        )
        stages["entropy"] = _stage(
            entropy,
            recipe.entropy_training.steps,
            batch,
            _prior_seconds(entropy, indices, recipe, device),
        )
    bits = recipe.tokenizer.levels * math.log2(recipe.tokenizer.codebook_size)
    return {
        "pictures": len(dataset),
        "bpp": bits / recipe.tokenizer.downsample**2,
        "multiply_adds_per_pixel": sum(costs.values()),
        "stages": stages,
    }


def multiply_adds_by_part(network: VQVAE) -> dict[str, float]:
    """Counts the multiply-adds per image pixel of the convolutions that encode ("encoder") and
    decode ("decoder") an image.
    """
    side = 16 * network.config.downsample
    costs = {"encoder": 0.0, "decoder": 0.0}

    def count_for(part: str) -> Any:
        def count(layer: nn.Conv2d, _inputs: Any, output: Tensor) -> None:
            costs[part] += layer.weight.numel() * output.shape[2] * output.shape[3] / side**2

        return count

    parts = {"encoder": network.encoder, "decoder": network.decoder}
    hooks = [
        layer.register_forward_hook(count_for(part))
        for part, module in parts.items()
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            vectors = network.encoder(
                torch.zeros(
                    1, network.config.channels, side, side, device=next(network.parameters()).device
                )
            )
            network.decoder(vectors)
    finally:
        for hook in hooks:
            hook.remove()
    return costs


class _Tokenizing(nn.Module):
    """Runs training steps of a tokenizer with all its losses."""

    def __init__(self, tokenizer: VQVAE, criterion: losses.Criterion) -> None:
        super().__init__()
        self.tokenizer, self.criterion = tokenizer, criterion

    def loss(self, images: Tensor) -> Tensor:
        output = self.tokenizer(images)
        return output.loss + sum(self.criterion(output.reconstruction, images).values())


class _Coding(IntegerPrior):
    """Runs training steps of an integer prior."""

    def loss(self, indices: Tensor) -> Tensor:
        return self.bits(indices).mean()


def _window(recipe: Recipe, dataset: Dataset) -> tuple[int, int]:
    """Estimates rows and columns of the grids that the prior will learn, without a look at every
    image.
    """
    size = getattr(dataset, "size", (recipe.data.prior_size, recipe.data.prior_size))
    height, width = (
        max(
            1,
            min(
                recipe.data.prior_size // recipe.tokenizer.downsample,
                -(-n // recipe.tokenizer.downsample),
            ),
        )
        for n in size
    )
    return height, width


def _stage(network: nn.Module, steps: int, batch: int, seconds: float) -> dict[str, Any]:
    parameters = sum(p.numel() for p in network.parameters())
    return {
        "parameters": parameters,
        "steps": steps,
        "batch": batch,
        "seconds_per_step": seconds,
        "seconds": steps * seconds,
    }


def _prior_seconds(
    prior: nn.Module, indices: Tensor, recipe: Recipe, device: torch.device
) -> float:
    """Times a training step on indices (B, L, h, w), on as many threads as training takes."""
    places = indices[:, 0].numel()
    with one_thread(is_small(prior, places) and device.type == "cpu"):
        return _seconds(prior, indices, recipe.precision, device)


def _seconds(network: nn.Module, batch: Tensor, precision: str, device: torch.device) -> float:
    """Times a training step in seconds: the median of three after one to warm up."""
    network, batch, times = to_device(network, device), batch.to(device), []
    optimizer = torch.optim.AdamW(network.parameters(), fused=device.type in ("cpu", "cuda"))
    for _ in range(4):
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = network.loss(batch)  # type: ignore[operator]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[1]
