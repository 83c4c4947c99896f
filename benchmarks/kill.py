"""kill -9 at random moments, full disks and read-only folders:
what is on the disk is whole, and --resume ends with the same result.

    python benchmarks/kill.py train --times 100 # tokenizer, prior and entropy prior of a tiny
        recipe, on built-in images
    python benchmarks/kill.py bulk --times 100 # encode of three tars by worker processes
        (benchmarks/bulk.py kill)
    python benchmarks/kill.py disk # each command on tmpfs disks of many sizes,
        and read-only; needs root

A training process is a fork of this one, which has loaded torch already, so that a strike takes a
second; it is a process of its own all the same, and SIGKILL ends it anywhere. Each run is struck,
resumed and struck again until it comes to its end. Every other strike waits, from its random moment
on, for the next file to be written, and hits the middle of that.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import bulk
import numpy as np
import torch
from PIL import Image
from timing import machine, table

from vqtok import codes, images, weights
from vqtok.cli import app
from vqtok.data import Shapes
from vqtok.errors import VqtokError

RECIPE = """
seed = 3
[tokenizer]
downsample = 4
width = 8
encoder_blocks = 1
decoder_blocks = 1
codebook_size = 16
code_dim = 4
[prior]
width = 8
layers = 2
[entropy]
embedding = 4
width = 8
blocks = 1
rank = 4
[data]
size = 16
prior_size = 16
validation_max = 4
[losses]
adversarial = 0.5
adversarial_start = 0.5
[tokenizer_training]
steps = 40
batch = 4
validate_every = 4
ema = 0.9
[prior_training]
steps = 40
batch = 4
validate_every = 4
[entropy_training]
steps = 40
batch = 4
validate_every = 4
"""
TIMES = ("seconds", "pictures_per_second")


# One command, and what it left


def begin(words: Sequence[object], errors: Path) -> int:
    """Starts `vqtok` with these words as a fork; gives its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(errors, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["vqtok", *map(str, words)]
        app(sys.argv[1:])
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    finally:
        os._exit(code)


def end(child: int, after: float | None = None, writing: Path | None = None) -> int:
    """Waits for a process, or kills it after so many seconds; its exit code, negative for a signal.

    With `writing`, it is killed after that as soon as a temporary file is in this folder:
    in the middle of a write.
    """
    due = time.monotonic() + (after if after is not None else 3600)
    while time.monotonic() < due or (writing is not None and not temporaries(writing)):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001 if time.monotonic() < due else 0)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def temporaries(folder: Path) -> list[str]:
    return (
        [name for name in os.listdir(folder) if name.startswith(".vqtok-")]
        if folder.exists()
        else []
    )


def damaged(path: Path) -> str:
    """Why a file is not whole; '' where it is."""
    try:
        if path.suffix == ".safetensors":
            stored = weights.load_weights(path, weights.read_meta(path)["kind"])
            assert all(
                np.isfinite(value).all()
                for value in stored.tensors.values()
                if value.dtype.kind == "f"
            ), "not finite"
        elif path.suffix == ".npz":
            codes.read_any_codes(path.read_bytes())
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            text = path.read_text()
            assert text.endswith("\n") or not text, "the last line is cut short"
            for line in text.splitlines():
                json.loads(line)
        elif path.suffix == ".toml":
            tomllib.loads(path.read_text())
        elif path.suffix in (".png", ".jpg"):
            Image.open(path).load()
        elif path.suffix == ".tar":
            with tarfile.open(path) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    codes.read_any_codes(content.read() if content else b"")
        elif path.suffix == ".svg":
            ElementTree.parse(path)
        elif path.suffix == ".md":
            assert path.read_text().startswith("# "), "no heading"
        else:
            return f"{path.name}: of no kind that is known"
    except (
        AssertionError,
        OSError,
        ValueError,
        SyntaxError,
        VqtokError,
        tarfile.TarError,
    ) as error:
        return f"{path.name}: {error}"
    return ""


def looked_at(folder: Path) -> tuple[list[str], int]:
    """What is wrong with the files in a folder, and how many temporary files are in it:
    those have never had their own name.
    """
    found = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    temporary = [path for path in found if path.name.startswith(".vqtok-")]
    return [why for path in found if path not in temporary and (why := damaged(path))], len(
        temporary
    )


# Training


