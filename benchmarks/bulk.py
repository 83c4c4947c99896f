"""Bulk tokenizing: images a second, peak memory for 1,000 and 100,000 images, and bytes
after kill -9 and --resume.

    python benchmarks/bulk.py memory [--loose] # 64x64 images in tars or folders, a tiny model:
        the memory of all processes together
    python benchmarks/bulk.py photos TAR...
        # the photo model on photographs, beside one file an image
    python benchmarks/bulk.py cifar cifar-10-batches-bin
        # the cifar10 model on its test images: the data set, and the same as PNGs
    python benchmarks/bulk.py kill --times 100 # kill -9 of the process group at random moments,
        then --resume, until it is done
"""

import argparse
import io
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import machine, table

import vqtok
from vqtok import codes, weights
from vqtok.bulk import CodesDataset
from vqtok.config import TokenizerConfig
from vqtok.data import Shapes
from vqtok.networks.vqvae import VQVAE

TINY = TokenizerConfig(
    downsample=8, width=8, encoder_blocks=1, decoder_blocks=1, codebook_size=256, code_dim=4
)


def tiny_model(folder: Path) -> Path:
    """A model with random weights: what it costs is decoding images and writing shards."""
    torch.manual_seed(0)
    tensors = {
        name: value.detach().half().numpy() for name, value in VQVAE(TINY).release_state().items()
    }
    record = {
        "data": "none",
        "pictures": 0,
        "seed": 0,
        "step": 0,
        "seconds": 0.0,
        "metrics": {},
        "version": "0",
    }
    meta = {"kind": "tokenizer", "config": asdict(TINY), "record": record}
    weights.save_weights(folder / "tokenizer.safetensors", weights.Weights(tensors, meta))
    return folder


