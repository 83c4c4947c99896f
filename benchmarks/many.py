"""Whole commands over many files, of two checkouts in turn.

    python benchmarks/many.py ../before --model FOLDER [--photos 100] [--rounds 3] [--only encode]

`encode`, `encode --compact`, `decode` and `decode` of compact files, 768x512, each a process of its
own with all threads: seconds, and seconds of the processor. The checkout before and this one take
turns; medians, and the smallest and largest ratio of a turn. FOLDER is a model that both can read.
Everything is written to a temporary folder.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from commands import machine
from PIL import Image

from vqtok import model_registry

HERE = Path(__file__).resolve().parents[1]
COMMANDS = {
    "encode": "encode photos -o {}/codes",
    "encode --compact": "encode photos --compact -o {}/compact",
    "decode": "decode codes -o {}/images",
    "decode, compact": "decode compact -o {}/images",
}


def prepare(folder: Path, photos: int) -> None:
    """Writes a folder of PNGs that all differ."""
    with Image.open(model_registry.bundled_models() / "photo" / "example.jpg") as example:
        image = example.convert("RGB").resize((768, 512), Image.Resampling.LANCZOS)
    (folder / "photos").mkdir()
    for i in range(photos):
        moved = image.transform(image.size, Image.Transform.AFFINE, (1, 0, i, 0, 1, i))
        moved.save(folder / "photos" / f"{i:03}.png")


def run(checkout: Path, words: str, model: str, folder: Path) -> tuple[float, float]:
    """Runs a command by the code of a checkout; returns its seconds, and the processor's."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "vqtok", *words.split(), "-m", model, "-f", "-q"],
        cwd=folder,
        env=environment,
        check=True,
    )
    taken, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="a checkout of another build")
    parser.add_argument("--model", required=True)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    options = parser.parse_args()
    builds = {"before": options.before.resolve(), "now": HERE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.photos)
        model = str(Path(options.model).resolve())
        for words in ("encode photos -o codes", "encode photos --compact -o compact"):
            run(builds["before"], words, model, folder)
        print(machine())
        print(f"| {options.photos} photos | before, s | now, s | before / now | CPU: before, now |")
        print("|---|---:|---:|---:|---:|")
        for command in options.only:
            found = [
                [
                    run(checkout, COMMANDS[command].format(build), model, folder)
                    for build, checkout in builds.items()
                ]
                for _ in range(options.rounds)
            ]
            ratios = [before[0] / now[0] for before, now in found]
            medians = [
                statistics.median(turn[build][figure] for turn in found)
                for figure in (0, 1)
                for build in (0, 1)
            ]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(
                f"| `{command}` | {medians[0]:.1f} | {medians[1]:.1f} | {spread} "
                f"| {medians[2]:.1f}, {medians[3]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
