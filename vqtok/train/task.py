"""Declares what the training loop knows of a task: a network, its batches, its steps and
validations.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from vqtok.train import state
from vqtok.weights import Weights


@dataclass(frozen=True)
class Step:
    """Holds the results of one step."""

    loss: Tensor  # scalar, to be minimized
    metrics: dict[str, Tensor]  # scalars to be averaged over the window
    indices: Tensor | None = None  # codes chosen, to be counted


@dataclass(frozen=True)
class Validation:
    """Holds the results of a validation."""

    score: float  # lower is better: chooses the best weights
    metrics: dict[str, float]
    sheet: np.ndarray | None = None  # uint8 (H, W, C)
    # these weights, whatever the score: it does not know all that they were trained for
    keep: bool = False


class Task(ABC):
    """Gives the training loop a network and its batches, and measures how well it does."""

    name: str
    network: nn.Module
    frozen: tuple[str, ...] = ()  # how the names of its tensors begin that never change
    one_thread: bool = False  # whether a step on a CPU is too small for several threads
    codes: int = 1  # K: size of the histogram of chosen codes

    def learners(self) -> list[state.Learner]:
        """Networks that learn beside it, each with its own optimizer;
        the task steps them, the loop keeps their state.
        """
        return []

    @abstractmethod
    def on_start(self) -> None:
        """Runs once before the first step of a new run."""

    @abstractmethod
    def batches(self, start: int, stop: int) -> Generator[Any, None, None]:
        """Yields the batch of each step from start to stop; a pure function of the step.

        Closing it ends its threads.
        """

    def schedule(self, step: int) -> Hashable:
        """Sets what the number of a step decides, before its `forward`;
        returns what that does to its Python code.

        None where a step cannot be captured as a CUDA graph.
        A graph is captured anew where the answer changes.
        """
        return None

    @abstractmethod
    def forward(self, batch: Any) -> Step: ...

    def auxiliary_step(self) -> dict[str, Tensor]:
        """Runs before the optimizer's step: scalars of what learns beside the network.

        Where one is not finite, nothing learns.
        """
        return {}

    def after_step(self, ok: Tensor | None = None) -> dict[str, Tensor]:
        """Runs after the optimizer's step, and not where that is skipped:
        what the forward has seen leaves a trace here, or none.

        On a GPU it always runs: there `ok` (bool, scalar) says whether it may change anything.
        The scalars that it returns are added up over the window.
        """
        return {}

    @abstractmethod
    def validate(self) -> Validation: ...

    def window_summary(
        self, window: dict[str, float], counts: Tensor
    ) -> tuple[dict[str, float], str]:
        """Returns further figures of the window since the last validation, and one plain sentence
        about them ('' for none).
        """
        return {}, ""

    @abstractmethod
    def release(self, record: dict[str, Any]) -> Weights:
        """Returns the weights file for the network as it is now."""
