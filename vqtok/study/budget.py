"""Training by the clock: as many steps as fit, with a learning rate that ends
at zero when the time does.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vqtok import weights
from vqtok.config import Recipe
from vqtok.train import Run

# The schedule counts in steps, and how many will fit is not known before: it is set anew when these
# parts of the time have gone by, by the speed so far. Up to the first one the rate stays at its
# peak. On a busy machine one measurement ahead would be wrong by half.
PARTS = (0.04, 0.2, 0.4, 0.6, 0.8, 0.92, 1.0)
AIM = 0.985  # of the time, at which the last step is planned: past 0.92 nothing is corrected
UNKNOWN = 10**6  # steps, as long as none has been timed
VALIDATIONS = 5


class Interrupted(Exception):  # noqa: N818 - not an error: somebody pressed Ctrl-C
    """Training was told to stop; its state is saved."""


@dataclass(frozen=True)
class Spent:
    """Where a stage stands, over all sessions."""

    steps: int
    seconds: float


def spent(folder: Path, stage: str) -> Spent:
    """What the state of a stage says; nothing where there is none."""
    path = folder / f"{stage}.state.safetensors"
    if not path.exists():
        return Spent(0, 0.0)
    record = weights.read_meta(path, "state")["record"]
    return Spent(int(record["step"]), float(record["seconds"]))


def spend(
    train: Callable[[Recipe], bool],
    recipe: Recipe,
    run: Run,
    stage: str,
    seconds: float,
    *,
    table: str,
    steps: int | None = None,
) -> Recipe:
    """Trains a stage for `seconds`, those of earlier sessions included, or for `steps`;
    returns the recipe as it ended.

    `train` goes on with the state in the run's folder and returns whether all steps are done, as
    `vqtok.train.train` does; `table` is the part of the recipe that holds the stage's steps.
    Counted are steps and validations. Raises Interrupted.
    """

    def go(count: int, until: float) -> bool:
        nonlocal recipe
        recipe = with_steps(recipe, table, count)
        run.stop.deadline = time.monotonic() + until
        done = train(recipe)
        run.stop.deadline = math.inf
        if run.stop.signal:
            raise Interrupted
        return done

    if steps is not None:
        go(steps, math.inf)
        return recipe
    before = now = spent(run.folder, stage)
    for part in PARTS:
        if now.seconds < part * seconds:
            done = go(planned(before, now, seconds), part * seconds - now.seconds)
            before, now = now, spent(run.folder, stage)
            if done and now.seconds > PARTS[-2] * seconds:
                return recipe
    if now.seconds < PARTS[-2] * seconds:  # it was faster than planned, again and again
        go(planned(before, now, seconds), seconds - now.seconds)
    # the clock has stopped it: one last step, which is validated
    go(spent(run.folder, stage).steps + 1, math.inf)
    return recipe


def planned(before: Spent, now: Spent, seconds: float) -> int:
    """Steps in all, if the rest goes on as fast as it has since `before`.

    A part that other work disturbed does not count for ever.
    """
    if not now.steps:
        return UNKNOWN
    if now.steps == before.steps:
        before = Spent(0, 0.0)
    speed = (now.steps - before.steps) / max(now.seconds - before.seconds, 1e-3)
    return now.steps + max(1, int((AIM * seconds - now.seconds) * speed))


def with_steps(recipe: Recipe, table: str, steps: int) -> Recipe:
    """The recipe with that many steps of a stage, and a few validations on the way."""
    stage = replace(
        getattr(recipe, table), steps=steps, validate_every=max(1, -(-steps // VALIDATIONS))
    )
    return replace(recipe, **{table: stage})
