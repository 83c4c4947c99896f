"""Long runs do not rot: thousands of steps on photographs in fp32 and bf16.

Steps that were not finite, the loss, and whether memory grows.

    python benchmarks/long.py TAR... [--steps 3000] [--precision fp32 bf16] # the photo preset
        at a quarter of its width

A run's resident memory is read after every step; its slope is that of the line of least squares
through the second half of the run: the first half fills caches, and what leaks goes on leaking.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import machine, table

from vqtok import train as training
from vqtok.config import PRESETS, Recipe
from vqtok.data import open_data
from vqtok.train import run as train_run
from vqtok.train.runtime import keep_memory

PAGE = os.sysconf("SC_PAGE_SIZE")
# The photo preset's shapes (f 16, 8 levels, level dropout, MS-SSIM, Muon, EMA of the weights) in a
# hundredth of its arithmetic.
SMALL: dict[str, Any] = {
    "tokenizer": {"width": 16, "encoder_blocks": 1, "decoder_blocks": 1, "codebook_size": 256},
    "data": {"size": 64, "validation_max": 32},
    "tokenizer_training": {"batch": 4, "validate_every": 250},
}


class Watch:
    """A listener that reads the resident memory after every step."""

    def __init__(self, steps: int) -> None:
        # made at once: a list would grow by 100 bytes a step
        self.resident, self.began = np.zeros(steps), time.monotonic()

    def status(self, status: training.Status) -> None:
        self.resident[status.step - 1] = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    def validated(self, stage: str, line: dict[str, Any], sentence: str) -> None:
        print(
            f"{time.monotonic() - self.began:6.0f} s  step {line['step']}: PSNR "
            f"{line['val_psnr']:.2f} dB. {sentence}",
            flush=True,
        )

    def note(self, text: str) -> None:
        print(text, flush=True)

    def slope(self) -> float:
        """Bytes a step, over the second half of the run."""
        later = self.resident[len(self.resident) // 2 :]
        return float(np.polyfit(np.arange(len(later)), later, 1)[0])


def run(recipe: Recipe, tars: list[Path], folder: Path) -> list[str]:
    dataset = open_data(tars)
    recipe = train_run.fit_to_data(recipe, dataset)
    watch = Watch(recipe.tokenizer_training.steps)
    spec = training.RunSpec(recipe, "", len(dataset), folder=folder, stage="tokenizer")
    training.create_run(folder, spec, "tokenizer", force=False)
    assert training.train(training.RunContext(spec, torch.device("cpu"), listener=watch), dataset)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    return [
        recipe.precision,
        f"{last['step']:,}",
        f"{sum(line['skipped'] for line in lines)}",
        f"{first['loss']:.3f}",
        f"{last['loss']:.3f}",
        f"{last['val_psnr']:.2f}",
        *(
            f"{watch.resident[len(watch.resident) * part // 4 - 1] / 2**20:.1f}"
            for part in range(1, 5)
        ),
        f"{watch.slope():.0f}",
        f"{last['seconds']:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    asked = parser.parse_args()
    keep_memory()
    print(machine() + "\n", flush=True)
    recipe, rows = PRESETS["photo"].override(SMALL), []
    recipe = replace(
        recipe, tokenizer_training=replace(recipe.tokenizer_training, steps=asked.steps)
    )
    for precision in asked.precision:
        with tempfile.TemporaryDirectory() as name:
            rows.append(run(replace(recipe, precision=precision), asked.tars, Path(name)))
    head = ["precision", "steps", "skipped", "loss at first", "at last", "PSNR"]
    head += ["MiB after 1/4", "2/4", "3/4", "4/4", "bytes a step", "seconds"]
    print("\n" + table(head, rows))


if __name__ == "__main__":
    main()
