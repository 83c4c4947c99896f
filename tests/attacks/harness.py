"""Runs cases in a forked worker under a watchdog:
a crash, a hang or a full memory is a finding, not the end of the run.
"""

import ctypes
import faulthandler
import json
import mmap
import os
import random
import resource
import select
import signal
import struct
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from vqtok.errors import VqtokError

SECONDS = 5.0  # of processor time that one case may take beyond its work
GRACE = 1.0  # more, before a worker that is still at it is killed
# of wall clock, for a worker that sleeps: on a busy machine nice 19 leaves 2 % of the processor
WALL_SECONDS = 900.0
# bytes that a case may take beyond twice its honest need: allocator, Python's own objects
SLACK = 16 << 20
# bytes of addresses that a worker may add: what asks for more gets a MemoryError
ADDRESSES = 6 << 30
WRITING = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.mkfifo",
    "os.mknod",
)
RUNNING = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.startfile",
    "subprocess.Popen",
    "pickle.find_class",
)
_AT = struct.Struct("qd")  # number of a case, and its work: what a worker shares with its watchdog


@dataclass(frozen=True)
class Case:
    """One input, how it was made, and the bytes of memory and seconds of processor time that an
    honest input of its claims needs.
    """

    data: bytes
    origin: str
    need: int
    more: Any = None  # what else the kind wants to know
    work: float = 0.0  # seconds, where a claim honestly takes long


class FoundError(Exception):
    """What must not happen."""


class Kind(Protocol):
    """Makes cases and runs readers on them."""

    name: str

    def warm(self) -> None:
        """Reads what is whole, so that modules which come on first use count for no case."""
        ...

    def case(self, draw: random.Random) -> Case: ...

    def write(self, case: Case) -> None:
        """Puts a case where `run` reads it, before anyone watches."""
        ...

    def run(self, case: Case) -> str:
        """What came of it, in a word. VqtokErrors may pass; FoundError where a result is wrong."""
        ...


@dataclass
class Report:
    """What came of the cases of a run."""

    outcomes: Counter[str] = field(default_factory=Counter)
    # number of the case, and what happened
    findings: list[tuple[int, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)  # seconds of processor time, number
    largest: tuple[int, int] = (0, -1)  # bytes of memory beyond what the worker held before, number

    @property
    def total(self) -> int:
        return self.outcomes.total()

    def add(self, number: int, outcome: str, seconds: float, grown: int) -> None:
        self.outcomes[outcome] += 1
        self.slowest, self.largest = (
            max(self.slowest, (seconds, number)),
            max(self.largest, (grown, number)),
        )


def make(kind: Kind, seed: int, number: int) -> Case:
    """Case `number` of a seed: always the same."""
    return kind.case(random.Random(f"{kind.name} {seed} {number}"))


def fuzz(
    kind: Kind,
    count: int,
    seed: int,
    first: int = 0,
    progress: Callable[[int, Report], None] | None = None,
) -> Report:
    """Runs cases `first` to `first + count - 1`.

    A worker that dies or hangs is replaced, and goes on behind the case that it died of.
    """
    report, at, end = Report(), first, first + count
    while at < end:
        at = _Worker(kind, seed, at, end).watch(report, progress)
    return report


class _Worker:
    """A forked process; it tells of every case in a line on a pipe, and the case that
    it is at in shared memory.
    """

    def __init__(self, kind: Kind, seed: int, first: int, end: int) -> None:
        self.at, self.end = mmap.mmap(-1, _AT.size), end
        self.at[:] = _AT.pack(first, 0.0)
        self.read, write = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 on: fork beside threads
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self.read)
            _work(kind, seed, first, end, self.at, write)
        os.close(write)

    @property
    def number(self) -> int:
        return _AT.unpack(self.at[:])[0]

    def _taken(self, since: float) -> float:
        """Seconds of processor time, beyond its work, that the case has taken since its
        worker had taken `since`.
        """
        return _processor_seconds(self.pid) - since - _AT.unpack(self.at[:])[1]

    def watch(self, report: Report, progress: Callable[[int, Report], None] | None) -> int:
        """Collects what the worker tells until it ends, or is killed;
        returns the number to go on with.
        """
        rest, seen, since = b"", -1, (0.0, 0.0)
        while True:
            ready, _, _ = select.select([self.read], [], [], 0.5)
            if ready:
                piece = os.read(self.read, 1 << 16)
                *lines, rest = (rest + piece).split(b"\n")
                _collect(lines, report)
                if progress:
                    progress(self.number, report)
                if not piece:
                    return self._ended(report)
            if self.number != seen:
                seen, since = self.number, (_processor_seconds(self.pid), time.monotonic())
            elif (
                self._taken(since[0]) > SECONDS + GRACE
                or time.monotonic() - since[1] > WALL_SECONDS
            ):
                os.kill(self.pid, signal.SIGKILL)

    def _ended(self, report: Report) -> int:
        os.close(self.read)
        _, status = os.waitpid(self.pid, 0)
        if status == 0:
            return self.end
        ended = (
            f"signal {os.WTERMSIG(status)}"
            if os.WIFSIGNALED(status)
            else f"exit {os.WEXITSTATUS(status)}"
        )
        what = "HANG" if ended == f"signal {signal.SIGKILL:d}" else "CRASH"
        report.outcomes[what] += 1
        report.findings.append((self.number, f"{what}: {ended}"))
        return self.number + 1


