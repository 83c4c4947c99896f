"""Reads and writes a run's state: everything that a resumed run needs to equal one that never
stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqtok import distributed, weights
from vqtok.errors import FormatError, TrainingError

RUN_FILE, RECIPE_FILE, LOG_FILE = "run.json", "recipe.toml", "log.jsonl"

FORMAT = 1
_AGAIN = "start anew with -f/--force"


@dataclass
class Progress:
    """Holds how far a stage has come.

    All random draws of a step come from (seed, step), so a step number is the whole position.
    """

    step: int = 0  # steps done
    best: float | None = None  # lowest validation score
    best_step: int = 0
    seconds: float = 0.0  # of training, over all sessions
    window: dict[str, float] = field(default_factory=dict)  # sums since the last validation
    skipped_in_a_row: int = 0  # steps just now that were not finite, and changed nothing


@dataclass(frozen=True)
class Learner:
    """Holds a network and the optimizer that changes it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    prefix: str = ""  # of its tensors' names in a state file

    def weights(self) -> dict[str, Tensor]:
        """Returns the network's tensors by their names in a state file."""
        return {
            f"{self.prefix}network.{name}": value
            for name, value in self.network.state_dict().items()
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns what is learned, by the prefix that its moments have in a state file."""
        return {
            f"{self.prefix}optimizer.{name}.": parameter
            for name, parameter in self.network.named_parameters()
        }


def tensors_of(learners: Sequence[Learner], extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights, optimizer moments and extra tensors by their names in a state file; they
    share memory with their owners.
    """
    tensors = dict(extra)
    for learner in learners:
        tensors |= learner.weights()
        for start, parameter in learner.parameters().items():
            tensors |= {
                start + key: value
                for key, value in learner.optimizer.state.get(parameter, {}).items()
            }
    return tensors


def save_state(path: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Writes a state file.

    Raises TrainingError, and leaves the old file, where a tensor is not finite:
    no run could go on from that.
    """
    arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            fix = "the last good checkpoint is kept; start anew with a lower learning rate"
            raise TrainingError(f"{name} is not finite after step {progress.step}", fix)
    meta = {"format": FORMAT, "kind": "state", "config": {}, "record": dict(vars(progress))}
    weights.save_weights(path, weights.Weights(arrays, meta), force=True)


def load_state(
    path: Path, learners: Sequence[Learner], extra: Mapping[str, Tensor]
) -> Progress | None:
    """Restores what `save_state` wrote, all tensors in place, from the first process's file;
    None where there is none.

    Raises TrainingError for a damaged file and for one of another network.
    """
    stored = distributed.broadcast_weights(
        lambda: read_state(path, _AGAIN) if path.exists() else None
    )
    if stored is None:
        return None
    tensors = {name: torch.from_numpy(value) for name, value in stored.tensors.items()}
    _fill_tensors(extra, tensors, path)
    for learner in learners:
        _fill_tensors(learner.weights(), tensors, path)
        _fill_moments(learner, tensors, path)
    return _progress(stored.record, path)


def _fill_moments(learner: Learner, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Moments are made by an optimizer's first step;
    a parameter that the file has none of has not been changed yet.
    """
    fused = bool(learner.optimizer.defaults.get("fused"))
    for start, parameter in learner.parameters().items():
        moments = {
            key.removeprefix(start): value
            for key, value in tensors.items()
            if key.startswith(start)
        }
        if moments:
            _require(all(value.shape in (parameter.shape, ()) for value in moments.values()), path)
            learner.optimizer.state[parameter] = {
                key: _like(value, parameter, fused) for key, value in moments.items()
            }


def read_state(path: Path, fix: str) -> weights.Weights:
    """Reads a state file; damage is a TrainingError with a fix for those who train."""
    try:
        return weights.load_weights(path, "state")
    except FormatError as error:
        raise TrainingError(str(error), fix) from None


def _like(value: Tensor, parameter: nn.Parameter, fused: bool) -> Tensor:
    """Gives a moment the memory layout of its parameter: fused Adam walks both by address and would
    mix up channels-last weights.
    """
    if value.shape != parameter.shape or value.dim() == 0:
        return value.to(parameter.device) if fused else value  # the count of steps
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _progress(record: dict[str, Any], path: Path) -> Progress:
    record = {"skipped_in_a_row": 0} | record  # older states know no skipped steps
    _require(set(record) == {f.name for f in fields(Progress)}, path)
    progress = Progress(**record)
    whole = [progress.step, progress.best_step, progress.skipped_in_a_row]
    numbers = [*whole, progress.seconds, *([] if progress.best is None else [progress.best])]
    _require(
        isinstance(progress.window, dict) and all(type(n) is int and n >= 0 for n in whole), path
    )
    _require(all(type(n) in (int, float) for n in (*numbers, *progress.window.values())), path)
    return progress


def _require(ok: bool, path: Path) -> None:
    if not ok:
        raise TrainingError(f"{path} is damaged", _AGAIN)


@torch.no_grad()
def _fill_tensors(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, target in targets.items():
        if name not in tensors or tensors[name].shape != target.shape:
            raise TrainingError(
                f"{path} is the state of another network",
                "resume with the settings the run was started with",
            )
        target.copy_(tensors[name])
