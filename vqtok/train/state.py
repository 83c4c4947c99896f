"""A run's state on disk: everything that continuing needs so that the result equals the run that was never stopped."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqtok import weights
from vqtok.errors import TrainingError

FORMAT = 1


@dataclass
class Progress:
    """Where a stage stands. All random draws of a step come from (seed, step), so a step number is the whole position."""

    step: int = 0                               # steps done
    best: float | None = None                   # lowest validation score
    best_step: int = 0
    seconds: float = 0.0                        # of training, over all sessions
    window: dict[str, float] = field(default_factory=dict)      # sums since the last validation


def save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, counts: Tensor, progress: Progress) -> None:
    """Writes weights, optimizer moments, code counts and progress; the old file stays until the new one is complete."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for name, moments in _moments(network, optimizer).items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
    tensors["window.counts"] = counts
    record = dict(vars(progress))
    arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}
    meta = {"format": FORMAT, "kind": "state", "config": {}, "record": record}
    weights.save(path, weights.Weights(arrays, meta), force=True)


def load(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, counts: Tensor) -> Progress:
    """Restores what `save` wrote; raises FormatError for a damaged file and TrainingError for one of another network."""
    stored = weights.load(path, "state")
    tensors = {name: torch.from_numpy(value) for name, value in stored.tensors.items()}
    _fill({f"network.{name}": value for name, value in network.state_dict().items()}, tensors, path)
    _fill({"window.counts": counts}, tensors, path)
    for name, parameter in network.named_parameters():
        prefix = f"optimizer.{name}."
        moments: dict[str, Any] = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if moments:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
    return Progress(**stored.meta["record"])


def _moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    return {name: optimizer.state[parameter] for name, parameter in network.named_parameters() if parameter in optimizer.state}


@torch.no_grad()
def _fill(targets: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    for name, target in targets.items():
        if name not in tensors or tensors[name].shape != target.shape:
            raise TrainingError(f"{path} is the state of another network", "resume with the settings the run was started with")
        target.copy_(tensors[name])
