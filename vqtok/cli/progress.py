"""Progress lines: on standard error, and only where that is a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vqtok import ticks
from vqtok.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress

LONG = 1.0  # seconds after which one image gets a line of its own


def lines(*columns: str) -> "Progress":
    """Makes a progress line, as `progress_line.lines`."""
    from vqtok.cli import progress_line

    return progress_line.lines(*columns)


@contextmanager
def bar(description: str, quiet: bool) -> Iterator[Callable[[int, int | None], None] | None]:
    """Returns a callback for (done, total); None where nothing is to be shown."""
    if quiet or output.is_plain() or not output.console().is_terminal:
        yield None
        return
    with lines() as progress, output.shared(progress.console):
        # names of data sets are file names
        task = progress.add_task(output.printable(description), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def jobs(description: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Shows how many jobs are done, by the returned callback, and below that a line for a job that
    takes more than a second.
    """
    if quiet or output.is_plain() or not output.console().is_terminal:
        yield lambda done: None
        return
    with lines() as progress, output.shared(progress.console):
        all_jobs = progress.add_task(description, total=total, visible=total > 1)
        present = progress.add_task("  parts" if total > 1 else description, visible=False)
        begin = time.monotonic()

        def tell(done: int, parts: int) -> None:
            if done <= 1:
                progress.reset(present)
            shown = time.monotonic() - begin > LONG and parts > 1
            progress.update(present, completed=done, total=parts, visible=shown)

        def advance(done: int) -> None:
            nonlocal begin
            begin = time.monotonic()
            progress.update(present, visible=False)
            progress.update(all_jobs, completed=done)

        with ticks.listen(tell):
            yield advance
