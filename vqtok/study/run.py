"""Training of a study's systems, each an ordinary run in a folder of its own;
tokenizers are shared.

What a study's listener hears of training:
one bar of seconds for each stage of a system, and no sentence twice.

Training by the clock: as many steps as fit, with a learning rate that ends
at zero when the time does.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vqtok import config, files, weights
from vqtok import train as training
from vqtok.codec import load_tokenizer, to_device
from vqtok.config import Recipe
from vqtok.data import Dataset, open_data
from vqtok.study import vae
from vqtok.study.image_set import ImageSet
from vqtok.study.systems import System, recipe_of
from vqtok.train import Listener, RunContext, RunSpec, Status, Stop, loop
from vqtok.train.grids import encode_dataset, save_grids

# The schedule counts in steps, and how many will fit is not known before: it is set anew when these
# parts of the time have gone by, by the speed so far. Up to the first one the rate stays at its
# peak. On a busy machine one measurement ahead would be wrong by half.
PARTS = (0.04, 0.2, 0.4, 0.6, 0.8, 0.92, 1.0)
AIM = 0.985  # of the time, at which the last step is planned: past 0.92 nothing is corrected
UNKNOWN = 10**6  # steps, as long as none has been timed
VALIDATIONS = 5

MARK = "trained.json"
INDICES = "indices.state.safetensors"
# of the budget, where tokenizer and prior share one: most bits are of pixels, given the latents
TOKENIZER_PART = 0.6
# Of the settings that are younger than format 1 (`config.OLD_DEFAULTS`), those
# that the first studies knew.
_FIRST_SETTINGS = (
    "level_dropout",
    "shortcut",
    "architecture",
    "output",
    "mixtures",
    "heads",
    "rows",
    "columns",
)
_TOKENIZER_TABLES = ("tokenizer", "data", "losses", "tokenizer_training", "seed", "precision")


class StudyListener:
    """Passes on the messages of training under the system's name; `begin` starts a new bar of
    `seconds`, of which `used` have passed.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._name, self._seconds, self._start = "", 0.0, 0.0
        self._said: set[str] = set()

    def begin(self, name: str, seconds: float, used: float) -> None:
        self._name, self._seconds, self._start = name, seconds, time.monotonic() - used

    def status(self, status: Status) -> None:
        """Shows seconds in the bar: the number of steps is an estimate that changes."""
        used = time.monotonic() - self._start
        left = max(0.0, self._seconds - used)
        steps = int(self._seconds)
        self.listener.status(
            replace(
                status,
                stage=self._stage(status.stage),
                step=min(int(used), steps),
                steps=steps,
                seconds_left=left,
            )
        )

    def validated(self, stage: str, line: dict[str, Any], sentence: str) -> None:
        self.listener.validated(self._stage(stage), line, sentence)

    def note(self, text: str) -> None:
        """Passes a note on once a system: training repeats it whenever it resumes."""
        said = f"{self._name}: {text}"
        if said not in self._said:
            self._said.add(said)
            self.listener.note(said)

    def _stage(self, stage: str) -> str:
        return f"{self._name}: {stage}"


class Interrupted(Exception):  # noqa: N818 - not an error: somebody pressed Ctrl-C
    """Raised after a signal stopped training; its state is saved."""


@dataclass(frozen=True)
class Elapsed:
    """Steps and seconds of a stage, over all sessions."""

    steps: int
    seconds: float


def elapsed(folder: Path, stage: str) -> Elapsed:
    """Reads steps and seconds from the state of a stage; zero where there is none."""
    path = folder / f"{stage}.state.safetensors"
    if not path.exists():
        return Elapsed(0, 0.0)
    record = weights.read_meta(path, "state")["record"]
    return Elapsed(int(record["step"]), float(record["seconds"]))