def result(folder: Path) -> dict[str, Any]:
    """All that a run left, without the times:
    tensors and records of weights and states, lines of the log, bytes of images.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            stored = weights.load_weights(path, weights.read_meta(path)["kind"])
            record = {key: value for key, value in stored.record.items() if key not in TIMES}
            found[path.name] = weights.fingerprint(stored.tensors), stored.config, record
        elif path.suffix == ".jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            found[path.name] = [
                {key: value for key, value in line.items() if key not in TIMES} for line in lines
            ]
        elif path.suffix == ".png":
            found[path.name] = path.read_bytes()
        else:
            found[path.name] = "there"  # README.md tells times, run.json the command
    return found


def where(folder: Path) -> str:
    """The stage that a run was in when it was killed."""
    order = ("entropy", "prior", "indices", "tokenizer")
    return next(
        (
            f"after the first save of {name}"
            for name in order
            if (folder / f"{name}.state.safetensors").exists()
        ),
        "before any save",
    )


def train(folder: Path, times: int, seed: int) -> None:
    draw, errors, out, kept = (
        random.Random(seed),
        folder / "errors",
        folder / "killed",
        Counter[str](),
    )
    (folder / "small.toml").write_text(RECIPE)
    photos = folder / "images"
    for i in range(48):
        images.write_image(photos / f"{i:02}.png", Shapes(48).image(i))
    words = ["train", photos, "--recipe", folder / "small.toml", "-q"]
    began = time.monotonic()
    assert end(begin([*words, "-o", folder / "whole"], errors)) == 0, errors.read_text()
    seconds, whole = time.monotonic() - began, result(folder / "whole")
    # of a strike: longer where it strikes, shorter where the run was faster, so
    # that all of the run is hit
    reach = seconds
    kills = folders = unequal = 0
    wrong: list[str] = []
    while kills < times:
        shutil.rmtree(out, ignore_errors=True)
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            again = (
                ["train", "--resume", "-q", "-o", out]
                if (out / "run.json").exists()
                else [*words, "-f", "-o", out]
            )
            delay, aimed = draw.uniform(0, reach), kills % 2 == 1
            code = end(
                begin(again, errors),
                delay if kills < times else None,
                out if aimed and kills < times else None,
            )
            reach *= 1.04 if code == -signal.SIGKILL else 0.8
            if code == -signal.SIGKILL:
                kills += 1
                kept[where(out)] += 1
                bad, temporary = looked_at(out)
                wrong += bad
                print("\n".join(bad), end="", file=sys.stderr, flush=True)
                kept["with a temporary file left"] += temporary > 0
        assert code == 0, errors.read_text()
        bad, temporary = looked_at(out)
        wrong += bad + ["temporary files after the end"] * (temporary > 0)
        folders, unequal = folders + 1, unequal + (result(out) != whole)
        print(
            f"{kills} kills, {folders} folders, {len(wrong)} wrong, {unequal} unequal",
            file=sys.stderr,
            flush=True,
        )
    print(
        f"{kills} kills -9 of a training run that takes {seconds:.1f} s: "
        f"{len(wrong)} files damaged {wrong or ''}"
    )
    print("  " + ", ".join(f"{name}: {count}" for name, count in sorted(kept.items())))
    print(
        f"{folders} runs resumed to the end: "
        f"{unequal} of them unequal to the uninterrupted one ({len(whole)} files compared)"
    )


# Full and read-only disks


@contextlib.contextmanager
def disk(place: Path, size: int) -> Iterator[Path]:
    """A tmpfs of so many bytes."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes=4096", "tmpfs", str(place)]
    subprocess.run(mount, check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def change(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def commands(folder: Path) -> dict[str, tuple[list[object], list[object]]]:
    """Each command that writes, without its -o and that;
    how it goes on is in a second list of words.
    """
    (folder / "small.toml").write_text(RECIPE)
    for i in range(48):
        images.write_image(folder / "images" / f"{i:02}.png", Shapes(48).image(i))
    base = folder / "model"
    train: list[object] = ["train", folder / "images", "--recipe", folder / "small.toml"]
    assert end(begin([*train, "-q", "-o", base], folder / "errors")) == 0
    levels = [
        "--set",
        "tokenizer.levels=2",
        "--set",
        "tokenizer.normalize=false",
        "--stage",
        "tokenizer",
    ]
    deep = folder / "deep"
    assert end(begin([*train, *levels, "-q", "-o", deep], folder / "errors")) == 0
    for model, name in ((base, "codes"), (deep, "layers")):
        assert (
            end(
                begin(
                    ["encode", folder / "images", "--model", model, "-q", "-o", folder / name],
                    folder / "errors",
                )
            )
            == 0
        )
    tars = bulk.make_tars(folder / "tars", 200, each=100)
    again: list[object] = ["--skip-existing"]
    return {
        "train": (train, ["train", "--resume"]),
        "encode": (["encode", folder / "images", "--model", base], again),
        "encode --bulk": (
            ["encode", *tars, "--model", base, "--shard-size", 10, "--workers", 1],
            ["--resume"],
        ),
        "decode": (["decode", folder / "codes", "--model", base], again),
        "pack": (["pack", folder / "codes", "--model", base], again),
        "truncate": (["truncate", folder / "layers", "--levels", 1], again),
        "sample": (["sample", "-n", 4, "--model", base], []),
        # of its two files the first may be there
        "eval": (["eval", folder / "images", "--model", base], ["-f"]),
    }


def disks(folder: Path, tries: int, wanted: list[str]) -> None:
    if os.getuid() != 0:
        sys.exit("mounting a tmpfs needs root")
    rows = []
    for name, (words, more) in commands(folder).items():
        if wanted and name not in wanted:
            continue
        rows.append(on_disks(folder, name, words, more, tries))
        print(rows[-1], file=sys.stderr, flush=True)
    print(
        table(
            [
                "command",
                "full disks",
                "read-only",
                "two lines, exit 1",
                "damaged",
                "left over",
                "result differs",
            ],
            rows,
        )
    )


def on_disks(
    folder: Path, name: str, words: list[object], more: list[object], tries: int
) -> list[str]:
    """A command on disks of many sizes below what it needs, then again where there is room, and
    once where nothing may be written.
    """
    place, errors = folder / "disk", folder / "errors"
    again = [*more, "-q"] if name == "train" else [*words, *more, "-q"]
    with disk(place, 64 << 20):
        assert end(begin([*words, "-q", *target(name, place)], errors)) == 0, errors.read_text()
        whole, need = (
            result_of(name, place),
            sum(-(-len(data) // 4096) * 4096 for data in tree(place).values()),
        )
    struck = told = bad = left = unequal = 0
    for i in range(tries):
        with disk(place, max(4096, need * i // tries // 4096 * 4096)):
            code = end(begin([*words, "-q", *target(name, place)], errors))
            if code == 0:
                continue
            struck += 1
            told += clear(code, errors)
            wrong, temporary = looked_at(place)
            bad, left = bad + len(wrong), left + temporary
            print("\n".join(wrong), end="", file=sys.stderr, flush=True)
            change(place, "size=67108864")
            begun = name != "train" or (place / "out" / "run.json").exists()
            code = end(
                begin([*(again if begun else [*words, "-q", "-f"]), *target(name, place)], errors)
            )
            if code or result_of(name, place) != whole:
                unequal += 1
                print(name, code, errors.read_text(), file=sys.stderr)
            left += looked_at(place)[1]
    with disk(place, 64 << 20):
        change(place, "ro")
        refused = clear(end(begin([*words, "-q", *target(name, place)], errors)), errors)
    return [
        name,
        str(struck),
        "1",
        f"{told + refused} of {struck + 1}",
        str(bad),
        str(left),
        str(unequal),
    ]


def target(name: str, place: Path) -> list[object]:
    out = place / "out"
    return {"sample": ["-o", out / "a.png"], "eval": ["--plot", out / "a.svg"]}.get(
        name, ["-o", out]
    )


def result_of(name: str, place: Path) -> dict[str, Any]:
    return result(place / "out") if name == "train" else tree(place)


def clear(code: int, errors: Path) -> bool:
    """Whether a command failed as it should;
    of a batch, each input that fails has two lines, and a last line counts.
    """
    lines = errors.read_text().splitlines()
    if len(lines) > 2 and len(lines) % 2 and lines[-1].endswith("failed"):
        lines.pop()
    pairs = list(zip(lines[::2], lines[1::2], strict=False))
    good = (
        code == 1
        and pairs
        and all(a.startswith("vqtok: error: ") and b.startswith("  fix: ") for a, b in pairs)
        and len(lines) % 2 == 0
    )
    if not good:
        print(code, errors.read_text(), file=sys.stderr)
    return bool(good)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["train", "bulk", "disk"])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--commands", nargs="+", default=[], help="of disk: only these")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # threads of torch's own would not outlive a fork
    print(machine() + "\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        if asked.what == "train":
            train(Path(name), asked.times, asked.seed)
        elif asked.what == "bulk":
            bulk.kill(Path(name), asked.times, asked.seed)
        else:
            disks(Path(name), asked.times, asked.commands)


if __name__ == "__main__":
    main()
