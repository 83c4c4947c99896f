"""What a run would be: sizes, costs and expected time, measured here before anything is written."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from vqtok.codec import place
from vqtok.config import Recipe
from vqtok.data import Dataset
from vqtok.priors import PixelCNN
from vqtok.vqvae import VQVAE


def plan(recipe: Recipe, dataset: Dataset, stage: str, device: torch.device) -> dict[str, Any]:
    """Pictures, bits and multiply-adds per pixel; and of each stage the parameters, steps, and seconds that it will take."""
    tokenizer = VQVAE(recipe.tokenizer)
    side = recipe.data.size
    stages: dict[str, Any] = {}
    if stage != "prior":
        batch = recipe.tokenizer_training.batch
        pictures = torch.rand(batch, recipe.tokenizer.channels, side, side) * 2 - 1
        seconds = _seconds(tokenizer, pictures, recipe.precision, device)
        stages["tokenizer"] = _stage(tokenizer, recipe.tokenizer_training.steps, batch, seconds)
    if stage != "tokenizer":
        prior, batch = PixelCNN(recipe.prior), recipe.prior_training.batch
        grid = max(1, recipe.data.prior_size // recipe.tokenizer.downsample)
        indices = torch.randint(recipe.prior.codebook_size, (batch, recipe.prior.levels, grid, grid))
        stages["prior"] = _stage(prior, recipe.prior_training.steps, batch, _seconds(prior, indices, recipe.precision, device))
    bits = recipe.tokenizer.levels * math.log2(recipe.tokenizer.codebook_size)
    return {
        "pictures": len(dataset),
        "bpp": bits / recipe.tokenizer.downsample**2,
        "multiply_adds_per_pixel": multiply_adds(VQVAE(recipe.tokenizer)),
        "stages": stages,
    }


def multiply_adds(network: VQVAE) -> float:
    """Multiply-adds per picture pixel of all convolutions that encode and decode a picture."""
    side, total = 16 * network.config.downsample, 0.0

    def count(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d)
        total += layer.weight.numel() * output.shape[2] * output.shape[3] / side**2

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        network.eval()(torch.zeros(1, network.config.channels, side, side))
    for hook in hooks:
        hook.remove()
    return total


def _stage(network: nn.Module, steps: int, batch: int, seconds: float) -> dict[str, Any]:
    parameters = sum(p.numel() for p in network.parameters())
    return {"parameters": parameters, "steps": steps, "batch": batch, "seconds_per_step": seconds, "seconds": steps * seconds}


def _seconds(network: nn.Module, batch: Tensor, precision: str, device: torch.device) -> float:
    """Seconds of a training step, the median of three after one to warm up."""
    network, batch, times = place(network, device), batch.to(device), []
    for _ in range(4):
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = network(batch).loss if isinstance(network, VQVAE) else network.loss(batch)      # type: ignore[operator]
        loss.backward()
        float(loss.detach())
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[1]