def train_for(
    train: Callable[[Recipe], bool],
    recipe: Recipe,
    run: RunContext,
    stage: str,
    seconds: float,
    *,
    table: str,
    steps: int | None = None,
) -> Recipe:
    """Trains a stage for `seconds`, earlier sessions included, or for `steps`; returns the final
    recipe.

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
    before = now = elapsed(run.folder, stage)
    for part in PARTS:
        if now.seconds < part * seconds:
            done = go(estimate_steps(before, now, seconds), part * seconds - now.seconds)
            before, now = now, elapsed(run.folder, stage)
            if done and now.seconds > PARTS[-2] * seconds:
                return recipe
    if now.seconds < PARTS[-2] * seconds:  # it was faster than planned, again and again
        go(estimate_steps(before, now, seconds), seconds - now.seconds)
    # the clock has stopped it: one last step, which is validated
    go(elapsed(run.folder, stage).steps + 1, math.inf)
    return recipe


def estimate_steps(before: Elapsed, now: Elapsed, seconds: float) -> int:
    """Estimates the total of steps, if the rest is as fast as it was since `before`.

    A part that other work disturbed does not count for ever.
    """
    if not now.steps:
        return UNKNOWN
    if now.steps == before.steps:
        before = Elapsed(0, 0.0)
    speed = (now.steps - before.steps) / max(now.seconds - before.seconds, 1e-3)
    return now.steps + max(1, int((AIM * seconds - now.seconds) * speed))


def with_steps(recipe: Recipe, table: str, steps: int) -> Recipe:
    """Returns the recipe with that many steps of a stage, and a few validations on the way."""
    stage = replace(
        getattr(recipe, table), steps=steps, validate_every=max(1, -(-steps // VALIDATIONS))
    )
    return replace(recipe, **{table: stage})


@dataclass(frozen=True)
class StudyContext:
    """Inputs that all systems of a study share."""

    folder: Path
    images: ImageSet
    budget: float  # seconds of training for each system
    seed: int
    device: torch.device
    stop: Stop
    listener: StudyListener
    command: str = ""
    steps: int | None = None  # of each stage, in place of the budget: for tests
    dataset: Dataset = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataset", open_data(self.images.path))

    def run(self, folder: Path, recipe: Recipe) -> RunContext:
        return RunContext(self.spec(folder, recipe), self.device, self.stop, self.listener)

    def spec(self, folder: Path, recipe: Recipe, stage: str = "all") -> RunSpec:
        data, count = os.path.abspath(self.images.path), len(self.dataset)
        return RunSpec(
            recipe, data, count, self.command, folder=folder, stage=stage, resume=True, force=True
        )


@dataclass(frozen=True)
class TrainingRecord:
    """Steps and seconds of a system's training."""

    settings: str  # digest of all that it depends on
    finished: bool = False
    steps: int = 0  # of the network that gives the likelihood: prior or VAE
    seconds: float = 0.0
    batch: int = 0
    tokenizer_steps: int = 0
    tokenizer_seconds: float = 0.0
    tokenizer_batch: int = 0
    encoding_seconds: float = 0.0  # images to indices, which the prior learns from
    precision: str = ""

    @property
    def all_seconds(self) -> float:
        return self.seconds + self.tokenizer_seconds + self.encoding_seconds


def read_training(folder: Path) -> TrainingRecord | None:
    """Reads a record; None where none can be read, and the system is trained anew."""
    with suppress(OSError, ValueError, TypeError):
        return TrainingRecord(**json.loads((folder / MARK).read_text(encoding="utf-8")))
    return None


def write_training(folder: Path, trained: TrainingRecord) -> None:
    files.write_bytes(folder / MARK, (json.dumps(asdict(trained)) + "\n").encode(), force=True)


def train(context: StudyContext, system: System) -> TrainingRecord:
    """Trains the system, resumes it, or finds it done.

    Raises budget.Interrupted, and TrainingError as training does.
    """
    recipe = recipe_of(system, context.images.shape, context.seed)
    folder, settings = context.folder / system.name, training_digest(context, system)
    stage = vae.NAME if system.tokenizer == vae.NAME else "prior"
    first = TrainingRecord("") if stage == vae.NAME else _tokenizer(context, system, recipe)
    found = _begin(context, folder, settings, recipe)
    if found.finished:
        return found
    if stage == "prior":
        _share(context.folder / f"tokenizer-{system.tokenizer}", folder)
    seconds = context.budget - first.all_seconds
    recipe, done = _train_stage(context, folder, recipe, stage, seconds)
    # `vqtok train --resume` makes it again: 150 MB of raw pixels
    (folder / INDICES).unlink(missing_ok=True)
    trained = replace(
        first,
        settings=settings,
        finished=True,
        steps=done.steps,
        seconds=done.seconds,
        batch=getattr(recipe, _table(stage)).batch,
        precision=recipe.precision,
    )
    write_training(folder, trained)
    return trained


def _table(stage: str) -> str:
    """Names the part of a recipe that says how a stage is trained."""
    return "prior_training" if stage == "prior" else "tokenizer_training"


