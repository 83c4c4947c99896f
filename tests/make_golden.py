"""Writes the golden files of format 1.

They are kept for ever: run this only to add files for a new format number.

Run as `python tests/make_golden.py FOLDER`; it refuses to replace a file.
"""

import sys
from pathlib import Path

import numpy as np

from vqtok import codes, weights
from vqtok.codes import Codes
from vqtok.weights import Weights


def small_codes() -> Codes:
    """One byte an index, one image, no square anywhere."""
    indices = (np.arange(6) * 53 % 256).astype(np.uint8).reshape(1, 1, 2, 3)
    return Codes(indices, "cifar10", "0badcafe", 256, 4, 3, ((7, 12),))


def large_codes() -> Codes:
    """Two bytes an index, two gray images of unequal size, two levels, a
    K that is no power of two.
    """
    indices = (np.arange(48) * 377 % 1000).astype(np.uint16).reshape(2, 2, 3, 4)
    return Codes(indices, "Füße 2", "12345678", 1000, 8, 1, ((24, 32), (17, 25)))


def small_weights() -> Weights:
    """A tensor of each type that a model holds."""
    tensors = {
        # exact on every machine
        "encoder.weight": np.arange(-6, 6, dtype=np.float32).reshape(2, 3, 2) / 8,
        "codebook": np.arange(8, dtype=np.float16).reshape(4, 2) / 4,
        "initialized": np.array(True),
        "steps": np.array(1234567890123, dtype=np.int64),
    }
    return Weights(
        tensors,
        {
            "kind": "tokenizer",
            "config": {"width": 4, "beta": 0.25},
            "record": {"data": "Füße", "seed": 0},
        },
    )


def main(folder: Path) -> None:
    codes.write_codes(folder / "small.npz", small_codes())
    codes.write_codes(folder / "large.npz", large_codes())
    weights.save_weights(folder / "tokenizer.safetensors", small_weights(), force=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
