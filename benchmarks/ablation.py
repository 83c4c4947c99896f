"""What each choice of the photo tokenizer is worth:
short trainings with the same data, steps and seed, each with one thing changed.

    python benchmarks/ablation.py PHOTOS --test val-000.tar [--lpips lpips_alex.safetensors]
        [--perceptual lpips_vgg.safetensors]

PSNR and LPIPS are of the first images of --test, whole, at 0.04, 0.08, 0.16 and 0.31 bits
per pixel where the row has levels for that. Prints a JSON object a row, and at the end the
table of benchmarks/README.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vqtok import weights
from vqtok.plots import markdown

# a row's figure stands under the highest of these that its bits do not exceed
RATES = (0.04, 0.08, 0.16, 0.32)
BASE = [
    "--preset",
    "photo",
    "--stage",
    "tokenizer",
    "--size",
    "64",
    "--ms-ssim",
    "0",
    "--set",
    "data.validation_max=32",
]
ROWS: dict[str, tuple[str, list[str]]] = {
    "base": (
        (
            "the photo preset: ema, D = 32, 8 levels of 1,024 codes, f16, fold 4; "
            "no losses besides Charbonnier"
        ),
        [],
    ),
    "vq": ("codebooks learned by gradient (vq)", ["--quantizer", "vq"]),
    "simvq": ("simvq", ["--quantizer", "simvq"]),
    "fsq": ("fsq, 8 levels of 1,000 codes", ["--quantizer", "fsq", "--codebook-size", "1000"]),
    "lfq": ("lfq", ["--quantizer", "lfq"]),
    "d8": ("code dimension 8", ["--code-dim", "8"]),
    "d64": ("code dimension 64", ["--code-dim", "64"]),
    "norestart": ("no restart of dead codes", ["--set", "tokenizer.restart=0"]),
    "dropout0": ("no level dropout", ["--level-dropout", "0"]),
    "dropout1": ("level dropout 1", ["--level-dropout", "1"]),
    "l16": ("16 levels of 32 codes", ["--levels", "16", "--codebook-size", "32"]),
    "f8": (
        "f8: 4 levels of 32 codes, the same bits",
        ["--downsample", "8", "--levels", "4", "--codebook-size", "32"],
    ),
    "fold2": (
        "fold 2x2 pixels, width 28, the same channels at each resolution",
        ["--set", "tokenizer.fold=2", "--width", "28"],
    ),
    "noshortcut": (
        "no shortcuts around changes of resolution",
        ["--set", "tokenizer.shortcut=false"],
    ),
    "adamw": ("AdamW instead of Muon", ["--optimizer", "adamw"]),
    "noema": ("no moving average of the weights", ["--ema", "0"]),
    "mse": ("likelihood mse", ["--likelihood", "mse"]),
    "ms_ssim": ("and MS-SSIM, weight 0.5", ["--ms-ssim", "0.5"]),
    "perceptual": ("and the perceptual distance, weight 1", []),
}


def run(row: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What evaluation says of a row's model, and what its training took."""
    extra = ["--perceptual", str(options.perceptual)] if row == "perceptual" else []
    length = [
        "--steps",
        options.steps,
        "--set",
        f"tokenizer_training.validate_every={options.steps}",
        "--seed",
        options.seed,
    ]
    vqtok("train", options.data, "-o", folder, *BASE, *ROWS[row][1], *extra, *length)
    measure = ["--lpips", options.lpips] if options.lpips else []
    text = vqtok(
        "eval",
        options.test,
        "--model",
        folder,
        "--limit",
        options.pictures,
        "--codecs",
        "none",
        "--json",
        *measure,
    )
    record = weights.read_meta(folder / "tokenizer.safetensors", "tokenizer")["record"]
    parameters = sum(
        tensor.size
        for tensor in weights.load_weights(
            folder / "tokenizer.safetensors", "tokenizer"
        ).tensors.values()
    )
    return {
        "row": row,
        "parameters": parameters,
        "seconds": record["seconds"],
        "levels": json.loads(text)["levels"],
    }


def vqtok(*arguments: Any) -> str:
    command = [sys.executable, "-m", "vqtok", *map(str, arguments), "-q"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def at_rates(levels: list[dict[str, Any]], figure: str, digits: int) -> str:
    """The figure at each of RATES, `-` where the row has no level for it."""
    texts, before = [], 0.0
    for rate in RATES:
        fitting = [level for level in levels if before < level["bpp"] <= rate]
        texts.append(
            f"{fitting[-1][figure]:.{digits}f}"
            if fitting and fitting[-1][figure] is not None
            else "-"
        )
        before = rate
    return " / ".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--lpips", type=Path)
    parser.add_argument("--perceptual", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--rows", default=",".join(ROWS))
    options = parser.parse_args()
    table = []
    for row in options.rows.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found = run(row, options, Path(folder) / "run")
        print(json.dumps(found), flush=True)
        levels = found["levels"]
        psnr, lpips = at_rates(levels, "psnr", 2), at_rates(levels, "lpips", 3)
        usage = f"{min(level['usage'] for level in levels):.0%}"
        table.append(
            [
                row,
                ROWS[row][0],
                psnr,
                lpips,
                usage,
                f"{found['parameters'] / 1e6:.2f} M",
                f"{found['seconds']:.0f}",
            ]
        )
    print(
        markdown(
            ["row", "change", "PSNR, dB", "LPIPS", "least usage", "parameters", "seconds"], table
        )
    )


if __name__ == "__main__":
    main()
