"""What the benchmarks share: calls timed in turn, peak memory, and a line about the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], object]


def seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def alternate(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Median seconds of each call over `rounds`:
    all take turns, so that what else the machine does hits all alike. One turn warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            taken = seconds(call)
            if turn:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def peak(call: Call) -> int:
    """Bytes that torch holds on the CPU at the most during a call, beyond what it held before."""
    recorder: Any = torch.autograd.profiler.profile(profile_memory=True)
    with recorder:
        call()
    events = sorted(
        (e for e in recorder.kineto_results.events() if e.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    live = highest = 0
    for event in events:
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def machine() -> str:
    """Processor, threads and versions, for the head of a table."""
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
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of {versions}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Rows under a head, as Markdown; the first column to the left, the others to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
