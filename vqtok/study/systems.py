"""Lists the systems that the study compares, each a row of settings over the shared ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vqtok.config import PRESETS, Recipe
from vqtok.train import merge
from vqtok.train.run import fit_to_data

DOWNSAMPLE = 4  # of the VQ-VAE: sides must be multiples of it
PRESET = "cifar"

# Mirror images would double the grids that a prior is trained on;
# few of these runs see all images even once.
COMMON: dict[str, Any] = {
    "precision": "bf16",
    "data": {"flip": False, "validation": 0.02, "validation_max": 64},
    "tokenizer_training": {"warmup": 50},
    "prior_training": {"warmup": 50},
}

_AUTOENCODER = {"likelihood": "heteroscedastic", "decoder_blocks": 2}  # what VAE and VQ-VAE share
_AUTOENCODER_TRAINING = {"optimizer": "muon", "batch": 32, "learning_rate": 4e-3}

# By trials of 40 seconds to two minutes on two cores, CIFAR-10. Over raw pixels an image costs
# 10 to 25 GFLOP and holds 3,072 targets: batches of four learn faster than larger ones, which see
# as many images in fewer steps. With 3 minutes a VQ-VAE of two levels took 5.44 bits per
# dimension, four 5.20 and eight 5.32, whose prior has too little time; smaller priors and batches
# then made 5.14 of the four.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "pixels": {
        "tokenizer": {
            "quantizer": "pixels",
            "downsample": 1,
            "fold": 1,
            "codebook_size": 256,
            "normalize": False,
            "likelihood": "logistic",
        },
        "prior": {"width": 64, "layers": 6, "dropout": 0.0},
    },
    "vae": {
        "tokenizer": {**_AUTOENCODER, "code_dim": 32},
        "tokenizer_training": _AUTOENCODER_TRAINING,
    },
    "vq": {
        "tokenizer": {**_AUTOENCODER, "levels": 4},
        "tokenizer_training": _AUTOENCODER_TRAINING,
        "prior": {"width": 96, "layers": 5, "dropout": 0.1},
    },
}


@dataclass(frozen=True)
class System:
    """One row of the table."""

    name: str
    what: str  # a clause for the reader of the table
    tokenizer: str  # a key of TOKENIZERS; the VAE's is its own network
    settings: Mapping[str, Any] = field(default_factory=dict)  # nested as in a recipe


def _prior(architecture: str, learning_rate: float, batch: int, **settings: Any) -> dict[str, Any]:
    return {
        "prior": {"architecture": architecture, **settings},
        "prior_training": {"learning_rate": learning_rate, "batch": batch},
    }


SYSTEMS: tuple[System, ...] = (
    System(
        "fvsbn",
        "raw pixels: a belief network without hidden units",
        "pixels",
        _prior("fvsbn", 4e-2, 32),
    ),
    System(
        "pixelrnn",
        "raw pixels: a PixelRNN with Row LSTM layers",
        "pixels",
        _prior("pixelrnn", 2e-3, 8, layers=3),
    ),
    System("pixelcnn", "raw pixels: a gated PixelCNN", "pixels", _prior("pixelcnn", 4e-3, 4)),
    System(
        "pixelcnn-logistic",
        "the same that knows the order of gray levels: "
        "a mixture of logistics in place of a softmax",
        "pixels",
        _prior("pixelcnn", 4e-3, 4, output="logistic"),
    ),
    System(
        "transformer",
        "raw pixels: a causal transformer",
        "pixels",
        _prior("transformer", 2e-3, 4, layers=4),
    ),
    System("vae", "a VAE: Gaussian latents, encoder and decoder of the VQ-VAE", "vae"),
    System("vq-fvsbn", "a VQ-VAE's indices: the belief network", "vq", _prior("fvsbn", 4e-3, 64)),
    System(
        "vq-pixelrnn",
        "a VQ-VAE's indices: the PixelRNN",
        "vq",
        _prior("pixelrnn", 2e-3, 16, layers=4),
    ),
    System(
        "vq-pixelcnn", "a VQ-VAE's indices: the gated PixelCNN", "vq", _prior("pixelcnn", 2e-3, 16)
    ),
    System(
        "vq-transformer",
        "a VQ-VAE's indices: the causal transformer",
        "vq",
        _prior("transformer", 2e-3, 16, width=128, layers=4),
    ),
)


@dataclass(frozen=True)
class Shape:
    """Size of every image of a study."""

    side: int
    channels: int

    @property
    def dimensions(self) -> int:
        """Counts the numbers in an image, each of 256 values."""
        return self.side**2 * self.channels


class NoLabels:
    """Stands in for a data set in `fit_to_data`: without labels, all bits mean the same."""

    labels = ()


def recipe_of(system: System, shape: Shape, seed: int) -> Recipe:
    """Returns the system's recipe for images of that shape.

    How many steps it takes, the budget decides.
    """
    base = PRESETS[PRESET]
    values = merge(
        [
            COMMON,
            TOKENIZERS[system.tokenizer],
            dict(system.settings),
            _of_channels(system, shape.channels),
            {"seed": seed},
        ]
    )
    recipe = base.override(values, f"the system {system.name}")
    data = replace(recipe.data, size=shape.side, prior_size=shape.side)
    return fit_to_data(replace(recipe, data=data), NoLabels())  # type: ignore[arg-type]


def _of_channels(system: System, channels: int) -> dict[str, Any]:
    """Makes each channel a level, for systems over raw pixels."""
    more = {} if system.tokenizer != "pixels" else {"levels": channels, "code_dim": channels}
    return {"tokenizer": {"channels": channels, **more}}
