"""`vqtok train`: images to a model."""

import os
import shlex
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vqtok.cli import options as o
from vqtok.cli import output, progress, token_sets
from vqtok.config import registry
from vqtok.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqtok.data import Dataset
    from vqtok.train import RunSpec, Status, Stop

DEFAULT_OUTPUT = Path("vqtok-model")


@dataclass(frozen=True)
class RunOptions:
    """Options that say what to train on, where, and how far."""

    data: Annotated[
        str | None,
        typer.Argument(
            help=(
                "Folder, zip, tar shards, CIFAR-10, IDX or array file; none: "
                "shapes that vqtok draws."
            ),
            metavar="[DATA]",
        ),
    ] = None
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new model.")] = (
        DEFAULT_OUTPUT
    )
    split: o.SplitPatterns = None
    labels: o.LabelSource = None
    member: o.Member = None
    values: o.ValueRange = None
    frames: o.Frames = False
    grid: o.Grid = None
    stage: Annotated[
        str,
        typer.Option(
            "--stage",
            help="tokenizer, prior, entropy (which codes compact files) or all.",
            autocompletion=o.complete_choice("tokenizer", "prior", "entropy", "all"),
        ),
    ] = "all"
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="tiny, cifar, photo or pixels; default: by the data.",
            autocompletion=o.complete_setting("PRESETS"),
        ),
    ] = None
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="TOML file with settings, like the recipe.toml of a run."),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Any setting of a recipe, like prior.width=192.", metavar="KEY=VALUE"
        ),
    ] = None
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            help="Start from the tokenizer of this model (fine-tune it).",
            metavar="MODEL",
            autocompletion=o.complete_model,
        ),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in -o as if it had never stopped.")
    ] = False
    max_time: Annotated[
        str | None,
        typer.Option("--max-time", help="Save and stop after this time, like 10m or 1h30m."),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan, size and expected time; write nothing.")
    ] = False


@dataclass(frozen=True)
class SettingOptions:
    """Options that change settings of the recipe; each names its setting."""

    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Steps of the tokenizer."),
        "tokenizer_training.steps",
    ] = None
    prior_steps: Annotated[
        int | None,
        typer.Option("--prior-steps", help="Steps of the prior."),
        "prior_training.steps",
    ] = None
    entropy_steps: Annotated[
        int | None,
        typer.Option("--entropy-steps", help="Steps of the entropy prior."),
        "entropy_training.steps",
    ] = None
    batch: Annotated[
        int | None,
        typer.Option("--batch", help="Images a step of the tokenizer, of all processes together."),
        "tokenizer_training.batch",
    ] = None
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", help="Peak learning rate of the tokenizer."),
        "tokenizer_training.learning_rate",
    ] = None
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer",
            help=f"{registry.one_of(registry.OPTIMIZERS)}.",
            autocompletion=o.complete_setting("OPTIMIZERS"),
        ),
        "tokenizer_training.optimizer",
    ] = None
    size: Annotated[
        int | None,
        typer.Option("--size", help="Side of the training crops in pixels."),
        "data.size",
    ] = None
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            help=f"{registry.one_of(registry.NETWORKS)}. paper is the VQ-VAE paper's own.",
            autocompletion=o.complete_setting("NETWORKS"),
        ),
        "tokenizer.network",
    ] = None
    quantizer: Annotated[
        str | None,
        typer.Option(
            "--quantizer",
            help=f"{registry.one_of(registry.QUANTIZERS)}.",
            autocompletion=o.complete_setting("QUANTIZERS"),
        ),
        "tokenizer.quantizer",
    ] = None
    codebook_size: Annotated[
        int | None,
        typer.Option("--codebook-size", help="K: number of codes, 2 to 262144."),
        "tokenizer.codebook_size",
    ] = None
    code_dim: Annotated[
        int | None, typer.Option("--code-dim", help="D: dimension of a code."), "tokenizer.code_dim"
    ] = None
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Codes on the unit sphere."),
        "tokenizer.normalize",
    ] = None
    downsample: Annotated[
        int | None,
        typer.Option("--downsample", help="f: pixels a code, along each axis: 2, 4, 8 or 16."),
        "tokenizer.downsample",
    ] = None
    beta: Annotated[
        float | None,
        typer.Option("--beta", help="Weight of the commitment term, 0.1 to 2."),
        "tokenizer.beta",
    ] = None
    levels: Annotated[
        int | None,
        typer.Option("--levels", help="L: levels of residual quantization, 1 to 32."),
        "tokenizer.levels",
    ] = None
    level_dropout: Annotated[
        float | None,
        typer.Option(
            "--level-dropout", help="Part of the images decoded from their first few levels only."
        ),
        "tokenizer.level_dropout",
    ] = None
    likelihood: Annotated[
        str | None,
        typer.Option(
            "--likelihood",
            help=f"{registry.one_of(registry.LIKELIHOODS)}.",
            autocompletion=o.complete_setting("LIKELIHOODS"),
        ),
        "tokenizer.likelihood",
    ] = None
    ms_ssim: Annotated[
        float | None, typer.Option("--ms-ssim", help="Weight of 1 - MS-SSIM."), "losses.ms_ssim"
    ] = None
    perceptual: Annotated[
        Path | None,
        typer.Option(
            "--perceptual",
            help="LPIPS weights (safetensors): adds the perceptual distance.",
            metavar="FILE",
        ),
    ] = None
    perceptual_weight: Annotated[
        float | None,
        typer.Option("--perceptual-weight", help="Its weight; 1 where FILE is given."),
        "losses.perceptual",
    ] = None
    adversarial: Annotated[
        float | None,
        typer.Option("--adversarial", help="Weight of a patch discriminator, late in training."),
        "losses.adversarial",
    ] = None
    prior: Annotated[
        str | None,
        typer.Option(
            "--prior",
            help=f"{registry.one_of(registry.PRIORS)}.",
            autocompletion=o.complete_setting("PRIORS"),
        ),
        "prior.architecture",
    ] = None
    ema: Annotated[
        float | None,
        typer.Option("--ema", help="Decay of the moving average of the tokenizer's weights."),
        "tokenizer_training.ema",
    ] = None
    width: Annotated[
        int | None, typer.Option("--width", help="Channels of the finest stage."), "tokenizer.width"
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", help="fp32 or bf16.", autocompletion=o.complete_choice("fp32", "bf16")
        ),
        "precision",
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of all random draws."), "seed"
    ] = None

    def values(self) -> dict[str, Any]:
        """Returns the settings that were given, nested as in a recipe."""
        found: dict[str, Any] = {}
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            path = next((word for word in hint.__metadata__ if isinstance(word, str)), "")
            if path and getattr(self, name) is not None:
                table, _, key = path.rpartition(".")
                (found.setdefault(table, {}) if table else found)[key] = getattr(self, name)
        return found