def _collect(lines: list[bytes], report: Report) -> None:
    for line in lines:
        number, outcome, seconds, grown, finding = json.loads(line)
        report.add(number, outcome, seconds, grown)
        if finding:
            report.findings.append((number, finding))


def _work(kind: Kind, seed: int, first: int, end: int, at: mmap.mmap, write: int) -> None:
    """The worker's life; it never returns."""
    code = 1
    try:
        faulthandler.disable()  # a crash is told by its case, not by a traceback of pytest
        resource.setrlimit(
            resource.RLIMIT_AS, (_status("VmSize:") + ADDRESSES, resource.RLIM_INFINITY)
        )
        warnings.simplefilter("error")
        kind.warm()
        _give_memory_back()
        sys.addaudithook(_audit)
        for number in range(first, end):
            at[:] = _AT.pack(number, 0.0)
            case = make(kind, seed, number)
            at[:] = _AT.pack(number, case.work)
            kind.write(case)
            os.write(write, json.dumps([number, *_one(kind, case)]).encode() + b"\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _give_memory_back() -> None:
    """Undoes what training may have asked of malloc in this process: to keep freed memory.

    A block out of kept memory does not let the process grow, so the watchdog would not see it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(-4, 65536)  # M_MMAP_MAX, its default: large blocks come from the system
        libc.mallopt(-3, 128 << 10)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 128 << 10)  # M_TRIM_THRESHOLD
        libc.malloc_trim(0)


def _one(kind: Kind, case: Case) -> tuple[str, float, int, str | None]:
    """Outcome, seconds of processor time, bytes of memory grown by, and
    what was found, if anything.
    """
    _reset_peak()
    before, begin = _status("VmRSS:"), time.process_time()
    try:
        with _audited():
            outcome, finding = kind.run(case), None
    except VqtokError as error:
        outcome, finding = (
            type(error).__name__,
            None if str(error) and error.fix else "an error without words",
        )
    except (FoundError, Exception) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome, finding = (
            "FINDING",
            (
                f"{type(error).__name__}: {str(error)[:200]} ({frame.name}, "
                f"line {frame.lineno}; {case.origin})"
            ),
        )
    seconds, grown = time.process_time() - begin, max(0, _status("VmHWM:") - before)
    if finding is None and grown > 2 * case.need + SLACK:
        finding = f"{grown >> 20} MiB, honestly needs {case.need >> 20} ({case.origin}, {outcome})"
    if finding is None and seconds > SECONDS + case.work:
        finding = f"{seconds:.1f} s, honestly takes {case.work:.1f} ({case.origin}, {outcome})"
    return outcome, seconds, grown, finding


_watched = False  # whether a reader is running: then nothing may be written, started or unpickled


@contextmanager
def _audited() -> Iterator[None]:
    global _watched
    _watched = True
    try:
        yield
    finally:
        _watched = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and forbidden(event, arguments):
        raise FoundError(f"{event} {arguments!r:.100}")


def forbidden(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event (sys.addaudithook) is one that no reader has cause for:
    a file written, a program or pickle run.
    """
    if event == "open":
        _, mode, flags = arguments
        writes = mode is not None and any(letter in mode for letter in "wax+")
        return writes or (mode is None and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
    return event in WRITING or event in RUNNING


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "wb") as file:
        file.write(b"5")  # VmHWM starts anew from VmRSS


def _status(key: str) -> int:
    """Bytes of a line of this process's status."""
    with open("/proc/self/status", "rb") as file:
        text = file.read()
    start = text.index(key.encode()) + len(key)
    return int(text[start : text.index(b"kB", start)]) << 10


def _processor_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
