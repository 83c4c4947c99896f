"""Forward and backward of every quantizer against other writings of the same, and against the
matrix product that none can do without.

    python benchmarks/quantizers.py [--rounds 5] [--threads 1] [--vectors 65536]
        [--shapes 8,1024 8,8192 64,1024 256,8192]

One step is: quantize N vectors, pass a gradient back straight through, add the terms of the loss,
and move the averages where there are some. `cdist` takes all distances, `one-hot` multiplies a
matrix of ones and zeros with the codebook, as the first published writings do; `package` is
vector-quantize-pytorch, where it is installed (pip install vector-quantize-pytorch). The floor is
the product of vectors and codebook alone, in chunks that stay in cache. Memory is what torch holds
at the most besides the vectors, the codebook and the gradient given.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timing import Call, alternate, machine, peak, seconds, table
from torch import Tensor

from vqtok import quantizers
from vqtok.config import TokenizerConfig
from vqtok.quantizers.finite import fsq_levels
from vqtok.train.runtime import keep_memory

FLOOR_ROWS = 512
LARGEST = 2**33  # bytes of the largest matrix that a peer may ask for
SLOW = 2**28  # scores above which the package and the one-hot form are timed once
LEVELS = 4
COLUMNS = ("ours", "package", "cdist", "one-hot")


def cdist(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    indices = torch.cdist(z, codebook).argmin(1)
    return _finish(z, codebook[indices])


def one_hot(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    distances = z.square().sum(1, keepdim=True) - 2 * z @ codebook.T + codebook.square().sum(1)
    indices = distances.argmin(1)
    chosen = F.one_hot(indices, len(codebook)).to(z.dtype) @ codebook
    return _finish(z, chosen)


def _finish(z: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.mse_loss(chosen.detach(), z) * 0.25 + F.mse_loss(chosen, z.detach())
    return z + (chosen - z).detach(), loss


def ours(kind: str, K: int, D: int, N: int) -> Call:
    """One step of our quantizer; the vectors are a channels-last grid,
    as the encoder gives them.
    """
    levels = LEVELS if kind == "residual" else 1
    config = TokenizerConfig(
        quantizer="ema" if kind == "residual" else kind,
        codebook_size=K,
        code_dim=D,
        normalize=False,
        levels=levels,
    )
    network = quantizers.build_quantizer(config).train()
    network.initialize(torch.randn(max(20_000, K), D))
    z = torch.randn(1, 1, N, D).permute(0, 3, 1, 2).requires_grad_()  # (1, D, 1, N)
    gradient = torch.randn(1, 1, N, D).permute(0, 3, 1, 2)

    def step() -> None:
        output = network(z)
        torch.autograd.backward(
            [output.vectors, output.loss] if output.loss.requires_grad else [output.vectors],
            [gradient, torch.ones(())] if output.loss.requires_grad else [gradient],
        )
        network.update_codebook()
        z.grad = None
        network.zero_grad(set_to_none=True)

    return step


def plain(write: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], K: int, D: int, N: int) -> Call:
    z, codebook, gradient = (
        torch.randn(N, D, requires_grad=True),
        torch.randn(K, D, requires_grad=True),
        torch.randn(N, D),
    )

    def step() -> None:
        vectors, loss = write(z, codebook)
        torch.autograd.backward([vectors, loss], [gradient, torch.ones(())])
        z.grad = codebook.grad = None

    return step


def package(kind: str, K: int, D: int, N: int) -> Call | None:
    """One step of the package's module of that kind; None where it is not installed or has none."""
    try:
        import vector_quantize_pytorch as package  # type: ignore[import-not-found]
    except ImportError:
        return None
    made: Any
    if kind == "ema":
        made = package.VectorQuantize(dim=D, codebook_size=K, rotation_trick=False)
    elif kind == "vq":
        made = package.VectorQuantize(
            dim=D, codebook_size=K, rotation_trick=False, learnable_codebook=True, ema_update=False
        )
    elif kind == "simvq":
        made = package.SimVQ(dim=D, codebook_size=K, rotation_trick=False)
    elif kind == "fsq":
        made = package.FSQ(levels=list(fsq_levels(K)), dim=D)
    elif kind == "lfq":
        made = package.LFQ(dim=D, codebook_size=K)
    else:
        made = package.ResidualVQ(
            dim=D, codebook_size=K, num_quantizers=LEVELS, rotation_trick=False
        )
    made.train()
    z, gradient = torch.randn(1, N, D, requires_grad=True), torch.randn(1, N, D)

    def step() -> None:
        vectors, _, *rest = made(z)
        outputs = [(vectors, gradient)] + [
            (loss.sum(), torch.ones(())) for loss in rest[:1] if loss.requires_grad
        ]
        torch.autograd.backward([output for output, _ in outputs], [given for _, given in outputs])
        z.grad = None
        made.zero_grad(set_to_none=True)

    return step


