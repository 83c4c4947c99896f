"""`vqtok sample`: new images from the prior, and images completed."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output
from vqtok.cli.progress import bar
from vqtok.cli.start import ModelOptions
from vqtok.errors import UsageError
from vqtok.model_registry import DEFAULT_MODEL, DEFAULT_SAMPLED

if TYPE_CHECKING:
    from vqtok.codec import Model
    from vqtok.codes import Codes

DEFAULT_OUTPUT = Path("samples.png")
DEFAULT_KEEP = "top:0.5"
CANDIDATES = 8  # drawn by default where the prior does not see all that is kept


@dataclass(frozen=True)
class DrawOptions:
    """Options that say how codes are drawn."""

    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            help="Class to draw, by name or number. Default: all in turn.",
            metavar="LABEL",
        ),
    ] = None
    temperature: o.Temperature = None
    top_k: o.TopK = None
    top_p: o.TopP = None
    guidance: o.Guidance = None
    levels: o.Levels = None
    seed: o.Seed = 0

    def keywords(self) -> dict[str, Any]:
        """What `sample_codes` and `complete` take of these."""
        names = ("label", "seed", "top_k", "guidance", "levels")
        numbers = {
            "temperature": o.numbers("--temperature", self.temperature),
            "top_p": o.numbers("--top-p", self.top_p),
        }
        return {**{name: getattr(self, name) for name in names}, **numbers}


@dataclass(frozen=True)
class CompleteOptions:
    """Options that say what of an image is kept, and how the rest is chosen."""

    complete: Annotated[
        Path | None,
        typer.Option(
            "--complete",
            help="Keep a part of this image (- for standard input), invent the rest.",
            metavar="IMG",
        ),
    ] = None
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            help=f"What --complete keeps, as in left:0.25. Default: {DEFAULT_KEEP}.",
            metavar="SIDE:PART",
        ),
    ] = None
    hole: Annotated[
        str | None,
        typer.Option(
            "--hole",
            help="What --complete invents, in pixels; all around it is kept.",
            metavar="X,Y,W,H",
        ),
    ] = None
    candidates: Annotated[
        int | None,
        typer.Option(
            "--candidates",
            help=(
                "Of so many for each image keep the one that fits best what is kept. "
                f"Default: {CANDIDATES} where something is kept below or right of what is invented."
            ),
            metavar="N",
            min=1,
            max=1000,
        ),
    ] = None

    palette: Annotated[
        float | None,
        typer.Option(
            "--palette",
            help="Above 0: favor codes that are in the kept part. Default: the model's.",
            metavar="W",
            min=0,
            max=10,
        ),
    ] = None

    def check(self, size: str | None) -> None:
        """UsageError where these do not go together, or with a size."""
        if self.complete is None:
            for name in ("keep", "hole", "candidates", "palette"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"--{name} is for completing an image, and none is given",
                        "add --complete IMG",
                    )
            return
        if size is not None:
            raise UsageError(
                "--size does not go with --complete",
                "the result has the size of the image: resize that",
            )
        if self.keep is not None and self.hole is not None:
            raise UsageError("--keep and --hole both say what is kept", "leave one of them out")
        self.corners()

    def corners(self) -> list[int] | None:
        """The hole's x, y, width and height. UsageError where it is no hole."""
        if self.hole is None:
            return None
        parts = self.hole.split(",")
        if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
            raise UsageError(
                f"{self.hole!r} is no hole", "write it like --hole 8,8,16,12: x, y, width, height"
            )
        return [int(part) for part in parts]

    def count(self, in_raster_order: bool) -> int:
        """How many candidates are drawn: several where the prior cannot see all that is kept."""
        if self.candidates is not None or not in_raster_order:
            return self.candidates or 1
        ahead = self.hole is not None or (self.keep or DEFAULT_KEEP).startswith(("bottom", "right"))
        return CANDIDATES if ahead else 1