def _train_stage(
    context: StudyContext, folder: Path, recipe: Recipe, stage: str, seconds: float
) -> tuple[Recipe, Elapsed]:
    """Trains a stage for the seconds; the recipe in the folder is that of the latest part."""
    run = context.run(folder, recipe)

    def train(recipe: Recipe) -> bool:
        run.spec = context.spec(folder, recipe, stage)
        training.save_run(folder, run.spec)
        if stage == vae.NAME:
            task = vae.VaeTask(recipe, context.dataset, run)
            return loop.train(task, recipe.tokenizer_training, run, resume=True)
        return training.train(run, context.dataset)

    context.listener.begin(folder.name, seconds, elapsed(folder, stage).seconds)
    recipe = train_for(train, recipe, run, stage, seconds, table=_table(stage), steps=context.steps)
    return recipe, elapsed(folder, stage)


def _tokenizer(context: StudyContext, system: System, recipe: Recipe) -> TrainingRecord:
    """Trains a tokenizer once for all systems that share it, and encodes all images with it."""
    folder = context.folder / f"tokenizer-{system.tokenizer}"
    settings = _digest(context, _of_tokenizer(recipe))
    found = _begin(context, folder, settings, recipe)
    if found.finished and (folder / INDICES).exists():
        return found
    seconds = TOKENIZER_PART * context.budget
    recipe, done = _train_stage(context, folder, recipe, "tokenizer", seconds)
    trained = TrainingRecord(
        settings,
        finished=True,
        tokenizer_steps=done.steps,
        tokenizer_seconds=done.seconds,
        tokenizer_batch=recipe.tokenizer_training.batch,
        encoding_seconds=_encode(context, context.run(folder, recipe)),
    )
    write_training(folder, trained)
    return trained


def _encode(context: StudyContext, run: RunContext) -> float:
    """Encodes all images into the tokenizer's folder; returns the seconds."""
    path, start = run.folder / "tokenizer.safetensors", time.monotonic()
    network = to_device(load_tokenizer(path), context.device)
    context.listener.begin(run.folder.name, 1.0, 0.0)
    grids = encode_dataset(network, context.dataset, False, run)
    if grids is None:
        raise Interrupted
    save_grids(run.folder / INDICES, grids, weights.tokenizer_fingerprint(path))
    return time.monotonic() - start


def _begin(context: StudyContext, folder: Path, settings: str, recipe: Recipe) -> TrainingRecord:
    """Reads the record of a run with the same settings; replaces any other run by a new one."""
    found = read_training(folder)
    if found is not None and found.settings == settings:
        return found
    for path in (folder / MARK, folder / INDICES):
        path.unlink(missing_ok=True)
    training.create_run(folder, context.spec(folder, recipe), "all", force=True)
    write_training(folder, TrainingRecord(settings))
    return TrainingRecord(settings)


def _share(tokenizer: Path, folder: Path) -> None:
    """Copies the tokenizer to a system, and links the indices that its prior learns from."""
    shutil.copyfile(tokenizer / "tokenizer.safetensors", folder / "tokenizer.safetensors")
    target = folder / INDICES
    target.unlink(missing_ok=True)
    try:
        os.link(tokenizer / INDICES, target)
    except OSError:  # a file system without links
        shutil.copyfile(tokenizer / INDICES, target)


def training_digest(context: StudyContext, system: System) -> str:
    """Hashes all that the system's training depends on."""
    recipe = recipe_of(system, context.images.shape, context.seed)
    return _digest(
        context, _of_tokenizer(recipe) if system.tokenizer == vae.NAME else recipe.to_dict()
    )


def _of_tokenizer(recipe: Recipe) -> dict[str, Any]:
    return {name: value for name, value in recipe.to_dict().items() if name in _TOKENIZER_TABLES}


def _counted(table: dict[str, Any]) -> dict[str, Any]:
    """Drops settings added later that still have their old value, so that a study can resume after
    an upgrade.
    """
    younger = {
        name: value for name, value in config.OLD_DEFAULTS.items() if name not in _FIRST_SETTINGS
    }
    return {
        name: value
        for name, value in table.items()
        if name not in ("steps", "validate_every")
        and not (name in younger and younger[name] == value)
    }


def _digest(context: StudyContext, values: dict[str, Any]) -> str:
    """Hashes settings, budget and images; the numbers of steps, which the budget decides, are left
    out.
    """
    kept = {
        name: _counted(value) if isinstance(value, dict) else value
        for name, value in values.items()
    }
    whole = {
        "settings": kept,
        "budget": context.budget,
        "steps": context.steps,
        "pictures": context.images.digest,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
