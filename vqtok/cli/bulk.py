"""The part of `vqtok encode` that makes codes shards of tar shards and large folders."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok import files
from vqtok.cli import options as o
from vqtok.cli import output, rate
from vqtok.cli.batch import BatchOptions
from vqtok.cli.progress import bar
from vqtok.cli.start import ModelOptions
from vqtok.errors import InputError, UsageError, VqtokError
from vqtok.files import human_bytes, human_count, human_duration

if TYPE_CHECKING:
    from vqtok.bulk.crops import Crops
    from vqtok.bulk.encode import ShardReport
    from vqtok.bulk.shards import ShardHeader, ShardRecord

Bulk = Annotated[
    bool,
    typer.Option(
        "--bulk",
        help="Write codes shards, many images a file, as for tars. So do all of the following.",
    ),
]
ShardSize = Annotated[
    int | None,
    typer.Option(
        "--shard-size", metavar="N", help="Images in a codes shard. Default: 1000.", min=1
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the shards in -o: what is finished stays.")
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Do part I of N, from 0. Default: RANK/WORLD_SIZE, which torchrun sets.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Processes that decode images. Default: one a processor.",
        min=0,
        max=256,
    ),
]


Size = Annotated[
    int | None,
    typer.Option(
        "--size",
        metavar="N",
        help="Encode squares of N pixels a side: crops, resized (Lanczos, antialiased).",
        min=1,
    ),
]
Crop = Annotated[
    str | None,
    typer.Option(
        "--crop",
        metavar="HOW",
        help=(
            "center: the largest square; ten: corners and middle, and mirrored; "
            "random:N: N squares. Default: center."
        ),
        autocompletion=o.complete_choice("center", "ten", "random:"),
    ),
]
Moved = Annotated[
    int,
    typer.Option(
        "--moved",
        metavar="N",
        help="Encode N copies more of each, moved by up to 1/16 of the side.",
        min=0,
    ),
]
Flip = Annotated[
    bool, typer.Option("--flip", help="Encode each image, or crop, and its mirror image.")
]
MaxSize = Annotated[
    int | None,
    typer.Option(
        "--max-size", metavar="N", help="Shrink images whose long side is over N pixels.", min=1
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Of --crop random:N, --moved. Default: 0.", min=0),
]


@dataclass(frozen=True)
class CropOptions:
    """Options that say how images are cropped before they are encoded, as typed."""

    size: Size = None
    crop: Crop = None
    flip: Flip = False
    max_size: MaxSize = None
    seed: Seed = None
    moved: Moved = 0

    def parse(self) -> "Crops":
        """Raises UsageError."""
        from vqtok.bulk.crops import Crops

        return Crops.of(self.size, self.crop, self.flip, self.max_size, self.seed, self.moved)


@dataclass(frozen=True)
class ShardOptions:
    """The options that only codes shards have, as typed."""

    shards: Bulk = False
    shard_size: ShardSize = None
    resume: Resume = False
    shard: Shard = None
    workers: Workers = None


_NONE = ShardOptions()


def is_bulk(inputs: Sequence[str], options: ShardOptions = _NONE) -> bool:
    """Whether codes shards are asked for: by one of the options, a tar, a data set, or folders of
    tars alone.

    Torch is not needed to see that.
    """
    if options != _NONE:
        return True
    if any(files.is_tar(word) and not files.is_folder(word) for word in inputs):
        return True
    if all(_is_image(word) for word in inputs):
        return False  # fast
    from vqtok.bulk.datasets import find_data_sets
    from vqtok.bulk.inputs import is_folder_of_tars

    if find_data_sets(inputs)[0]:
        return True
    if len(inputs) == 1 and (refused := _refuse_foreign(inputs[0])) is not None:
        raise refused
    folders = [word for word in inputs if files.is_folder(word)]
    if len(folders) < len(inputs):
        return False
    return all(is_folder_of_tars(folder) for folder in folders)


def _refuse_foreign(word: str) -> InputError | None:
    """Returns the error that names the format of a file, or of a folder without images, that vqtok
    does not read, like Parquet; None for any other input.
    """
    from vqtok.data import foreign
    from vqtok.images import IMAGE_SUFFIXES

    try:
        if os.path.isfile(word):
            return foreign.refuse_file(Path(word))
        found = foreign.refuse_folder(Path(word), os.listdir(word)) if os.path.isdir(word) else None
    except OSError:  # said by the reader
        return None
    if found is None:
        return None
    try:
        files.expand([word], IMAGE_SUFFIXES | files.TAR_SUFFIXES)
    except InputError:
        return found
    return None


def _is_image(word: str) -> bool:
    """Whether a path or glob is called like an image."""
    from vqtok.images import IMAGE_SUFFIXES

    called = os.path.splitext(word)[1].lower() in IMAGE_SUFFIXES
    return word == "-" or (called and not os.path.isdir(word))


def check_free(options: Mapping[str, object]) -> None:
    """Raises UsageError where an option is given that does not apply to codes shards."""
    for name, value in options.items():
        if value is not None and value is not False:
            fix = {"--skip-existing": "use --resume", "--verify": "leave it out"}.get(
                name, "use --levels"
            )
            raise UsageError(f"{name} does not go with codes shards", fix)


def encode(
    inputs: Sequence[str],
    chosen: ModelOptions,
    options: BatchOptions,
    sharding: ShardOptions,
    crops: "Crops",
    levels: int | None,
    compact: bool,
    background: str,
    member: str | None = None,
    values: str | None = None,
) -> None:
    """Encodes all inputs, or one part of them, and reports each shard."""
    from vqtok import images
    from vqtok.bulk.inputs import Inputs, WorkSlice

    out = _folder(options.out)
    if sharding.resume and options.force:
        raise UsageError(
            "--force does not go with --resume", "leave one of them out: --force starts anew"
        )
    images.parse_color(background)
    chosen.check_levels(levels)
    value_range = chosen.value_range(values)
    work_slice = WorkSlice.parse(sharding.shard)
    found = Inputs(inputs, member or "", value_range)
    model, reporter = chosen.load(), Reporter(options.json, options.quiet)
    from vqtok.bulk import encode as bulk_encode

    settings = bulk_encode.BulkSettings(
        levels, compact, background, sharding.shard_size or 1000, value_range, crops
    )
    workers = bulk_encode.default_workers() if sharding.workers is None else sharding.workers
    begin = time.perf_counter()
    with bar("encode", options.quiet or options.json) as progress:
        reports = bulk_encode.encode(
            model,
            found,
            out,
            settings,
            work_slice,
            workers,
            sharding.resume,
            options.force,
            progress,
        )
        with closing(reports):
            for report in reports:
                reporter.add(report)
    if reporter.narrow:
        wanted = images.show_range(images.suggest(reporter.narrow))
        note = f"{reporter.narrow_images:,} images use little of their range: --range {wanted} fits"
        output.say(note, options.quiet)
    if count := reporter.nan_images:
        output.say(f"{human_count(count, 'image')} with NaN, which became black", options.quiet)
    if passed := found.recognizer.note():
        output.say(passed, options.quiet)
    if compact and model.folder.entropy is None:
        output.say(rate.only_packed(model.name), options.quiet)
    if note := found.note():
        output.say(note, options.quiet or options.json)
    reporter.finish(out, time.perf_counter() - begin)
    if not reporter.images and work_slice == WorkSlice():
        names = ", ".join(inputs[:3]) + (", ..." if len(inputs) > 3 else "")
        raise InputError(
            f"no image was encoded: {names} holds none that vqtok reads"
            + (f" and --member {member} chooses" if member else ""),
            "give images, or tars of images" if not member else "choose another --member",
        )


def _folder(out: Path | None) -> Path:
    if out is None:
        raise UsageError("codes shards need a folder of their own", "give one: -o DIR")
    out = files.as_path(out)
    if str(out) == "-" or (not files.is_url(out) and out.is_file()):
        raise UsageError(f"codes shards do not go into one file ({out})", "give a folder: -o DIR")
    return out


class Reporter:
    """Says what is finished, and counts."""

    def __init__(self, json: bool, quiet: bool) -> None:
        self.json, self.quiet = json, quiet
        self.narrow, self.narrow_images, self.nan_images = list[tuple[float, float]](), 0, 0
        self.images = self.failed = self.cut = self.shards = self.old = self.bytes = 0

    def add(self, report: "ShardReport", source: str | None = None) -> None:
        """Reports a shard, made of the input that its manifest names or of another `source`."""
        from vqtok.bulk.inputs import LOOSE

        head = report.shard.head
        cut = _count_cut(report)
        self.images, self.failed, self.shards = (
            self.images + head.pictures,
            self.failed + head.failed - cut,
            self.shards + 1,
        )
        self.cut += cut
        self.old += not report.new
        self.narrow_images += report.narrow_images
        self.nan_images += report.nan_images
        self.narrow += [] if report.narrow is None else [report.narrow]
        self.bytes += head.bytes
        for line in report.failed:
            place = f"{head.input}: " if head.input != LOOSE else ""
            name = head.input if _is_rest(line, head) else f"{place}{line.name}"
            output.show_error(
                VqtokError(f"{name}: {line.error}", "see the shard's .jsonl; the rest goes on")
            )
        if report.new and self.json:
            output.print_json(_facts(report, source))
        elif report.new:
            output.say(_summary(report, source, cut), self.quiet)

    def say_total(self, out: Path, seconds: float) -> None:
        """Prints the last line."""
        before = f", {self.old} of them before" if self.old else ""
        shards, images = human_count(self.shards, "shard"), human_count(self.images, "image")
        taken = f"{seconds:.1f} s" if seconds < 10 else human_duration(seconds)
        made = f"  {human_bytes(self.bytes)}, {taken}" if self.old < self.shards else ""
        output.say(f"{images} in {shards}{before} -> {out}{made}", self.quiet or self.json)

    def finish(self, out: Path, seconds: float) -> None:
        """Prints the last line; exits with 1 where images have failed, also in an earlier part of
        the run.
        """
        self.say_total(out, seconds)
        failed = [f"{self.failed} of {self.images + self.failed} failed"] if self.failed else []
        if self.cut:
            failed.append(f"the rest of {human_count(self.cut, 'tar')} cannot be read")
        if failed:
            output.say("; ".join(failed), style="bold red")
            raise typer.Exit(1)


def _is_rest(line: "ShardRecord", head: "ShardHeader") -> bool:
    """Whether a record tells of no image, but of a tar whose rest cannot be read."""
    return line.error is not None and line.name == PurePath(head.input).name


def _count_cut(report: "ShardReport") -> int:
    """Counts the records of a shard that tell of a tar whose rest cannot be read: 0 or 1."""
    head, failed = report.shard.head, report.failed
    if head.failed and not failed:  # made before, or made anew of codes
        try:
            failed = report.shard.records()
        except VqtokError:  # the command that needs them says so
            return 0
    return sum(_is_rest(line, head) for line in failed)


def _facts(report: "ShardReport", source: str | None) -> dict[str, Any]:
    head = report.shard.head
    return {
        "range_used": None if report.narrow is None else list(report.narrow),
        "range_narrow": report.narrow_images,
        "nan_pictures": report.nan_images,
        "output": str(report.shard.path) if head.bytes else None,
        "manifest": str(report.shard.records_path),
        "input": source or head.input,
        "pictures": head.pictures,
        "failed": head.failed,
        "grids": [list(stack.grid) for stack in head.stacks],
        "bytes": head.bytes,
        "seconds": round(report.seconds, 3),
    }


def _summary(report: "ShardReport", source: str | None, cut: int) -> str:
    """Returns a line like "train-000.tar -> codes/00000-00000.npz  1,000 images, 8.9 MB, 25 a
    second".
    """
    from vqtok.bulk.inputs import LOOSE

    head = report.shard.head
    shown = "images" if head.input == LOOSE else head.input
    failed = f", {head.failed - cut} failed" if head.failed > cut else ""
    failed += ", the rest cannot be read" if cut else ""
    target = report.shard.path if head.bytes else report.shard.records_path
    pace = f"{head.pictures / report.seconds:.0f} a second"
    return (
        f"{source or shown} -> {target}  {human_count(head.pictures, 'image')}{failed}, "
        f"{human_bytes(head.bytes)}, {pace}"
    )
