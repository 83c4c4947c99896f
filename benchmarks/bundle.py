"""Makes a bundled model of a finished run: weights, samples, and a card with figures on test data.

    python benchmarks/bundle.py RUN NAME --test DATA --about ABOUT.md [--lpips FILE]
        [--sample "-n 40 --top-p 0.9"] [--int8] [--int8-prior]
        [--drawn '{"temperature": 0.9, "guidance": 1.5}'] [--samples 2000]

RUN is the folder of `vqtok train`; ABOUT.md holds what only a person knows: data and its licence,
machine, how the run went, what the images look like. Figures come from `vqtok eval DATA --json`,
the samples from `vqtok sample`; the card names the commands. The figures stand in figures.json too,
which `vqtok report` draws. --drawn puts defaults of drawing into the prior's file, and --samples
measures that many samples for the card. RUN/recipe.toml is copied: with it `vqtok train` makes the
model again.
No reconstructions: they would carry other people's images into the repository.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from vqtok import int8, weights
from vqtok.plots import FIGURES_FILE, markdown

MODELS = Path(__file__).resolve().parents[1] / "models"


def vqtok(*words: str) -> str:
    """Runs a vqtok command and returns its standard output."""
    return subprocess.run(
        [sys.executable, "-m", "vqtok", *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def figures_table(figures: dict[str, Any]) -> str:
    names = {
        "pictures": "images",
        "psnr": "PSNR, dB",
        "ssim": "SSIM",
        "ms_ssim": "MS-SSIM",
        "lpips": "LPIPS (v0.1)",
        "dists": "DISTS",
        "normalized_error": "error / variance",
        "usage": "codes used",
        "perplexity": "perplexity",
        "bpp": "bits per pixel, raw",
        "bpp_packed": "bits per pixel, .npz files",
        "bpp_coded": "bits per pixel, by the prior's cross-entropy",
        "bits_per_dim": "bits per dimension",
    }
    shown = {key: value for key in names if (value := figures.get(key)) is not None}
    rows = [
        [names[key], f"{value:.2%}" if key == "usage" else f"{value:.5g}"]
        for key, value in shown.items()
    ]
    return markdown(["figure", "value"], rows)


def levels_table(figures: dict[str, Any]) -> str:
    """A row for each number of levels, with the bits per pixel that AVIF needs for the same LPIPS,
    or MS-SSIM where that is not known.
    """
    columns = {
        "levels": ("levels", "d"),
        "bpp": ("bpp, raw", ".4f"),
        "bpp_packed": ("in files", ".4f"),
        "bpp_coded": ("by the prior", ".4f"),
        "psnr": ("PSNR, dB", ".2f"),
        "ssim": ("SSIM", ".4f"),
        "ms_ssim": ("MS-SSIM", ".4f"),
        "lpips": ("LPIPS", ".4f"),
        "dists": ("DISTS", ".4f"),
        "usage": ("used", ".1%"),
        "perplexity": ("perplexity", ".0f"),
    }
    columns = {key: column for key, column in columns.items() if _measured(figures["levels"], key)}
    rows = [
        [
            None if row[key] is None else format(row[key], style)
            for key, (_, style) in columns.items()
        ]
        + [None if row["needs"].get("avif") is None else format(row["needs"]["avif"], ".3f")]
        for row in figures["levels"]
    ]
    return markdown([*(name for name, _ in columns.values()), "AVIF needs"], rows)


def codecs_table(figures: dict[str, Any]) -> str:
    """The other codecs at the bytes of our files."""
    columns = {
        "bpp": ("bpp", ".4f"),
        "psnr": ("PSNR, dB", ".2f"),
        "ms_ssim": ("MS-SSIM", ".4f"),
        "lpips": ("LPIPS", ".4f"),
        "dists": ("DISTS", ".4f"),
    }
    columns = {key: column for key, column in columns.items() if _measured(figures["codecs"], key)}
    rows = [
        [
            row["codec"],
            row["levels"],
            *(
                None if row[key] is None else format(row[key], style)
                for key, (_, style) in columns.items()
            ),
        ]
        for row in figures["codecs"]
        if row["times"] == 1
    ]
    return markdown(["codec", "at the bytes of", *(name for name, _ in columns.values())], rows)


def _measured(rows: list[dict[str, Any]], key: str) -> bool:
    """Whether any row has that figure: DISTS and LPIPS need weights."""
    return any(row.get(key) is not None for row in rows)


def training_table(folder: Path) -> str:
    rows = []
    for kind in ("tokenizer", "prior"):
        meta = weights.read_meta(folder / f"{kind}.safetensors", kind)
        record = meta["record"]
        parameters = sum(
            tensor.size
            for tensor in weights.load_weights(
                folder / f"{kind}.safetensors", kind
            ).tensors.values()
        )
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items())
        minutes = f"{record['seconds'] / 60:.0f} min"
        rows.append(
            [
                kind,
                f"{parameters / 1e6:.2f} M",
                f"{record['step']:,}",
                minutes,
                record["seed"],
                metrics,
            ]
        )
    return markdown(["network", "parameters", "best step", "training", "seed", "validation"], rows)


def round_decoder(folder: Path) -> None:
    """Rounds a tokenizer's decoder to int8, half the bytes.

    Nothing of the encoder and the codebooks changes: the codes stay, and what is made for them.
    """
    path = folder / "tokenizer.safetensors"
    given = weights.load_weights(path, "tokenizer")
    names = [
        name
        for name, tensor in sorted(given.tensors.items())
        if name.startswith("decoder.") and tensor.ndim == 4
    ]
    tensors = given.tensors | {name: int8.round_to_int8(given.tensors[name]) for name in names}
    meta = given.meta | {"codes": weights.kept_codes(given), "int8": names}
    weights.save_weights(path, weights.Weights(tensors, meta))


def round_prior(folder: Path) -> None:
    """Rounds a prior to int8, half the bytes: what it draws with a seed changes, for good."""
    path = folder / "prior.safetensors"
    given = weights.load_weights(path, "prior")
    names = [name for name, tensor in sorted(given.tensors.items()) if tensor.ndim >= 2]
    tensors = given.tensors | {name: int8.round_to_int8(given.tensors[name]) for name in names}
    weights.save_weights(path, weights.Weights(tensors, given.meta | {"int8": names}))


def set_drawn(folder: Path, drawn: dict[str, Any]) -> None:
    """Writes into a prior's file how it is drawn from where the user does not say."""
    path = folder / "prior.safetensors"
    given = weights.load_weights(path, "prior")
    given.meta["record"]["sampling"] = drawn
    weights.save_weights(path, given)