def floor(K: int, D: int, N: int) -> Call:
    x, weights, out = torch.randn(FLOOR_ROWS, D), torch.randn(D, K), torch.empty(FLOOR_ROWS, K)
    return lambda: [torch.mm(x, weights, out=out) for _ in range(N // FLOOR_ROWS)]


def sized(kind: str, D: int, K: int) -> int | None:
    """The number of codes nearest to K that the kind can have in D dimensions;
    None where it can have none.
    """
    if kind == "fsq":
        size = {1024: 1000, 8192: 8000}.get(K, K)  # what 3 to 8 values multiply to
        return size if len(fsq_levels(size)) <= D else None
    return None if kind == "lfq" and K.bit_length() - 1 > D else K


def measure(kind: str, D: int, K: int, N: int, rounds: int) -> list[str]:
    """A row of the table."""
    calls: dict[str, Call | None] = {"ours": ours(kind, K, D, N), "package": package(kind, K, D, N)}
    if kind in ("ema", "vq") and 8 * N * K < LARGEST:
        calls |= {"cdist": plain(cdist, K, D, N), "one-hot": plain(one_hot, K, D, N)}
    there = {name: call for name, call in calls.items() if call}
    searches = kind not in ("fsq", "lfq")
    quick = {
        name: call for name, call in there.items() if name in ("ours", "cdist") or N * K < SLOW
    }
    times = alternate(quick | {"floor": floor(K, D, N)}, rounds)
    # a minute each: once is enough
    times |= {name: seconds(call) for name, call in there.items() if name not in quick}
    cells = [
        f"{times[name] * 1e3:.0f} ({peak(there[name]) / 2**20:.0f})" if name in there else ""
        for name in COLUMNS
    ]
    peers = [taken for name, taken in times.items() if name not in ("ours", "floor")]
    least = times["floor"] * (LEVELS if kind == "residual" else 1)
    ratio = f"{min(peers) / times['ours']:.1f}" if peers else ""
    return [
        f"{kind}, {D}, {K}",
        *cells,
        ratio,
        *([f"{least * 1e3:.0f}", f"{times['ours'] / least:.2f}"] if searches else ["", ""]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vectors", type=int, default=65536)
    parser.add_argument(
        "--shapes", nargs="+", default=["8,1024", "8,8192", "64,1024", "256,8192"], help="D,K"
    )
    parser.add_argument(
        "--kinds", nargs="+", default=["ema", "vq", "simvq", "fsq", "lfq", "residual"]
    )
    options = parser.parse_args()
    keep_memory()  # as `vqtok train` does; it helps all contestants
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"{options.vectors} vectors, ms a step (MiB at the most), "
        f"medians of {options.rounds} in turn; {machine()}\n"
    )
    rows = []
    for D, K in (map(int, shape.split(",")) for shape in options.shapes):
        for kind in options.kinds:
            size = sized(kind, D, K)
            if size is not None:
                rows.append(measure(kind, D, size, options.vectors, options.rounds))
                print(" ".join(rows[-1]), flush=True)
    peers = ["package", "cdist", "one-hot", "fastest peer / vqtok"]
    print("\n" + table(["kind, D, K", "vqtok", *peers, "floor", "vqtok / floor"], rows))


if __name__ == "__main__":
    main()
