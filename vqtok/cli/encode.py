"""`vqtok encode`: images to codes files."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import bulk, output, rate
from vqtok.cli import options as o
from vqtok.cli.start import load_model
from vqtok.errors import InputError, UsageError, VqtokError
from vqtok.prefetch import read_ahead, run_in_thread, write_behind

if TYPE_CHECKING:
    from vqtok.codec import Model
    from vqtok.codes import Codes
    from vqtok.files import Source
    from vqtok.images import DecodedImage

Images = Annotated[
    list[str],
    typer.Argument(help="Images, folders, globs, or - for standard input.", metavar="IN"),
]
Job = tuple["Source", Path]


@output.handle_errors
def encode(
    inputs: Images,
    out: o.Output = None,
    model: o.ModelName = None,
    levels: o.Levels = None,
    bpp: o.Bpp = None,
    max_bytes: o.MaxBytes = None,
    compact: o.Compact = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read the file's bytes back, and compare, before they are written."
        ),
    ] = False,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    background: o.Background = "white",
    device: o.Device = None,
    precision: o.Precision = "fp32",
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    shards: bulk.Bulk = False,
    shard_size: bulk.ShardSize = None,
    resume: bulk.Resume = False,
    shard: bulk.Shard = None,
    workers: bulk.Workers = None,
) -> None:
    """Turn images into codes: img.png -> img.npz.

    Tar shards, or --bulk for folders, give codes shards: many images a file, in the folder -o.
    """
    if bulk.is_bulk(inputs, shards, shard_size, resume, shard, workers):
        bulk.check_free(
            {
                "--bpp": bpp,
                "--max-bytes": max_bytes,
                "--verify": verify,
                "--skip-existing": skip_existing,
            }
        )
        asked = bulk.BulkRequest(
            inputs,
            out,
            model,
            levels,
            compact,
            force,
            background,
            device,
            precision,
            shard_size,
            resume,
            shard,
            workers,
        )
        return bulk.encode(asked, load_model, json, quiet, verbose)
    from vqtok import files, images, model_registry, weights

    color, wanted = images.parse_color(background), rate.RateTarget.parse(levels, bpp, max_bytes)
    rate.check_levels(levels, model)
    sources = files.expand(inputs, images.IMAGE_SUFFIXES)
    jobs = [
        (source, files.output_path(source, ".npz", out, len(sources) > 1)) for source in sources
    ]
    batch, jobs = start_batch(jobs, force, skip_existing, json, quiet)
    if not jobs:
        return batch.finish()
    channels = weights.tokenizer_config(model_registry.find_model(model).tokenizer).channels
    read_images = read_ahead(lambda job: _read(job[0], channels, color), jobs)
    codec, form = (
        load_model(model, device, precision, verbose),
        _OutputForm(wanted, compact, verify),
    )
    for (source, target), written in write_behind(
        partial(_encode_one, codec, form, force), zip(jobs, read_images, strict=True)
    ):
        try:
            with output.memory_errors(source):
                result = written.result()
        except VqtokError as error:
            batch.fail(error)
            continue
        for note in result["notes"]:
            output.say(f"{source}: {note}", quiet)
        if json:
            output.print_json(result)
        else:
            output.say(_summary(result, source, target), quiet)
            if len(jobs) == 1 and not compact and codec.folder.entropy and target != files.STDIO:
                # By how much is not said: to code one image's indices takes
                # longer than all else here.
                output.say(f"smaller still: --compact, or vqtok pack {target}", quiet)
    batch.finish()


def start_batch(
    jobs: Sequence[Job], force: bool, skip: bool, json: bool, quiet: bool
) -> tuple[output.Batch, list[Job]]:
    """A batch, and the jobs left in it: not those to be skipped, nor those that have failed
    because their result exists.

    Raises UsageError where two inputs would write one file, and where
    options contradict each other.
    """
    from vqtok.files import STDIO

    if force and skip:
        raise UsageError(
            "--force and --skip-existing contradict each other", "leave one of them out"
        )
    if json and any(target == STDIO for _, target in jobs):
        raise UsageError(
            "the result and --json would both go to standard output",
            "leave --json out, or give a file: -o FILE",
        )
    _check_distinct(jobs)
    left = [
        (source, target)
        for source, target in jobs
        if not (skip and target != STDIO and os.path.lexists(target))
    ]
    if len(left) < len(jobs):
        output.say(f"{len(jobs) - len(left)} of {len(jobs)} exist already and are left out", quiet)
    batch, free = output.Batch(len(left)), []
    for source, target in left:
        try:
            output.check_target(target, force)
            free.append((source, target))
        except VqtokError as error:
            batch.fail(error)
    return batch, free


def _check_distinct(jobs: Sequence[Job]) -> None:
    seen: dict[str, Any] = {}
    for source, target in jobs:
        first = seen.setdefault(os.path.abspath(target), source)
        if first is not source:
            raise UsageError(
                f"{first} and {source} would both become {target}",
                "rename one of them, or take them one by one with -o",
            )


def _read(source: "Source", channels: int, background: tuple[int, int, int]) -> "DecodedImage":
    from vqtok import files, images

    return images.read_image(
        source.path or files.read_stdin(images.MAX_BYTES), channels, background
    )


def _encode_one(
    codec: "Model", form: "_OutputForm", force: bool, job: Job, read: "Future[DecodedImage]"
) -> "Future[dict[str, Any]]":
    """Encodes one image, and begins to write its codes;
    what there is to say of it comes when they are written.
    """
    from vqtok import codes

    begin, (source, target) = time.perf_counter(), job
    image = read.result()
    size, notes = image.source_bytes, list(image.notes)
    try:
        found = codec.encode_batch([image.pixels])
    except InputError as error:
        raise InputError(f"{source}: {error}", error.fix) from None
    result, data = form.file(codec, found, source)
    height, width = result.sizes[0]
    facts = rate.facts(result, len(data), codes.read_codes_meta(data)["form"])

    def write() -> dict[str, Any]:
        output.write(target, data, force)
        return {
            "input": str(source.path or "-"),
            "output": str(target),
            "model": codec.name,
            "fingerprint": codec.fingerprint,
            "size": [width, height],
            "source_bytes": size,
            **facts,
            "seconds": round(time.perf_counter() - begin, 3),
            "notes": notes,
            **({"verified": True} if form.verify else {}),
        }

    return run_in_thread(write)


@dataclass(frozen=True)
class _OutputForm:
    """What file to make of codes."""

    rate: rate.RateTarget
    compact: bool
    verify: bool

    def file(self, codec: "Model", found: "Codes", name: object) -> tuple["Codes", bytes]:
        """The codes at the rate that is asked for, and their file."""
        from vqtok import codes

        pack = (lambda part: codes.to_bytes(codec.pack(part))) if self.compact else codes.to_bytes
        kept, data = self.rate.apply(found, name, pack)
        if self.verify:
            again = codes.read_any_codes(data)
            if (codec.unpack(again) if isinstance(again, codes.Compact) else again) != kept:
                raise VqtokError(
                    f"{name}: the file would not decode to the same codes",
                    "this is a mistake in vqtok; please report it",
                )
        return kept, data


def _summary(result: dict[str, Any], source: "Source", target: Path) -> str:
    """img.png -> img.npz  96x64x1, 9.1 kB, 0.19 bpp, 41x smaller than PNG, 0.42 s"""
    grid = "x".join(map(str, result["grid"]))
    ratio = result["source_bytes"] / result["bytes"]
    kind = source.path.suffix.lstrip(".").upper() if source.path else ""
    kind = {"JPG": "JPEG", "TIF": "TIFF", "": "the source"}.get(kind, kind)
    compared = (
        f"{ratio:.3g}x smaller than {kind}"
        if ratio >= 1
        else f"{1 / ratio:.3g}x larger than {kind}"
    )
    size, verified = (
        rate.shown(result["bytes"], result["bpp"]),
        "verified, " if result.get("verified") else "",
    )
    return (
        f"{source} -> {output.display_name(target)}  {grid}, {size}, {compared}, "
        f"{verified}{result['seconds']:.2f} s"
    )
