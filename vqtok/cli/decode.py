"""`vqtok decode`: codes files to pictures."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output
from vqtok.cli.encode import load, pending
from vqtok.errors import VqtokError

if TYPE_CHECKING:
    from vqtok.codec import Model
    from vqtok.codes import Codes
    from vqtok.files import Source

CodesFiles = Annotated[list[str], typer.Argument(help="Codes files (.npz), folders, globs, or - for standard input.", metavar="IN...")]
SUFFIX = ".decoded.png"


@output.guarded
def decode(
    inputs: CodesFiles,
    out: o.Output = None,
    model: o.ModelName = None,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    device: o.Device = None,
    precision: o.Precision = "fp32",
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Turn codes back into pictures: img.npz -> img.decoded.png."""
    from vqtok import files

    sources = files.expand(inputs, frozenset({".npz"}))
    jobs = [(source, files.output_path(source, SUFFIX, out, len(sources) > 1)) for source in sources]
    jobs = pending(jobs, force, skip_existing, quiet)
    batch, models = output.Batch(len(jobs)), _Models(model, device, precision, verbose)
    for source, target in jobs:
        try:
            for result in _decode_one(models, source, target, force):
                if json:
                    output.print_json(result)
                else:
                    output.say(f"{result['input']} -> {result['output']}  {'x'.join(map(str, result['size']))}, "
                               f"{result['seconds']:.2f} s", quiet)
        except VqtokError as error:
            batch.fail(error)
    batch.finish()


class _Models:
    """Models by fingerprint, each loaded once for the whole batch."""

    def __init__(self, named: str | None, device: str | None, precision: str, verbose: bool) -> None:
        self.named, self.options = named, (device, precision, verbose)
        self.loaded: dict[str, Model] = {}

    def of(self, codes: "Codes") -> "Model":
        from vqtok import weights

        key = self.named or codes.fingerprint
        if key not in self.loaded:
            name = self.named or str(weights.find_by_fingerprint(codes.model, codes.fingerprint).path)
            self.loaded[key] = load(name, *self.options)
        return self.loaded[key]


def _decode_one(models: _Models, source: "Source", target: Path, force: bool) -> list[dict[str, Any]]:
    """Writes every picture in one codes file; of several, numbered files."""
    from vqtok import codes, files, images

    begin = time.perf_counter()
    found = codes.read(source.path or files.read_stdin(codes.FILE_LIMIT))
    targets = [target]
    if len(found) > 1:
        targets = [target.with_name(f"{target.name.removesuffix(target.suffix)}-{i + 1:04d}{target.suffix}") for i in range(len(found))]
    for path in targets:
        output.check_target(path, force)
        if path != files.STDIO:
            images.check_suffix(path)
    pictures = models.of(found).decode_all(found)
    for path, picture in zip(targets, pictures, strict=True):
        if path == files.STDIO:
            output.write_stdout(images.encode_png(picture))
        else:
            images.write(path, picture, force)
    seconds = round(time.perf_counter() - begin, 3)
    return [
        {"input": str(source), "output": str(path), "model": found.model, "fingerprint": found.fingerprint,
         "size": [picture.shape[1], picture.shape[0]], "seconds": seconds}
        for path, picture in zip(targets, pictures, strict=True)
    ]     # fmt: skip
