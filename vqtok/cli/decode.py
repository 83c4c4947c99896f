"""`vqtok decode`: codes files to images."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output, rate
from vqtok.cli.encode import start_batch
from vqtok.cli.start import load_model, load_model_with
from vqtok.errors import InputError, ModelError, VqtokError

if TYPE_CHECKING:
    from vqtok.codec import Model
    from vqtok.codes import Codes, Compact
    from vqtok.files import Source

CodesFiles = Annotated[
    list[str],
    typer.Argument(
        help="Codes files (.npz), folders, globs, or - for standard input.", metavar="IN"
    ),
]
SUFFIX = ".decoded.png"


@output.handle_errors
def decode(
    inputs: CodesFiles,
    out: o.Output = None,
    model: o.FileModel = None,
    levels: o.Levels = None,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    device: o.Device = None,
    precision: o.Precision = "fp32",
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Turn codes back into images: img.npz -> img.decoded.png."""
    from vqtok import files, images

    sources = files.expand(inputs, frozenset({".npz"}))
    jobs = [
        (source, files.output_path(source, SUFFIX, out, len(sources) > 1)) for source in sources
    ]
    for _, target in jobs[:1]:  # all have the suffix of the first
        if target != files.STDIO:
            images.check_suffix(target)
    batch, jobs = start_batch(jobs, force, skip_existing, json, quiet)
    models = _Models(model if jobs else None, device, precision, verbose)
    for source, target in jobs:
        try:
            with output.memory_errors(source):
                results = _decode_one(models, source, target, levels, force, skip_existing)
        except VqtokError as error:
            batch.fail(error)
            continue
        for result in results:
            if json:
                output.print_json(result)
            else:
                output.say(_summary(result, source), quiet)
    batch.finish()


def _summary(result: dict[str, Any], source: "Source") -> str:
    """img.npz -> img.decoded.png  96x64, 2 of 8 levels, 0.42 s"""
    size, n, L = "x".join(map(str, result["size"])), result["levels"], result["model_levels"]
    part = f"{n} of {L} levels, " if n < L else ""
    return (
        f"{source} -> {output.display_name(result['output'])}  {size}, "
        f"{part}{result['seconds']:.2f} s"
    )


class _Models:
    """The models that codes files ask for, each looked for and loaded once for the whole batch."""

    def __init__(
        self, named: str | None, device: str | None, precision: str, verbose: bool
    ) -> None:
        self.options = (device, precision, verbose)
        self.named = load_model(named, *self.options) if named else None
        self.loaded: dict[str, Model | VqtokError] = {}

    def of(self, codes: "Codes | Compact") -> "Model":
        """Raises ModelError, FormatError."""
        if self.named:
            return self.named
        if codes.fingerprint not in self.loaded:
            self.loaded[codes.fingerprint] = self._load(codes)
        found = self.loaded[codes.fingerprint]
        if isinstance(found, VqtokError):
            raise found
        return found

    def _load(self, codes: "Codes | Compact") -> "Model | VqtokError":
        from vqtok import model_registry

        try:
            return load_model_with(
                lambda: model_registry.read_by_fingerprint(codes.model, codes.fingerprint),
                *self.options,
            )
        except VqtokError as error:
            return error


def _decode_one(
    models: _Models, source: "Source", target: Path, levels: int | None, force: bool, skip: bool
) -> list[dict[str, Any]]:
    """Writes the images in one codes file, and returns what there is to say of each."""
    from vqtok import codes, files, images

    found = codes.read_any_codes(source.path or files.read_stdin(codes.FILE_LIMIT))
    targets = _targets(target, len(found))
    if skip and len(found) > 1 and all(os.path.lexists(path) for path in targets):
        return []
    for path in targets:
        output.check_target(path, force)
    try:
        codec = models.of(found)
        begin = time.perf_counter()
        found = codec.unpack(found) if isinstance(found, codes.Compact) else found
        found = found if levels is None else rate.first_levels(found, levels, source)
        decoded = codec.decode_all(found)
    except (ModelError, InputError) as error:
        raise type(error)(f"{source}: {error}", error.fix) from None
    for path, image in zip(targets, decoded, strict=True):
        if path == files.STDIO:
            output.write_stdout(images.encode_png(image))
        else:
            images.write_image(path, image, force)
    seconds = round(time.perf_counter() - begin, 3)
    return [
        {
            "input": str(source.path or "-"),
            "output": str(path),
            "model": found.model,
            "fingerprint": found.fingerprint,
            "size": [image.shape[1], image.shape[0]],
            "levels": found.levels,
            "model_levels": codec.config.levels,
            "seconds": seconds,
        }
        for path, image in zip(targets, decoded, strict=True)
    ]


def _targets(target: Path, n: int) -> list[Path]:
    """The files that n images go to: of several, numbered ones.

    Raises OutputError where they would go to standard output.
    """
    from vqtok.errors import OutputError
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
