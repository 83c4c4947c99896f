"""What commands say: data on stdout, all else on stderr, progress on a terminal only."""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.markup import escape

from vqtok import files
from vqtok.errors import OutputError, VqtokError

P = ParamSpec("P")


def console() -> Console:
    """The console for messages: standard error, plain text where that is no terminal. NO_COLOR is heeded by Rich."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, quiet: bool = False, style: str = "") -> None:
    """One line for a person."""
    if not quiet:
        console().print(escape(_printable(text)), style=style or None)


def show_error(error: VqtokError) -> None:
    """The two lines of an error."""
    target = console()
    target.print(f"[bold red]vqtok: error:[/] {escape(_printable(str(error)))}")
    target.print(f"  [green]fix:[/] {escape(_printable(error.fix))}")


def print_json(value: dict[str, Any]) -> None:
    """One object a line on standard output."""
    write_stdout((json.dumps(value) + "\n").encode())


def print_table(table: Any) -> None:
    """A Rich table on standard output: it is the command's result. Without a terminal its lines are not folded."""
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, width=width).print(table)


def write_stdout(data: bytes) -> None:
    """Bytes to standard output, all or an error."""
    if sys.stdout.isatty() and b"\0" in data[:1024]:
        raise OutputError("standard output is a terminal, and the result is binary", "send it to a file: -o FILE")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_quietly()
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}", "write to a file: -o FILE") from None


def _leave_quietly() -> NoReturn:
    """The reader has gone (`| head`): nobody is left to tell, and Python would complain again while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(1)


def check_target(path: Path, force: bool) -> None:
    """Refuses a result that exists before the work is done, not after."""
    if path != files.STDIO:
        files.check_free(path, force)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors are two lines on stderr and an exit code; VQTOK_DEBUG=1 shows the traceback instead."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except VqtokError as error:
            if os.environ.get("VQTOK_DEBUG") == "1":
                raise
            show_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say("vqtok: interrupted")
            raise typer.Exit(130) from None
        except (MemoryError, RuntimeError) as error:
            # torch reports a full memory as a RuntimeError of its own, on CPU and GPU alike
            if os.environ.get("VQTOK_DEBUG") == "1" or not _is_memory(error):
                raise
            show_error(VqtokError("there is not enough memory for this", "use smaller pictures or a smaller --batch"))
            raise typer.Exit(1) from None

    return run


def _is_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


class Batch:
    """Many inputs: reports each failure, goes on, and tells at the end how many failed."""

    def __init__(self, total: int) -> None:
        self.total, self.failed = total, 0

    def fail(self, error: VqtokError) -> None:
        """A single input's error is the command's own; one of many is reported and counted."""
        if self.total == 1 or os.environ.get("VQTOK_DEBUG") == "1":
            raise error
        self.failed += 1
        show_error(error)

    def finish(self) -> None:
        if self.failed:
            say(f"{self.failed} of {self.total} failed", style="bold red")
            raise typer.Exit(1)


def _printable(text: str) -> str:
    """File names may hold terminal escapes and undecodable bytes."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
