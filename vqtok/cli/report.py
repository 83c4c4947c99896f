"""`vqtok report`: makes a page about a training run, a model or a codes file, in one file that
needs no network.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output, shards
from vqtok.cli.progress import bar
from vqtok.cli.start import ModelOptions
from vqtok.errors import ModelError, UsageError, VqtokError

if TYPE_CHECKING:
    from vqtok.codec import Model
    from vqtok.codes import Codes, Compact
    from vqtok.pages.run import RunInspection, RunReport

DEFAULT_OUTPUT = Path("report.html")
SAMPLES = 8


@output.handle_errors
def report(
    what: Annotated[
        str,
        typer.Argument(
            help=(
                "A run's folder, a model's name or folder, a codes file (- for standard input), "
                "or a folder of codes shards."
            ),
            metavar="WHAT",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--output", "-o", help="The page; - for standard output.", metavar="FILE"),
    ] = DEFAULT_OUTPUT,
    model: o.FileModel = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            help=f"How many samples to draw at each temperature; 0 for none. Default: {SAMPLES}.",
            metavar="N",
            min=0,
            max=256,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            help="What `vqtok eval --json` printed, for a model's curves. "
            "Default: figures.json in its folder.",
            metavar="FILE",
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    force: o.Force = False,
    device: o.Device = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Make a page of images and curves: one file, no network."""
    kind = _kind(what)
    if open_ and str(out) == "-":
        raise UsageError(
            "--open needs a file, and the page goes to standard output",
            "give a file: -o report.html",
        )
    if model is not None and kind != "codes":
        raise UsageError(
            "--model says what decodes a codes file, and this is none", "leave --model out"
        )
    if figures is not None and kind != "model":
        raise UsageError("--figures are those of a model, and this is none", "leave --figures out")
    if samples is not None and kind == "codes":
        raise UsageError("--samples are those of a model, and these are codes", "leave it out")
    drawn = SAMPLES if samples is None else samples
    if out.suffix.lower() not in ("", ".html", ".htm"):
        raise UsageError(f"cannot write the page to {out}: it is HTML", "name a .html file")
    output.check_target(out, force)
    begin = time.perf_counter()
    if kind == "codes":
        page = _of_codes(what, model, device, verbose)
    elif kind == "run":
        page = _of_run(Path(what), drawn, device, quiet, verbose)
    else:
        page = _of_model(what, figures, drawn, device, quiet, verbose)
    output.write(out, page, force)
    from vqtok.files import human_bytes

    seconds = time.perf_counter() - begin
    output.say(
        f"{kind} {what} -> {output.display_name(out)}  {human_bytes(len(page))}, {seconds:.1f} s",
        quiet,
    )
    if open_:
        _open(out, quiet)


def _kind(what: str) -> str:
    """Returns run, model or codes; a folder with a log is a run."""
    if (
        what == "-"
        or (os.path.isfile(what) and not what.endswith(".safetensors"))
        or what.endswith(".npz")
        or shards.is_shards(what)
    ):
        return "codes"
    return "run" if os.path.isfile(os.path.join(what, "log.jsonl")) else "model"


def _open(path: Path, quiet: bool) -> None:
    import webbrowser

    if not webbrowser.open(path.resolve().as_uri()):
        output.say(f"no browser can be started here; open {path} in one yourself", quiet)


def _of_run(folder: Path, samples: int, device: str | None, quiet: bool, verbose: bool) -> bytes:
    from vqtok.pages import run as run_page

    run = run_page.read_run(folder)
    extra = run_page.RunInspection(
        notes=["no weights are there yet: curves and settings are all there is to show"]
    )
    if os.path.isfile(folder / "tokenizer.safetensors"):
        # The whole path: by a bare name a bundled model would be found first.
        codec = ModelOptions(str(folder.resolve()), device, verbose=verbose).load()
        extra = _inside_run(codec, run, samples, quiet)
    return run_page.page(run, extra)


def _inside_run(codec: "Model", run: "RunReport", samples: int, quiet: bool) -> "RunInspection":
    """Runs a run's networks: samples, and the codebook as the last validation images use it."""
    from vqtok.evaluate import inspect_model
    from vqtok.pages import run as run_page

    sheets, sampled, notes = _samples(codec, samples, quiet)
    size = run.settings.get("data", {}).get("size") if run.sheets else None
    if isinstance(size, int):
        images = [
            image[..., : codec.config.channels]
            for image in run_page.images_of(run.sheets[-1], size)
        ]
        codes, counted = [codec.encode_batch(images)], f"in {len(images)} validation images"
    else:
        codes, counted = sampled, f"in {samples} samples"
    book = (
        inspect_model.codebook_map(codec, inspect_model.count_codes(codes), counted)
        if codes
        else None
    )
    return run_page.RunInspection(book, sheets, notes)


def _samples(
    codec: "Model", count: int, quiet: bool
) -> tuple[list[tuple[str, Any]], list[Any], list[str]]:
    """Returns sheets with captions, the codes of samples at temperature 1, and notes; nothing where
    none are asked for or there is no prior.
    """
    from vqtok.evaluate import inspect_model

    if not count or codec.folder.prior is None:
        return [], [], []
    try:
        with bar("samples", quiet) as progress:
            sheets, codes = inspect_model.sample_sheets(codec, count, progress)
    except VqtokError as error:  # of a run in progress the prior may be that of an older tokenizer
        return [], [], [f"no samples: {error}"]
    return sheets, [codes], []


