"""How commands start: whole processes beside a bare `import torch`, what their imports cost, and
what onnxruntime gives in torch's place.

    python benchmarks/start.py [--rounds 9] [--size 768x512] [--only encode decode]
    python benchmarks/start.py --imports "encode photo.png -f"
    python benchmarks/start.py --differ [IMAGE ...]

Each command runs as a process of its own, all in turn; medians of seconds and of processor time
(user and system), which other work on the machine disturbs less. --imports sums by package what
`-X importtime` says, the least of five runs. --differ counts the indices that the two runtimes give
differently, and gray levels between their images, for each bundled model: of the images given, else
of 40 made ones. Needs the package onnxruntime.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from onnx_files import picture
from PIL import Image
from timing import machine, table

from vqtok import codec, images, model_registry

VQTOK = [sys.executable, "-m", "vqtok"]
COMMANDS = {
    "encode photo.png": "encode photo.png -f",
    "encode --compact": "encode photo.png --compact -o coded.npz -f",
    "decode photo.npz": "decode photo.npz -f",
    "decode compact.npz": "decode compact.npz -f",
}
PACKAGES = 16  # of --imports, those that cost the most


def environment(runtime: str) -> dict[str, str]:
    """Modules are compiled once and kept, as a user has them."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "VQTOK_RUNTIME": runtime}


def measure(words: list[str], folder: Path, runtime: str) -> tuple[float, float, int]:
    """Seconds, processor seconds and peak bytes of a process."""
    begin = time.perf_counter()
    with open(folder / "messages", "wb") as said:
        child = subprocess.Popen(
            words, cwd=folder, stdout=said, stderr=said, env=environment(runtime)
        )
        _, status, usage = os.wait4(child.pid, 0)
    taken = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)}: {(folder / 'messages').read_text()}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return taken, usage.ru_utime + usage.ru_stime, peak


def processes(folder: Path, rounds: int, only: list[str]) -> str:
    """A table of whole processes, each over a bare import of torch."""
    runs = {"import torch": ([sys.executable, "-c", "import torch"], "torch")}
    for name, words in COMMANDS.items():
        if not only or any(word in name for word in only):
            for runtime in ("torch", "onnxruntime"):
                runs[f"{name}, {runtime}"] = ([*VQTOK, *words.split()], runtime)
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, (words, runtime) in runs.items():
            measured = measure(words, folder, runtime)
            if turn:
                found[name].append(measured)
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }
    bare = medians["import torch"]
    rows = [
        [
            name,
            *(f"{value:.2f}" for value in (wall, wall / bare[0], cpu, cpu / bare[1])),
            f"{peak / 2**20:.0f}",
        ]
        for name, (wall, cpu, peak) in medians.items()
    ]
    return table(["process", "s", "ratio", "processor s", "ratio", "MiB"], rows)


def imports(folder: Path, command: str) -> str:
    """A table of packages by what importing their modules costs, without what these import."""
    least: dict[str, int] = {}
    for _ in range(5):
        words = [sys.executable, "-X", "importtime", "-m", "vqtok", *command.split()]
        done = subprocess.run(
            words, cwd=folder, env=environment("auto"), capture_output=True, text=True, check=True
        )
        for own, module in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
            least[module] = min(int(own), least.get(module, int(own)))
    costs = Counter[str]()
    for module, own in least.items():
        costs[module.partition(".")[0]] += own
    rows = [[name, f"{own / 1000:.1f}"] for name, own in costs.most_common(PACKAGES)]
    return table(["package", "ms"], [*rows, ["all", f"{sum(costs.values()) / 1000:.1f}"]])


def differences(paths: list[str]) -> str:
    """A table of what differs between the runtimes."""
    rows = []
    for folder in model_registry.list_models():
        fast, model = codec.load_fast(folder, codec.load_stored), codec.load(folder, "cpu")
        rng = np.random.default_rng(0)
        C, total, differ, worst, bytes_differ = model.config.channels, 0, 0, 0, 0
        given = [images.read_image(Path(path), C).pixels for path in paths] or [
            picture(rng, int(H), int(W), C) for H, W in rng.integers(1, 401, (40, 2))
        ]
        for pixels in given:
            mine, theirs = fast.encode_batch([pixels]), model.encode_batch([pixels])
            total += theirs.indices.size
            count = int((mine.indices != theirs.indices).sum())
            differ, bytes_differ = differ + count, bytes_differ + (count > 0)
            shown = fast.decode(theirs).astype(int) - model.decode(theirs)
            worst = max(worst, int(np.abs(shown).max()))
        rows.append(
            [folder.name, str(len(given)), f"{differ} of {total:,}", str(bytes_differ), str(worst)]
        )
    head = ["model", "images", "indices that differ", "files that differ", "gray levels"]
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", default="768x512")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--imports", metavar="COMMAND")
    parser.add_argument("--differ", nargs="*", metavar="IMAGE")
    options = parser.parse_args()
    print(f"{machine()}, {time.strftime('%d %B %Y')}\n")
    if options.differ is not None:
        print(differences(options.differ))
        return
    with tempfile.TemporaryDirectory() as name:
        folder, example = Path(name), model_registry.find_model("photo").path / "example.jpg"
        width, height = (int(side) for side in options.size.split("x"))
        with Image.open(example) as image:
            image.convert("RGB").resize((width, height)).save(folder / "photo.png")
        for words in ("encode photo.png", "encode photo.png --compact -o compact.npz"):
            measure([*VQTOK, *words.split()], folder, "torch")
        if options.imports:
            print(imports(folder, options.imports))
        else:
            print(processes(folder, options.rounds, options.only))


if __name__ == "__main__":
    main()
