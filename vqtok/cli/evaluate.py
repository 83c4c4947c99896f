"""`vqtok eval`: measures a model on images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output, shards
from vqtok.cli.batch import Facts
from vqtok.cli.progress import bar
from vqtok.cli.samples import SamplesOptions, evaluate_samples
from vqtok.cli.start import ModelOptions

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from vqtok.evaluate import Evaluation, View
    from vqtok.losses import LPIPS

SHEET_IMAGES = 6
SHEET_SIDE = 128  # smaller images are enlarged to about this
SHEET_CROP = 256  # of larger ones the middle is shown, pixel by pixel
PLOT_SUFFIXES = (".svg", ".png")


@dataclass(frozen=True)
class MeasureOptions:
    """Options that say what is measured and compared, and where that is shown."""

    limit: Annotated[
        int | None,
        typer.Option("--limit", help="Take only so many images, the first.", metavar="N", min=1),
    ] = None
    levels: Annotated[
        str | None,
        typer.Option(
            "--levels",
            help="Numbers of levels to measure beside all, like 1,2,4. Default: each.",
            metavar="N,...",
        ),
    ] = None
    lpips: Annotated[
        Path | None,
        typer.Option(
            "--lpips",
            help=(
                "Measure LPIPS too, with the weights in this safetensors file (AlexNet or VGG-16)."
            ),
            metavar="FILE",
        ),
    ] = None
    codecs: Annotated[
        str | None,
        typer.Option(
            "--codecs",
            help="Compare at the same bytes with jpeg,webp,avif, or none. Default: all for photos.",
            metavar="NAMES",
        ),
    ] = None
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            help=(
                "Write the first originals beside what is made of them to this image; of samples, "
                "each above the training image nearest to it."
            ),
            metavar="FILE",
        ),
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="Write curves, quality over bits: FILE as .svg and as .png.",
            metavar="FILE",
        ),
    ] = None


@output.handle_errors
@o.grouped
def evaluate(
    *,
    data: Annotated[
        Path | None,
        typer.Argument(
            help=(
                "Folder, zip, tar, CIFAR-10, IDX or array file, or codes shards. "
                "Default: the built-in shapes."
            ),
            metavar="IMAGES",
        ),
    ] = None,
    model: o.ModelName = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            help=(
                "test or train, for data that tells them apart; or NAME=PATTERN, like "
                "test='holdout/*'. Default: test."
            ),
            metavar="PART",
        ),
    ] = None,
    labels: o.LabelSource = None,
    member: o.Member = None,
    values: o.ValueRange = None,
    wanted: MeasureOptions,
    sampled: SamplesOptions,
    force: o.Force = False,
    running: o.RunningOptions,
) -> None:
    """Measure a model: PSNR, SSIM, LPIPS, bits; or its samples.

    Of codes shards, whose originals are not there: codebook use and bits.
    """
    from vqtok import images
    from vqtok.data import open_data
    from vqtok.errors import InputError, UsageError

    sheet, plot, json, quiet = wanted.sheet, wanted.plot, running.json, running.quiet
    parts = [word for word in split or () if "=" not in word] or ["test"]
    if len(parts) > 1 or parts[0] not in ("test", "train"):
        raise UsageError(f"there is no split {' '.join(parts)!r}", "choose test or train")
    sampled.check(
        {
            "levels": wanted.levels,
            "lpips": wanted.lpips,
            "codecs": wanted.codecs,
            "plot": plot,
            "split": None if parts == ["test"] else parts,
        }
    )
    if data is not None and shards.is_shards(data):
        _check_images_needed(data, sampled)
        _check_no_originals(data, wanted)
        levels = _numbers(wanted.levels)
        return _evaluate_shards(data, running.model(model), wanted.limit, levels, json, quiet)
    chosen = o.data_options([word for word in split or () if "=" in word], labels, member, values)
    _check_targets(sheet, plot, force)
    asked: dict[str, Any] = {"levels": _numbers(wanted.levels), "codecs": _names(wanted.codecs)}
    codec = running.model(model).load()
    if values is None and codec.range is not None:
        chosen = replace(chosen, range=images.show_range(codec.range))
    if sampled.samples is not None:
        return evaluate_samples(codec, data, chosen, sampled, wanted.limit, sheet, force, running)
    network = _load_lpips(wanted.lpips)
    from vqtok.evaluate import evaluate as measure

    dataset = open_data(data, "test" if parts[0] == "test" else "train", chosen)
    for note in dataset.notes:
        output.say(note, quiet)
    views: list[list[View]] = []
    errors: list[InputError] = []

    def show(of_one: list["View"]) -> None:
        if len(views) < SHEET_IMAGES and sheet is not None:
            views.append(of_one)

    with output.memory_errors(dataset.name), bar(f"eval {dataset.name}", quiet) as progress:
        result = measure(
            codec, dataset, wanted.limit, progress, show, errors.append, lpips=network, **asked
        )
    for error in errors:
        output.show_error(error)
    for note in result.notes:
        output.say(note, quiet)
    if sheet is not None:
        _write_sheet(sheet, views, force)
    if plot is not None:
        _write_plot(plot, result, codec.name, dataset.name, force)
    if json:
        output.print_json(
            {
                "model": codec.name,
                "fingerprint": codec.fingerprint,
                "data": dataset.name,
                "range": list(dataset.range) if dataset.range else None,
                **result.to_json(),
                "notes": [*dataset.notes, *result.notes],
            }
        )
    else:
        _print_tables(result, codec.name, dataset.description)
    if errors:
        output.say(f"{len(errors)} of {result.pictures + len(errors)} failed", style="bold red")
        raise typer.Exit(1)


def _check_images_needed(data: Path, sampled: SamplesOptions) -> None:
    """UsageError where samples are to be compared with images that are not there."""
    from vqtok.errors import UsageError

    if sampled.samples is not None:
        raise UsageError(
            f"--samples compares with images, and {data} holds codes",
            f"give the images in place of {data}",
        )


def _check_no_originals(data: Path, options: MeasureOptions) -> None:
    """UsageError where an option compares with originals, which codes shards do not hold."""
    from vqtok.errors import UsageError

    for name in ("lpips", "codecs", "sheet", "plot"):
        value = getattr(options, name)
        if value is not None and str(value).lower() != "none":
            raise UsageError(
                f"--{name} compares with the originals, and {data} holds codes",
                f"leave it out, or give the images in place of {data}",
            )


def _evaluate_shards(
    data: Path,
    chosen: ModelOptions,
    limit: int | None,
    levels: list[int] | None,
    json: bool,
    quiet: bool,
) -> None:
    """Measures the codes in a folder of shards."""
    from vqtok.cli.pack import EntropyCoders
    from vqtok.errors import ModelError

    held = shards.open_shards(data, chosen.name, quiet)
    try:
        EntropyCoders(chosen.name).check_model(held.manifest)
        codec = chosen.load() if chosen.name else chosen.load_for(held.manifest)
    except ModelError as error:
        raise error.about(data) from None
    from vqtok.evaluate import evaluate_codes

    with output.memory_errors(data), bar(f"eval {data}", quiet) as progress:
        result = evaluate_codes(codec, held, limit, progress, levels=levels)
    for note in result.notes:
        output.say(note, quiet)
    if json:
        facts = {"model": codec.name, "fingerprint": codec.fingerprint, "data": str(data)}
        output.print_json({**facts, **result.to_json()})
    else:
        _print_tables(result, codec.name, f"the codes in {data}")


def _check_targets(sheet: Path | None, plot: Path | None, force: bool) -> None:
    """Refuses output files that could not be written, before the work."""
    from vqtok import images
    from vqtok.errors import UsageError

    if sheet is not None:
        images.check_suffix(sheet)
        output.check_target(sheet, force)
    if plot is None:
        return
    if plot.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(
            f"cannot write curves to {plot}", "name a .svg; the same is written as .png beside it"
        )
    for suffix in PLOT_SUFFIXES:
        if sheet is not None and plot.with_suffix(suffix).absolute() == sheet.absolute():
            raise UsageError(
                f"--sheet and --plot would both write {sheet}", "give one of them another name"
            )
        output.check_target(plot.with_suffix(suffix), force)


def _numbers(text: str | None) -> list[int] | None:
    """Parses '1,2,4'."""
    from vqtok.errors import UsageError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"cannot read the levels {text!r}",
            "write numbers with commas between them: --levels 1,2,4",
        ) from None


def _names(text: str | None) -> list[str] | None:
    """Parses 'jpeg,avif'; none is an empty list."""
    if text is None:
        return None
    return (
        [] if text.strip().lower() == "none" else [part.strip().lower() for part in text.split(",")]
    )


def _load_lpips(path: Path | None) -> "LPIPS | None":
    if path is None:
        return None
    from vqtok.losses import lpips as losses_lpips

    return losses_lpips.load_lpips(path)


def _write_sheet(path: Path, rows: Sequence[Sequence["View"]], force: bool) -> None:
    """Writes originals, ours and the codecs' in rows; small images are enlarged, large ones show
    their middle at 1:1.
    """
    from vqtok import images, plots
    from vqtok.files import human_bytes

    columns = max(len(row) for row in rows)
    # a codec that does not take an image's size leaves its column out
    full = [row for row in rows if len(row) == columns]
    crops = [[_middle(view.image) for view in row] for row in full]
    labels = [
        [
            _size(view.image)
            if view.bytes is None
            else f"{human_bytes(view.bytes)}, {_bpp(view):.3f} bpp"
            for view in row
        ]
        for row in full
    ]
    scale = max(1, SHEET_SIDE // max(max(row[0].shape[:2]) for row in crops))
    headings = [view.name for view in full[0]]
    images.write_image(path, plots.side_by_side(crops, headings, scale=scale, labels=labels), force)


def _middle(image: "np.ndarray") -> "np.ndarray":
    H, W = image.shape[:2]
    top, left = max(0, H - SHEET_CROP) // 2, max(0, W - SHEET_CROP) // 2
    return image[top : top + SHEET_CROP, left : left + SHEET_CROP]


def _size(image: "np.ndarray") -> str:
    H, W = image.shape[:2]
    return f"{W}x{H}"


def _bpp(view: "View") -> float:
    assert view.bytes is not None
    return 8 * view.bytes / (view.image.shape[0] * view.image.shape[1])


def _write_plot(path: Path, result: "Evaluation", model: str, data: str, force: bool) -> None:
    """Writes curves of LPIPS, where it was measured, and of MS-SSIM."""
    from vqtok import files, images, plots

    found = plots.rate_panels(asdict(result), model)
    panels = [found[key] for key in ("lpips", "ms_ssim") if key in found]
    text = f"{model} on {files.human_count(result.pictures, 'image')} of {data}"
    files.write_bytes(path.with_suffix(".svg"), plots.plot_svg(text, panels), force)
    images.write_image(path.with_suffix(".png"), plots.plot_image(text, panels), force)


_NAMES = {
    "pictures": ("images", "d"),
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "ms_ssim": ("MS-SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
    "normalized_error": ("error / variance", ".4f"),
    "usage": ("codes used", ".1%"),
    "perplexity": ("perplexity", ".1f"),
    "bpp": ("bits per pixel, raw", ".4f"),
    "bpp_plain": ("bits per pixel, files", ".4f"),
    "bpp_coded": ("bits per pixel, by the prior", ".4f"),
    "bits_per_dim": ("bits per dimension", ".3f"),
}
_LEVEL_COLUMNS = {
    "levels": ("levels", "d"),
    "bpp": ("bpp raw", ".4f"),
    "bpp_plain": ("files", ".4f"),
    "bpp_coded": ("by prior", ".4f"),
    "bpp_compact": ("compact", ".4f"),
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "ms_ssim": ("MS-SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
    "usage": ("used", ".1%"),
    "perplexity": ("perplexity", ".1f"),
}
_CODEC_COLUMNS = {
    "bpp": ("bpp", ".4f"),
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "ms_ssim": ("MS-SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
}


def _print_tables(result: "Evaluation", model: str, data: str) -> None:
    """Prints the figures of all levels; with several levels, or beside codecs, also a line for each
    level, and for each codec at its bytes.
    """
    from vqtok import plots

    figures = asdict(result)
    rows = [
        [name, format(figures[key], style)]
        for key, (name, style) in _NAMES.items()
        if figures[key] is not None
    ]
    output.print_table(plots.rich_table(["figure", "value"], rows, f"{model} on {data}"))
    if len(result.levels) > 1:
        output.print_table(_level_table(figures["levels"]))
    output.print_table(_coder_table(figures["levels"]))
    if result.codecs:
        measure = "MS-SSIM" if result.lpips is None else "LPIPS"
        output.print_table(_codec_table(figures, model, measure))


def _level_table(levels: list[Facts]) -> "Table":
    from vqtok import plots

    columns = {key: column for key, column in _LEVEL_COLUMNS.items() if levels[0][key] is not None}
    return plots.rich_table(
        [name for name, _ in columns.values()],
        [_cells(row, columns) for row in levels],
        "by level; used and perplexity of that level",
    )


def _coder_table(levels: list[Facts]) -> "Table":
    """Bits per pixel by our coders and by those of others."""
    from vqtok import plots
    from vqtok.evaluate import TITLES

    names = list(levels[0]["coders"])
    lines = [
        [str(row["levels"]), f"{row['bpp']:.4f}", *(f"{row['coders'][name]:.4f}" for name in names)]
        for row in levels
    ]
    return plots.rich_table(
        ["levels", "raw", *(TITLES[name] for name in names)],
        lines,
        "bits per pixel of the same grids; priors without, files with all overhead",
    )


def _codec_table(figures: Facts, model: str, measure: str) -> "Table":
    """Each level, and below it the other codecs at its bytes."""
    from vqtok import plots

    columns = {
        key: column
        for key, column in _CODEC_COLUMNS.items()
        if key == "bpp" or figures[key] is not None
    }
    lines: list[list[str | None]] = []
    for ours in figures["levels"]:
        others = [
            row
            for row in figures["codecs"]
            if row["levels"] == ours["levels"] and row["times"] == 1
        ]
        if others:
            cells = _cells(ours | {"bpp": ours["bpp_plain"]}, columns)
            lines.append([f"{model}, {ours['levels']}", *cells, None])
        for row in others:
            needs = ours["needs"][row["codec"]]
            needed = None if needs is None else f"{needs:.4f}"
            name = f"  {plots.CODEC_TITLES[row['codec']]}"
            lines.append([name, *_cells(row, columns), needed])
    return plots.rich_table(
        ["at the bytes of", *(name for name, _ in columns.values()), "needs bpp"],
        lines,
        f"other codecs at the same bytes, and the bpp that they need for the same {measure}",
    )


def _cells(row: dict[str, Any], columns: dict[str, tuple[str, str]]) -> list[str | None]:
    return [
        None if row[key] is None else format(row[key], style) for key, (_, style) in columns.items()
    ]
