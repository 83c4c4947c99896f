"""The first minute on a GPU: where the time of a tokenizer's step goes, and what each piece of the
path for GPUs is worth.

    python benchmarks/gpu.py PHOTOS --perceptual LPIPS_VGG.safetensors [--size 256] [--batch 64]
    python benchmarks/gpu.py PHOTOS --size 32 --batch 4 --steps 2 --images 48 --only before free

Every contestant trains the photo preset from the same weights on the same crops: `before`, as on a
CPU, with images cut by threads of the host, matrices of Muon one by one, and a look at each step's
figures; `one batch`, the same on one batch again and again, so that no thread takes its lock;
`free`, with images on the device and no looks; `compiled`, with network and losses compiled;
`graph`, free and captured; `compiled graph`, both: that is what `vqtok train --compile` does on a
GPU. Of each it prints ms a step, images a second, MFU (counted FLOPs over the rate of a large
product in bfloat16, measured first), busy (seconds in which kernels ran, of a second), launches and
waits a step, and how long its first steps took, which compile and capture.

On a CPU, which the second line is for, launches are operations that torch dispatched, waits are
those that take a number to the host; `graph` needs a GPU.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from timing import machine, table
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vqtok.config import PRESETS, Recipe
from vqtok.data import Dataset, open_data
from vqtok.data.bank import Bank, load_bank
from vqtok.quantizers import codebook
from vqtok.train import RunSpec, adversary, loop, muon, runtime, tokenizer

CONTESTANTS = ("before", "one batch", "free", "compiled", "graph", "compiled graph")
WARM = 5  # steps before the clock starts: a graph is captured at the fourth
LOOKS = ("_local_scalar_dense", "nonzero", "is_nonzero", "bincount", "masked_select")
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


@dataclass(frozen=True)
class Row:
    """What a contestant's steps took."""

    name: str
    seconds: float  # a step
    busy: float | None
    launches: int | None  # None where they cannot be counted: compiled, on a CPU
    waits: int | None
    first: float  # seconds of the first steps
    loss: float
    dearest: list[str]  # kernels


class Counter(TorchDispatchMode):
    """Counts the operations of a CPU, and those among them that take a number to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.looks = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self.looks += func.overloadpacket.__name__ in LOOKS
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, nargs="+", help="a folder or tar shards")
    parser.add_argument(
        "--perceptual", type=Path, help="LPIPS weights; without them that distance is left out"
    )
    parser.add_argument(
        "--part", type=float, default=0.5, help="of each batch that it is measured on"
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--images", type=int, default=4096, help="how many of the photos to use at most"
    )
    parser.add_argument("--width", type=int, help="of the network's finest stage")
    parser.add_argument("--adversarial", action="store_true", help="with the discriminator")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    options = parser.parse_args()
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s  {text}", flush=True)

    peak = ceilings(say)
    recipe, data = recipe_of(options), open_data(options.photos)
    indices = np.arange(min(len(data), options.images))
    begin = time.perf_counter()
    bank = load_bank(data, indices, recipe.tokenizer.channels, DEVICE, 2**40)
    assert bank is not None
    taken = time.perf_counter() - begin
    say(
        f"{len(indices):,} images read and on the device in {taken:.1f} s: "
        f"{bank.flat.numel() / 2**30:.2f} GiB"
    )
    rows, flops = [], 0.0
    with TemporaryDirectory() as folder:
        for name in options.only:
            if "graph" in name and not CUDA:
                say(f"{name}: needs a GPU")
                continue
            contest = Contest(name, recipe, data, bank, Path(folder), options.perceptual)
            flops = flops or contest.flops()
            row = contest.run(options.steps)
            rows.append(row)
            rate = options.batch / row.seconds
            say(
                f"{name}: {1e3 * row.seconds:.2f} ms a step, {rate:.0f} images/s, "
                f"loss {row.loss:.4f}"
            )
            for kernel in row.dearest:
                say(f"        {kernel}")
    print(f"\n{machine()}; {torch.cuda.get_device_name() if CUDA else 'no GPU'}")
    print(
        f"{options.batch} crops of {options.size}x{options.size}, "
        f"{flops / options.batch / 1e9:.1f} GFLOP an image\n"
    )
    print(
        table(
            ["", "ms a step", "images/s", "times", "MFU", "busy", "launches", "waits", "first, s"],
            [cells(row, rows[0], options.batch, flops / peak) for row in rows],
        )
    )


def recipe_of(options: argparse.Namespace) -> Recipe:
    recipe = PRESETS["photo"]
    losses = replace(
        recipe.losses,
        perceptual=3.0 if options.perceptual else 0.0,
        perceptual_part=options.part,
        adversarial=0.1 * options.adversarial,
        adversarial_start=0.0,
    )
    return replace(
        recipe,
        losses=losses,
        data=replace(recipe.data, size=options.size),
        tokenizer=replace(recipe.tokenizer, width=options.width or recipe.tokenizer.width),
        tokenizer_training=replace(recipe.tokenizer_training, batch=options.batch, steps=10**6),
    )


def cells(row: Row, first: Row, batch: int, at_peak: float) -> list[str]:
    """`at_peak`: seconds of a step that did nothing but its products, at the rate measured."""
    busy = "" if row.busy is None else f"{row.busy:.0%}"
    times = f"{first.seconds / row.seconds:.2f}"
    numbers = [
        f"{1e3 * row.seconds:.2f}",
        f"{batch / row.seconds:,.0f}",
        times,
        f"{at_peak / row.seconds:.1%}",
        busy,
    ]
    return [row.name, *numbers, _count(row.launches), _count(row.waits), f"{row.first:.1f}"]


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def ceilings(say: Callable[[str], None]) -> float:
    """FLOP/s of a large product in bfloat16; says what else bounds a step."""
    side = 8192 if CUDA else 1024
    x = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16)
    peak = 2 * side**3 / timed(lambda: x @ x, 10)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    text = f"bfloat16 products {peak / 1e12:.2f} TFLOP/s, {memory:.0f} GiB of memory shown, "
    text += f"{os.cpu_count()} cores"
    if CUDA:
        flat = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
        other, small = torch.empty_like(flat), torch.zeros(4, device=DEVICE)
        copy = 2 * flat.numel() / timed(lambda: other.copy_(flat), 5)
        begin = time.perf_counter()
        for _ in range(5000):
            small.add_(1)
        launch = (time.perf_counter() - begin) / 5000
        wait()
        text += f", copies {copy / 1e12:.2f} TB/s, {1e6 * launch:.1f} us a launch"
    say(text)
    return peak


def timed(call: Callable[[], object], count: int) -> float:
    """Seconds of a call."""
    call()
    wait()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - begin) / count


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


@contextmanager
def way(name: str, bank: Bank) -> Iterator[None]:
    """Inside, trainers are built and run as a contestant's name says."""
    free = name not in ("before", "one batch")
    old = torch.backends.cudnn.benchmark
    names = {
        "sync_free": (loop, muon, adversary, runtime),
        "in_chunks": (codebook, tokenizer),
        "load_bank": (tokenizer,),
        "bank_limit": (tokenizer,),
    }
    modules = [(module, name) for name, some in names.items() for module in some]
    kept = [(module, name, getattr(module, name)) for module, name in modules]
    try:
        for module, function, _ in kept:
            setattr(
                module,
                function,
                {
                    "sync_free": lambda device: free,
                    "in_chunks": lambda device: not free,
                    "load_bank": lambda *given: bank,
                    "bank_limit": lambda device: 2**40 if free else 0,
                }[function],
            )
        torch.backends.cudnn.benchmark = CUDA and free
        yield
    finally:
        for module, function, value in kept:
            setattr(module, function, value)
        torch.backends.cudnn.benchmark = old


