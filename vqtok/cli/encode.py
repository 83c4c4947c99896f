"""`vqtok encode`: images to codes files."""

import shlex
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from vqtok.cli import bulk, output, quality, rate
from vqtok.cli import options as o
from vqtok.cli.batch import Batch, BatchOptions, Facts, Job, check_codes_targets, plan
from vqtok.cli.start import ModelOptions
from vqtok.errors import InputError, VqtokError
from vqtok.prefetch import read_ahead, run_in_thread, write_behind

if TYPE_CHECKING:
    from vqtok.codec import Model
    from vqtok.codes import Codes, Encoded, RateTarget
    from vqtok.images import Color, DecodedImage

Images = Annotated[
    list[str],
    typer.Argument(help="Images, folders, globs, or - for standard input.", metavar="IN"),
]


@output.handle_errors
def encode(
    inputs: Images,
    out: o.Output = None,
    model: o.ModelName = None,
    levels: o.Levels = None,
    bpp: o.Bpp = None,
    max_bytes: o.MaxBytes = None,
    target: quality.Target = None,
    lpips: quality.Lpips = None,
    effort: quality.Effort = 0,
    goal: quality.Goal = "looks",
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
    member: o.Member = None,
) -> None:
    """Turn images into codes: img.png -> img.npz.

    Tar shards, or --bulk for folders, give codes shards: many images a file, in the folder -o.
    """
    chosen = ModelOptions(model, device, precision, verbose)
    options = BatchOptions(out, force, skip_existing, json, quiet)
    if bulk.is_bulk(inputs, shards, shard_size, resume, shard, workers):
        bulk.check_free(
            {
                "--bpp": bpp,
                "--max-bytes": max_bytes,
                "--target": target,
                "--effort": effort or None,
                "--verify": verify,
                "--skip-existing": skip_existing,
            }
        )
        sharding = bulk.ShardOptions(shard_size, resume, shard, workers)
        return bulk.encode(inputs, chosen, options, sharding, levels, compact, background, member)
    from vqtok import images

    color, wanted = images.parse_color(background), rate.parse(levels, bpp, max_bytes)
    search = quality.parse(effort, goal, target, lpips, wanted)
    chosen.check_levels(levels)
    jobs, note = _one_a_sample(plan(inputs, images.IMAGE_SUFFIXES, ".npz", out), inputs, member)
    check_codes_targets(jobs, out)
    if note:
        output.say(note, quiet or json)
    batch = Batch(jobs, options)
    if batch.jobs:
        encoder = _Encoder(
            wanted, search, compact, verify, force, lambda text: output.say(text, options.quiet)
        )
        batch.report("encode", encoder.run(batch.jobs, chosen, color), encoder.describe)
    batch.finish()


def _one_a_sample(jobs: list[Job], inputs: list[str], member: str | None) -> tuple[list[Job], str]:
    """The jobs without further images of a sample (s0.seg.png beside s0.jpg), and what to say of
    them; what is named itself stays.
    """
    found = [i for i, job in enumerate(jobs) if job.source.path is not None]
    listed = [i for i in found if str(jobs[i].source.path) not in inputs]
    if len(listed) < (1 if member else 2):
        return jobs, ""
    from vqtok.data import samples

    choice = samples.choose([str(jobs[i].source.path) for i in listed], member or "")
    gone = set(listed) - {listed[i] for i in choice.kept}
    return [job for i, job in enumerate(jobs) if i not in gone], choice.note()


