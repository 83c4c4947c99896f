"""A short seeded run of each kind of hostile input (benchmarks/fuzz.py makes the long ones),
and of the harness itself.
"""

import ctypes
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attacks import harness
from attacks.archives import Archives
from attacks.codes_files import CodesBombs, CodesFiles
from attacks.harness import Case, FoundError
from attacks.image_files import Images
from attacks.weights_files import WeightsFiles
from vqtok.errors import FormatError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness reads /proc")
KINDS: dict[str, Callable[[Path], harness.Kind]] = {
    "codes": lambda _: CodesFiles(),
    "bombs": lambda _: CodesBombs(),
    "weights": WeightsFiles,
    "pictures": lambda _: Images(),
    "archives": Archives,
}


def check(name: str, folder: Path, count: int, seed: int) -> harness.Report:
    report = harness.fuzz(KINDS[name](folder), count, seed)
    assert report.findings == []
    assert report.total == count
    # hostile enough to be refused ...
    assert any("Error" in outcome for outcome in report.outcomes), report.outcomes
    # ... and not too hostile to be read
    assert any("Error" not in outcome for outcome in report.outcomes), report.outcomes
    return report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("codes", 250), ("weights", 50), ("pictures", 25), ("archives", 10)]
)
def test_a_few_hostile_files(name: str, count: int, tmp_path: Path) -> None:
    check(name, tmp_path, count, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("codes", 600), ("bombs", 4), ("weights", 100), ("pictures", 60), ("archives", 20)],
)
def test_many_hostile_files(name: str, count: int, tmp_path: Path) -> None:
    check(name, tmp_path, count, seed=2)


@pytest.mark.slow
def test_a_case_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    for make in KINDS.values():
        if make is not KINDS["bombs"]:
            kind, again = make(tmp_path), make(tmp_path)
            assert [harness.make(kind, 5, i).data for i in range(8)] == [
                harness.make(again, 5, i).data for i in range(8)
            ]
            assert harness.make(kind, 5, 0) != harness.make(kind, 6, 0)


class Bad:
    """A reader that does something wrong on its third case."""

    name = "bad"

    def __init__(self, act: Callable[[], object]) -> None:
        self.act, self.number = act, 0

    def warm(self) -> None: ...

    def write(self, case: Case) -> None: ...

    def case(self, draw: random.Random) -> Case:
        self.number += 1
        return Case(b"x", "made", 1 << 20, self.number)

    def run(self, case: Case) -> str:
        if case.more == 3:
            self.act()
        return "read"


def forever() -> None:
    while True:
        pass


def wrong() -> None:
    raise FoundError("other codes came out")


def wordless() -> None:
    raise FormatError("", "")


ACTS: dict[str, tuple[Callable[[], object], str]] = {
    "hang": (forever, "HANG"),
    "crash": (os.abort, "CRASH: signal 6"),
    "exit": (lambda: os._exit(7), "CRASH: exit 7"),
    "memory": (lambda: len(b"x" * (64 << 20)), "MiB, honestly needs 1"),
    "too much": (lambda: bytes(1 << 44), "MemoryError"),
    "writes": (lambda: Path("x").write_bytes(b""), "open"),
    "makes a folder": (lambda: os.mkdir("x"), "os.mkdir"),
    "runs a program": (lambda: os.system("true"), "os.system"),
    "another exception": (lambda: [][1], "IndexError"),
    "wrong": (wrong, "other codes"),
    "an error without words": (wordless, "without words"),
}


@pytest.mark.parametrize("name", ACTS)
def test_what_must_not_happen_is_found_and_the_run_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, told = ACTS[name]
    if name == "hang":
        # the others are quick, but on a busy machine 64 MiB may take longer than this
        monkeypatch.setattr(harness, "SECONDS", 0.3)
        monkeypatch.setattr(harness, "GRACE", 0.1)
    report = harness.fuzz(Bad(act), 5, 0)
    assert report.total == 5
    assert report.outcomes["read"] >= 3
    ((number, what),) = report.findings
    assert number == 2
    assert told in what
    assert not os.path.exists("x")


class Hoarder(Bad):
    """A process that has trained before: malloc keeps what is freed, here 128 MiB."""

    def warm(self) -> None:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc
            libc.mallopt(-4, 0)
            libc.mallopt(-1, 2**31 - 1)
        len(b"x" * (128 << 20))


@pytest.mark.slow
def test_memory_that_malloc_has_kept_counts_too() -> None:
    act, told = ACTS["memory"]
    ((number, what),) = harness.fuzz(Hoarder(act), 3, 0).findings
    assert number == 2
    assert told in what
