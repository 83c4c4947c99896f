"""Prints for all commands: data on stdout, all else on stderr, progress on a terminal only."""

import functools
import io
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import typer

from vqtok import files
from vqtok.cli import collector
from vqtok.errors import OutputError, VqtokError
from vqtok.remote import RemoteError

# Rich is imported where something is drawn: with its parts it takes 1/30 of the import of torch
if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

P = ParamSpec("P")
# with one of these set, Rich may take for a terminal what is none
_AS_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")

_shared: "list[Console]" = []  # the console of a progress line that is being shown


def console() -> "Console":
    """Returns the console for messages: standard error, plain text where that is no terminal; while
    a progress line is shown, the one that prints above it.

    NO_COLOR is heeded by Rich.
    """
    from rich.console import Console

    return _shared[-1] if _shared else Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def shared(target: "Console") -> Iterator[None]:
    """Messages go through this console inside."""
    _shared.append(target)
    try:
        yield
    finally:
        _shared.pop()


def say(text: str, quiet: bool = False, style: str = "") -> None:
    """Prints one line for a person."""
    if quiet or (is_plain() and _write_plain(printable(text))):
        return
    from rich.text import Text

    # Text: file names may look like markup or :emoji:
    console().print(Text(printable(text), style))


def is_plain() -> bool:
    """Whether messages go to what is surely no terminal: Rich need not be asked."""
    if _shared or any(name in os.environ for name in _AS_TERMINAL):
        return False
    try:
        return not sys.stderr.isatty()
    except (AttributeError, ValueError):  # None, or closed
        return False


def _write_plain(line: str) -> bool:
    """Writes a line to standard error; whether that was possible."""
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return False
    return True


def show_error(error: VqtokError) -> None:
    """Prints the two lines of an error."""
    from rich.text import Text

    target = console()
    target.print(Text.assemble(("vqtok: error:", "bold red"), " ", printable(str(error))))
    target.print(Text.assemble(("  fix:", "green"), " ", printable(error.command_fix)))


def total(images: int, size: int, seconds: float) -> str:
    """Returns the last line of many images, like '1,000 images, 8.9 MB, 40 s, 25 a second'."""
    parts = [files.human_count(images, "image")]
    parts += [files.human_bytes(size)] if size else []
    parts.append(files.human_duration(seconds) if seconds >= 10 else f"{seconds:.1f} s")
    if images > seconds > 0:
        parts.append(f"{images / seconds:.0f} a second")
    return ", ".join(parts)


def printable(text: str) -> str:
    """Returns text as one line. File names may hold line breaks, terminal escapes and undecodable
    bytes.
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def print_json(value: dict[str, Any]) -> None:
    """Prints one object a line on standard output; infinity and NaN, for which JSON has no word,
    become null.
    """
    write_stdout((json.dumps(_finite(value), allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(table: "Table") -> None:
    """Prints a Rich table on standard output: it is the command's result.

    Without a terminal its lines are not folded.
    """
    from rich.console import Console

    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    # Rich itself loses sight of a full disk or closed pipe
    page = io.TextIOWrapper(io.BytesIO(), encoding, errors="replace")
    terminal = _is_terminal()
    Console(
        file=page, force_terminal=terminal, highlight=False, width=None if terminal else 10_000
    ).print(table)
    page.seek(0)
    lines = [line.rstrip() for line in page]
    write_stdout(("\n".join(lines).strip("\n") + "\n").encode(encoding))


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def write_stdout(data: bytes) -> None:
    """Writes bytes to standard output: all of them, or raises an error."""
    if _is_terminal() and b"\0" in data[:1024]:
        raise OutputError(
            "standard output is a terminal, and the result is binary", "send it to a file: -o FILE"
        )
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_quietly()
    except (OSError, AttributeError) as error:
        # AttributeError: sys.stdout is None where it was closed (>&-)
        reason = error.strerror if isinstance(error, OSError) else "it is closed"
        _drop_stdout()
        raise OutputError(
            f"cannot write to standard output: {reason}",
            "free some space there, or send it elsewhere",
        ) from None


def write(target: Path, data: bytes, force: bool) -> None:
    """Writes a result's bytes to its file, or to standard output."""
    if target == files.STDIO:
        write_stdout(data)
    else:
        files.write_bytes(target, data, force)


def _leave_quietly() -> NoReturn:
    """Exits without a message, for the reader has gone (`| head`)."""
    _drop_stdout()
    raise typer.Exit(1)


def _drop_stdout() -> None:
    """Sends what is still buffered nowhere: Python would try to write it once more while it
    exits, and complain again.
    """
    with suppress(OSError, AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def display_name(target: Path | str) -> str:
    """Returns where a result goes, for a person."""
    return "standard output" if str(target) == "-" else str(target)


def check_target(path: Path, force: bool) -> None:
    """Refuses a result that exists before the work is done, not after."""
    if path != files.STDIO:
        files.check_free(path, force)


def handle_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Wraps a command: its errors become two lines on stderr and an exit code; VQTOK_DEBUG=1 shows
    the traceback instead.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        collector.resume()
        try:
            with memory_errors(), _terminable():
                command(*args, **kwargs)
        except KeyboardInterrupt:
            say("vqtok: interrupted")
            raise typer.Exit(130) from None
        except typer.Exit:
            raise
        except Exception as error:
            if debugging():
                raise
            known = error if isinstance(error, VqtokError) else _unexpected(error)
            show_error(known)
            raise typer.Exit(known.exit_code) from None

    return run


@contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM end a command as Ctrl-C does: Python would exit at once and leave half a
    temporary file.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def debugging() -> bool:
    return os.environ.get("VQTOK_DEBUG") == "1"


def _unexpected(error: Exception) -> VqtokError:
    """Describes an error that no check foresaw: a failing disk, or a mistake in vqtok."""
    if isinstance(error, RemoteError):
        return VqtokError(f"cannot reach {error.filename}: {error.strerror}", error.fix)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return VqtokError(
            f"{where}{error.strerror}", "check the path and the disk; VQTOK_DEBUG=1 shows more"
        )
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    return VqtokError(
        f"unexpected {reason}",
        "this is a mistake in vqtok; please report it with what VQTOK_DEBUG=1 shows",
    )


@contextmanager
def memory_errors(name: object = "this") -> Iterator[None]:
    """Turns a full memory, which torch reports as a RuntimeError of its own on CPU and GPU
    alike, into a VqtokError.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error) or debugging():
            raise
        raise VqtokError(
            f"there is not enough memory for {name}",
            "use smaller images; for training, a smaller --batch",
        ) from None


def _is_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
    )
