"""A run's folder: what the run was started with, so that it can go on, and which
files in it may be replaced.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vqtok import config, distributed, files
from vqtok.config import Recipe
from vqtok.errors import OutputError, TrainingError, VqtokError

RUN_FILE, RECIPE_FILE, LOG_FILE = "run.json", "recipe.toml", "log.jsonl"
FORMAT = 1
_ENTROPY_FILES = r"entropy(\.state)?\.safetensors"
_PRIOR_FILES = (
    r"prior(\.state)?\.safetensors|indices\.state\.safetensors|prior-\d{6,}\.png|samples\.png"
)
_TOKENIZER_FILES = r"tokenizer(\.state)?\.safetensors|tokenizer-\d{6,}\.png"
_RUN_FILES = (
    rf"run\.json|recipe\.toml|log\.jsonl|README\.md|{_TOKENIZER_FILES}|{_PRIOR_FILES}|"
    rf"{_ENTROPY_FILES}"
)
_AGAIN = "start anew with -f/--force"


@dataclass(frozen=True)
class Begun:
    """What a run was started with."""

    recipe: Recipe
    data: str  # an absolute path; "" for the built-in shapes
    pictures: int
    command: str = ""
    compiled: bool = False
    perceptual: str = ""  # an absolute path; "" for none
    init: str = ""  # likewise
    job: str = ""  # the torchrun that last went on with it; "" for none


def check_free(folder: Path, stage: str, force: bool) -> None:
    """Raises OutputError where training `stage` anew would replace something and
    `force` does not allow that.
    """
    old = sorted(path.name for path in _replaced(folder, stage))
    if stage in ("prior", "entropy"):
        old = [name for name in old if name.startswith(stage)]
    if old and not force:
        what = (
            "a prior"
            if stage == "prior"
            else "an entropy prior"
            if stage == "entropy"
            else "a run"
            if RUN_FILE in old
            else old[0]
        )
        raise OutputError(
            f"{folder} holds {what} already",
            "go on with --resume, replace it with -f/--force, or choose another -o",
        )


def start(folder: Path, begun: Begun, stage: str, force: bool) -> None:
    """Makes the run's folder, or the start of a new prior in it, and removes what the new run
    replaces. Errors as `check_free`.
    """
    clear(folder, stage, force)
    record(folder, begun)


def clear(folder: Path, stage: str, force: bool) -> None:
    """Removes what training `stage` anew would replace. Errors as `check_free`."""
    check_free(folder, stage, force)
    try:
        for path in _replaced(folder, stage):
            path.unlink()
    except OSError as error:
        raise OutputError(
            f"cannot empty {folder}: {error.strerror}", "choose another folder with -o"
        ) from None


def record(folder: Path, begun: Begun) -> None:
    """Writes what `continued` reads, and takes away what a killed run was writing."""
    files.remove_stale(folder)
    run = {
        "format": FORMAT,
        "data": begun.data,
        "pictures": begun.pictures,
        "command": begun.command,
        "compiled": begun.compiled,
        "perceptual": begun.perceptual,
        "init": begun.init,
        "job": begun.job,
    }
    files.write_bytes(folder / RECIPE_FILE, config.to_toml(begun.recipe).encode(), force=True)
    files.write_bytes(folder / RUN_FILE, (json.dumps(run) + "\n").encode(), force=True)


def to_json(begun: Begun) -> bytes:
    """All of it, for another process."""
    return json.dumps({**vars(begun), "recipe": begun.recipe.to_dict()}).encode()


def from_json(data: bytes) -> Begun:
    """What `to_json` wrote."""
    values = json.loads(data)
    return Begun(Recipe().override(values.pop("recipe")), **values)


def goes_on(folder: Path) -> bool:
    """Whether the run in a folder is of the torchrun that starts this command:
    it does so again where a process has ended.

    To be asked of the first process. Without an --rdzv-id of its own a torchrun is known by
    its process number only, which another may have had before: then it must also say that it
    starts the command again.
    """
    job = distributed.job()
    try:
        return (
            job != ""
            and continued(folder).job == job
            and (distributed.restarted() or not job.startswith("process "))
        )
    except TrainingError:
        return False


@contextmanager
def resumable() -> Iterator[None]:
    """Inside, what cannot be written stops a run that can go on once it can:
    another folder is no way out.
    """
    try:
        yield
    except OutputError as error:
        raise OutputError(
            str(error), "free some space, or allow writing there, then go on with --resume"
        ) from None


def continued(folder: Path) -> Begun:
    """Reads what `record` wrote; TrainingError where the folder holds no run, or a damaged one."""
    path = folder / RUN_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        newer = run["format"] > FORMAT
        data, pictures = str(run["data"]), int(run["pictures"])
        command, compiled = str(run.get("command", "")), bool(run.get("compiled", False))
        perceptual, init, job = (str(run.get(name, "")) for name in ("perceptual", "init", "job"))
    except (FileNotFoundError, NotADirectoryError):
        raise TrainingError(
            f"{folder} holds no run to resume", "leave --resume out to start one"
        ) from None
    except OSError as error:
        raise TrainingError(
            f"cannot read {path}: {error.strerror}", "check its permissions"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise TrainingError(f"{path} is damaged", _AGAIN) from None
    if newer:
        raise TrainingError(f"the run in {folder} was started by a newer vqtok", "upgrade vqtok")
    return Begun(
        _recipe(folder / RECIPE_FILE), data, pictures, command, compiled, perceptual, init, job
    )


def _recipe(path: Path) -> Recipe:
    try:
        return Recipe().override(config.read_recipe(path), str(path))
    except VqtokError as error:
        raise TrainingError(f"the recipe of this run is damaged: {error}", _AGAIN) from None


def _replaced(folder: Path, stage: str) -> list[Path]:
    """Files that a new run, or a new prior, writes itself;
    others in the folder are the user's own.
    """
    pattern = {"prior": _PRIOR_FILES, "entropy": _ENTROPY_FILES}.get(stage, _RUN_FILES)
    try:
        return [path for path in folder.iterdir() if re.fullmatch(pattern, path.name)]
    except (FileNotFoundError, NotADirectoryError):
        # the latter is reported when the first file is written
        return []
    except OSError as error:
        raise OutputError(
            f"cannot look into {folder}: {error.strerror}", "choose another folder with -o"
        ) from None
