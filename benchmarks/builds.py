"""Quantizers of two checkouts in one process, forward and backward, and those of the package
vector-quantize-pytorch where it is installed.

    git worktree add ../before COMMIT
    python benchmarks/builds.py ../before [--rounds 25] [--threads 1] [--vectors 65536]
        [--shapes ema,8,1024 fsq,64,1000]

All take turns. Beside wall time it gives the process's CPU time, which says more where other work
shares the machine.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from timing import Call, machine, table


class Checkout:
    """The modules of one checkout; inside `with`, they are those that imports find."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.modules = str(folder.resolve()), dict[str, Any]()

    def __enter__(self) -> Any:
        for name in list(filter(_ours, sys.modules)):
            del sys.modules[name]
        sys.modules.update(self.modules)
        sys.path.insert(0, self.folder)
        import quantizers

        import vqtok

        assert str(vqtok.__file__).startswith(self.folder)
        return quantizers

    def __exit__(self, *_: object) -> None:
        self.modules = {name: module for name, module in sys.modules.items() if _ours(name)}
        sys.path.remove(self.folder)


def _ours(name: str) -> bool:
    return name.partition(".")[0] in ("vqtok", "quantizers")


def measure(calls: dict[str, Call], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each call in each round; one more warms up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter(), time.process_time()
            call()
            if turn:
                ends = time.perf_counter(), time.process_time()
                taken[name].append((ends[0] - begin[0], ends[1] - begin[1]))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vectors", type=int, default=65536)
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=["vq,8,1024", "vq,64,1024", "residual,8,1024", "fsq,8,1000", "fsq,64,1000"],
        help="kind,D,K",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    builds = {"before": Checkout(options.before), "now": Checkout(Path(__file__).parent.parent)}
    rows = []
    for kind, D, K in (shape.split(",") for shape in options.shapes):
        calls: dict[str, Call] = {}
        package: Call | None = None
        for name, build in builds.items():
            with build as quantizers:
                quantizers.keep_memory()
                torch.manual_seed(0)
                calls[name] = quantizers.ours(kind, int(K), int(D), options.vectors)
                package = quantizers.package(kind, int(K), int(D), options.vectors)
        if package is not None:
            calls["package"] = package
        found = measure(calls, options.rounds)
        for name, taken in found.items():
            wall, cpu = zip(*taken, strict=True)
            pairs = [a[1] / b[1] for a, b in zip(taken, found["now"], strict=True)]
            figures = (min(wall), min(cpu), statistics.median(cpu))
            shown = [f"{value * 1e3:.1f}" for value in figures]
            rows.append([f"{kind}, {D}, {K}: {name}", *shown, f"{statistics.median(pairs):.2f}"])
            print(" ".join(rows[-1]), flush=True)
    print(f"\n{options.vectors} vectors, {options.rounds} rounds; {machine()}\n")
    head = [
        "",
        "wall, ms, least",
        "CPU, ms, least",
        "CPU, ms, median",
        "CPU / now, median of pairs",
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
