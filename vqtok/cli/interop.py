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
    import numpy as np

    from vqtok.interop import Imported
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
    distance: Annotated[
        str | None,
        typer.Option(
            "--distance",
            help="How a code is chosen: l2 (nearest), cosine, or dot (largest inner product: IBQ).",
            metavar="NAME",
        ),
    ] = None,
    input_range: Annotated[
        str | None,
        typer.Option(
            "--input-range",
            help=(
                "Range of the pixels: 0:1, -1:1, -0.5:0.5, or MEAN:STD of pixels in 0 to 1 "
                "(one number, or R,G,B). For the paper's network and VQ-VAE-2."
            ),
            metavar="LOW:HIGH",
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help=(
                "Where the paper's network has its ReLU: inplace or plain blocks, relu or linear "
                "codes, and its last layer: none, tanh or sigmoid; like inplace,relu,none."
            ),
            metavar="NAME",
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option("--beta", help="Commitment weight to train on with. Default: 0.25."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Which weights to take, where a file holds several, like ema or model.",
            metavar="NAME",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--try",
            help="Reconstruct this image, say the PSNR of all that the file could be, and write "
            "try.png. May be repeated.",
            metavar="IMAGE",
        ),
    ] = None,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Make a model of another program's VQ tokenizer.

    It reads tokenizers of taming-transformers (VQGAN), LlamaGen (VQ-8, VQ-16), diffusers
    (VQModel) and SEED-Voken (IBQ, Open-MAGVIT2), MaskGIT-VQGAN, VQ-VAE-2, and the network of the
    VQ-VAE paper under any names. It runs no code of theirs.
    """
    begin = time.perf_counter()
    _check_free(out, force)
    from vqtok import interop

    options = interop.ImportOptions(normalize, distance, beta, input_range, variant, part)
    pixels = [_read_image(path) for path in images or []]
    found = interop.convert_checkpoint(interop.read_checkpoint(checkpoint, part), options, pixels)
    _write(out, found.weights, force)
    facts = _facts(checkpoint, out, found.weights)
    if found.trials:
        _write_sheet(out / "try.png", found, force)
    if json:
        tried = [
            {"input_range": t.input_range, "variant": t.variant, "distance": t.distance}
            | {"psnr": round(t.psnr, 3)}
            for t in found.trials
        ]
        notes = {"notes": list(found.notes)} if found.notes else {}
        output.print_json(facts | notes | ({"tried": tried} if tried else {}))
    else:
        for trial in found.trials:
            output.say(
                f"  {trial.input_range}, {trial.variant}, {trial.distance}: {trial.psnr:.2f} dB",
                quiet,
            )
        for note in found.notes:
            output.say(f"  {note}", quiet)
        output.say(
            f"{checkpoint} -> {out}  {facts['source']}, {facts['grid']}, "
            f"{time.perf_counter() - begin:.2f} s",
            quiet,
        )


def _read_image(path: Path) -> "np.ndarray":
    """Reads an image to try, uint8 (H, W, 3)."""
    from vqtok import images

    return images.from_any(path, 3, images.WHITE).pixels


def _write_sheet(target: Path, found: "Imported", force: bool) -> None:
    """Writes the originals, and below them each trial's images."""
    from vqtok import images
    from vqtok.plots import sheets

    rows = [list(found.originals), *(list(trial.images) for trial in found.trials)]
    labels = [["original"] * len(found.originals)]
    labels += [
        [f"{t.input_range} {t.distance} {t.psnr:.1f} dB"] * len(t.images) for t in found.trials
    ]
    sheet = sheets.side_by_side(rows, labels=labels)
    output.write(target, images.encode_png(sheet), force)


def _check_free(out: Path, force: bool) -> None:
    """Refuses a folder with a model, before the seconds that torch takes."""
    from vqtok import files

    for name in ("tokenizer.safetensors", "README.md"):
        files.check_free(out / name, force)


def _write(out: Path, tokenizer: "Weights", force: bool) -> None:
    """Writes a model's folder; removes what a run or another model has left in it."""
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
