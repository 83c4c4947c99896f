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
    output.say(
        f"Training a classifier on the images of {train.name}, to judge samples by: some minutes.",
        quiet,
    )
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
        output.say(
            f"the first {len(shown)} samples, each above the training image nearest to it "
            f"-> {sheet}",
            quiet,
        )
    drawn = codec.draw_defaults.fill(options, codec.config.levels)
    if running.json:
        facts = {"model": codec.name, "fingerprint": codec.fingerprint, "data": train.name}
        output.print_json({**facts, "seed": asked.seed, "drawn": drawn, **scores.to_json()})
    else:
        _print(scores, codec.name, train.name, drawn)


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
        same = [one.asked in ("", one.seen) or not one.seen for one in row]
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
    "classifier": "test images that the classifier names right",
    "accuracy_decoded": "the same, encoded and decoded",
    "accuracy": "samples seen as the class asked for",
    "precision": "precision: samples that look like test images",
    "precision_real": "precision of training images",
    "recall": "recall: test images that samples look like",
    "recall_real": "recall of training images",
    "copies": "nearer to a training than to a test image (50%: no copies)",
}
# means over samples
_OF_SAMPLES = ("accuracy", "precision", "copies")
WEAK = 0.8  # a classifier that names fewer test images right is a poor judge


def _print(scores: "SampleScores", model: str, data: str, drawn: dict[str, Any]) -> None:
    from vqtok import plots

    figures = scores.to_json()
    rows = [["samples", str(scores.samples)], ["drawn with", _settings(drawn)]]
    rows += [
        [name, f"{figures[key]:.1%}{_margin(figures[key], scores.samples, key)}"]
        for key, name in _NAMES.items()
        if figures[key] is not None
    ]
    if scores.bits is not None:
        rows.append(["bits that a token of test images takes", f"{scores.bits:.3f}"])
    output.print_table(
        plots.rich_table(["figure", "value"], rows, f"samples of {model}, by images of {data}")
    )
    if scores.by_class:
        lines = [[name, f"{part:.1%}"] for name, part in scores.by_class.items()]
        output.print_table(
            plots.rich_table(["class asked for", "samples in which it is seen"], lines, "by class")
        )
    if scores.accuracy is not None and scores.classifier < WEAK:
        output.say(
            f"The classifier names {scores.classifier:.0%} of the test images right: what it sees "
            "in samples says little."
        )


def _margin(part: float, count: int, key: str) -> str:
    """Returns the half width of a 95 % interval, where a figure counts that many samples."""
    if key not in _OF_SAMPLES:
        return ""
    return f" ± {1.96 * (part * (1 - part) / count) ** 0.5:.1%}"


def _settings(drawn: dict[str, Any]) -> str:
    """Describes how samples were drawn: what differs from the prior's own distribution."""
    named = {name.replace("_", "-"): value for name, value in drawn.items() if value is not None}
    texts = [f"{name} {_short(value)}" for name, value in named.items() if _short(value) != "1"]
    return ", ".join(texts) or "no setting: as learned"


def _short(value: Any) -> str:
    """Writes one number, or those of levels; equal ones once."""
    numbers = value if isinstance(value, list | tuple) else [value]
    numbers = [1 if number is None else number for number in numbers]
    texts = [f"{number:g}" for number in numbers]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)
