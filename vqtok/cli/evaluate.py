"""`vqtok eval`: how good a model is on pictures."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output
from vqtok.cli.encode import load
from vqtok.cli.progress import bar

SHEET_PICTURES = 8
SHEET_SIDE = 128            # smaller pictures are enlarged to about this


@output.guarded
def evaluate(
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder, zip, tar, CIFAR-10, IDX or array file. Default: the built-in shapes.", metavar="IMAGES"),
    ] = None,
    model: o.ModelName = None,
    split: Annotated[str, typer.Option("--split", help="test or train, for data that tells them apart.", metavar="PART")] = "test",
    limit: Annotated[int | None, typer.Option("--limit", help="Take only so many pictures, the first.", metavar="N", min=1)] = None,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Write the first originals beside their reconstructions to this picture.", metavar="FILE"),
    ] = None,
    force: o.Force = False,
    device: o.Device = None,
    precision: o.Precision = "fp32",
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Measure a model: PSNR, SSIM, MS-SSIM, codebook use, bits."""
    from vqtok import images, report
    from vqtok.data import open_data
    from vqtok.errors import InputError, UsageError

    if split not in ("test", "train"):
        raise UsageError(f"there is no split {split!r}", "choose test or train")
    if sheet is not None:
        images.check_suffix(sheet)
        output.check_target(sheet, force)
    codec = load(model, device, precision, verbose)
    from vqtok.evaluate import evaluate as measure

    dataset = open_data(data, "test" if split == "test" else "train")
    rows: list[list[Any]] = []
    errors: list[InputError] = []

    def show(picture: Any, decoded: Any) -> None:
        if len(rows) < SHEET_PICTURES:
            rows.append([picture, decoded])

    with output.memory_errors(dataset.name), bar(f"eval {dataset.name}", quiet) as progress:
        result = measure(codec, dataset, limit, progress, show, errors.append)
    for error in errors:
        output.show_error(error)
    if sheet is not None:
        scale = max(1, SHEET_SIDE // max(max(original.shape[:2]) for original, _ in rows))
        images.write(sheet, report.side_by_side(rows, ["original", codec.name], scale=scale), force)
    if json:
        output.print_json({"model": codec.name, "fingerprint": codec.fingerprint, "data": dataset.name, **asdict(result)})
    else:
        output.print_table(report.rich_table(["figure", "value"], _rows(asdict(result)), f"{codec.name} on {dataset.summary}"))
    if errors:
        output.say(f"{len(errors)} of {result.pictures + len(errors)} failed", style="bold red")
        raise typer.Exit(1)


_NAMES = {
    "pictures": ("pictures", "d"), "psnr": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".4f"), "ms_ssim": ("MS-SSIM", ".4f"),
    "normalized_error": ("error / variance", ".4f"), "usage": ("codes used", ".1%"), "perplexity": ("perplexity", ".1f"),
    "bpp": ("bits per pixel, raw", ".4f"), "bpp_packed": ("bits per pixel, files", ".4f"),
    "bpp_coded": ("bits per pixel, by the prior", ".4f"), "bits_per_dim": ("bits per dimension", ".3f"),
}     # fmt: skip


def _rows(figures: dict[str, Any]) -> list[list[str]]:
    """Name and value of each figure that there is."""
    return [[name, format(figures[key], style)] for key, (name, style) in _NAMES.items() if figures[key] is not None]
