"""Makes a bundled model of a finished run: weights, samples, and a card with figures on test data.

    python benchmarks/bundle.py RUN NAME --test DATA --about ABOUT.md [--sample "-n 40 --top-p 0.9"]

RUN is the folder of `vqtok train`; ABOUT.md holds what only a person knows: data and its licence, machine, how the run went, what the
pictures look like. Figures come from `vqtok eval DATA --json`, the samples from `vqtok sample`; the card names the commands.
RUN/recipe.toml is copied too: with it `vqtok train` makes the model again. No reconstructions: they would carry other people's
pictures into the repository.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from vqtok import weights
from vqtok.report import markdown

MODELS = Path(__file__).resolve().parents[1] / "models"


def vqtok(*words: str) -> str:
    """Runs a vqtok command and returns its standard output."""
    return subprocess.run([sys.executable, "-m", "vqtok", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def figures_table(figures: dict[str, float | None]) -> str:
    names = {
        "pictures": "pictures", "psnr": "PSNR, dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "normalized_error": "error / variance",
        "usage": "codes used", "perplexity": "perplexity", "bpp": "bits per pixel, raw", "bpp_packed": "bits per pixel, .npz files",
        "bpp_coded": "bits per pixel, by the prior's cross-entropy", "bits_per_dim": "bits per dimension",
    }     # fmt: skip
    shown = {key: value for key in names if (value := figures.get(key)) is not None}
    rows = [[names[key], f"{value:.2%}" if key == "usage" else f"{value:.5g}"] for key, value in shown.items()]
    return markdown(["figure", "value"], rows)


def training_table(folder: Path) -> str:
    rows = []
    for kind in ("tokenizer", "prior"):
        meta = weights.read_meta(folder / f"{kind}.safetensors", kind)
        record = meta["record"]
        parameters = sum(tensor.size for tensor in weights.load(folder / f"{kind}.safetensors", kind).tensors.values())
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items())
        minutes = f"{record['seconds'] / 60:.0f} min"
        rows.append([kind, f"{parameters / 1e6:.2f} M", f"{record['step']:,}", minutes, record["seed"], metrics])
    return markdown(["network", "parameters", "best step", "training", "seed", "validation"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--about", type=Path, required=True)
    parser.add_argument("--sample", default="-n 40")
    options = parser.parse_args()
    folder = MODELS / options.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.safetensors", "prior.safetensors", "recipe.toml"):
        shutil.copy(options.run / name, folder / name)
    sample = ["sample", "--model", options.name, *shlex.split(options.sample)]
    evaluate = ["eval", options.test.name, "--model", options.name]
    vqtok(*sample, "-f", "-o", str(folder / "samples.png"))
    figures = json.loads(vqtok("eval", str(options.test), "--model", options.name, "--json"))
    card = (
        f"# {options.name} ({figures['fingerprint']})\n\n{options.about.read_text(encoding='utf-8').strip()}\n\n"
        f"## Figures\n\n`vqtok {shlex.join(evaluate)}`, on pictures it was never trained on:\n\n{figures_table(figures)}\n"
        f"## Training\n\n{training_table(folder)}\n`recipe.toml` holds every setting.\n\n"
        f"## Samples\n\n`vqtok {shlex.join(sample)}`:\n\n![samples](samples.png)\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