def make_tars(folder: Path, count: int, each: int = 5000) -> list[Path]:
    """Tars of 64x64 JPEGs and PNGs, and 96x64 ones for every 50th:
    the built-in shapes, enlarged, each in turns.
    """
    shapes, paths = Shapes(2000), []
    contents = [_content(shapes.image(i), i) for i in range(2000)]
    folder.mkdir(parents=True)
    for start in range(0, count, each):
        paths.append(folder / f"{start // each:04}.tar")
        with tarfile.open(paths[-1], "w") as archive:
            for i in range(start, min(start + each, count)):
                suffix, content = contents[i % len(contents)]
                info = tarfile.TarInfo(f"{i % 10}/{i:07}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return paths


def _content(pixels: np.ndarray, number: int) -> tuple[str, bytes]:
    suffix, buffer = ("jpg", "png")[number % 2], io.BytesIO()
    width = 96 if number % 50 == 49 else 64
    Image.fromarray(pixels).resize((width, 64)).save(buffer, "JPEG" if suffix == "jpg" else "PNG")
    return suffix, buffer.getvalue()


def start(words: list[object]) -> "subprocess.Popen[bytes]":
    """`vqtok encode` in a process group of its own."""
    command = [sys.executable, "-m", "vqtok", "encode", *map(str, words)]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def resident(group: int) -> int:
    """Bytes that the processes of a group hold. A page that several share is counted once: a
    starting worker shares all of its parent's.
    """
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == group:
                    shares = (entry / "smaps_rollup").read_text()
                    total += int(re.search(r"^Pss: +(\d+)", shares, re.M)[1]) * 1024  # type: ignore
            except (OSError, TypeError):
                pass  # it has ended
    return total


def measure(words: list[object]) -> tuple[float, int]:
    """Seconds that a run takes, from start to end, and the most memory that it
    holds, looked at every 50 ms.
    """
    began, peak = time.perf_counter(), 0
    process = start(words)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    assert process.returncode == 0, process.returncode
    return time.perf_counter() - began, peak


def memory(folder: Path, counts: list[int], loose: bool) -> None:
    model, rows = tiny_model(folder / "tiny"), []
    for count in counts:
        inputs = make_tars(folder / f"in{count}", count)
        if loose:
            for path in inputs:
                with tarfile.open(path) as archive:
                    archive.extractall(folder / f"loose{count}", filter="data")
            inputs = [folder / f"loose{count}"]
        seconds, peak = measure([*inputs, "--bulk", "-o", folder / f"out{count}", "--model", model])
        assert len(CodesDataset(folder / f"out{count}")) == count
        rows.append(
            [f"{count:,}", f"{seconds:.1f}", f"{count / seconds:.0f}", f"{peak / 2**20:.0f}"]
        )
        print(f"{count:,} done", file=sys.stderr)
    print(table(["images", "seconds", "images/s", "peak MiB"], rows))


def photos(folder: Path, tars: list[Path], limit: int, workers: list[int], rounds: int) -> None:
    """The photo model on the first photographs of these tars, in bulk and one file an
    image in turn: medians.
    """
    few = _first(tars, folder / "photos.tar", limit)
    with tarfile.open(folder / "photos.tar") as archive:
        archive.extractall(folder / "photos", filter="data")
    ways: dict[str, list[object]] = {
        f"bulk, {count} workers": [
            folder / "photos.tar",
            "-o",
            folder / f"photos-{count}",
            "--workers",
            count,
            "-f",
        ]
        for count in workers
    } | {"one file an image": [folder / "photos", "-o", folder / "single", "-f"]}
    found = [{name: measure(words) for name, words in ways.items()} for _ in range(rounds)]
    rows = []
    for name in ways:
        seconds = statistics.median(turn[name][0] for turn in found)
        peak = max(turn[name][1] for turn in found)
        rows.append([name, f"{seconds:.1f}", f"{few / seconds:.1f}", f"{peak / 2**20:.0f}"])
    print(
        f"{few} photographs; the same indices as from one image at a time: "
        f"{'yes' if equal(folder, workers) else 'NO'}\n"
    )
    print(table(["encode", "seconds", "images/s", "peak MiB"], rows))


def cifar(folder: Path, data: Path, few: int, many: int) -> None:
    """Seconds of processor time an image: of `many` images less that of `few`, so that the start
    of the command drops out. Beside it the network alone, on one thread.
    """
    rows = np.fromfile(data / "test_batch.bin", np.uint8).reshape(-1, 3073)
    spent: dict[str, list[float]] = {"the data set": [], "one file an image": []}
    for count in (few, many):
        (folder / f"set{count}").mkdir()
        rows[:count].tofile(folder / f"set{count}" / "test_batch.bin")
        shutil.copy(data / "batches.meta.txt", folder / f"set{count}")
        (folder / f"png{count}").mkdir()
        pixels = rows[:count, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for i, each in enumerate(pixels):
            Image.fromarray(each).save(folder / f"png{count}" / f"{i:05}.png")
        for name, kind in zip(spent, ("set", "png"), strict=True):
            words = [folder / f"{kind}{count}", "-o", folder / f"out-{kind}{count}"]
            before = os.times()
            assert start([*words, "--model", "cifar10", "-q"]).wait() == 0
            after = os.times()
            spent[name].append(sum(after[2:4]) - sum(before[2:4]))
    each = {name: (long - short) / (many - few) for name, (short, long) in spent.items()}
    model, group = vqtok.load("cifar10"), 128
    images = torch.randn(group, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        taken = []
        for _ in range(6):
            before = time.process_time()
            model.quantizer(model.encoder(images))
            taken.append(time.process_time() - before)
    each["the network alone"] = min(taken) / group
    base = each["one file an image"]
    shown = [
        [name, f"{1000 * s:.2f}", f"{1 / s:.0f}", f"{base / s:.2f}"] for name, s in each.items()
    ]
    print(table(["encode", "ms of a core an image", "images/s a core", "times as fast"], shown))


def equal(folder: Path, workers: list[int]) -> bool:
    """Whether all ways of encoding gave the same indices."""
    data = [CodesDataset(folder / f"photos-{count}") for count in workers]
    single = {path.stem: codes.read_plain_codes(path) for path in (folder / "single").iterdir()}
    return all(
        each.codes(i) == single[Path(each[i][1]).stem] for each in data for i in range(len(each))
    )


def _first(tars: list[Path], target: Path, limit: int) -> int:
    done = 0
    with tarfile.open(target, "w") as archive:
        for path in tars:
            with tarfile.open(path) as source:
                for member in source:
                    if done == limit:
                        return done
                    archive.addfile(member, source.extractfile(member))
                    done += 1
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill(folder: Path, times: int, seed: int) -> None:
    """Kills at random moments after a run has begun to write, until `times` kills have struck;
    each folder is resumed until it is done.
    """
    random.seed(seed)
    model, tars = tiny_model(folder / "tiny"), make_tars(folder / "in", 600, each=200)
    words: list[object] = [
        *tars,
        "--model",
        model,
        "--shard-size",
        10,
        "--workers",
        1,
        "-q",
        "--resume",
    ]
    process = start([*words, "-o", folder / "whole"])
    seconds = -wait_for_change(folder / "whole", process, time.monotonic())
    assert process.wait() == 0
    seconds += time.monotonic()
    whole, kills, folders, damaged, unequal = contents(folder / "whole"), 0, 0, 0, 0
    out = folder / "killed"
    while kills < times:
        shutil.rmtree(out, ignore_errors=True)
        while kills < times and strike([*words, "-o", out], out, random.uniform(0, 0.4) * seconds):
            kills += 1
            damaged += sum(
                data != whole.get(name)
                for name, data in contents(out).items()
                if not name.startswith(".")
            )
        assert start([*words, "-o", out]).wait() == 0
        folders, unequal = folders + 1, unequal + (contents(out) != whole)
    print(
        f"{kills} kills -9, at random in the {seconds:.1f} s that a run writes its {len(whole)} "
        f"files: {damaged} files damaged"
    )
    print(
        f"{folders} folders resumed to the end: {unequal} of them unequal to the uninterrupted one"
    )


def strike(words: list[object], out: Path, delay: float) -> bool:
    """Kills a run's process group so many seconds after it has begun to write;
    False where it was done before.
    """
    process = start(words)
    wait_for_change(out, process, time.monotonic())
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() != 0


def wait_for_change(folder: Path, process: "subprocess.Popen[bytes]", now: float) -> float:
    """Waits until something is written in a folder, or the process has ended; gives the time."""
    before = folder.stat().st_mtime_ns if folder.exists() else 0
    while (
        process.poll() is None and (folder.stat().st_mtime_ns if folder.exists() else 0) == before
    ):
        time.sleep(0.002)
        now = time.monotonic()
    return now


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["memory", "photos", "cifar", "kill"])
    parser.add_argument("tars", nargs="*", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--loose", action="store_true")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(machine() + "\n")
    with tempfile.TemporaryDirectory() as name:
        if asked.what == "memory":
            memory(Path(name), asked.counts, asked.loose)
        elif asked.what == "cifar":
            cifar(Path(name), asked.tars[0], 500, 4500)
        elif asked.what == "photos":
            photos(Path(name), asked.tars, asked.limit, asked.workers, asked.rounds)
        else:
            kill(Path(name), asked.times, asked.seed)


if __name__ == "__main__":
    main()
