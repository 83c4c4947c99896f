"""What a study's listener hears of training:
one bar of seconds for each stage of a system, and no sentence twice.
"""

import time
from dataclasses import replace
from typing import Any

from vqtok.train import Listener, Status


class Watch:
    """Passes on what training says, under the system's name;
    `begin` starts a new bar of `seconds`, of which `used` have passed.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._name, self._seconds, self._start = "", 0.0, 0.0
        self._said: set[str] = set()

    def begin(self, name: str, seconds: float, used: float) -> None:
        self._name, self._seconds, self._start = name, seconds, time.monotonic() - used

    def status(self, status: Status) -> None:
        """The number of steps is a guess that changes: the bar shows seconds."""
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
        """Once a system: training says the same each time that it goes on."""
        said = f"{self._name}: {text}"
        if said not in self._said:
            self._said.add(said)
            self.listener.note(said)

    def _stage(self, stage: str) -> str:
        return f"{self._name}: {stage}"
