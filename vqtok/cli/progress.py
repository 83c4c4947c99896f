"""Progress lines: on standard error, and only where that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vqtok.cli import output


def lines(*columns: str) -> Progress:
    """A progress line with a bar, counts, further columns and the time left;
    it vanishes when done.
    """
    target = output.console()
    texts = [TextColumn(column) for column in columns]
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        *texts,
        TimeRemainingColumn(),
        console=target,
        transient=True,
        disable=not target.is_terminal,
    )


@contextmanager
def bar(description: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A callback for (done, total); None where nothing is to be shown."""
    if quiet or not output.console().is_terminal:
        yield None
        return
    with lines() as progress:
        # names of data sets are file names
        task = progress.add_task(output.printable(description), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
