"""`vqtok encode`: pictures to codes files."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output
from vqtok.errors import VqtokError

if TYPE_CHECKING:
    from vqtok.codec import Model
    from vqtok.files import Source

Pictures = Annotated[list[str], typer.Argument(help="Pictures, folders, globs, or - for standard input.", metavar="IN...")]


@output.guarded
def encode(
    inputs: Pictures,
    out: o.Output = None,
    model: o.ModelName = None,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    background: o.Background = "white",
    device: o.Device = None,
    precision: o.Precision = "fp32",
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Turn pictures into codes: img.png -> img.npz."""
    from vqtok import files, images

    color = images.parse_color(background)
    sources = files.expand(inputs, images.IMAGE_SUFFIXES)
    jobs = [(source, files.output_path(source, ".npz", out, len(sources) > 1)) for source in sources]
    jobs = pending(jobs, force, skip_existing, quiet)
    if not jobs:
        return
    codec = load(model, device, precision, verbose)
    batch = output.Batch(len(jobs))
    for source, target in jobs:
        try:
            output.check_target(target, force)
            result = _encode_one(codec, source, target, force, color)
        except VqtokError as error:
            batch.fail(error)
            continue
        for note in result["notes"]:
            output.say(f"{source}: {note}", quiet)
        if json:
            output.print_json(result)
        else:
            output.say(_summary(result), quiet)
    batch.finish()


def load(model: str | None, device: str | None, precision: str, verbose: bool) -> "Model":
    """The model that the options ask for."""
    from vqtok import codec

    loaded = codec.load(model, device, precision)
    if verbose:
        output.say(f"model {loaded.name} ({loaded.fingerprint}) from {loaded.folder.path}, {loaded.device.type}, {precision}")
    return loaded


def pending(jobs: list[tuple["Source", Path]], force: bool, skip: bool, quiet: bool) -> list[tuple["Source", Path]]:
    """The jobs still to do. Raises UsageError where two inputs would write one file."""
    from vqtok.errors import UsageError
    from vqtok.files import STDIO

    seen: dict[Path, Any] = {}
    for source, target in jobs:
        if target in seen and target != STDIO:
            raise UsageError(f"{source} and {seen[target]} would both become {target}", "rename one, or encode them into two folders")
        seen[target] = source
    if not skip or force:
        return jobs
    left = [(source, target) for source, target in jobs if target == STDIO or not target.exists()]
    if len(left) < len(jobs):
        output.say(f"{len(jobs) - len(left)} of {len(jobs)} exist already and are left out", quiet)
    return left


def _encode_one(codec: "Model", source: "Source", target: Path, force: bool, background: tuple[int, int, int]) -> dict[str, Any]:
    """Encodes one picture, writes its codes, and returns what there is to say of it."""
    from vqtok import codes, files, images

    begin = time.perf_counter()
    picture = images.read(source.path or files.read_stdin(images.MAX_BYTES), codec.config.channels, background)
    result = codec.encode_batch([picture.pixels])
    data = codes.to_bytes(result)
    if target == files.STDIO:
        output.write_stdout(data)
    else:
        files.write_bytes(target, data, force)
    _, L, h, w = result.indices.shape
    height, width = result.sizes[0]
    return {
        "input": str(source), "output": str(target), "model": codec.name, "fingerprint": codec.fingerprint,
        "size": [width, height], "grid": [w, h, L], "source_bytes": picture.source_bytes, "bytes": len(data),
        "bpp": round(8 * len(data) / result.pixels, 4), "raw_bpp": round(result.bits / result.pixels, 4),
        "seconds": round(time.perf_counter() - begin, 3), "notes": list(picture.notes),
    }     # fmt: skip


def _summary(result: dict[str, Any]) -> str:
    """img.png -> img.npz  96x64x1, 9.1 kB, 0.19 bpp, 41x smaller than PNG, 0.42 s"""
    from vqtok.files import human_bytes

    grid = "x".join(map(str, result["grid"]))
    ratio = result["source_bytes"] / result["bytes"]
    kind = Path(result["input"]).suffix.lstrip(".").upper() or "the source"
    kind = {"JPG": "JPEG", "TIF": "TIFF"}.get(kind, kind)
    compared = f"{ratio:.3g}x smaller than {kind}" if ratio >= 1 else f"{1 / ratio:.3g}x larger than {kind}"
    size = f"{human_bytes(result['bytes'])}, {result['bpp']:.2f} bpp"
    return f"{result['input']} -> {result['output']}  {grid}, {size}, {compared}, {result['seconds']:.2f} s"
