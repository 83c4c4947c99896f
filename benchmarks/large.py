"""Peak memory and time of `vqtok encode` and `vqtok decode` on one very large image.

    python benchmarks/large.py [--megapixels 100] [--model MODEL] [--preset photo] [--suffix .png]

Without --model the network of the preset is used with random weights: memory does not depend on
what they are. Each command runs in a process of its own, and what is printed is that process's peak
resident memory, as the system counted it.
"""

import argparse
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vqtok import codes, images


def make_image(path: Path, side: int) -> None:
    """Waves, edges and grain, so that neither side of the codec has it too easy."""
    draw = np.random.default_rng(0)
    columns = np.arange(side, dtype=np.float32)
    pixels = np.empty((side, side, 3), np.uint8)
    for row in range(side):
        waves = (
            np.sin(columns * 0.01 + row * 0.003) * 60
            + np.sign(np.sin(columns * 0.05 - row * 0.02)) * 30
        )
        pixels[row] = (
            waves[:, None] + draw.normal(127, 6, 3) + draw.integers(-8, 8, (side, 3))
        ).clip(0, 255)
    images.write_image(path, pixels)


def make_model(folder: Path, preset: str) -> None:
    """A model folder with the preset's tokenizer as it is before training."""
    import torch

    from vqtok import weights
    from vqtok.config import PRESETS
    from vqtok.networks.vqvae import VQVAE

    torch.manual_seed(0)
    config = PRESETS[preset].tokenizer
    tensors = {
        name: value.detach().half().numpy() for name, value in VQVAE(config).release_state().items()
    }
    weights.save_weights(
        folder / "tokenizer.safetensors",
        weights.Weights(tensors, {"kind": "tokenizer", "config": asdict(config), "record": {}}),
    )


def measure(*words: str) -> tuple[float, float]:
    """Runs a vqtok command; its seconds and its peak resident memory in GB (10^9 bytes)."""
    begin = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "vqtok", *words])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(child.returncode)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return time.perf_counter() - begin, usage.ru_maxrss * unit / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--model")
    parser.add_argument("--preset", default="photo")
    parser.add_argument("--suffix", default=".png", help="of both image files")
    options = parser.parse_args()
    side = math.isqrt(round(options.megapixels * 1e6))
    with tempfile.TemporaryDirectory() as folder:
        image, packed, decoded = (
            Path(folder, f"large{options.suffix}"),
            Path(folder, "large.npz"),
            Path(folder, f"back{options.suffix}"),
        )
        # In a process of its own: a child's peak is never below what its parent
        # held when it was started.
        maker = multiprocessing.get_context("spawn").Process(target=make_image, args=(image, side))
        maker.start()
        maker.join()
        model = options.model or str(Path(folder, "random"))
        if options.model is None:
            builder = multiprocessing.get_context("spawn").Process(
                target=make_model, args=(Path(model), options.preset)
            )
            builder.start()
            builder.join()
        print(
            f"{side}x{side}, {image.stat().st_size / 1e6:.0f} MB {options.suffix}, "
            f"model {options.model or options.preset}",
            flush=True,
        )
        for name, words in (
            ("encode", ["encode", str(image), "-o", str(packed), "--model", model, "-q"]),
            ("decode", ["decode", str(packed), "-o", str(decoded), "--model", model, "-q"]),
        ):
            seconds, peak = measure(*words)
            print(
                f"{name}: peak {peak:.2f} GB, {seconds:.0f} s, "
                f"{side * side / seconds / 1e6:.2f} megapixels/s",
                flush=True,
            )
        found = codes.read_codes_meta(packed)
        print(f"codes {'x'.join(map(str, found['shape']))}, {packed.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
