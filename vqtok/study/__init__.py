"""Asks why quantize at all: trains models of raw pixels, a VAE and VQ-VAEs for the same time on the
same images.

Every system is an ordinary run in a folder of its own, so that the other commands
resume, report and sample it.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vqtok import train
from vqtok._version import __version__
from vqtok.errors import OutputError, UsageError
from vqtok.study import image_set, measure, page, table
from vqtok.study import run as study_run
from vqtok.study.run import Interrupted, StudyContext, StudyListener
from vqtok.study.systems import SYSTEMS, System
from vqtok.study.table import Result, Study

__all__ = [
    "SYSTEMS",
    "Interrupted",
    "Plan",
    "Result",
    "Study",
    "System",
    "check_free",
    "run_study",
    "select_systems",
]


@dataclass(frozen=True)
class Plan:
    """Choices of one study."""

    data: str | None  # None: the built-in shapes
    folder: Path
    budget: float  # seconds of training for each system
    systems: tuple[System, ...] = SYSTEMS
    seed: int = 0
    test_images: int = 1000
    samples: int = 64
    command: str = ""
    steps: int | None = None  # of each stage, in place of the budget: for tests


def select_systems(names: str | None) -> tuple[System, ...]:
    """Returns the systems named, separated by commas, in the table's order; None: all.

    UsageError for an unknown one.
    """
    known = {system.name: system for system in SYSTEMS}
    wanted = (
        list(known)
        if names is None
        else [name.strip() for name in names.split(",") if name.strip()]
    )
    for name in wanted:
        if name not in known:
            raise UsageError(f"there is no system {name!r}", f"choose from {', '.join(known)}")
    if not wanted:
        raise UsageError("no system is named", f"choose from {', '.join(known)}")
    return tuple(system for system in SYSTEMS if system.name in wanted)


def check_free(folder: Path, force: bool) -> None:
    """Raises OutputError where a new study would replace one and `force` does not allow that."""
    if (folder / page.JSON).exists() and not force:
        raise OutputError(
            f"{folder} holds a study already",
            "go on with --resume, replace it with -f/--force, or choose another -o",
        )


def run_study(
    plan: Plan,
    stop: train.Stop,
    listener: train.Listener,
    device: torch.device,
    resume: bool = False,
) -> Study:
    """Trains and measures the systems one after another, and rewrites tables and pages after each.

    With `resume`, what is finished with the same settings is kept, of systems that are not asked
    for, too, and what is begun goes on.
    Raises Interrupted after a signal, when all that is needed to go on is saved;
    InputError and UsageError for images that a study cannot use.
    """
    found = image_set.prepare(
        image_set.find_data(plan.data), plan.folder / "data", plan.test_images, plan.seed
    )
    watch = StudyListener(listener)
    context = StudyContext(
        plan.folder, found, plan.budget, plan.seed, device, stop, watch, plan.command, plan.steps
    )
    if not resume:
        _forget(plan.folder)
    have = _finished(plan, context)
    page.write(plan.folder, _outcome(plan, context, have))
    for system in plan.systems:
        if system.name not in have:
            watch.begin(system.name, plan.budget, 0.0)
            have[system.name] = measure.measure(
                context, system, study_run.train(context, system), plan.samples
            )
            page.write(plan.folder, _outcome(plan, context, have))
    return _outcome(plan, context, have)


def _finished(plan: Plan, context: StudyContext) -> dict[str, Result]:
    """Reads the results that are in the folder already, by system."""
    found = {}
    for system in {system.name: system for system in (*SYSTEMS, *plan.systems)}.values():
        settings = measure.result_digest(
            study_run.training_digest(context, system), len(context.images.test), plan.samples
        )
        result = table.read_result(plan.folder / system.name, settings)
        if result is not None:
            found[system.name] = result
    return found


def _forget(folder: Path) -> None:
    """Marks the results of an earlier study as not done; its files are replaced one by one."""
    for mark in (*folder.glob(f"*/{study_run.MARK}"), *folder.glob(f"*/{table.RESULT}")):
        mark.unlink()


def _outcome(plan: Plan, context: StudyContext, have: dict[str, Result]) -> Study:
    """Returns the study so far, its systems in the table's order."""
    order = dict.fromkeys([*(system.name for system in SYSTEMS), *have])
    found = [have[name] for name in order if name in have]
    test = context.images.test
    facts: dict[str, Any] = {
        "data": context.images.name,
        "size": list(test.shape[1:]),
        "training pictures": context.images.train,
        "test pictures": len(test),
        "test set": context.images.source,
        "digest of the pictures": context.images.digest,
        "budget in seconds": plan.budget,
        "seed": plan.seed,
        "command": plan.command,
        "vqtok": __version__,
        **_machine(context.device),
    }
    return Study(tuple(found), context.images.shape, plan.samples, facts)


def _machine(device: torch.device) -> dict[str, Any]:
    """Describes the machine that the seconds were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Returns the processor's name where the system knows it, as Linux does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
