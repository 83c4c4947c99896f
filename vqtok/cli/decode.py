"""`vqtok decode`: codes files to images."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vqtok.cli import options as o
from vqtok.cli import output, rate, shards
from vqtok.cli.batch import Batch, BatchOptions, Facts, Job, plan, read_codes
from vqtok.cli.start import ModelOptions
from vqtok.errors import InputError, ModelError, OutputError, VqtokError
from vqtok.prefetch import run_in_thread, write_behind

if TYPE_CHECKING:
    import numpy as np

    from vqtok.bulk.shards import Manifest
    from vqtok.codec import FastModel, Model, Several
    from vqtok.codes import Codes, Compact

SUFFIX = ".decoded.png"


@output.handle_errors
def decode(
    inputs: o.CodesFiles,
    out: o.Output = None,
    model: o.FileModel = None,
    levels: o.Levels = None,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    device: o.Device = None,
    precision: o.Precision = "fp32",
    fast: o.Fast = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Turn codes back into images: img.npz -> img.decoded.png."""
    from vqtok import files, images

    folders, words = shards.split(inputs)
    jobs = plan(words, frozenset({".npz"}), SUFFIX, out) if words or not folders else []
    for job in jobs[:1]:  # all have the suffix of the first
        if job.target != files.STDIO:
            images.check_suffix(job.target)
    if out is not None and out.suffix.lower() == ".npz" and not os.path.isdir(out):
        images.check_suffix(out)  # of several results it would be a folder
    batch = Batch(jobs, BatchOptions(out, force, skip_existing, json, quiet))
    models = _Models(ModelOptions(model, device, o.precision(precision, fast), verbose))
    if batch.jobs or folders:
        models.load_named()
    decoding = shards.Decoding(batch.options, levels, models.of, _write, SUFFIX)
    batch.failures.merge(shards.run_folders(folders, len(words), batch.options, decoding.run))
    written = write_behind(
        lambda _, write: run_in_thread(write.result()),
        _decoded(models, batch.options, levels, batch.jobs),
    )
    with closing(written):
        batch.report("decode", ((job, future.result) for job, future in written), _describe)
    batch.finish()


class _Models:
    """The models that codes files name, each searched for and loaded once for the batch."""

    def __init__(self, chosen: ModelOptions) -> None:
        self.chosen = chosen
        self.named: FastModel | Model | None = None
        self.loaded: dict[str, FastModel | Model | VqtokError] = {}
        self.lock = threading.Lock()

    def load_named(self) -> None:
        """Loads the model that --model names, if any: its error is the whole batch's."""
        if self.chosen.name:
            self.named = self.chosen.load_codec()

    def of(self, codes: "Codes | Compact | Manifest") -> "FastModel | Model":
        """Gives the model of these codes, to any thread. Raises ModelError, FormatError."""
        if self.named:
            return self.named
        with self.lock:
            return self._load(codes)

    def several(self, files: int) -> "Several | None":
        """Returns what works on several of the files at a time, by the first model loaded."""
        from vqtok import codec

        loaded = [self.named, *self.loaded.values()]
        found = next((one for one in loaded if one and not isinstance(one, VqtokError)), None)
        return codec.several_at_once(found, files, encodes=False) if found else None

    def _load(self, codes: "Codes | Compact | Manifest") -> "FastModel | Model":
        if codes.fingerprint not in self.loaded:
            try:
                self.loaded[codes.fingerprint] = self.chosen.load_codec_for(codes)
            except VqtokError as error:
                self.loaded[codes.fingerprint] = error
        found = self.loaded[codes.fingerprint]
        if isinstance(found, VqtokError):
            raise found
        return found


Write = Callable[[], list[Facts]]


