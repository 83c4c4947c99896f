"""Holds what a run has while it trains: spec, device, listener, and when it is to stop."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from vqtok import distributed
from vqtok.train.spec import RunSpec


@dataclass(frozen=True)
class Status:
    """Holds what a progress line shows."""

    stage: str
    step: int
    steps: int
    images_per_second: float
    seconds_left: float
    # means of the window so far, made where somebody asks: they take time
    figures: Callable[[], dict[str, float]] = dict

    @property
    def metrics(self) -> dict[str, float]:
        """Computes the figures as they are now."""
        return self.figures()


class Listener(Protocol):
    """Hears what training has to say; the command line prints it."""

    def status(self, status: Status) -> None:
        """Called after each step."""
        ...

    def validated(self, stage: str, line: dict[str, Any], sentence: str) -> None:
        """Called after each validation; `line` is what went to log.jsonl."""
        ...

    def note(self, text: str) -> None:
        """Called when something is worth a sentence."""
        ...


class Silent:
    """Ignores everything."""

    def status(self, status: Status) -> None:
        pass

    def validated(self, stage: str, line: dict[str, Any], sentence: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass
class Stop:
    """Says why and when to stop early. Signal handlers set `signal`."""

    deadline: float = math.inf  # time.monotonic()
    signal: int = 0

    @property
    def requested(self) -> bool:
        """Whether this process has been told to stop."""
        return bool(self.signal) or time.monotonic() >= self.deadline

    def agree(self) -> bool:
        """Asks all processes of a run whether to stop: any of them may have been told to.

        They call this at the same moment, and each gets the same answer and the same signal.
        """
        self.signal, stops = distributed.all_reduce_max(self.signal, self.requested)
        return bool(stops)


@dataclass
class RunContext:
    """Holds what a run needs while it trains: spec, device, listener, and when to stop."""

    spec: RunSpec
    device: torch.device
    stop: Stop = field(default_factory=Stop)
    listener: Listener = field(default_factory=Silent)

    @property
    def folder(self) -> Path:
        return self.spec.folder

    @property
    def seed(self) -> int:
        return self.spec.recipe.seed

    @property
    def bf16(self) -> bool:
        """Whether matrix products and convolutions are computed in bfloat16."""
        return self.spec.recipe.precision == "bf16"