@dataclass
class _Encoder:
    """Makes and writes the codes files of a batch."""

    target: "RateTarget"
    quality: "quality.Quality"
    compact: bool
    verify: bool
    force: bool
    say: Callable[[str], None]
    hint: bool = False  # whether to say that the file can be made smaller

    def run(
        self, jobs: list[Job], chosen: ModelOptions, background: "Color"
    ) -> Iterator[tuple[Job, Callable[[], list[Facts]]]]:
        """Encodes one image while the next is read and the last codes are written.

        The first image is read while the model is loaded.
        """
        channels = chosen.config.channels
        read = read_ahead(lambda job: _read(job, channels, background), jobs)
        model = chosen.load()
        if self.compact and model.folder.entropy is None:
            self.say(rate.only_packed(model.name))
        self.hint = len(jobs) == 1 and not self.compact and model.folder.entropy is not None
        written = write_behind(
            lambda job, image: self._encode(model, job, image), zip(jobs, read, strict=True)
        )
        for job, future in written:
            yield job, future.result

    def _encode(
        self, model: "Model", job: Job, read: "Future[DecodedImage]"
    ) -> "Future[list[Facts]]":
        """Encodes one image, and begins to write its codes: the future ends when they are."""
        begin, image = time.perf_counter(), read.result()
        try:
            codes, missed = self.quality.encode(model, image.pixels, self.target)
        except InputError as error:
            raise error.about(job.source) from None
        encoded = self._make_file(model, codes, job)
        if self.quality.effort and self.target.byte_limit(codes.pixels) is not None:
            codes = self.quality.again(model, image.pixels, encoded.codes)
            encoded = self._make_file(model, codes, job)
        height, width = codes.sizes[0]
        image_bytes, notes = (
            image.source_bytes,
            [*image.notes, *filter(None, [missed])],
        )  # `write` holds no pixels

        def write() -> list[Facts]:
            output.write(job.target, encoded.data, self.force)
            facts: Facts = {
                "input": str(job.source.path or "-"),
                "output": str(job.target),
                "model": model.name,
                "fingerprint": model.fingerprint,
                "size": [width, height],
                "source_bytes": image_bytes,
                **rate.facts(encoded.codes, encoded.form, len(encoded.data)),
                "seconds": round(time.perf_counter() - begin, 3),
                "notes": notes,
                **({"effort": self.quality.effort} if self.quality.effort else {}),
            }
            return [{**facts, "verified": True} if self.verify else facts]

        return run_in_thread(write)

    def _make_file(self, model: "Model", codes: "Codes", job: Job) -> "Encoded":
        from vqtok.codes import read_any_codes

        encoded = rate.encode(codes, self.target, job.source, model if self.compact else None)
        if self.verify and model.unpack(read_any_codes(encoded.data)) != encoded.codes:
            raise VqtokError(
                f"{job.source}: the file would not decode to the same codes",
                "this is a mistake in vqtok; please report it",
            )
        return encoded

    def describe(self, job: Job, facts: Facts) -> list[str]:
        from vqtok.files import STDIO

        summary = _summary(job, facts)
        if not self.hint or job.target == STDIO or facts["bytes"] > facts["source_bytes"]:
            return [summary]
        # By how much is not said: to code one image's indices takes longer than all else here.
        return [
            summary,
            f"smaller still: --compact, or vqtok pack {shlex.quote(str(job.target))}",
        ]


def _read(job: Job, channels: int, background: "Color") -> "DecodedImage":
    from vqtok import files, images

    source = job.source.path or files.read_stdin(images.MAX_BYTES)
    return images.read_image(source, channels, background)


def _summary(job: Job, facts: Facts) -> str:
    """img.png -> img.npz  96x64x1, 9.1 kB, 0.19 bpp, 41x fewer bytes than img.png, 0.42 s"""
    grid = "x".join(map(str, facts["grid"]))
    ratio = facts["source_bytes"] / facts["bytes"]
    source = "the source" if job.source.path is None else job.source.path.name
    compared = f"{ratio:.3g}x fewer" if ratio >= 1 else f"{1 / ratio:.3g}x more"
    size = rate.shown(facts["bytes"], facts["bpp"])
    verified = "verified, " if facts.get("verified") else ""
    return (
        f"{job.source} -> {output.display_name(job.target)}  {grid}, {size}, "
        f"{compared} bytes than {source}, {verified}{facts['seconds']:.2f} s"
    )