def _decoded(
    models: _Models, options: BatchOptions, levels: int | None, jobs: Sequence[Job]
) -> "Iterator[tuple[Job, Future[Write]]]":
    """Yields the calls that write each file's images: one file is decoded while the one before it
    is packed and written, or several at a time where the threads allow it. The first model that is
    found says whether they do.
    """
    work, left = partial(_decode, models, options, levels), iter(jobs)
    for number, job in enumerate(left, 1):
        yield job, _finished(lambda job=job: _write_packed(work(job)))
        if number < len(jobs) and (several := models.several(len(jobs))):
            room = several.room
            yield from several.run(lambda job, room=room: work(job, room=room)(), left)


def _finished(call: Callable[[], Write]) -> "Future[Write]":
    future: Future[Write] = Future()
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
    return future


def _write_packed(pack: Callable[[], Write]) -> Write:
    return lambda: pack()()


def _decode(
    models: _Models,
    options: BatchOptions,
    levels: int | None,
    job: Job,
    room: Callable[[int], AbstractContextManager] = nullcontext,
) -> Callable[[], Write]:
    """Decodes the images in one codes file, in a `room` for so many pixels; returns the call that
    packs them as their formats ask, whose result writes them, with the facts of each.
    """
    found = read_codes(job.source)
    targets = _targets(job.target, len(found))
    if options.skip_existing and len(found) > 1 and all(os.path.lexists(path) for path in targets):
        return lambda: list[Facts]
    for path in targets:
        output.check_target(path, options.force)
    try:
        model = models.of(found)
        begin = time.perf_counter()
        with room(found.pixels):
            plain = rate.first_levels(model.unpack(found), levels, job.source)
            decoded = model.decode_all(plain)
    except (ModelError, InputError) as error:
        raise error.about(job.source) from None
    sizes = [(image.shape[1], image.shape[0]) for image in decoded]

    def write(packed: list[bytes]) -> list[Facts]:
        for path, data in zip(targets, packed, strict=True):
            output.write(path, data, options.force)
        seconds = round(time.perf_counter() - begin, 3)
        return [
            {
                "input": str(job.source.path or "-"),
                "output": str(path),
                "model": plain.model,
                "fingerprint": plain.fingerprint,
                "size": list(size),
                "levels": plain.levels,
                "model_levels": model.config.levels,
                "image": number,
                "images": len(targets),
                "seconds": seconds,
            }
            for number, (path, size) in enumerate(zip(targets, sizes, strict=True), 1)
        ]

    def pack() -> Write:
        packed = [_pack(path, image) for path, image in zip(targets, decoded, strict=True)]
        decoded.clear()
        return partial(write, packed)

    return pack


def _pack(path: Path, image: "np.ndarray") -> bytes:
    from vqtok import files, images

    return images.encode_png(image) if path == files.STDIO else images.encode_as(path, image)


def _write(path: Path, image: "np.ndarray", force: bool) -> None:
    output.write(path, _pack(path, image), force)


def _targets(target: Path, n: int) -> list[Path]:
    """Names the files of n images; more than one are numbered.

    Raises OutputError where several would go to standard output.
    """
    from vqtok.files import STDIO

    if n == 1:
        return [target]
    if target == STDIO:
        raise OutputError(
            f"{n} images do not go to standard output as one",
            "give a name: -o NAME.png makes NAME-0001.png, ...",
        )
    return [
        target.with_name(f"{target.name.removesuffix(target.suffix)}-{i + 1:04d}{target.suffix}")
        for i in range(n)
    ]


def _describe(job: Job, facts: Facts) -> list[str]:
    """Returns lines like "img.npz -> img.decoded.png  96x64, 2 of 8 levels, 0.42 s".

    Of several images in a file one line, with the first name and the last.
    """
    n, L, count = facts["levels"], facts["model_levels"], facts["images"]
    if facts["image"] < count:
        return []
    part = f"{n} of {L} levels, " if n < L else ""
    shown, what = output.display_name(facts["output"]), "x".join(map(str, facts["size"]))
    if count > 1:
        shown, what = f"{_targets(job.target, count)[0]} ... {shown}", f"{count} images"
    return [f"{job.source} -> {shown}  {what}, {part}{facts['seconds']:.2f} s"]
