"""`vqtok eval`: measures a model on images."""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vqtok.cli import figures, output, shards
from vqtok.cli import options as o
from vqtok.cli.progress import bar
from vqtok.cli.samples import SamplesOptions, evaluate_samples
from vqtok.cli.start import ModelOptions

if TYPE_CHECKING:
    from vqtok.data import DataOptions
    from vqtok.evaluate import View

SHEET_IMAGES = 6
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
    dists: Annotated[
        Path | None,
        typer.Option(
            "--dists",
            help="Measure DISTS too, with the weights in this safetensors file. Needs VGG-16's.",
            metavar="FILE",
        ),
    ] = None
    vgg: Annotated[
        Path | None,
        typer.Option(
            "--vgg",
            help="LPIPS's file of VGG-16, for --dists. Default: that of --lpips.",
            metavar="FILE",
        ),
    ] = None
    fid: Annotated[
        Path | None,
        typer.Option(
            "--fid",
            help="Measure FID too, with the Inception weights of pytorch-fid (.pth, .safetensors).",
            metavar="FILE",
        ),
    ] = None
    codecs: Annotated[
        str | None,
        typer.Option(
            "--codecs",
            help=(
                "Compare at the same bytes with jpeg,webp,avif,jxl,heic, or none. "
                "Default: the first three, for photos."
            ),
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
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="Write a line of figures for each model, level and codec.",
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
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            autocompletion=o.complete_model,
            help=(
                "Name (see `vqtok models`), folder or tokenizer file; several are compared. "
                "Default: VQTOK_MODEL, else photo."
            ),
        ),
    ] = None,
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
    from vqtok.errors import UsageError

    json, quiet = running.json, running.quiet
    parts = [word for word in split or () if "=" not in word] or ["test"]
    if len(parts) > 1 or parts[0] not in ("test", "train"):
        raise UsageError(f"there is no split {' '.join(parts)!r}", "choose test or train")
    sampled.check(_of_reconstructions(wanted, None if parts == ["test"] else parts[0]))
    models = [running.model(name) for name in dict.fromkeys(model or ())] or [running.model(None)]
    if data is not None and shards.is_shards(data):
        _check_images_needed(data, sampled)
        _check_no_originals(data, wanted)
        if len(models) > 1:
            raise UsageError(f"the codes in {data} are of one model", "name one model")
        measured, description = _measure_shards(data, models[0], wanted, quiet), f"codes in {data}"
        _show([measured], wanted, f"the {description}", force, json)
        return
    chosen = o.data_options([word for word in split or () if "=" in word], labels, member, values)
    _check_targets(wanted, len(models), force)
    _check_outside(wanted.sheet, data)
    for one in models:
        one.check_levels(max(_numbers(wanted.levels) or [1]))  # finds each, before the work
    if sampled.samples is not None:
        return _evaluate_samples(data, chosen, models, wanted, sampled, force, running)
    part: Literal["test", "train"] = "test" if parts[0] == "test" else "train"
    networks = _load_networks(wanted)
    asked = _Asked(data, part, chosen, values is None)
    found = [_measure(asked, one, wanted, networks, quiet) for one in models]
    if wanted.sheet is not None:
        figures.write_sheet(wanted.sheet, found[0].views, force)
    _show([one.measured for one in found], wanted, found[0].description, force, json)
    failed = sum(one.failed for one in found)
    if failed:
        images = sum(one.measured.result.pictures for one in found)
        output.say(f"{failed} of {images + failed} failed", style="bold red")
        raise typer.Exit(1)


def _of_reconstructions(wanted: MeasureOptions, split: str | None) -> dict[str, object]:
    """The options as typed that have no meaning for samples."""
    names = [field.name for field in fields(wanted) if field.name not in ("limit", "sheet")]
    return {"split": split, **{name: getattr(wanted, name) for name in names}}


def _evaluate_samples(
    data: Path | None,
    chosen: "DataOptions",
    models: list[ModelOptions],
    wanted: MeasureOptions,
    sampled: SamplesOptions,
    force: bool,
    running: o.RunningOptions,
) -> None:
    """Measures the samples of one model."""
    from vqtok import images
    from vqtok.errors import UsageError

    if len(models) > 1:
        raise UsageError("--samples measures one model", "name one model")
    codec = models[0].load()
    if chosen.range is None and codec.range is not None:
        chosen = replace(chosen, range=images.show_range(codec.range))
    evaluate_samples(codec, data, chosen, sampled, wanted.limit, wanted.sheet, force, running)


@dataclass
class _Found:
    """What was measured of one model, and what is shown of it."""

    measured: figures.Measured
    description: str  # of the data
    views: list[list["View"]]
    failed: int


@dataclass(frozen=True)
class _Asked:
    """The images to measure on."""

    data: Path | None
    part: Literal["test", "train"]
    options: "DataOptions"
    range_of_model: bool  # no --range was given: each model's own counts


