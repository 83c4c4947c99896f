"""Gives the first levels of a finished integer prior matrices of their own, and trains it on.

    python benchmarks/integer_prior.py RUN -o entropy.safetensors --kinds 4 --minutes 60

RUN is the folder of `vqtok train --stage entropy`, with its states: the weights before rounding,
and the index grids. The matrices start as copies, so that nothing changes at first. With --state
FILE the weights before rounding are written there, and the next run goes on from them. The learning
rate falls from its peak to 0 over the minutes, however many steps fit. Levels are trained one after
the other by a compiled function, in bfloat16: .55 s a step of 16,000 indices on one core of an
AMD EPYC (Zen 4), where `vqtok train` takes .85.
"""

import argparse
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok import config, weights
from vqtok._version import __version__
from vqtok.config import EntropyConfig
from vqtok.data.batches import split_indices
from vqtok.integer_prior import largest_sum
from vqtok.integer_prior.arithmetic import (
    ACTIVATION_LIMIT,
    ACTIVATION_STEP,
    EMBEDDING_STEP,
    READ_STEP,
    STREAM_LIMIT,
    WEIGHT_LIMIT,
    weight_step,
)
from vqtok.integer_prior.neighborhood import AROUND, CAUSAL, REACH
from vqtok.priors import IntegerPrior
from vqtok.priors.integer import IntegerBlock, grid_round

SIDE, BATCH, ROWS = 20, 5, 512  # of a window, windows, rows of logits at a time
SUM_LIMIT = 15.9e6  # of the first layer: below 2^24 with room for biases


def load_run(run: Path, kinds: int) -> tuple[IntegerPrior, dict[str, Any]]:
    """Loads the weights before rounding, with `kinds` copies of each shared matrix."""
    meta = weights.read_meta(run / "entropy.safetensors", "entropy")
    settings = replace(config.from_dict(EntropyConfig, meta["config"], str(run)), kinds=kinds)
    network = IntegerPrior(settings)
    stored = weights.load_weights(run / "entropy.state.safetensors", "state").tensors
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(stored[f"network.{name}"]))  # copies spread over kinds
    return network, meta["record"]


def go_on_from(state: Path, network: IntegerPrior, record: dict[str, Any]) -> None:
    """Takes the weights and the record that an earlier run wrote with --state."""
    stored = weights.load_weights(state, "state")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(stored.tensors[name]))
    record.update(stored.meta["record"])


