"""What a progress line shows, in Rich."""

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

from vqtok.cli import output


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