def samples_table(scores: dict[str, Any]) -> str:
    """Figures of samples, and the accuracy of each class."""
    names = {
        "classifier": "classifier, on test images",
        "accuracy_decoded": "the same, test images encoded and decoded",
        "accuracy": "samples seen as the class asked for",
        "precision": "precision",
        "recall": "recall",
        "precision_real": "precision of training images",
        "recall_real": "recall of training images",
        "copies": "nearer to a training than to a test image",
    }
    rows = [[names[key], f"{scores[key]:.1%}"] for key in names if scores.get(key) is not None]
    if scores["bits"] is not None:
        rows.append(["bits a token of test images", f"{scores['bits']:.3f}"])
    classes = [[name, f"{part:.1%}"] for name, part in scores["by_class"].items()]
    return markdown(["figure", "value"], rows) + "\n" + markdown(["asked for", "seen"], classes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--about", type=Path, required=True)
    parser.add_argument("--lpips", type=Path)
    parser.add_argument("--sample", default="-n 40")
    parser.add_argument("--int8", action="store_true", help="hold the decoder's weights in int8")
    parser.add_argument("--int8-prior", action="store_true", help="hold the prior in int8 too")
    parser.add_argument("--drawn", type=json.loads, help="defaults of drawing, as JSON")
    parser.add_argument("--samples", type=int, help="measure so many samples")
    options = parser.parse_args()
    folder = MODELS / options.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "tokenizer.safetensors",
        "prior.safetensors",
        "entropy.safetensors",
        "recipe.toml",
    ):
        if name != "entropy.safetensors" or (options.run / name).exists():  # a model may do without
            shutil.copy(options.run / name, folder / name)
    if options.int8:
        round_decoder(folder)
    if options.int8_prior:
        round_prior(folder)
    if options.drawn:
        set_drawn(folder, options.drawn)
    sample = ["sample", "--model", options.name, *shlex.split(options.sample)]
    measure = ["--lpips", str(options.lpips)] if options.lpips else []
    evaluate = [
        "eval",
        options.test.name,
        "--model",
        options.name,
        *(["--lpips", options.lpips.name] if options.lpips else []),
    ]
    vqtok(*sample, "-f", "-o", str(folder / "samples.png"))
    figures = json.loads(
        vqtok("eval", str(options.test), "--model", options.name, "--json", *measure)
    )
    measured = ""
    if options.samples:
        words = ["eval", options.test.name, "--model", options.name, "--samples"]
        words.append(str(options.samples))
        scores = json.loads(vqtok(words[0], str(options.test), *words[2:], "--json"))
        figures["samples"] = scores
        measured = f"\n`vqtok {shlex.join(words)}`:\n\n{samples_table(scores)}"
    several = (
        "\n".join([levels_table(figures), codecs_table(figures)]) + "\n"
        if len(figures["levels"]) > 1
        else ""
    )
    card = (
        f"# {options.name} ({figures['fingerprint']})\n"
        f"\n{options.about.read_text(encoding='utf-8').strip()}\n"
        f"\n## Figures\n\n`vqtok {shlex.join(evaluate)}`, on images it was never trained on:\n"
        f"\n{figures_table(figures)}\n{several}## Training\n"
        f"\n{training_table(folder)}\n`recipe.toml` holds every setting.\n"
        f"\n## Samples\n\n`vqtok {shlex.join(sample)}`:\n"
        f"\n![samples](samples.png)\n{measured}"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / FIGURES_FILE).write_text(json.dumps(figures) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
