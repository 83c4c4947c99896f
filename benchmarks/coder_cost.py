"""Processor seconds of coding with a model's integer prior: of two checkouts in turn, beside the
matrix products alone.

    python benchmarks/coder_cost.py --against /path/to/older/checkout [--rounds 9] [--model photo]

Grids of 512x768 pixels with all levels, random: the work is the same as for an image. Also the
whole process of `vqtok pack`, over `import torch`. Figures are medians of the rounds.

With `--megapixels 24` only the whole process of `encode --compact`, with `--max-bytes` and without,
of an image of that size.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CHILD = """
import json, sys, time
import numpy as np
from vqtok import codec, model_registry, weights
folder = model_registry.find_model(sys.argv[1])
coder = codec.EntropyCoder(folder)
config = coder.config
f = weights.tokenizer_config(folder.tokenizer).downsample
shape = (1, config.levels, 512 // f, 768 // f)
indices = np.random.default_rng(0).integers(0, config.codebook_size, shape)
streams = coder.prior.encode(indices)
def seconds(run):
    begin = time.process_time()
    run()
    return time.process_time() - begin
def decode(): coder.prior.decode(streams, *shape[1:])
decode()
print(json.dumps({
    "encode": min(seconds(lambda: coder.prior.encode(indices)) for _ in range(3)),
    "decode": min(seconds(decode) for _ in range(3)),
}))
"""


def products(model: str) -> float:
    """Processor seconds of the matrix products of a decoding, on one thread of NumPy's BLAS."""
    import numpy as np

    from vqtok import codec, model_registry, weights
    from vqtok.integer_prior import IMAGE, blas

    folder = model_registry.find_model(model)
    config = codec.EntropyCoder(folder).config
    f = weights.tokenizer_config(folder.tokenizer).downsample
    C, R = config.width, config.rank
    sides = [(IMAGE.places * config.embedding, C), *[(C, C)] * 2 * config.blocks]
    whole = [[np.ones(side, np.float32) for _ in range(config.matrices)] for side in sides]
    each = [
        [np.ones(side, np.float32) for _ in range(config.levels)]
        for side in ((C, R), (R, config.codebook_size))
    ]
    taken = []
    with blas.one_thread():
        for _ in range(4):
            begin = time.process_time()
            for step in IMAGE.steps(config.levels, (512 // f, 768 // f)):
                shared = np.bincount(np.minimum(step[0], config.matrices - 1))
                for matrices in whole:
                    for weight, count in zip(matrices, shared, strict=False):
                        np.matmul(np.ones((count, len(weight)), np.float32), weight)
                for level, count in enumerate(np.bincount(step[0])):
                    for weights_of in each:
                        weight = weights_of[level]
                        np.matmul(np.ones((count, len(weight)), np.float32), weight)
            taken.append(time.process_time() - begin)
    return min(taken)


def whole_process(words: list[str], checkout: Path, folder: str) -> float:
    """Processor seconds of a command, start and end included."""
    before = os.times()
    subprocess.run(words, cwd=folder, env=_environment(checkout), check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before[2] - before[3]


def _environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout)}


def measure(checkout: Path, model: str, folder: str) -> dict[str, float]:
    """Of one checkout, each figure once."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, model],
        cwd=folder,  # Python looks for modules there first
        env=_environment(checkout),
        check=True,
        capture_output=True,
        text=True,
    )
    vqtok = [sys.executable, "-m", "vqtok"]
    pack = whole_process([*vqtok, "pack", "photo.npz", "-f"], checkout, folder)
    bare = whole_process([sys.executable, "-c", "import torch"], checkout, folder)
    return {**json.loads(done.stdout), "pack": pack, "import torch": bare}


def limited(checkout: Path, model: str, folder: str) -> tuple[float, float]:
    """Processor seconds of `encode --compact` without and with a size that 5 of 8 levels take."""
    vqtok = [sys.executable, "-m", "vqtok", "encode", "large.png", "-m", model, "--compact", "-f"]
    plain = whole_process([*vqtok, "-o", "large.npz"], checkout, folder)
    limit = (Path(folder) / "large.npz").stat().st_size * 5 // 8
    return plain, whole_process(
        [*vqtok, "-o", "small.npz", "--max-bytes", str(limit)], checkout, folder
    )


def compare_limits(options: argparse.Namespace) -> None:
    """Prints both, and their ratio, of both checkouts in turn."""
    import numpy as np
    from PIL import Image

    found: dict[str, list[tuple[float, float]]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory() as folder:
        width = int((options.megapixels * 1e6 * 1.5) ** 0.5)
        noise = np.random.default_rng(0).integers(0, 256, (width // 24, width // 16, 3), np.uint8)
        image = Image.fromarray(noise).resize((width, int(width / 1.5)))
        image.save(Path(folder) / "large.png", compress_level=1)
        for _ in range(options.rounds):
            for name, checkout in (("before", options.against.resolve()), ("after", HERE)):
                found[name].append(limited(checkout, options.model, folder))
    for name, rounds in found.items():
        plain, small = (statistics.median(one[i] for one in rounds) for i in (0, 1))
        ratio = statistics.median(one[1] / one[0] for one in rounds)
        print(
            f"{name}: encode --compact {plain:.2f} s, with --max-bytes {small:.2f} s ({ratio:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megapixels", type=float)
    options = parser.parse_args()
    if options.megapixels:
        return compare_limits(options)
    found: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    alone = []
    with tempfile.TemporaryDirectory() as folder:
        _write_codes(options.model, Path(folder) / "photo.npz")
        for _ in range(options.rounds):
            for name, checkout in (("before", options.against.resolve()), ("after", HERE)):
                found[name].append(measure(checkout, options.model, folder))
            alone.append(products(options.model))
    product = statistics.median(alone)
    print(f"matrix products of a decoding: {product:.3f} s")
    for name, rounds in found.items():
        each = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        print(
            f"{name}: encode {each['encode']:.3f} s, decode {each['decode']:.3f} s "
            f"({each['decode'] / product:.2f} of the products), pack {each['pack']:.2f} s "
            f"({each['pack'] / each['import torch']:.2f} of import torch)"
        )


def _write_codes(model: str, path: Path) -> None:
    import numpy as np

    import vqtok

    loaded = vqtok.load(model, "cpu")
    f, K = loaded.config.downsample, loaded.config.codebook_size
    shape = (1, loaded.config.levels, 512 // f, 768 // f)
    vqtok.write_codes(path, loaded.codes(np.random.default_rng(0).integers(0, K, shape)))


if __name__ == "__main__":
    main()
