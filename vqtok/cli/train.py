"""`vqtok train`: pictures to a model."""

import shlex
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output, progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqtok.config import Recipe
    from vqtok.data import Dataset
    from vqtok.train import Run, Status, Stop

DEFAULT_OUTPUT = Path("vqtok-model")
MODEL = "Model"


def _option(*names: str, help: str, panel: str = MODEL, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


@output.guarded
def train(
    data: Annotated[
        str | None,
        typer.Argument(help="Folder, zip, tar shards, CIFAR-10, IDX or array file; none: shapes that vqtok draws.", metavar="[DATA]"),
    ] = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new model.")] = DEFAULT_OUTPUT,
    stage: Annotated[str, typer.Option("--stage", help="tokenizer, prior or all.")] = "all",
    preset: Annotated[str | None, typer.Option("--preset", help="tiny, cifar or photo; default: by the data.")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="TOML file with settings, like the recipe.toml of a run.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of a recipe, like prior.width=192.", metavar="KEY=VALUE")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in -o as if it had never stopped.")] = False,
    max_time: Annotated[str | None, typer.Option("--max-time", help="Save and stop after this time, like 10m or 1h30m.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan, size and expected time; write nothing.")] = False,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the tokenizer.")] = None,
    prior_steps: Annotated[int | None, typer.Option("--prior-steps", help="Steps of the prior.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Pictures a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Peak learning rate of the tokenizer.")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Side of the training crops in pixels.")] = None,
    quantizer: Annotated[str | None, typer.Option("--quantizer", help="ema or vq.")] = None,
    codebook_size: Annotated[int | None, typer.Option("--codebook-size", help="K: number of codes, 2 to 65536.")] = None,
    code_dim: Annotated[int | None, typer.Option("--code-dim", help="D: dimension of a code.")] = None,
    normalize: Annotated[bool | None, typer.Option("--normalize/--no-normalize", help="Codes on the unit sphere.")] = None,
    downsample: Annotated[int | None, typer.Option("--downsample", help="f: pixels a code, along each axis: 2, 4, 8 or 16.")] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="Weight of the commitment term, 0.1 to 2.")] = None,
    likelihood: Annotated[str | None, typer.Option("--likelihood", help="mse, l1, bce or logistic.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Channels of the finest stage.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of all random draws.")] = None,
    device: o.Device = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the tokenizer with torch.compile (needs a C++ compiler).")] = False,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a tokenizer on pictures, then a prior on its codes."""
    from vqtok import config
    from vqtok import train as training
    from vqtok.codec import pick_device
    from vqtok.errors import UsageError

    if stage not in training.STAGES:
        raise UsageError(f"there is no stage {stage!r}", f"choose one of {', '.join(training.STAGES)}")
    seconds = config.parse_duration(max_time) if max_time is not None else float("inf")
    flags: dict[str, Any] = {
        "tokenizer": {
            "quantizer": quantizer, "codebook_size": codebook_size, "code_dim": code_dim, "normalize": normalize,
            "downsample": downsample, "beta": beta, "likelihood": likelihood, "width": width,
        },
        "tokenizer_training": {"steps": steps, "batch": batch, "learning_rate": learning_rate},
        "prior_training": {"steps": prior_steps},
        "data": {"size": size},
        "seed": seed,
        "precision": precision,
    }     # fmt: skip
    overrides = [config.read_recipe(recipe)] if recipe is not None else []
    overrides += [_given(flags), *map(config.parse_setting, settings or [])]
    target = pick_device(device)
    deadline = time.monotonic() + seconds
    plan, dataset = _resumed(out, data, overrides, preset) if resume else _planned(data, overrides, preset)
    if dry_run:
        _print_plan(plan, dataset, out, stage, target, json)
        return
    if not resume and stage != "prior":
        training.start(out, plan, data or "", len(dataset), force)
    stop = training.Stop(deadline)
    with _Listener(quiet, json) as listener, _signals(stop):
        listener.note(f"{dataset.summary} -> {out}")
        run = training.Run(out, plan.seed, target, plan.precision, stop, listener)
        finished = training.train(plan, dataset, run, stage, resume, compiled)
    if not finished:
        why = "Interrupted" if stop.signal else f"Stopped after {max_time}"
        output.say(f"{why}. The state is saved; go on with: vqtok train --resume -o {shlex.quote(str(out))}", quiet)
        raise typer.Exit(130 if stop.signal else 0)
    _finish(out, stage, run, quiet)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that the user gave, without the None of all others."""
    given = {key: _given(value) if isinstance(value, dict) else value for key, value in flags.items()}
    return {key: value for key, value in given.items() if value not in (None, {})}


def _planned(data: str | None, overrides: list[dict[str, Any]], preset: str | None) -> tuple["Recipe", "Dataset"]:
    """The recipe of a new run and its data."""
    from vqtok import train as training
    from vqtok.data import open_data

    dataset = open_data(Path(data) if data else None)
    plan = training.preset_for(dataset, preset)
    for values in overrides:
        plan = plan.override(values, "the recipe")
    return training.fit_to_data(plan, dataset), dataset


def _resumed(out: Path, data: str | None, overrides: list[dict[str, Any]], preset: str | None) -> tuple["Recipe", "Dataset"]:
    """The recipe and data that the run in `out` was started with; only the numbers of steps may change."""
    from vqtok import train as training
    from vqtok.data import open_data
    from vqtok.errors import TrainingError, UsageError

    if preset is not None:
        raise UsageError("--preset does not go with --resume", "the run goes on with the recipe it was started with")
    before = training.continued(out)
    plan = before.recipe
    for values in overrides:
        plan = plan.override(values, "the recipe")
    changed = training.changed_settings(before.recipe, plan)
    if changed:
        raise TrainingError(f"the run in {out} was started with another {', '.join(changed)}", "leave it out, or start a new run")
    source = data or before.data
    dataset = open_data(Path(source) if source else None)
    if len(dataset) != before.pictures:
        raise TrainingError(
            f"the run in {out} was started on {before.pictures} pictures, there are {len(dataset)} now", "give it the same data"
        )
    return plan, dataset


def _print_plan(plan: "Recipe", dataset: "Dataset", out: Path, stage: str, device: Any, json: bool) -> None:
    from vqtok import report
    from vqtok import train as training

    output.say("Measuring a few steps ...", quiet=json)
    facts = training.plan(plan, dataset, stage, device)
    if json:
        output.print_json({"output": str(out), "recipe": plan.to_dict(), **facts})
        return
    rows: list[list[Any]] = [["data", dataset.summary], ["model folder", out], ["device", f"{device.type}, {plan.precision}"]]
    for name, entry in facts["stages"].items():
        rows.append([name, f"{entry['parameters'] / 1e6:.2f} M parameters, {entry['steps']:,} steps of {entry['batch']}"])
        rows.append(["", f"{entry['seconds_per_step']:.3f} s a step: about {_duration(entry['seconds'])}"])
    t = plan.tokenizer
    rows.append(["grid", f"one of {t.codebook_size} codes for {t.downsample}x{t.downsample} pixels, {facts['bpp']:.3f} bits per pixel"])
    rows.append(["cost", f"{facts['multiply_adds_per_pixel'] / 1e3:.0f} k multiply-adds per pixel to encode and decode"])
    output.print_table(report.rich_table(["plan", ""], rows))


def _finish(out: Path, stage: str, run: "Run", quiet: bool) -> None:
    """Card and samples of the finished model."""
    from vqtok import codec, images, report
    from vqtok.train.card import write_card

    if stage != "tokenizer":
        model = codec.load(out, run.device.type)
        columns = min(10, len(model.labels)) or 8
        pictures = model.sample(4 * columns, seed=run.seed)
        scale = max(1, 96 // max(pictures[0].shape[:2]))
        captions = [model.labels[i % len(model.labels)] for i in range(len(pictures))] if model.labels else None
        images.write(out / "samples.png", report.sheet(pictures, columns, captions, scale=scale), force=True)
    write_card(out, shlex.join(["vqtok", *sys.argv[1:]]))
    more = f" Look at {out / 'samples.png'}." if stage != "tokenizer" else ""
    output.say(f"The model is in {out}. Use it: vqtok encode --model {shlex.quote(str(out))} IMAGE.{more}", quiet)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


@contextmanager
def _signals(stop: "Stop") -> "Iterator[None]":
    """SIGINT and SIGTERM ask training to save and stop; a second one ends it at once."""

    def handle(number: int, _frame: Any) -> None:
        if stop.signal:
            raise KeyboardInterrupt
        stop.signal = number

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class _Listener:
    """Shows what training has to say: a progress line on a terminal, a line for each validation, JSON on request."""

    def __init__(self, quiet: bool, json: bool) -> None:
        self.quiet, self.json = quiet, json
        self.progress = progress.lines("{task.fields[text]}")
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> "_Listener":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def status(self, status: "Status") -> None:
        if self.quiet:
            return
        if status.stage not in self.tasks:
            self.tasks[status.stage] = self.progress.add_task(status.stage, total=status.steps, text="")
        figures = "  ".join(_figure(name, value) for name, value in status.metrics.items())
        text = f"{status.pictures_per_second:.0f} images/s  {figures}"
        self.progress.update(self.tasks[status.stage], completed=status.step, text=text)

    def validated(self, stage: str, line: dict[str, Any], sentence: str) -> None:
        if self.json:
            output.print_json(line)
        figures = "  ".join(_figure(name, value) for name, value in line.items() if name.startswith("val_"))
        output.say(f"{stage} step {line['step']}: {figures}. {sentence}", self.quiet)

    def note(self, text: str) -> None:
        output.say(text, self.quiet)


def _figure(name: str, value: float) -> str:
    name = name.removeprefix("val_")
    styles = {"psnr": f"PSNR {value:.2f} dB", "usage": f"codes used {value:.0%}", "perplexity": f"perplexity {value:.0f}",
              "bits": f"{value:.3f} bits an index"}      # fmt: skip
    return styles.get(name, f"{name} {value:.4g}")
