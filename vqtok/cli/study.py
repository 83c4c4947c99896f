"""`vqtok study`: compares systems in equal time, in a table that anyone can reproduce."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtok.cli import options as o
from vqtok.cli import output
from vqtok.cli.train import Listener, stop_on_signals

if TYPE_CHECKING:
    from vqtok.study import Study

DEFAULT_OUTPUT = Path("vqtok-study")
SHORTEST = 1.0  # seconds


@output.handle_errors
def run_study(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help=(
                "Small square images, as for `train`, "
                "here or in VQTOK_DATA. Default: built-in shapes."
            ),
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            "--budget", help="Training time of each system, like 10m or 1h.", metavar="TIME"
        ),
    ] = "10m",
    out: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the study.", metavar="DIR")
    ] = DEFAULT_OUTPUT,
    systems: Annotated[
        str | None,
        typer.Option(
            "--systems",
            help="Only these, like pixelcnn,vq-pixelcnn. Default: all.",
            metavar="NAMES",
        ),
    ] = None,
    test_images: Annotated[
        int,
        typer.Option(
            "--test-pictures",
            help="How many images the bits are measured on, at most.",
            metavar="N",
            min=1,
        ),
    ] = 1000,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", help="How many samples each system draws.", metavar="N", min=1, max=1024
        ),
    ] = 64,
    seed: o.Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study in -o: what is finished stays.")
    ] = False,
    force: o.Force = False,
    device: o.Device = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare models of pixels, a VAE and VQ-VAEs in equal time."""
    from vqtok import config, train
    from vqtok import study as studies
    from vqtok.codec import pick_device
    from vqtok.errors import UsageError

    if resume and force:
        raise UsageError(
            "--force does not go with --resume", "leave one of them out: --force starts anew"
        )
    seconds = config.parse_duration(budget)
    if seconds < SHORTEST:
        raise UsageError(
            f"a budget of {seconds:g} s trains nothing", "give at least 1s; 10m is a study"
        )
    if not resume:
        studies.check_free(out, force)
    command = shlex.join(["vqtok", *sys.argv[1:]])
    plan = studies.Plan(
        data, out, seconds, studies.select_systems(systems), seed, test_images, samples, command
    )
    stop = train.Stop()
    try:
        with (
            Listener(quiet, json=False) as listener,
            stop_on_signals(stop, together=False),
            train.resumable(),
        ):
            found = studies.run_study(plan, stop, listener, pick_device(device), resume)
    except studies.Interrupted:
        output.say(
            f"Interrupted. What is done is saved; go on with: {_again(command, resume)}", quiet
        )
        raise typer.Exit(130) from None
    _show(found, out, json, quiet)


def _again(command: str, resumed: bool) -> str:
    """Returns the command that resumes this one."""
    words = [word for word in shlex.split(command) if word not in ("--force", "-f")]
    return shlex.join(words if resumed else [*words, "--resume"])


def _show(found: "Study", out: Path, json: bool, quiet: bool) -> None:
    from vqtok import plots
    from vqtok.study import page, table

    if json:
        for system in page.to_json(found)["systems"]:
            output.print_json(system)
        return
    output.print_table(plots.rich_table(found.headers, found.rows()))
    output.print_table(
        plots.rich_table(["published on CIFAR-10", "bits/dim", "source"], table.anchor_rows())
    )
    for sentence in table.sentences(found):
        output.say(sentence, quiet)
    output.say(
        "What it does not show, and how it was made: "
        f"{out / page.MARKDOWN}. With images: {out / page.HTML}",
        quiet,
    )
