"""`vqtok encode`: images to codes files."""

import shlex
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from vqtok.cli import bulk, output, quality, rate
from vqtok.cli import options as o
from vqtok.cli.batch import Batch, BatchOptions, Facts, Job, check_codes_targets, plan
from vqtok.cli.start import ModelOptions
from vqtok.errors import InputError, UsageError, VqtokError
from vqtok.prefetch import read_ahead, run_in_thread, write_behind

if TYPE_CHECKING:
    from vqtok.bulk.crops import Crops
    from vqtok.codec import FastModel, Model, Several
    from vqtok.codes import Codes, Encoded, RateTarget
    from vqtok.images import Color, DecodedImage, Range

Images = Annotated[
    list[str],
    typer.Argument(help="Images, folders, globs, or - for standard input.", metavar="IN"),
]


@dataclass(frozen=True)
class CodesOptions:
    """Options that say how much of an image is kept, and how it is written."""

    levels: o.Levels = None
    bpp: o.Bpp = None
    max_bytes: o.MaxBytes = None
    target: quality.Target = None
    lpips: quality.Lpips = None
    effort: quality.Effort = 0
    goal: quality.Goal = "looks"
    compact: o.Compact = False
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read the file's bytes back, and compare, before they are written."
        ),
    ] = False


@output.handle_errors
@o.grouped
def encode(
    *,
    inputs: Images,
    out: o.Output = None,
    model: o.ModelName = None,
    written: CodesOptions,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    background: o.Background = "white",
    values: o.ValueRange = None,
    running: o.RunningOptions,
    member: o.Member = None,
    cropping: bulk.CropOptions = bulk.CropOptions(),  # noqa: B008 - frozen
    sharding: bulk.ShardOptions = bulk.ShardOptions(),  # noqa: B008 - frozen
) -> None:
    """Turn images into codes: img.png -> img.npz.

    Tar shards, data sets (CIFAR, IDX, .npz, zip), or --bulk for folders, give codes shards: many
    images a file, in the folder -o, with labels and captions.
    """
    chosen = running.model(model)
    options = BatchOptions(out, force, skip_existing, running.json, running.quiet)
    crops = cropping.parse()
    if bulk.is_bulk(inputs, sharding):
        bulk.check_free(
            {
                "--bpp": written.bpp,
                "--max-bytes": written.max_bytes,
                "--target": written.target,
                "--effort": written.effort or None,
                "--verify": written.verify,
                "--skip-existing": skip_existing,
            }
        )
        return bulk.encode(
            inputs,
            chosen,
            options,
            sharding,
            crops,
            written.levels,
            written.compact,
            background,
            member,
            values,
        )
    from vqtok import images

    color = images.parse_color(background)
    wanted = rate.parse(written.levels, written.bpp, written.max_bytes)
    search = quality.parse(written.effort, written.goal, written.target, written.lpips, wanted)
    search = replace(search, compact=written.compact)
    if written.target is not None and crops.copies > 1:
        raise UsageError(
            "--target does not go with several crops of an image", "leave one of them out"
        )
    chosen.check_levels(written.levels)
    recognizer = images.Recognizer()
    try:
        planned = plan(inputs, images.IMAGE_SUFFIXES, ".npz", out, recognizer.is_image_file)
    except InputError as error:
        if recognizer.passed:
            output.say(recognizer.note(), options.quiet)
        from vqtok.data import foreign

        raise (foreign.refuse_words(inputs) or error) from None
    if recognizer.passed:
        output.say(recognizer.note(), options.quiet)
    jobs, note = _one_a_sample(planned, inputs, member)
    check_codes_targets(jobs, out)
    if note:
        output.say(note, running.quiet or running.json)
    batch = Batch(jobs, options)
    if batch.jobs:
        say, value_range = partial(output.say, quiet=options.quiet), chosen.value_range(values)
        encoder = _Encoder(
            wanted, search, crops, written.compact, written.verify, force, say, value_range
        )
        batch.report("encode", encoder.run(batch.jobs, chosen, color), encoder.describe)
        if note := encoder.range_note():
            output.say(note, options.quiet)
    batch.finish()


