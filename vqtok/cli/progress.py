"""Progress lines: on standard error, and only where that is a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from vqtok import ticks
from vqtok.cli import output

LONG = 1.0  # seconds after which one image gets a line of its own


class _Cut(TextColumn):
    """A column that is cut where the line is full, so that those before it stay whole."""

    def __init__(self, text: str) -> None:
        super().__init__(text, markup=False, table_column=Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class _Pace(ProgressColumn):
    """Things a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s")


class _Lines(Progress):
    def stop(self) -> None:
        """Leaves nothing where nothing was shown: Rich 13.0 prints an empty line there."""
        if not self.disable:
            super().stop()


def lines(*columns: str) -> Progress:
    """Makes a progress line that vanishes when done: counts and the time left first, then a bar,
    and further columns, which are cut where the terminal is narrow.
    """
    target = output.console()
    return _Lines(
        TextColumn("{task.description}", markup=False),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *([] if columns else [_Pace()]),
        BarColumn(16),
        *map(_Cut, columns),
        console=target,
        transient=True,
        disable=not target.is_terminal,
        # what commands print goes through the console, and data to standard output as it is
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextmanager
def bar(description: str, quiet: bool) -> Iterator[Callable[[int, int | None], None] | None]:
    """Returns a callback for (done, total); None where nothing is to be shown."""
    if quiet or not output.console().is_terminal:
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
    if quiet or not output.console().is_terminal:
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