@output.handle_errors
@o.grouped
def sample(
    *,
    n: Annotated[
        int,
        typer.Option("-n", "--number", help="How many images.", metavar="N", min=1, max=10_000),
    ] = 16,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=(
                "An image: one sheet. A .npz: codes. A folder: "
                "numbered files. Default: samples.png."
            ),
            metavar="PATH",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            autocompletion=o.complete_model,
            help=(
                "Name, folder or tokenizer file. Default: VQTOK_MODEL, else fashion, whose samples "
                "are recognized best; photo with --complete, and with --size or --levels where "
                "no --label is given."
            ),
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            help="Pixels, like 256 or 384x256 (width x height). Default: as trained.",
            metavar="SIZE",
        ),
    ] = None,
    drawn: DrawOptions,
    completed: CompleteOptions,
    force: o.Force = False,
    device: o.Device = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Draw new images from a model's prior.

    Of the bundled models fashion draws clothes and shoes that can be named, cifar10 small scenes
    in the colors of their class, and photo the textures of photographs.
    """
    complete, options = completed.complete, drawn.keywords()
    completed.check(size)
    wanted = _parse_size(size)
    target = _target(out, n, json, force)
    default = DEFAULT_SAMPLED
    other = size is not None or drawn.levels is not None
    if complete is not None or (other and drawn.label is None):
        default = DEFAULT_MODEL  # fashion has one level, and knows one size; photo has no labels
    chosen = ModelOptions(model, device, verbose=verbose, default=default)
    chosen.check_levels(drawn.levels)
    codec = chosen.load()
    if drawn.guidance is not None and not codec.labels:
        raise UsageError(
            f"--guidance strengthens a label, and {codec.name} knows none", "leave --guidance out"
        )
    begin = time.perf_counter()
    with output.memory_errors(f"{n} images at once"), bar("sample", quiet) as progress:
        if complete is None:
            _check_sheet(target, n, wanted or codec.native_size)
            codes = codec.sample_codes(n, wanted, progress=progress, **options)
        else:
            codes = _complete(codec, complete, completed, n, quiet, progress=progress, **options)
        paths = _write(
            codec,
            codes,
            target,
            force,
            _captions(codec, n) if drawn.label is None and complete is None else None,
        )
    seconds, (height, width) = time.perf_counter() - begin, codes.sizes[0]
    if json:
        facts = {
            "model": codec.name,
            "fingerprint": codec.fingerprint,
            "seed": drawn.seed,
            "size": [width, height],
        }
        for path in paths:
            output.print_json(
                {
                    "output": str(path),
                    **facts,
                    "pictures": n // len(paths),
                    "seconds": round(seconds, 3),
                }
            )
    else:
        count = "1 image" if n == 1 else f"{n} images"
        output.say(
            f"{count} of {width}x{height} from {codec.name}, seed {drawn.seed} -> "
            f"{output.display_name(target)}  {seconds:.2f} s",
            quiet,
        )


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """Parses (H, W) from "384x256" or "256"."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 9 for part in parts):
        raise UsageError(f"{text!r} is no size", "write it like 256 or 384x256")
    return int(parts[-1]), int(parts[0])


def _target(out: Path | None, n: int, json: bool, force: bool) -> Path:
    """Returns where the result goes, checked before the work."""
    from vqtok import images
    from vqtok.files import STDIO

    target = out or DEFAULT_OUTPUT
    if target == STDIO and json:
        raise UsageError(
            "the result and --json would both go to standard output",
            "leave --json out, or give a file: -o FILE",
        )
    if _is_folder(target):
        for i in range(n):
            output.check_target(_numbered(target, i), force)
    else:
        output.check_target(target, force)
        if target != STDIO and not _is_codes(target):
            images.check_suffix(target)
    return target


def _is_codes(path: Path) -> bool:
    return path.suffix.lower() == ".npz"


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path) or (not path.suffix and str(path) != "-")


def _numbered(folder: Path, i: int) -> Path:
    return folder / f"{i + 1:04d}.png"


def _check_sheet(target: Path, n: int, size: tuple[int, int]) -> None:
    """Refuses a sheet of so many images that neither vqtok nor most viewers could open it again."""
    from vqtok.images import MAX_PIXELS

    if (
        n > 1
        and n * math.prod(size) > MAX_PIXELS
        and not _is_folder(target)
        and not _is_codes(target)
    ):
        raise UsageError(
            f"{n} images of {size[1]}x{size[0]} are too many for one sheet",
            "give a folder: -o DIR",
        )


def _complete(
    codec: "Model", path: Path, asked: CompleteOptions, n: int, quiet: bool, **options: Any
) -> "Codes":
    from vqtok import files, images

    stdin = path == files.STDIO
    image = images.read_image(
        files.read_stdin(images.MAX_BYTES) if stdin else path, codec.config.channels
    )
    for note in image.notes:
        output.say(f"{'standard input' if stdin else path}: {note}", quiet)
    return codec.complete(
        codec.encode_batch([image.pixels]),
        asked.keep,
        n,
        hole=asked.corners(),
        candidates=asked.count(codec.prior.has_likelihood),
        palette=asked.palette,
        **options,
    )


def _captions(codec: "Model", n: int) -> list[str] | None:
    """Returns the label of each image, where they are drawn from all labels in turn."""
    return [codec.labels[i % len(codec.labels)] for i in range(n)] if codec.labels else None


def _write(
    codec: "Model", codes: "Codes", target: Path, force: bool, captions: list[str] | None
) -> list[Path]:
    """Writes codes, numbered images or one sheet, and returns the files."""
    from vqtok import codes as codes_format
    from vqtok import images, plots
    from vqtok.files import STDIO

    if _is_codes(target):
        codes_format.write_codes(target, codes, force)
        return [target]
    decoded = codec.decode_all(codes)
    if _is_folder(target):
        paths = [_numbered(target, i) for i in range(len(decoded))]
        for path, pixels in zip(paths, decoded, strict=True):
            images.write_image(path, pixels, force)
        return paths
    scale = max(1, 96 // max(codes.sizes[0]))
    columns = (
        len(codec.labels)
        if captions and len(codec.labels) <= 16
        else math.ceil(math.sqrt(len(decoded)))
    )
    sheet = decoded[0]
    if len(decoded) > 1:
        sheet = plots.sheet(decoded, columns, captions, scale=scale)
    if target == STDIO:
        output.write_stdout(images.encode_png(sheet))
    else:
        images.write_image(target, sheet, force)
    return [target]