def _one_a_sample(jobs: list[Job], inputs: list[str], member: str | None) -> tuple[list[Job], str]:
    """Leaves out further images of a sample (s0.seg.png beside s0.jpg); returns the other jobs, and
    what to say of those left out. Files that the user names stay.
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
    crops: "Crops"
    compact: bool
    verify: bool
    force: bool
    say: Callable[[str], None]
    range: "Range | None" = None  # of deep images; None: by the type of each
    narrow: "list[Range]" = field(default_factory=list)  # of images that use little of theirs
    hint: bool = False  # whether to say that the file can be made smaller

    def run(
        self, jobs: list[Job], chosen: ModelOptions, background: "Color"
    ) -> Generator[tuple[Job, Callable[[], list[Facts]]], None, None]:
        """Encodes one image while the next is read and the last codes are written, or several at
        a time where the threads allow it.

        The first image is read while the model is loaded.
        """
        channels = chosen.config.channels

        def read_one(job: Job) -> "DecodedImage":
            return _read(job, channels, background, self.range, self.crops)

        read = read_ahead(read_one, jobs)
        # the search is in torch: its start is then not to be had
        model = chosen.load() if self.quality.effort else chosen.load_codec()
        if self.compact and model.folder.entropy is None:
            self.say(rate.only_packed(model.name))
        self.hint = len(jobs) == 1 and not self.compact and model.folder.entropy is not None
        if several := self._several(model, jobs):
            made = self._apart(model, jobs, next(read), read_one, several)
            written = write_behind(lambda _, write: run_in_thread(write.result()), made)
        else:
            written = write_behind(
                lambda job, image: run_in_thread(self._encode(model, job, image.result())),
                zip(jobs, read, strict=True),
            )
        with closing(written):
            for job, future in written:
                yield job, future.result

    def _several(self, model: "FastModel | Model", jobs: list[Job]) -> "Several | None":
        """Returns what works on several images at a time; None where they come one by one."""
        if self.quality.effort or self.quality.measure is not None:
            return None  # a search takes much memory, and gives all threads enough to do
        from vqtok import codec

        return codec.several_at_once(model, len(jobs), encodes=True)

    def _apart(
        self,
        model: "FastModel | Model",
        jobs: list[Job],
        first: "Future[DecodedImage]",
        read_one: "Callable[[Job], DecodedImage]",
        several: "Several",
    ) -> "Iterator[tuple[Job, Future[Callable[[], list[Facts]]]]]":
        """Yields the calls that write each image's codes; `first` is the first image's."""
        from vqtok import images

        if self.compact:
            _ = model.entropy_coder  # loaded once

        def work(job: Job) -> Callable[[], list[Facts]]:
            path = job.source.path
            with several.room(images.count_pixels(path) if path else 0):
                image = first.result() if job is jobs[0] else read_one(job)
                with several.room(image.pixels.size // image.pixels.shape[-1]):
                    return self._encode(model, job, image)

        return several.run(work, jobs)

    def _encode(
        self, model: "FastModel | Model", job: Job, image: "DecodedImage"
    ) -> Callable[[], list[Facts]]:
        """Encodes one image; returns the call that writes its codes and says what they are."""
        begin = time.perf_counter()
        try:
            pixels = [image.pixels] if image.pixels.ndim == 3 else list(image.pixels)
            codes, missed = self.quality.encode(model, pixels, self.target)
            codes = replace(codes, range=image.range)
        except InputError as error:
            raise error.about(job.source) from None
        encoded = self._make_file(model, codes, job)
        if self.quality.effort and self.target.byte_limit(codes.pixels) is not None:
            codes = self.quality.again(model, pixels, encoded.codes)
            codes = replace(codes, range=image.range)
            encoded = self._make_file(model, codes, job)
        height, width = codes.sizes[0]
        if image.narrow is not None:
            self.narrow.append(image.narrow)
        image_bytes = image.source_bytes  # `write` holds no pixels
        notes = [*image.notes, *filter(None, [missed])]

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
                "range": None if codes.range is None else list(codes.range),
                "notes": notes,
                **({"effort": self.quality.effort} if self.quality.effort else {}),
            }
            return [{**facts, "verified": True} if self.verify else facts]

        return write

    def _make_file(self, model: "FastModel | Model", codes: "Codes", job: Job) -> "Encoded":
        from vqtok.codes import read_any_codes

        encoded = rate.encode(codes, self.target, job.source, model if self.compact else None)
        if self.verify and model.unpack(read_any_codes(encoded.data)) != encoded.codes:
            raise VqtokError(
                f"{job.source}: the file would not decode to the same codes",
                "this is a mistake in vqtok; please report it",
            )
        return encoded

    def range_note(self) -> str:
        """Suggests one range for several images that use little of theirs; else nothing."""
        from vqtok import images

        if len(self.narrow) < 2:
            return ""
        wanted = images.show_range(images.suggest(self.narrow))
        return f"{len(self.narrow)} images use little of their range: --range {wanted} fits all"

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


def _read(
    job: Job, channels: int, background: "Color", value_range: "Range | None", crops: "Crops"
) -> "DecodedImage":
    """Reads the image; with settings of crops, its pixels are (n, H, W, C)."""
    from vqtok import files, images

    source = job.source.path or files.read_stdin(images.MAX_BYTES)
    image = images.read_image(source, channels, background, value_range=value_range)
    return crops.cut(image, job.source.relative.as_posix())


def _summary(job: Job, facts: Facts) -> str:
    """Returns a line like "img.png -> img.npz  96x64x1, 9.1 kB, 0.19 bpp, 41x fewer bytes than
    img.png, 0.42 s".
    """
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
