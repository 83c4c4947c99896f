"""Sampling from cached activations against the naive sampler, which runs the whole network for every position.

    python benchmarks/sampling.py [--model cifar10] [-n 1] [--grid 8x8] [--rounds 5]

Prints milliseconds per position of both and their ratio: the median of `rounds` alternating runs in one process. The naive sampler
is shown on the first positions only and scaled, because it takes minutes. Both draw the same indices; the script checks it.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from vqtok import load
from vqtok.priors import PixelCNN, sample
from vqtok.priors.sampling import choose


@torch.inference_mode()
def naive(prior: PixelCNN, n: int, h: int, w: int, labels: Tensor | None, positions: int) -> Tensor:
    """Greedy indices (n, 1, h, w) of the first positions, by a full forward for each."""
    indices = torch.zeros(n, 1, h, w, dtype=torch.int64)
    for p in range(positions):
        logits = prior(indices, labels)[:, 0, p // w, p % w]
        indices[:, 0, p // w, p % w] = choose(logits, torch.zeros(n, dtype=torch.float64), temperature=0)
    return indices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("-n", type=int, default=1)
    parser.add_argument("--grid", default="8x8", help="columns x rows")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    w, h = map(int, options.grid.split("x"))
    prior = load(options.model, "cpu").prior
    labels = torch.arange(options.n) % len(prior.config.labels) if prior.config.labels else None
    positions = min(h * w, 64)
    cached = full = torch.empty(0)
    fast, slow = [], []
    for _ in range(options.rounds):
        begin = time.perf_counter()
        cached = sample(prior, options.n, h, w, labels=labels, temperature=0)
        fast.append((time.perf_counter() - begin) / (h * w))
        begin = time.perf_counter()
        full = naive(prior, options.n, h, w, labels, positions)
        slow.append((time.perf_counter() - begin) / positions)
    same = bool((cached.flatten(2)[..., :positions] == full.flatten(2)[..., :positions]).all())
    a, b = statistics.median(fast), statistics.median(slow)
    print(f"{options.model}, {options.n} grids of {w}x{h}, {torch.get_num_threads()} threads, equal indices: {same}")
    print(f"cached {a * 1e3:.2f} ms a position, naive {b * 1e3:.2f} ms: {b / a:.1f} times as fast")


if __name__ == "__main__":
    main()
