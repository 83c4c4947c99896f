"""`vqtok eval --samples`: measures what a prior draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output
from vqtok.cli.progress import bar
from vqtok.errors import UsageError

if TYPE_CHECKING:
    from vqtok.codec import Model
    from vqtok.data import DataOptions
    from vqtok.evaluate import SampleScores, Shown

SHOWN = 40
COLUMNS = 10
SCALE_TO = 64  # pixels to which small images are enlarged on the sheet


@dataclass(frozen=True)
class SamplesOptions:
    """Options that say how samples are drawn that are to be measured."""

    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            help=(
                "Measure N samples in place of reconstructions: classes by a classifier trained "
                "on IMAGES, precision, recall, copies."
            ),
            metavar="N",
            min=2,
            max=100_000,
        ),
    ] = None
    temperature: o.Temperature = None
    top_k: o.TopK = None
    top_p: o.TopP = None
    guidance: o.Guidance = None
    seed: o.Seed = 0

    def check(self, refused: dict[str, object]) -> None:
        """UsageError where options of drawing stand without --samples, or beside it such as measure
        reconstructions.
        """
        if self.samples is None:
            names = ("temperature", "top_k", "top_p", "guidance")
            given = [name for name in names if getattr(self, name) is not None]
            given += ["seed"] if self.seed else []
            if given:
                name = given[0].replace("_", "-")
                raise UsageError(f"--{name} is for samples to be measured", "add --samples 1000")
        elif given := [name for name, value in refused.items() if value is not None]:
            raise UsageError(
                f"--{given[0]} is of reconstructions, and --samples measures samples",
                "leave one of them out",
            )

    def keywords(self) -> dict[str, Any]:
        return {
            "temperature": o.numbers("--temperature", self.temperature),
            "top_k": self.top_k,
            "top_p": o.numbers("--top-p", self.top_p),
            "guidance": self.guidance,
        }


def evaluate_samples(
    codec: "Model",
    data: Path | None,
    chosen: "DataOptions",
    asked: SamplesOptions,
    limit: int | None,
    sheet: Path | None,
    force: bool,
    running: o.RunningOptions,
) -> None:
    """Trains the classifier, draws the samples, and prints and writes what is found."""
    from vqtok.data import open_data
    from vqtok.evaluate import measure_samples, train_judge

    quiet, n = running.quiet, asked.samples or 2
    _ = codec.prior  # whether there is one is known before the work
    options = asked.keywords()
    train, test = (open_data(data, part, chosen) for part in ("train", "test"))
    for note in dict.fromkeys((*train.notes, *test.notes)):
        output.say(note, quiet)
    with output.memory_errors(train.name):
        with bar("classifier", quiet) as progress:
            judge = train_judge(codec, train, test, seed=asked.seed, limit=limit, progress=progress)
        with bar("samples", quiet) as progress:
            scores, shown = measure_samples(
                judge,
                codec,
                test,
                n,
                limit,
                seed=asked.seed,
                show=SHOWN if sheet is not None else 0,
                progress=progress,
                **options,
            )
    for note in scores.notes:
        output.say(note, quiet)
    if sheet is not None:
        _write_sheet(sheet, shown, force)
    if running.json:
        facts = {"model": codec.name, "fingerprint": codec.fingerprint, "data": train.name}
        output.print_json({**facts, "seed": asked.seed, **scores.to_json()})
    else:
        _print(scores, codec.name, train.name)


def _write_sheet(path: Path, shown: Sequence["Shown"], force: bool) -> None:
    """Writes each sample, with the label asked for, above the training image nearest to it."""
    from vqtok import images, plots

    cells, texts = [], []
    columns = min(COLUMNS, len(shown))
    for start in range(0, len(shown), columns):
        row = shown[start : start + columns]
        blank = [images.resize_to(row[0].sample * 0 + 255, *row[0].nearest.shape[:2])]
        missing = columns - len(row)
        cells += [_resized(one.sample, one.nearest) for one in row] + blank * missing
        cells += [one.nearest for one in row] + blank * missing
        wrong = [f"{one.asked} ({one.seen}?)" for one in row]
        same = [one.asked == one.seen or not one.seen or one.seen.isdecimal() for one in row]
        texts += [
            a if s else w for a, s, w in zip((o.asked for o in row), same, wrong, strict=True)
        ]
        texts += [""] * missing + ["nearest"] * len(row) + [""] * missing
    scale = max(1, SCALE_TO // max(cells[0].shape[:2]))
    images.write_image(path, plots.sheet(cells, columns, texts, scale=scale), force)


def _resized(image: Any, like: Any) -> Any:
    from vqtok import images

    return images.resize_to(image, *like.shape[:2])


_NAMES = {
    "classifier": "classifier, on test images",
    "accuracy_decoded": "the same, test images as decoded",
    "accuracy": "samples seen as the class asked for",
    "precision": "precision (training images: {precision_real:.1%})",
    "recall": "recall (training images: {recall_real:.1%})",
    "copies": "nearer to a training than to a test image",
}


def _print(scores: "SampleScores", model: str, data: str) -> None:
    from vqtok import plots

    figures = scores.to_json()
    rows = [["samples", str(scores.samples)]]
    rows += [
        [name.format(**figures), f"{figures[key]:.1%}"]
        for key, name in _NAMES.items()
        if figures[key] is not None
    ]
    if scores.bits is not None:
        rows.append(["bits a token of test images", f"{scores.bits:.3f}"])
    output.print_table(
        plots.rich_table(["figure", "value"], rows, f"samples of {model}, by images of {data}")
    )
    if scores.by_class:
        lines = [[name, f"{part:.1%}"] for name, part in scores.by_class.items()]
        output.print_table(plots.rich_table(["asked for", "seen"], lines, "by class"))