def load_grids(run: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Loads grids to train on, mirrored ones too, and the 64 that `vqtok train` sets aside."""
    stored = weights.load_weights(run / "indices.state.safetensors", "state").tensors
    ends = stored["shapes"].astype(np.int64).prod(1).cumsum()
    parts = np.split(stored["indices"], ends[:-1])
    grids = [part.reshape(shape) for part, shape in zip(parts, stored["shapes"], strict=True)]
    training, held_out = split_indices(grids[::2], 1.0, 64, 0)
    both = [2 * i + mirrored for mirrored in (0, 1) for i in training]
    return [grids[i] for i in both], [grids[2 * i] for i in held_out]


def windows(grids: list[np.ndarray], draw: np.random.Generator) -> Tensor:
    """Cuts a window at a random place of each grid: (n, L, SIDE, SIDE)."""
    cut = []
    for grid in grids:
        top, left = (draw.integers(0, side - SIDE + 1) for side in grid.shape[1:])
        cut.append(grid[:, top : top + SIDE, left : left + SIDE])
    return torch.from_numpy(np.stack(cut).astype(np.int64))


def _rounded(weight: Tensor) -> Tensor:
    step = weight_step(weight.shape[1])
    return grid_round(weight, step, -WEIGHT_LIMIT, WEIGHT_LIMIT).bfloat16()


def _active(x: Tensor) -> Tensor:
    return grid_round(x, ACTIVATION_STEP, 0, ACTIVATION_LIMIT).bfloat16()


def features(seen: Tensor, below: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Computes the features (n, R) of all places of one level from padded sums (B, ..., E)."""
    h, w = below.shape[1] - 2, below.shape[2] - 2
    parts = [seen[:, REACH + i : REACH + i + h, REACH + j : REACH + j + w] for i, j in CAUSAL]
    parts += [below[:, 1 + i : 1 + i + h, 1 + j : 1 + j + w] for i, j in AROUND]
    x = torch.cat(parts, -1).flatten(0, 2)

    def multiply(x: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
        return (x @ _rounded(layer[0]).t()).float() + layer[1]

    def limit(x: Tensor) -> Tensor:
        return grid_round(x, ACTIVATION_STEP, -STREAM_LIMIT, STREAM_LIMIT)

    x = limit(multiply(x, layers[0]))
    for rise, fall in zip(layers[1:-1:2], layers[2:-1:2], strict=True):
        x = limit(x + multiply(_active(multiply(_active(x), rise)), fall))
    read = multiply(_active(x), layers[-1])
    return grid_round(read, READ_STEP, -WEIGHT_LIMIT, WEIGHT_LIMIT).bfloat16()


class ReadLoss(torch.autograd.Function):
    """Sums the nats of all rows; makes the gradients on the way, while logits are in cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros(())
        to_x, to_weight = torch.empty_like(x), torch.zeros(weight.shape)
        to_bias = torch.zeros_like(bias)
        for start in range(0, len(x), ROWS):
            rows, wanted = x[start : start + ROWS], target[start : start + ROWS, None]
            z = ((rows @ weight.t()).float() + bias) * math.log(2)
            z -= z.max(1, keepdim=True).values
            picked = z.gather(1, wanted)
            each = z.exp_().sum(1, keepdim=True)
            total += (each.log() - picked).sum()
            z /= each
            z.scatter_add_(1, wanted, torch.full(wanted.shape, -1.0))
            to_bias += z.sum(0)
            to_x[start : start + ROWS] = z.bfloat16() @ weight
            to_weight += (z.bfloat16().t() @ rows).float()
        ctx.save_for_backward(to_x, to_weight, to_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0] * math.log(2)
        to_x, to_weight, to_bias = ctx.saved_tensors
        return to_x * scale.bfloat16(), (to_weight * scale).bfloat16(), to_bias * scale, None


def train_on(network: IntegerPrior, indices: Tensor, look: Any) -> np.ndarray:
    """Adds the gradients of the mean nats of indices (B, L, h, w); returns bits an index of each
    level.
    """
    B, L, h, w = indices.shape
    table = grid_round(network.embedding, EMBEDDING_STEP, -WEIGHT_LIMIT, WEIGHT_LIMIT)
    sums = [torch.zeros(B, h, w, table.shape[-1])]
    for level in range(L):
        sums.append(sums[-1] + F.embedding(indices[:, level], table[level]))
    padded = [F.pad(each.bfloat16(), (0, 0, REACH, REACH, REACH, 1)) for each in sums]
    leaves = [each.detach().requires_grad_() for each in padded]
    found, inside = [], slice(REACH - 1, 1 - REACH)
    shared = [network.first]
    for block in network.blocks:
        assert isinstance(block, IntegerBlock)
        shared += [block.rise, block.fall]
    for level in range(L):
        number = min(level, len(network.first.weight) - 1)
        layers = [(part.weight[number], part.bias[level]) for part in shared]
        layers.append((network.features.weight[level], network.features.bias[level]))
        read = look(leaves[level + 1], leaves[level][:, REACH - 1 :, inside], layers)
        weight, bias = _rounded(network.readout.weight[level]), network.readout.bias[level]
        loss = ReadLoss.apply(read, weight, bias, indices[:, level].flatten()) / (B * h * w)
        (loss / L).backward()
        found.append(float(loss.detach()) / math.log(2))
    torch.autograd.backward(padded[1:], [leaf.grad for leaf in leaves[1:]])
    return np.array(found)


@torch.no_grad()
def keep_sums(network: IntegerPrior) -> None:
    """Scales rows of the first layer whose sums could come too near to 2^24."""
    table = network.integers()["embedding"].astype(np.float64)
    largest = torch.from_numpy(np.abs(table).max(1).sum(0))
    weight = network.first.weight * 2**network.first.step
    sums = (weight.abs() * largest.repeat(weight.shape[-1] // len(largest))).sum(-1)
    network.first.weight.mul_((SUM_LIMIT / sums).clamp(max=1)[..., None])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--kinds", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--state", type=Path, help="weights before rounding, to go on from")
    parser.add_argument("--seed", type=int, default=5, help="of the windows that are drawn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    network, record = load_run(given.run, given.kinds)
    if given.state is not None and given.state.exists():
        go_on_from(given.state, network, record)
    training, held_out = load_grids(given.run)
    draw = np.random.default_rng(1)
    validation = [windows(held_out[i : i + 8], draw) for i in range(0, 64, 8)]
    optimizer = torch.optim.AdamW(
        [
            {"params": [network.first.weight], "weight_decay": 0.05},
            {"params": [p for p in network.parameters() if p is not network.first.weight]},
        ],
        given.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    look, draw, step = torch.compile(features, dynamic=False), np.random.default_rng(5), 0
    begin, seconds = time.time(), 60 * given.minutes
    while (done := (time.time() - begin) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = given.learning_rate * min(1, (step + 1) / 30) * (1 - done)
        chosen = [training[i] for i in draw.integers(0, len(training), BATCH)]
        optimizer.zero_grad()
        bits = train_on(network, windows(chosen, draw), look)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            keep_sums(network)
            print(f"step {step}, {done:.1%}: {bits.mean():.4f} bits an index", flush=True)
    keep_sums(network)
    with torch.no_grad():
        bits = float(np.mean([float(network.bits(part).mean()) for part in validation]))
    tensors = network.integers()
    record |= {"step": record["step"] + step, "seconds": record["seconds"] + time.time() - begin}
    record |= {
        "metrics": {"bits": bits},
        "version": __version__,
        "largest_sum": largest_sum(tensors),
    }
    meta = {"format": 1, "kind": "entropy", "config": asdict(network.config), "record": record}
    weights.save_weights(given.output, weights.Weights(tensors, meta))
    if given.state is not None:
        state = {name: p.detach().numpy() for name, p in network.named_parameters()}
        weights.save_weights(given.state, weights.Weights(state, {**meta, "kind": "state"}))
    print(f"{step} steps: {bits:.4f} bits an index on images that were set aside")


if __name__ == "__main__":
    main()