@output.handle_errors
@o.grouped
def train(
    run: RunOptions,
    settings: SettingOptions,
    device: o.Device = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the tokenizer with torch.compile (needs a C++ compiler)."
        ),
    ] = False,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a tokenizer on images, then priors on its codes."""
    if token_sets.for_training(run.data, run.stage, run.out):
        return _train_tokens(run, force, json, quiet)
    if run.frames or run.grid is not None:
        raise UsageError(
            "--frames and --grid are of token arrays (.npy, .npz)",
            "give an array, --stage entropy, and as -o a folder without a tokenizer",
        )
    from vqtok import config, distributed
    from vqtok import train as training
    from vqtok.codec import pick_device

    _check_options(run, force)
    seconds = config.parse_duration(run.max_time) if run.max_time is not None else float("inf")
    stop = training.Stop(time.monotonic() + seconds)
    target = distributed.local_device(pick_device(device))
    request = replace(_make_request(run, settings), compiled=compiled, force=force)
    if run.dry_run:
        if distributed.rank_from_env()[0] == 0:
            _print_plan(request, target, json)
        return
    with _main_rank_errors_first(distributed.rank_from_env()[1]), distributed.process_group(target):
        first = distributed.is_main_process()
        listener = Listener(quiet or not first, json and first)
        _train(request, target, stop, listener, run.max_time or "")


def _train_tokens(run: RunOptions, force: bool, json: bool, quiet: bool) -> None:
    """Learns a token array of another tokenizer."""
    if run.resume or run.dry_run:
        word = "--resume" if run.resume else "--dry-run"
        raise UsageError(f"{word} does not go with a token array", "leave it out")
    assert run.data is not None
    grid = token_sets.parse_grid(run.grid)
    facts = token_sets.train(run.data, run.out, run.frames, grid, force, quiet or json)
    if json:
        output.print_json(facts)


def _check_options(run: RunOptions, force: bool) -> None:
    """Raises UsageError for options that do not go together."""
    from vqtok.train import STAGES

    if run.stage not in STAGES:
        raise UsageError(f"there is no stage {run.stage!r}", f"choose one of {', '.join(STAGES)}")
    if run.resume and force:
        raise UsageError(
            "--force does not go with --resume", "leave one of them out: --force starts anew"
        )
    if run.init is not None and (run.resume or run.stage in ("prior", "entropy")):
        other = "--resume" if run.resume else f"--stage {run.stage}"
        raise UsageError(
            f"--init does not go with {other}", "leave it out: the tokenizer is there already"
        )


def _train(
    request: "RunSpec", device: Any, stop: "Stop", listener: "Listener", max_time: str
) -> None:
    """Trains, alone or as one of the processes of a run, of which the first writes and speaks."""
    from vqtok import distributed
    from vqtok import train as training

    quiet, folder, stage = listener.quiet, request.folder, request.stage
    spec, dataset = training.open_run(request, lambda text: output.say(text, quiet))
    with (
        listener,
        stop_on_signals(stop, together=distributed.world_size() > 1),
        training.resumable(),
    ):
        for note in dataset.notes:
            listener.note(note)
        listener.note(f"{dataset.description} -> {folder}")
        finished = training.train(training.RunContext(spec, device, stop, listener), dataset)
        stopped = not finished and stop.agree()  # by whom, all are to know
    if not finished:
        why = "Interrupted" if stopped and stop.signal else f"Stopped after {max_time}"
        what = "" if stage == "all" else f" --stage {stage}"
        output.say(
            f"{why}. The state is saved; go on with: "
            f"vqtok train --resume{what} -o {shlex.quote(str(folder))}",
            quiet,
        )
        raise typer.Exit(130 if stop.signal else 0)
    if distributed.is_main_process():
        _tell_unreadable(dataset, quiet)
        with training.resumable():
            _finish(spec, folder, stage, device.type, quiet)
    if listener.json:
        output.print_json(_summary(folder, stage, dataset))


@contextmanager
def _main_rank_errors_first(number: int) -> "Iterator[None]":
    """Lets the first process of a machine tell its error first:
    torchrun then ends the others, which would tell the same.
    """
    try:
        yield
    except typer.Exit:
        raise
    except Exception:
        try:
            time.sleep(min(number, 8))
        except KeyboardInterrupt:  # torchrun's SIGTERM
            raise typer.Exit(1) from None
        raise


def _make_request(run: RunOptions, settings: SettingOptions) -> "RunSpec":
    """Collects all that the command line says about the run; options and --set override the recipe
    file.
    """
    from vqtok import config
    from vqtok import train as training

    parsed = training.merge([config.parse_setting(text) for text in run.settings or []])
    training.check_settable(parsed)
    sources = {
        str(run.recipe): config.read_recipe(run.recipe) if run.recipe is not None else {},
        "the command line": settings.values(),
        "--set": parsed,
    }
    return training.RunSpec(
        data=run.data or "",
        command=shlex.join(["vqtok", *sys.argv[1:]]),
        perceptual=str(settings.perceptual or ""),
        init=run.init or "",
        options=o.data_options(run.split, run.labels, run.member, run.values),
        preset=run.preset,
        values=training.merge(list(sources.values())),
        origin=" with ".join(name for name, values in sources.items() if values),
        folder=run.out,
        stage=run.stage,
        resume=run.resume,
    )


def _print_plan(request: "RunSpec", device: Any, json: bool) -> None:
    from vqtok import plots
    from vqtok import train as training

    spec, dataset = training.choose_run(request, request.resume)
    recipe = spec.recipe
    output.say("Measuring a few steps ...", quiet=json)
    facts = training.plan(recipe, dataset, request.stage, device, spec.perceptual_path)
    if json:
        told = {"output": str(request.folder), "notes": list(dataset.notes)}
        output.print_json({**told, "recipe": recipe.to_dict(), **facts})
        return
    rows: list[list[Any]] = [
        ["data", dataset.description],
        *(["", note] for note in dataset.notes),
        ["model folder", request.folder],
        ["device", f"{device.type}, {recipe.precision}"],
    ]
    for name, entry in facts["stages"].items():
        rows.append(
            [
                name,
                (
                    f"{entry['parameters'] / 1e6:.2f} M parameters, "
                    f"{entry['steps']:,} steps of {entry['batch']}"
                ),
            ]
        )
        rows.append(
            ["", f"{entry['seconds_per_step']:.3f} s a step: about {_duration(entry['seconds'])}"]
        )
    rows.append(["grid", recipe.tokenizer.grid])
    rows.append(["", f"{facts['bpp']:.3f} bits per pixel"])
    rows.append(
        [
            "cost",
            (
                f"{facts['multiply_adds_per_pixel'] / 1e3:.0f} k multiply-adds per "
                "pixel to encode and decode"
            ),
        ]
    )
    output.print_table(plots.rich_table(["plan", ""], rows))


def _finish(spec: "RunSpec", out: Path, stage: str, device: str, quiet: bool) -> None:
    """Writes the card and samples of the finished model."""
    from vqtok.train.card import write_card, write_samples

    if stage in ("prior", "all"):
        output.say("Drawing samples ...", quiet)
        write_samples(out, device, spec.recipe.seed)
    write_card(out, spec.command)
    more = f" Look at {out / 'samples.png'}." if stage in ("prior", "all") else ""
    # a bare name would mean a bundled model first
    name = str(out) if os.sep in str(out) else os.path.join(os.curdir, out)
    output.say(
        f"The model is in {out}. Use it: vqtok encode --model {shlex.quote(name)} IMAGE.{more}",
        quiet,
    )


def _summary(out: Path, stage: str, dataset: "Dataset") -> dict[str, Any]:
    """Returns the last line of --json."""
    from vqtok import weights

    parts = [
        part
        for part in ("tokenizer", "prior", "entropy")
        if stage in (part, "all") and (out / f"{part}.safetensors").exists()
    ]
    found = {part: weights.load_weights(out / f"{part}.safetensors", part) for part in parts}
    fingerprints = {part: weights.fingerprint(stored.tensors) for part, stored in found.items()}
    return {
        "stage": "finished",
        "output": str(out),
        "fingerprints": fingerprints,
        "unreadable": dataset.skipped,
        "notes": list(dataset.notes),
    }


def _tell_unreadable(dataset: "Dataset", quiet: bool) -> None:
    """Says which images were left out. A training without a few bad images is a success all the
    same.
    """
    if dataset.skipped:
        output.say(
            f"{dataset.skipped} of {len(dataset):,} images could not be read and were left out.",
            quiet,
        )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


@contextmanager
def stop_on_signals(stop: "Stop", together: bool) -> "Iterator[None]":
    """Lets SIGINT and SIGTERM ask training to save and stop; a second one ends it at once.

    Not where several train `together`: torchrun passes on the ctrl-C that the terminal has sent to
    each, and it ends who takes 30 s.
    """

    def handle(number: int, _frame: Any) -> None:
        if stop.signal and not together:
            raise KeyboardInterrupt
        stop.signal = number

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Listener:
    """Shows what training has to say: a progress line on a terminal, a line for each
    validation, JSON on request.
    """

    def __init__(self, quiet: bool, json: bool) -> None:
        self.quiet, self.json = quiet, json
        self.progress = progress.lines("{task.fields[text]}")
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> "Listener":
        if not self.quiet:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def status(self, status: "Status") -> None:
        if self.quiet or self.progress.disable:
            return
        if status.stage not in self.tasks:
            self.tasks[status.stage] = self.progress.add_task(
                status.stage, total=status.steps, text=""
            )
        figures = "  ".join(_figure(name, value) for name, value in status.metrics.items())
        text = f"{status.images_per_second:.0f} images/s  {figures}"
        self.progress.update(self.tasks[status.stage], completed=status.step, text=text)

    def validated(self, stage: str, line: dict[str, Any], sentence: str) -> None:
        figures = "  ".join(
            _figure(name, value) for name, value in line.items() if name.startswith("val_")
        )
        with self._no_progress():
            if self.json:
                output.print_json(line)
            output.say(f"{stage} step {line['step']}: {figures}. {sentence}", self.quiet)

    def note(self, text: str) -> None:
        with self._no_progress():
            output.say(text, self.quiet)

    @contextmanager
    def _no_progress(self) -> "Iterator[None]":
        """Takes the progress line away, or what is printed would land in the middle of it."""
        running = self.progress.live.is_started
        self.progress.stop()
        yield
        if running:
            self.progress.start()


def _figure(name: str, value: float) -> str:
    name = name.removeprefix("val_")
    styles = {
        "psnr": f"PSNR {value:.2f} dB",
        "usage": f"codes used {value:.0%}",
        "perplexity": f"perplexity {value:.0f}",
        "bits": f"{value:.3f} bits an index",
    }
    return styles.get(name, f"{name} {value:.4g}")
