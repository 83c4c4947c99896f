"""Whole commands, from the start of their process to its end, beside a bare `import torch`:
seconds, and peak memory.

    python benchmarks/commands.py [--rounds 9] [--photos 100] [--only encode decode]

Each command runs as a process of its own, all of them in turn, so that what else the machine does
hits all alike; medians. The image is made of the photo model's example, 768x512. Everything is
written to a temporary folder.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from vqtok import model_registry

BARE = [sys.executable, "-c", "import torch"]
VQTOK = [sys.executable, "-m", "vqtok"]
COMMANDS = {
    "--help": "--help",
    "info photo.npz": "info photo.npz",
    "truncate photo.npz": "truncate photo.npz --levels 2 -f",
    "encode photo.png": "encode photo.png -f",
    "encode photo.jpg": "encode photo.jpg -o jpg.npz -f",
    "encode --compact": "encode photo.png --compact -o coded.npz -f",
    "decode photo.npz": "decode photo.npz -f",
    "decode photo.compact.npz": "decode photo.compact.npz -f",
    "pack photo.npz": "pack photo.npz -f",
    "sample -m cifar10": "sample -m cifar10 -o sample.png -f",
}


def measure(words: list[str], folder: Path) -> tuple[float, int]:
    """Seconds from start to end of a process, and the most bytes that it held in memory (RSS)."""
    begin = time.perf_counter()
    with open(folder / "messages", "wb") as messages:
        child = subprocess.Popen(words, cwd=folder, stdout=messages, stderr=messages)
        _, status, usage = os.wait4(child.pid, 0)
    taken = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)}: {(folder / 'messages').read_text()}")
    return taken, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def alternate(
    commands: dict[str, list[str]], folder: Path, rounds: int
) -> dict[str, tuple[float, int]]:
    """Median seconds and memory of each; one round more warms up the disk's cache."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, words in commands.items():
            result = measure(words, folder)
            if turn:
                found[name].append(result)
    medians = {
        name: [statistics.median(figures) for figures in zip(*results, strict=True)]
        for name, results in found.items()
    }
    return {name: (taken, round(held)) for name, (taken, held) in medians.items()}


def prepare(folder: Path, photos: int) -> None:
    """photo.png, photo.jpg, the codes of both forms, and a folder of images that all differ."""
    with Image.open(model_registry.bundled_models() / "photo" / "example.jpg") as example:
        image = example.convert("RGB").resize((768, 512), Image.Resampling.LANCZOS)
    image.save(folder / "photo.png")
    image.save(folder / "photo.jpg", quality=90)
    (folder / "many").mkdir()
    for i in range(photos):
        image.transform(image.size, Image.Transform.AFFINE, (1, 0, i, 0, 1, i)).save(
            folder / "many" / f"{i:03}.jpg", quality=90
        )
    for words in ("encode photo.png", "pack photo.npz"):
        subprocess.run([*VQTOK, *words.split()], cwd=folder, check=True, capture_output=True)


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    name = names[0] if names else platform.processor()
    return (
        f"{name}, {os.cpu_count()} cores, torch {version('torch')}, "
        f"Python {platform.python_version()}"
    )


def table(found: dict[str, tuple[float, int]]) -> str:
    seconds, memory = found["import torch"]
    lines = [
        "| command | seconds | of import torch | peak memory, MB | of import torch |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (taken, held) in found.items():
        lines.append(
            f"| `{name}` | {taken:.2f} | {taken / seconds:.2f} | {held / 1e6:.0f} "
            f"| {held / memory:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--photos", type=int, default=100, help="in the folder that one call encodes"
    )
    parser.add_argument("--only", nargs="+", default=[], help="parts of the commands' names")
    options = parser.parse_args()
    wanted = {
        name: words
        for name, words in COMMANDS.items()
        if not options.only or any(part in name for part in options.only)
    }
    if options.photos and (not options.only or "many" in options.only):
        wanted[f"encode many/ ({options.photos} photos)"] = "encode many -f"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.photos)
        print(machine())
        commands = {"import torch": BARE} | {
            name: [*VQTOK, *words.split()] for name, words in wanted.items()
        }
        print(table(alternate(commands, folder, options.rounds)))


if __name__ == "__main__":
    main()
