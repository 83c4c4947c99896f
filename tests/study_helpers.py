"""What the tests of the study share: small systems, and images of 8x8."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import image

from vqtok.study import systems

SMALL: dict[str, Any] = {
    "precision": "fp32",
    "data": {"validation_max": 4},
    "tokenizer": {
        "levels": 2,
        "width": 8,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "codebook_size": 16,
        "code_dim": 4,
    },
    "prior": {"width": 8, "layers": 2, "heads": 2},
    "tokenizer_training": {"batch": 4},
    "prior_training": {"batch": 4},
}


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all systems small; those over raw pixels keep their 256 gray levels."""
    monkeypatch.setattr("vqtok.train.tokenizer.INITIAL_VECTORS", 64)
    original = systems.recipe_of

    def recipe_of(system: systems.System, shape: systems.Shape, seed: int) -> Any:
        recipe = original(system, shape, seed)
        small = {
            name: values
            for name, values in SMALL.items()
            if name != "tokenizer" or system.tokenizer != "pixels"
        }
        return systems.fit_to_data(
            recipe.override(small),
            systems.NoLabels(),  # type: ignore[arg-type]
        )

    monkeypatch.setattr("vqtok.study.run.recipe_of", recipe_of)


def write_images(path: Path, n: int = 24, side: int = 8) -> Path:
    """An .npz with training and test images of their own."""
    train = np.stack([image(side, side, seed=i) for i in range(n)])
    test = np.stack([image(side, side, seed=1000 + i) for i in range(6)])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x_train=train, x_test=test)
    return path
