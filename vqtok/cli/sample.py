"""`vqtok sample`: new pictures from the prior, and pictures completed."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output
from vqtok.cli.encode import load
from vqtok.cli.progress import bar

if TYPE_CHECKING:
    from vqtok.codec import Model
    from vqtok.codes import Codes

DEFAULT_OUTPUT = Path("samples.png")


@output.guarded
def sample(
    n: Annotated[int, typer.Option("-n", "--number", help="How many pictures.", min=1, max=10_000)] = 16,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A picture: one sheet. A .npz: codes. A folder: numbered files. Default: samples.png."),
    ] = None,
    model: o.ModelName = None,
    size: Annotated[str | None, typer.Option("--size", help="Pixels, like 256 or 384x256 (width x height).")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Class to draw, by name or number; default: all in turn.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="Below 1: likelier pictures; 0: the likeliest.", min=0)] = 1.0,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from the k likeliest codes only.", min=1)] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Draw from the likeliest codes that reach this probability.")] = None,
    complete: Annotated[Path | None, typer.Option("--complete", help="Keep a part of this picture and invent the rest.")] = None,
    keep: Annotated[str, typer.Option("--keep", help="What --complete keeps: SIDE:PART, as in top:0.5 or left:0.25.")] = "top:0.5",
    seed: o.Seed = 0,
    force: o.Force = False,
    device: o.Device = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Draw new pictures from a model's prior."""
    target = _target(out, n, force)
    begin = time.perf_counter()
    codec = load(model, device, "fp32", verbose)
    options = {"label": label, "seed": seed, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    with bar("sample", quiet) as progress:
        if complete is None:
            codes = codec.sample_codes(n, _parse_size(size), progress=progress, **options)
        else:
            codes = _complete(codec, complete, keep, size, n, quiet, progress=progress, **options)
    paths = _write(codec, codes, target, force, _captions(codec, n) if label is None and complete is None else None)
    seconds = time.perf_counter() - begin
    if json:
        for path in paths:
            output.print_json({"output": str(path), "model": codec.name, "fingerprint": codec.fingerprint, "seed": seed})
    else:
        width, height = codes.sizes[0][1], codes.sizes[0][0]
        output.say(f"{n} of {width}x{height} from {codec.name}, seed {seed} -> {target}  {seconds:.2f} s", quiet)


def _target(out: Path | None, n: int, force: bool) -> Path:
    """Where the result goes, checked before the work."""
    from vqtok import images

    target = out or DEFAULT_OUTPUT
    if _is_folder(target):
        for i in range(n):
            output.check_target(_numbered(target, i), force)
    else:
        output.check_target(target, force)
        if target.suffix.lower() != ".npz" and str(target) != "-":
            images.check_suffix(target)
    return target


def _is_folder(path: Path) -> bool:
    return path.is_dir() or (not path.suffix and str(path) != "-")


def _numbered(folder: Path, i: int) -> Path:
    return folder / f"{i + 1:04d}.png"


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """(H, W) from "384x256" or "256"."""
    from vqtok.errors import UsageError

    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"{text!r} is no size", "write it like 256 or 384x256")
    return int(parts[-1]), int(parts[0])


def _complete(codec: "Model", path: Path, keep: str, size: str | None, n: int, quiet: bool, **options: Any) -> "Codes":
    from vqtok import images
    from vqtok.errors import UsageError

    if size is not None:
        raise UsageError("--size does not go with --complete", "the result has the size of the picture: resize that")
    picture = images.read(path, codec.config.channels)
    for note in picture.notes:
        output.say(f"{path}: {note}", quiet)
    return codec.complete(codec.encode_batch([picture.pixels]), keep, n, **options)


def _captions(codec: "Model", n: int) -> list[str] | None:
    """The label of each picture, where they are drawn from all labels in turn."""
    return [codec.labels[i % len(codec.labels)] for i in range(n)] if codec.labels else None


def _write(codec: "Model", codes: "Codes", target: Path, force: bool, captions: list[str] | None) -> list[Path]:
    from vqtok import codes as codes_format
    from vqtok import images, report

    if target.suffix.lower() == ".npz":
        codes_format.write(target, codes, force)
        return [target]
    pictures = codec.decode_all(codes)
    if _is_folder(target):
        paths = [_numbered(target, i) for i in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            images.write(path, picture, force)
        return paths
    scale = max(1, 96 // max(codes.sizes[0]))
    columns = len(codec.labels) if captions and len(codec.labels) <= 16 else math.ceil(math.sqrt(len(pictures)))
    sheet = pictures[0] if len(pictures) == 1 else report.sheet(pictures, columns, captions, scale=scale)
    if str(target) == "-":
        output.write_stdout(images.encode_png(sheet))
    else:
        images.write(target, sheet, force)
    return [target]