class Contest:
    """One contestant's trainer and batches."""

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        data: Dataset,
        bank: Bank,
        folder: Path,
        perceptual: Path | None,
    ) -> None:
        self.name, self.bank = name, bank
        spec = RunSpec(
            replace(recipe, precision="bf16"), perceptual=str(perceptual or ""), folder=folder
        )
        run = loop.RunContext(spec, DEVICE)
        parts = np.arange(len(bank.host_sizes)), np.arange(2)
        with way(name, bank):
            self.task = tokenizer.TokenizerTask(
                recipe, data, parts, run, compiled="compiled" in name
            )
            self.trainer = loop._Trainer(self.task, recipe.tokenizer_training, run)
            if "graph" not in name:
                self.trainer.graph = None
            torch.manual_seed(0)
            self.task.on_start()
            self.task.network.train()

    def flops(self) -> float:
        """Of a step: network and losses, forward and backward; without the discriminator."""
        with way(self.name, self.bank):
            batch = next(self.task.batches(0, 1))
            images = self.task._to_device(batch.images)
            with FlopCounterMode(display=False) as counter:
                output, terms = self.task._reconstruct(images, batch.depths, True)
                (output.loss + sum(terms.values())).backward()
        self.task.network.zero_grad(set_to_none=True)
        return float(counter.get_total_flops())

    def run(self, steps: int) -> Row:
        with way(self.name, self.bank):
            batches = self.task.batches(0, 10**6)
            fixed = next(batches)

            def step() -> None:
                self.trainer._step(fixed if self.name == "one batch" else next(batches))

            begin = time.perf_counter()
            for _ in range(WARM):
                step()
            wait()
            first = time.perf_counter() - begin
            seconds = timed(step, steps)
            waits, operations = self.looked(step)
            busy, launches, dearest = self.profiled(step) if CUDA else (None, operations, [])
            self.trainer._look()
            batches.close()
        window = self.trainer.progress.window
        return Row(
            self.name,
            seconds,
            busy,
            launches,
            waits,
            first,
            window["loss"] / window["steps"],
            dearest,
        )

    def looked(self, step: Callable[[], None]) -> tuple[int | None, int | None]:
        """Waits of one step, and on a CPU its operations."""
        if not CUDA and "compiled" in self.name:
            return None, None
        if not CUDA:
            with Counter() as counter:
                step()
            return counter.looks, counter.operations
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            step()
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught), None

    def profiled(self, step: Callable[[], None], count: int = 3) -> tuple[float, int, list[str]]:
        """Share of the time in which kernels ran, launches a step, and the dearest kernels."""
        wait()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
            begin = time.perf_counter()
            for _ in range(count):
                step()
            wait()
            whole = time.perf_counter() - begin
        kernels: list[Any] = [
            event for event in profiled.key_averages() if event.device_type.name == "CUDA"
        ]
        kernels.sort(key=lambda event: -event.self_device_time_total)
        told = [
            f"{event.self_device_time_total / count / 1e3:6.2f} ms {event.count // count:4} x "
            f"{event.key[:80]}"
            for event in kernels[:5]
        ]
        seconds = sum(event.self_device_time_total for event in kernels) / 1e6
        return seconds / whole, sum(event.count for event in kernels) // count, told


if __name__ == "__main__":
    main()
