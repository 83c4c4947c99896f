"""`vqtok import`: tokenizers of other programs to models."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output

if TYPE_CHECKING:
    from vqtok.weights import Weights


@output.handle_errors
def import_(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help=(
                "Checkpoint (.ckpt, .pt, .bin, .safetensors), or the folder of a diffusers VQModel."
            ),
            metavar="CKPT",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the new model.", metavar="DIR")
    ],
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Codes on the unit sphere. Default: for LlamaGen only.",
        ),
    ] = None,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Make a model of another program's VQ tokenizer.

    It reads tokenizers of taming-transformers (VQGAN), LlamaGen (VQ-8, VQ-16) and diffusers
    (VQModel), and runs no code of theirs.
    """
    begin = time.perf_counter()
    _check_free(out, force)
    from vqtok import interop

    weights = interop.convert_checkpoint(interop.read_checkpoint(checkpoint), normalize)
    _write(out, weights, force)
    facts = _facts(checkpoint, out, weights)
    if json:
        output.print_json(facts)
    else:
        output.say(
            f"{checkpoint} -> {out}  {facts['source']}, {facts['grid']}, "
            f"{time.perf_counter() - begin:.2f} s",
            quiet,
        )


def _check_free(out: Path, force: bool) -> None:
    """Refuses a folder with a model, before the seconds that torch takes."""
    from vqtok import files

    for name in ("tokenizer.safetensors", "README.md"):
        files.check_free(out / name, force)


def _write(out: Path, tokenizer: "Weights", force: bool) -> None:
    """A model's folder: what a run or another model has left in it goes."""
    from vqtok import weights
    from vqtok.train import card
    from vqtok.train import run as train_run

    train_run.clear_run(out, "all", force)
    weights.save_weights(out / "tokenizer.safetensors", tokenizer, force)
    card.write_card(out, shlex.join(["vqtok", *sys.argv[1:]]))


def _facts(checkpoint: Path, out: Path, tokenizer: "Weights") -> dict[str, Any]:
    from vqtok import config, weights

    settings = config.from_dict(config.TokenizerConfig, tokenizer.config, str(out))
    return {
        "input": str(checkpoint),
        "output": str(out),
        "source": tokenizer.record["imported"]["program"],
        "grid": settings.grid,
        "fingerprint": weights.codes_fingerprint(tokenizer),
        "parameters": sum(tensor.size for tensor in tokenizer.tensors.values()),
    }
