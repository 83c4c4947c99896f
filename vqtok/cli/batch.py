"""Files in, files out: the loop of encode, decode, pack, unpack and truncate."""

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vqtok.cli import output, progress
from vqtok.errors import InputError, UsageError, VqtokError

if TYPE_CHECKING:
    from vqtok.codes import Codes, Compact
    from vqtok.files import Source

Facts = dict[str, Any]  # of one result: the object that --json prints


@dataclass(frozen=True)
class Job:
    """One input, and where its result goes."""

    source: "Source"
    target: Path
    notes: tuple[str, ...] = ()  # what is said of it, beside what the work itself says


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

    def merge(self, other: "Failures") -> None:
        """Counts what has failed elsewhere in the command, too."""
        self.total, self.failed = self.total + other.total, self.failed + other.failed

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
    """Expands the inputs and names their results: beside each, with that ending, or as -o says.

    Of photo.jpg and photo.png the second becomes photo.png.npz.
    """
    from vqtok import files

    sources = files.expand(inputs, suffixes, is_other)
    jobs = [
        Job(source, files.output_path(source, ending, out, len(sources) > 1)) for source in sources
    ]
    return _keep_suffixes(jobs, ending)


def _keep_suffixes(jobs: list[Job], ending: str) -> list[Job]:
    """Names results by the whole name of the input where two inputs would write one file, for all
    but the first, and says so.
    """
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(os.path.abspath(job.target), job)
    taken, named = set(first), list[Job]()
    for job in jobs:
        owner = first[os.path.abspath(job.target)]
        other = job.target.with_name(job.source.relative.name + ending)
        same_name = owner.source.relative.name == job.source.relative.name
        if owner is job or same_name or os.path.abspath(other) in taken:
            named.append(job)  # `_check_distinct` refuses what is still double
            continue
        taken.add(os.path.abspath(other))
        note = f"{owner.source} becomes {job.target}, so this becomes {other.name}"
        named.append(Job(job.source, other, (note,)))
    return named


def read_codes(source: "Source") -> "Codes | Compact":
    """Reads the codes in a file of either form. Raises InputError, FormatError."""
    from vqtok import codes, files

    path = source.path
    if path is not None and path.suffix.lower() == ".tar" and os.path.isfile(path):
        raise InputError(
            f"{path} is a tar, and a codes file is a .npz",
            f"give the folder where it is one of codes shards: {path.parent}",
        )
    if path is not None:
        return codes.read_any_codes(path)
    return codes.read_any_codes(files.read_stdin(codes.FILE_LIMIT), "standard input")


def check_codes_targets(jobs: Sequence[Job], out: Path | None) -> None:
    """Raises UsageError where -o has a name that no codes file may have, such as an image's: `vqtok
    decode` and all other readers look for .npz.
    """
    from vqtok import images
    from vqtok.files import STDIO

    if out is None or os.path.isdir(out):
        return
    one_file = any(job.target == out for job in jobs) and out != STDIO
    if (
        one_file and out.suffix.lower() not in ("", ".npz")
    ) or out.suffix.lower() in images.IMAGE_SUFFIXES:
        raise UsageError(
            f"cannot write codes to {out}: a codes file is a .npz",
            f"name it {out.with_suffix('.npz')}, or name a folder: -o DIR",
        )


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
        self,
        verb: str,
        work: Callable[[Job], list[Facts]],
        describe: Callable[[Job, Facts], list[str]],
    ) -> None:
        """Does one job after another, and reports on each; arguments as in `report`."""
        self.report(verb, ((job, partial(work, job)) for job in self.jobs), describe)

    def report(
        self,
        verb: str,
        outcomes: Generator[tuple[Job, Callable[[], list[Facts]]], None, None],
        describe: Callable[[Job, Facts], list[str]],
    ) -> None:
        """Reports each job's results, as JSON or in the lines that `describe` makes of one; of
        several jobs a last line sums up. `verb` is what the progress line is called.

        A call gives a job's results or raises VqtokError, which is reported: the rest goes on.
        However it ends, `outcomes` is closed.
        """
        begin, done = time.perf_counter(), list[Facts]()
        hidden = self.options.quiet or self.options.json
        with closing(outcomes), progress.jobs(verb, len(self.jobs), hidden) as advance:
            for number, (job, results) in enumerate(outcomes, 1):
                try:
                    with output.memory_errors(job.source):
                        found = results()
                except VqtokError as error:
                    self.failures.add(error)
                else:
                    self._report_one(job, found, describe)
                    done += [{"bytes": facts.get("bytes", 0)} for facts in found]
                advance(number)
        # where some have failed `finish` has the last word
        if len(self.jobs) > 1 and done and not self.failures.failed and not hidden:
            where = f" -> {self.options.out}" if self.options.out is not None else ""
            size = sum(facts["bytes"] for facts in done)
            seconds = time.perf_counter() - begin
            self._say(f"{verb}{where}  {output.total(len(done), size, seconds)}")

    def _report_one(
        self, job: Job, found: list[Facts], describe: Callable[[Job, Facts], list[str]]
    ) -> None:
        for number, facts in enumerate(found):
            if job.notes and number == 0:
                facts = {**facts, "notes": [*job.notes, *facts.get("notes", ())]}
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
