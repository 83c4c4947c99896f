"""ONNX files of models against the models: indices that differ, gray levels, and time, in turn.

    python benchmarks/onnx_files.py MODEL [MODEL ...] [--sizes 40] [--time 768x512] [--rounds 5]
        [--threads 1]

Needs the packages onnx and onnxruntime. Images are smooth with noise; `--sizes` of them, of random
sizes from 1 to 400 pixels a side, are compared. An index that differs is a near tie: two codes
whose distances the two programs round differently.
"""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import alternate, machine, table

import vqtok
from vqtok import model_registry
from vqtok.interop import export_model


def picture(rng: np.random.Generator, H: int, W: int, channels: int) -> np.ndarray:
    """Smooth waves with noise, uint8 (H, W, C)."""
    y, x = np.mgrid[:H, :W]
    phases = rng.uniform(0, 6, (2, channels))
    waves = np.sin(x[..., None] / 19 + phases[0]) * np.cos(y[..., None] / 13 + phases[1])
    return np.clip(128 + 90 * waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def sessions(name: str, threads: int) -> tuple[Any, Any]:
    """onnxruntime's encoder and decoder of a model."""
    onnxruntime: Any = import_module("onnxruntime")
    contents = export_model(model_registry.find_model(name), "onnx").contents
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    encoder, decoder = (
        onnxruntime.InferenceSession(contents[f"{side}.onnx"], options)
        for side in ("encoder", "decoder")
    )
    return encoder, decoder


def compare(model: vqtok.Model, encoder: Any, decoder: Any, count: int) -> list[str]:
    """What differs over `count` sizes: indices, and gray levels of equal indices decoded."""
    rng = np.random.default_rng(0)
    total = differ = worst = 0
    for _ in range(count):
        H, W = (int(side) for side in rng.integers(1, 401, 2))
        image = picture(rng, H, W, model.config.channels)
        codes = model.encode(image)
        (found,) = encoder.run(None, {"image": image.transpose(2, 0, 1)[None]})
        total, differ = total + found.size, differ + int((found != codes.indices).sum())
        (shown,) = decoder.run(None, {"indices": codes.indices.astype(np.int64)})
        whole = shown[0].transpose(1, 2, 0)[:H, :W].astype(int)
        worst = max(worst, int(np.abs(whole - model.decode(codes)).max()))
    return [f"{differ} of {total:,}", str(worst)]


def times(
    model: vqtok.Model, encoder: Any, decoder: Any, side: tuple[int, int], rounds: int
) -> list[str]:
    """Seconds of torch and of onnxruntime, encoding and decoding one image."""
    image = picture(np.random.default_rng(1), side[1], side[0], model.config.channels)
    codes = model.encode(image)
    planes, grid = image.transpose(2, 0, 1)[None], codes.indices.astype(np.int64)
    found = alternate(
        {
            "encode": lambda: model.encode(image),
            "encode, onnx": lambda: encoder.run(None, {"image": planes}),
            "decode": lambda: model.decode(codes),
            "decode, onnx": lambda: decoder.run(None, {"indices": grid}),
        },
        rounds,
    )
    return [
        text
        for way in ("encode", "decode")
        for text in (
            f"{found[way]:.3f}",
            f"{found[f'{way}, onnx']:.3f}",
            f"{found[way] / found[f'{way}, onnx']:.2f}",
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--sizes", type=int, default=40)
    parser.add_argument("--time", default="768x512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    W, H = (int(number) for number in given.time.split("x"))
    rows = []
    for name in given.models:
        model = vqtok.load(name, "cpu")
        encoder, decoder = sessions(name, given.threads)
        row = compare(model, encoder, decoder, given.sizes)
        rows.append([Path(name).name, *row, *times(model, encoder, decoder, (W, H), given.rounds)])
    print(machine())
    head = ["model", "indices that differ", "gray levels", "encode, s", "onnx", "faster"]
    print(table([*head, "decode, s", "onnx", "faster"], rows))


if __name__ == "__main__":
    main()
