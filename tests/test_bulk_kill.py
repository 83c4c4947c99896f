"""kill -9 at a random moment of a bulk encode:
what is on the disk is whole, and --resume ends with the same bytes.

benchmarks/bulk.py does the same a hundred times.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import warm
from bulk_helpers import contents, image_files, make_tar
from cli_helpers import ok

import vqtok
from vqtok.bulk import shards

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("toy")]
ROOT = Path(vqtok.__file__).parents[1]


def start(*words: object) -> warm.Warm:
    return warm.Warm(warm.COMMAND, ["encode", *words], {"PYTHONPATH": str(ROOT)})


def finished(folder: str) -> int:
    return len(list(Path(folder).glob("*.jsonl")))


def many() -> Path:
    """A tar of 2,000 images, of which eight differ: it lasts until a test has ended it."""
    few = list(image_files(8).values())
    return make_tar("a.tar", {f"{i:04}.png": few[i % 8] for i in range(2000)})


def test_killed_and_resumed_it_ends_with_the_same_bytes():
    make_tar("a.tar", image_files(200, ((16, 16), (16, 20))))
    words = ["a.tar", "--shard-size", 5, "-q"]
    ok("encode", *words, "--workers", 0, "-o", "whole")
    whole, draw = contents("whole"), random.Random()
    process = start(*words, "--workers", 1, "-o", "out", "--resume")
    wanted = draw.randint(1, 20)  # of 40 shards
    while finished("out") < wanted and process.poll() is None:
        time.sleep(draw.uniform(0, 0.01))
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(120) == -signal.SIGKILL
    there = {name: data for name, data in contents("out").items() if not name.startswith(".")}
    assert there.items() <= whole.items()
    ok("encode", *words, "--workers", 0, "-o", "out", "--resume")
    assert contents("out") == whole


def test_workers_end_with_their_parent():
    many()
    process = start("a.tar", "-o", "out", "--shard-size", 5, "--workers", 2)
    while not any(Path("out").glob("*.npz")):
        assert process.poll() is None
        time.sleep(0.02)
    group = process.pid
    process.kill()
    process.wait(60)
    for _ in range(200):
        if not alive(group):
            break
        time.sleep(0.05)
    assert not alive(group)
    assert all(found.is_complete() for found in shards.find_shards(Path("out")))


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_ends_it_quietly():
    many()
    process = start("a.tar", "-o", "out", "--shard-size", 5, "--workers", 2, "-q")
    while not any(Path("out").glob("*.npz")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "vqtok: interrupted\n")
    assert not alive(process.pid)
