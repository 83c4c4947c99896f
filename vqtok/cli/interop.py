"""`vqtok import` and `vqtok export`: tokenizers of other programs to models, and back."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output
from vqtok.errors import UsageError

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


@output.handle_errors
def export(
    model: Annotated[
        str, typer.Argument(help="Name, folder or tokenizer file of the model.", metavar="MODEL")
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the new files.", metavar="DIR")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="Whose files to write, like diffusers.",
            metavar="PROGRAM",
            autocompletion=o.complete_setting("EXPORT_FORMATS"),
        ),
    ] = "diffusers",
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a model as another program's: a VQModel of diffusers.

    Models with the classic network only: those that `vqtok import` made, or
    that were trained with it.
    """
    from vqtok.config import EXPORT_FORMATS

    begin = time.perf_counter()
    if to not in EXPORT_FORMATS:
        raise UsageError(f"vqtok cannot export to {to!r}", f"choose {' or '.join(EXPORT_FORMATS)}")
    from vqtok import model_registry

    folder = model_registry.find_model(model)
    from vqtok import interop

    exported = interop.export_model(folder, to)
    exported.write(out, force)
    if json:
        output.print_json(
            {
                "model": folder.name,
                "output": str(out),
                "to": to,
                "tensors": exported.tensors,
                "bytes": exported.bytes,
            }
        )
    else:
        from vqtok.files import human_bytes

        seconds = time.perf_counter() - begin
        output.say(
            f"{folder.name} -> {out}  {to} {exported.what}, {exported.tensors} tensors, "
            f"{human_bytes(exported.bytes)}, {seconds:.2f} s",
            quiet,
        )