def _measure(
    asked: _Asked,
    name: ModelOptions,
    wanted: MeasureOptions,
    networks: dict[str, Any],
    quiet: bool,
) -> _Found:
    """Measures one model; what cannot be read is said, and counted."""
    from vqtok import images
    from vqtok.data import open_data
    from vqtok.errors import InputError
    from vqtok.evaluate import evaluate as measure

    codec, options = name.load(), asked.options
    if asked.range_of_model and codec.range is not None:
        options = replace(options, range=images.show_range(codec.range))
    dataset = open_data(asked.data, asked.part, options)
    for note in dataset.notes:
        output.say(note, quiet)
    views: list[list[View]] = []
    errors: list[InputError] = []

    def show(of_one: list["View"]) -> None:
        if len(views) < SHEET_IMAGES and wanted.sheet is not None:
            views.append(of_one)

    with output.memory_errors(dataset.name), bar(f"eval {dataset.name}", quiet) as progress:
        result = measure(
            codec,
            dataset,
            wanted.limit,
            progress,
            show,
            errors.append,
            levels=_numbers(wanted.levels),
            codecs=_names(wanted.codecs),
            **networks,
        )
    for error in errors:
        output.show_error(error)
    for note in result.notes:
        output.say(note, quiet)
    range_ = list(dataset.range) if dataset.range else None
    facts = {"range": range_, "notes": [*dataset.notes, *result.notes]}
    measured = figures.Measured(codec.name, codec.fingerprint, dataset.name, result, facts)
    description = dataset.description
    if wanted.limit is not None and wanted.limit < len(dataset):
        description = f"the first {wanted.limit:,} of {description}"
    return _Found(measured, description, views, len(errors))


def _show(
    measured: list[figures.Measured], wanted: MeasureOptions, data: str, force: bool, json: bool
) -> None:
    """Writes and prints what was measured."""
    if wanted.plot is not None:
        figures.write_plot(wanted.plot, measured, force)
    if wanted.csv is not None:
        figures.write_csv(wanted.csv, measured, force)
    if not json:
        figures.print_tables(measured, data)
    elif len(measured) == 1:
        output.print_json(measured[0].to_json())
    else:
        output.print_json({"models": [one.to_json() for one in measured]})


def _check_images_needed(data: Path, sampled: SamplesOptions) -> None:
    """UsageError where samples are to be compared with images that are not there."""
    from vqtok.errors import UsageError

    if sampled.samples is not None:
        raise UsageError(
            f"--samples compares with images, and {data} holds codes",
            f"give the images in place of {data}",
        )


def _check_no_originals(data: Path, options: MeasureOptions) -> None:
    """Raises UsageError where an option compares with originals, which codes shards do not hold."""
    from vqtok.errors import UsageError

    for name in ("lpips", "dists", "fid", "codecs", "sheet", "plot"):
        value = getattr(options, name)
        if value is not None and str(value).lower() != "none":
            raise UsageError(
                f"--{name} compares with the originals, and {data} holds codes",
                f"leave it out, or give the images in place of {data}",
            )


def _measure_shards(
    data: Path, chosen: ModelOptions, wanted: MeasureOptions, quiet: bool
) -> figures.Measured:
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
        levels = _numbers(wanted.levels)
        result = evaluate_codes(codec, held, wanted.limit, progress, levels=levels)
    for note in result.notes:
        output.say(note, quiet)
    return figures.Measured(codec.name, codec.fingerprint, str(data), result)


def _check_targets(wanted: MeasureOptions, models: int, force: bool) -> None:
    """Refuses output files that could not be written, before the work."""
    from vqtok import images
    from vqtok.errors import UsageError

    sheet, plot = wanted.sheet, wanted.plot
    if wanted.csv is not None:
        output.check_target(wanted.csv, force)
    if sheet is not None and models > 1:
        raise UsageError("--sheet shows one model", "name one model, or leave out --sheet")
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


def _load_networks(wanted: MeasureOptions) -> dict[str, Any]:
    """Loads the networks that compare images, as `evaluate` calls them."""
    from vqtok.errors import UsageError

    networks: dict[str, Any] = {}
    if wanted.vgg is not None and wanted.dists is None:
        raise UsageError("--vgg serves --dists, which is not given", "add --dists FILE")
    if wanted.lpips is not None:
        from vqtok.losses.lpips import load_lpips

        networks["lpips"] = load_lpips(wanted.lpips)
    if wanted.dists is not None:
        from vqtok.evaluate.dists import load_dists
        from vqtok.losses.lpips import load_lpips

        vgg = networks.get("lpips") if wanted.vgg is None else load_lpips(wanted.vgg)
        networks["dists"] = load_dists(wanted.dists, vgg)
    if wanted.fid is not None:
        from vqtok.evaluate.fid import Inception
        from vqtok.interop.read import read_checkpoint

        networks["fid"] = Inception(read_checkpoint(wanted.fid).tensors, str(wanted.fid))
    return networks


def _check_outside(sheet: Path | None, data: Path | None) -> None:
    """Refuses a sheet that the next run would take for one of the images."""
    from vqtok.errors import UsageError

    if sheet is None or data is None or not os.path.isdir(data):
        return
    if Path(os.path.realpath(sheet)).is_relative_to(os.path.realpath(data)):
        raise UsageError(
            f"the sheet {sheet} lies in the folder of images {data}, and would be taken for one",
            "choose a place outside of it",
        )
