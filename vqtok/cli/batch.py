"""Files in, files out: the loop of encode, decode, pack, unpack and truncate."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vqtok.cli import output
from vqtok.errors import UsageError, VqtokError

if TYPE_CHECKING:
    from vqtok.files import Source

Facts = dict[str, Any]  # of one result: the object that --json prints


@dataclass(frozen=True)
class Job:
    """One input, and where its result goes."""

    source: "Source"
    target: Path


@dataclass(frozen=True)
class BatchOptions:
    """The options that all commands over files share."""

    out: Path | None
    force: bool
    skip_existing: bool
    json: bool
    quiet: bool


class Failures:
    """Counts the inputs that fail; at the end the command says how many, and exits with 1.

    The error of a single input is the command's own, unless `keep_going`.
    """

    def __init__(self, total: int, keep_going: bool = False) -> None:
        self.total, self.failed = total, 0
        self.keep_going = keep_going or total > 1

    def add(self, error: VqtokError) -> None:
        """Reports the error of one of several inputs; raises that of a single one."""
        if not self.keep_going or output.debugging():
            raise error
        self.failed += 1
        output.show_error(error)

    def finish(self) -> None:
        if self.failed:
            output.say(f"{self.failed} of {self.total} failed", style="bold red")
            raise typer.Exit(1)


def plan(
    inputs: Sequence[str],
    suffixes: frozenset[str],
    ending: str,
    out: Path | None,
    is_other: Callable[[Path], bool] | None = None,
) -> list[Job]:
    """Expands the inputs and names their results: beside each, with that ending, or as -o says."""
    from vqtok import files

    sources = files.expand(inputs, suffixes, is_other)
    return [
        Job(source, files.output_path(source, ending, out, len(sources) > 1)) for source in sources
    ]


class Batch:
    """The jobs that are left to do, and what has failed."""

    def __init__(self, jobs: Sequence[Job], options: BatchOptions) -> None:
        """Leaves out jobs to be skipped, and those that fail because their result exists.

        Raises UsageError where two inputs would write one file, or options contradict each other.
        """
        self.options = options
        _check_options(jobs, options)
        _check_distinct(jobs)
        left = [job for job in jobs if not self._exists(job)]
        if len(left) < len(jobs):
            self._say(f"{len(jobs) - len(left)} of {len(jobs)} exist already and are left out")
        self.failures, self.jobs = Failures(len(left)), []
        for job in left:
            try:
                output.check_target(job.target, options.force)
                self.jobs.append(job)
            except VqtokError as error:
                self.failures.add(error)

    def run(
        self, work: Callable[[Job], list[Facts]], describe: Callable[[Job, Facts], list[str]]
    ) -> None:
        """Does one job after another, and reports on each; arguments as in `report`."""
        self.report(((job, partial(work, job)) for job in self.jobs), describe)

    def report(
        self,
        outcomes: Iterable[tuple[Job, Callable[[], list[Facts]]]],
        describe: Callable[[Job, Facts], list[str]],
    ) -> None:
        """Reports each job's results, as JSON or in the lines that `describe` makes of one.

        A call gives a job's results or raises VqtokError, which is reported: the rest goes on.
        """
        for job, results in outcomes:
            try:
                with output.memory_errors(job.source):
                    found = results()
            except VqtokError as error:
                self.failures.add(error)
                continue
            for facts in found:
                for note in facts.get("notes", ()):
                    self._say(f"{job.source}: {note}")
                if self.options.json:
                    output.print_json(facts)
                    continue
                for line in describe(job, facts):
                    self._say(line)

    def finish(self) -> None:
        self.failures.finish()

    def _exists(self, job: Job) -> bool:
        from vqtok.files import STDIO

        return self.options.skip_existing and job.target != STDIO and os.path.lexists(job.target)

    def _say(self, text: str) -> None:
        output.say(text, self.options.quiet)


def _check_options(jobs: Sequence[Job], options: BatchOptions) -> None:
    from vqtok.files import STDIO

    if options.force and options.skip_existing:
        raise UsageError(
            "--force and --skip-existing contradict each other", "leave one of them out"
        )
    if options.json and any(job.target == STDIO for job in jobs):
        raise UsageError(
            "the result and --json would both go to standard output",
            "leave --json out, or give a file: -o FILE",
        )


def _check_distinct(jobs: Sequence[Job]) -> None:
    seen: dict[str, Source] = {}
    for job in jobs:
        first = seen.setdefault(os.path.abspath(job.target), job.source)
        if first is not job.source:
            raise UsageError(
                f"{first} and {job.source} would both become {job.target}",
                "rename one of them, or take them one by one with -o",
            )
