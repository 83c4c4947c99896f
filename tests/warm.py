"""Processes that have PyTorch from the start: a server imports it once a session, and forks.

A process of its own takes 1.5 s of processor to import it, and 1.4 more for its first optimizer.
What a start is like is tested on real ones: test_cli.py, test_cli_start.py.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

COMMAND = "from vqtok.__main__ import main; main()"  # `vqtok`
# from few vectors, as in this process
TRAIN = f"from vqtok.train import tokenizer; tokenizer.INITIAL_VECTORS = 256; {COMMAND}"
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch._dynamo", "typer", "rich.progress", "PIL.Image"])


class Warm:
    """`python -c SOURCE WORDS` in a process and a session of its own; used as a `Popen` is."""

    def __init__(
        self,
        source: str,
        words: Sequence[object] = (),
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        folder = folder or Path.cwd()
        self._told = Path(tempfile.mkdtemp(prefix="warm-", dir=folder.parent))
        given = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # read when torch is imported
            forkserver.ensure_running()
        line = ["-c", *map(str, words)]
        self._process = _FORKS.Process(
            target=_run, args=(source, line, given, str(folder), str(self._told))
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("vqtok", timeout)
        return self._process.exitcode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it said on stdout and stderr, once it has ended."""
        self.wait(timeout)
        output, errors = (
            path.read_text() if path.exists() else ""
            for path in (self._told / "1", self._told / "2")
        )
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(source: str, line: list[str], environment: dict[str, str], folder: str, told: str) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number in (1, 2):
        os.dup2(os.open(f"{told}/{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = line
    exec(compile(source, "<string>", "exec"), {"__name__": "__main__"})