def _of_model(
    what: str, figures: Path | None, samples: int, device: str | None, quiet: bool, verbose: bool
) -> bytes:
    from vqtok import config, files, model_registry, plots
    from vqtok.evaluate import inspect_model
    from vqtok.pages import model as model_page

    folder = model_registry.find_model(what)
    own = folder.path / plots.FIGURES_FILE
    source = own if figures is None and os.path.isfile(own) else figures
    measured = None if source is None else plots.read_figures(source)
    origin = plots.FIGURES_FILE if figures is None else output.display_name(figures)
    codec = ModelOptions(what, device, verbose=verbose).load()
    sheets, codes, notes = _samples(codec, samples, quiet)
    book = (
        inspect_model.codebook_map(
            codec, inspect_model.count_codes(codes), f"in {samples} samples of the prior"
        )
        if codes
        else None
    )
    panels = None if measured is None else list(plots.rate_panels({codec.name: measured}).values())
    if measured is not None and measured.get("fingerprint") not in (None, codec.fingerprint):
        notes.append(f"the figures were measured with another model ({measured['fingerprint']})")
    recipe = folder.path / "recipe.toml"
    page = model_page.ModelReport(
        codec.name,
        codec.fingerprint,
        _text(folder.path / "README.md"),
        panels,
        f"As measured by vqtok eval: {origin}.",
        _facts(codec, files.human_bytes),
        config.read_recipe(recipe) if os.path.isfile(recipe) else {},
        book,
        sheets,
        notes,
    )
    return model_page.page(page)


def _text(path: Path) -> str:
    """Reads a small text file; "" where there is none."""
    from vqtok import files

    return (
        files.read_bytes(path, 1 << 20).decode("utf-8", "replace") if os.path.isfile(path) else ""
    )


def _facts(codec: "Model", human: Any) -> list[tuple[str, Any]]:
    """Returns names and values that the files themselves record."""
    folder, metrics = codec.folder, codec.record.get("metrics")
    parts = [
        ("tokenizer", folder.tokenizer),
        ("prior", folder.prior),
        ("entropy prior", folder.entropy),
    ]
    sizes = [f"{name} {human(os.path.getsize(path))}" for name, path in parts if path is not None]
    psnr = metrics.get("psnr") if isinstance(metrics, dict) else None
    labels = ", ".join(codec.labels) if folder.prior is not None else ""
    rows: list[tuple[str, Any]] = [
        ("grid", codec.config.grid),
        ("quantizer", codec.config.quantizer),
        ("files", ", ".join(sizes)),
        ("trained on", codec.record.get("data", "")),
        ("steps", codec.record.get("step", "")),
        ("labels", labels or "none"),
    ]
    return rows + (
        [("PSNR of validation crops, dB", float(psnr))] if isinstance(psnr, int | float) else []
    )


@dataclass(frozen=True)
class _CodesFile:
    """A codes file that a page is made of."""

    data: bytes
    found: "Codes | Compact"
    facts: list[tuple[str, Any]]
    notes: list[str]


def _read_codes(what: str, model: str | None) -> _CodesFile:
    """Reads a codes file; of codes shards makes one of their first images."""
    from vqtok import codes, files
    from vqtok.pages.codes import SHEET_MAX

    if what != "-" and shards.is_shards(what):
        held, found = shards.facts(Path(what)), shards.open_shards(Path(what), model)
        some = shards.first_images(found, SHEET_MAX)
        text = f"{len(some)} of the {len(found)} images in these codes shards, with one grid"
        names = {"pictures": "images", "failed": "failed", "bytes": "bytes", "bpp": "bpp"}
        rows = [(f"all shards: {name}", held[key]) for key, name in names.items()]
        return _CodesFile(codes.to_bytes(some), some, rows, [text])
    data = (
        files.read_stdin(codes.FILE_LIMIT)
        if what == "-"
        else files.read_bytes(Path(what), codes.FILE_LIMIT)
    )
    found = codes.read_any_codes(data, "standard input" if what == "-" else what)
    return _CodesFile(data, found, [], [])


def _of_codes(what: str, model: str | None, device: str | None, verbose: bool) -> bytes:
    from vqtok import codes
    from vqtok.evaluate import TITLES, inspect_model
    from vqtok.evaluate.baseline_coders import grid_bytes
    from vqtok.pages import codes as codes_page

    name = "standard input" if what == "-" else what
    try:
        read = _read_codes(what, model)
        data, found = read.data, read.found
        chosen = ModelOptions(model, device, verbose=verbose)
        codec = chosen.load() if model else chosen.load_for(found)
        plain = codec.unpack(found)
        images = codec.decode_all(plain)
    except ModelError as error:
        raise error.about(name) from None
    spent = inspect_model.index_bits(codec, plain)
    parts = codes_page.breakdown(data, found, None if spent is None else spent[0])
    coders = [codes_page.Part(TITLES[key], size) for key, size in grid_bytes(plain).items()]
    if spent is not None:
        coders.append(codes_page.Part(spent[1], float(spent[0].sum()) / 8))
    facts: list[tuple[str, Any]] = [
        ("model", f"{plain.model} ({plain.fingerprint})"),
        ("form", codes.form(found)),
        ("images", len(plain)),
        ("size", " ".join(dict.fromkeys(f"{W}x{H}" for H, W in plain.sizes))),
        ("levels", f"{plain.levels} of {codec.config.levels}"),
        ("codes at each level", plain.codebook_size),
        ("raw bits per pixel", plain.bits / plain.pixels),
        *read.facts,
    ]
    colors = inspect_model.index_colors(codec)
    page = codes_page.CodesReport(
        name,
        plain,
        images,
        colors,
        None if spent is None else spent[0],
        "" if spent is None else spent[1],
        parts,
        coders,
        facts,
        read.notes,
    )
    return codes_page.page(page)
