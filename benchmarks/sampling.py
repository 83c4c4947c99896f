"""Sampling from cached activations against the naive sampler, which runs the whole network for
every position, and against the floor.

    python benchmarks/sampling.py [--grids 8x8,32x32] [--widths 64] [--batches 1,16] [--rounds 5]
    python benchmarks/sampling.py --models cifar10,photo

A gated PixelCNN of 15 layers, kernel 3, K = 512 and random weights, or bundled models at their own
grid; one thread. Prints a Markdown table: microseconds a token, sampled and naive, and their
ratio; the rate of a large matrix product in the same run, what the operations of a token would
take at that rate (the floor), and how far the sampler is from it; and what is left of a token's
time when there is nothing to compute (the same layers with 4 channels and K = 2): calls and
Python. Medians of alternating turns. The naive sampler draws at positions spread evenly, 2 to 12
of them, and is scaled: each of its steps is a forward pass of the whole grid. Exits 1 if it would
draw another index at one of them.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from timing import alternate, machine, seconds, table
from torch import Tensor

from vqtok import load
from vqtok.config import PriorConfig
from vqtok.priors import PixelCNN
from vqtok.sampling import sample_grids
from vqtok.sampling.categorical import sample_categorical

SIZE = 1024  # of the product that gives the machine's rate


@torch.inference_mode()
def naive(
    prior: PixelCNN, indices: Tensor, labels: Tensor | None, positions: list[tuple[int, int, int]]
) -> Tensor:
    """Greedy indices (positions, n) of some (level, row, column), by a full forward for each;
    indices (n, L, h, w) hold the rest.
    """
    drawn = []
    for level, i, j in positions:
        logits = prior(indices, labels)[:, level, i, j]
        drawn.append(
            sample_categorical(logits, torch.zeros(len(logits), dtype=torch.float64), temperature=0)
        )
    return torch.stack(drawn)


def spread(levels: int, h: int, w: int, count: int) -> list[tuple[int, int, int]]:
    """Positions spread evenly over the grid, at most `count`."""
    cells = levels * h * w
    places = sorted({(2 * p + 1) * cells // (2 * count) for p in range(count)})
    return [(p // (h * w), p // w % h, p % w) for p in places]


def operations(prior: PixelCNN) -> int:
    """Multiplications and additions that one token of level 0 needs:
    each convolution and matrix once, without the context.
    """
    weights = sum(layer_weights(layer) for layer in prior.layers)
    readout = prior.readout[0]
    assert isinstance(readout, torch.nn.Linear)
    return 2 * (weights + prior.head.weight.numel() + readout.weight.numel())


def layer_weights(layer: torch.nn.Module) -> int:
    return sum(
        part.weight.numel() for part in layer.children() if isinstance(part, torch.nn.Conv2d)
    )


def labels_of(prior: PixelCNN, n: int) -> Tensor | None:
    return torch.arange(n) % len(prior.config.labels) if prior.config.labels else None


def places_for(prior: PixelCNN, n: int, h: int, w: int) -> list[tuple[int, int, int]]:
    """As many positions of the naive sampler as take some 2 seconds a turn."""
    indices, L = torch.zeros(n, prior.config.levels, h, w, dtype=torch.int64), prior.config.levels
    taken = seconds(lambda: naive(prior, indices, labels_of(prior, n), [(0, 0, 0)]))
    return spread(L, h, w, min(12, max(2, int(2 / taken))))


def measure(prior: PixelCNN, n: int, h: int, w: int, rounds: int) -> tuple[list[str], bool]:
    """A row of the table without its first column, and whether both draw the same."""
    labels, places = labels_of(prior, n), places_for(prior, n, h, w)
    greedy = sample_grids(prior, n, (h, w), labels=labels, temperature=0)
    expected = torch.stack([greedy[:, level, i, j] for level, i, j in places])
    empty = PixelCNN(replace(prior.config, width=4, codebook_size=2)).eval()
    a, b, out = torch.randn(3, SIZE, SIZE)
    taken = alternate(
        {
            "sampled": lambda: sample_grids(prior, n, (h, w), labels=labels),
            "calls": lambda: sample_grids(empty, 1, (h, w)),
            "naive": lambda: naive(prior, greedy, labels, places),
            "product": lambda: torch.mm(a, b, out=out),
        },
        rounds,
    )
    tokens, rate = n * prior.config.levels * h * w, 2 * SIZE**3 / taken["product"]
    sampled, full, floor = (
        taken["sampled"] / tokens,
        taken["naive"] / len(places) / n,
        operations(prior) / rate,
    )
    figures = [
        f"{w}x{h}",
        str(n),
        f"{sampled * 1e6:.1f}",
        f"{full * 1e6:,.0f}",
        f"{full / sampled:,.0f}x",
    ]
    figures += [
        f"{rate / 1e9:.0f}",
        f"{floor * 1e6:.1f}",
        f"{sampled / floor:.1f}x",
        f"{taken['calls'] / tokens * 1e6:.1f}",
    ]
    return figures, torch.equal(naive(prior, greedy, labels, places), expected)


def untrained(width: int) -> PixelCNN:
    torch.manual_seed(0)
    return PixelCNN(PriorConfig(512, width=width, layers=15, kernel=3)).eval()


def contestants(options: argparse.Namespace) -> Iterator[tuple[str, PixelCNN, int, int]]:
    """Name, prior, and rows and columns of its grid."""
    for name in filter(None, options.models.split(",")):
        model = load(name, "cpu")
        f, prior = model.config.downsample, model.prior
        assert isinstance(prior, PixelCNN), "the naive loop here is a PixelCNN's"
        yield name, prior, model.native_size[0] // f, model.native_size[1] // f
    if not options.models:
        for width in map(int, options.widths.split(",")):
            for grid in options.grids.split(","):
                w, h = map(int, grid.split("x"))
                yield f"{width} channels", untrained(width), h, w


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="", help="bundled models, in place of random weights")
    parser.add_argument(
        "--grids",
        default="8x8,32x32",
        help="columns x rows; the full table has 8x8,16x16,32x32,24x40",
    )
    parser.add_argument("--widths", default="64", help="channels; the full table has 64,128")
    parser.add_argument(
        "--batches", default="1,16", help="grids at a time; the full table has 1,16,64"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, equal = [], []
    for name, prior, h, w in contestants(options):
        for n in map(int, options.batches.split(",")):
            figures, same = measure(prior, n, h, w, options.rounds)
            rows.append([name, *figures])
            equal.append(same)
    print(machine())
    head = [
        "prior",
        "grid",
        "batch",
        "us a token",
        "naive, us",
        "ratio",
        "GFLOP/s",
        "floor, us",
        "to the floor",
        "calls, us",
    ]
    print(table(head, rows))
    if not all(equal):
        sys.exit("the naive sampler draws other indices")


if __name__ == "__main__":
    main()
