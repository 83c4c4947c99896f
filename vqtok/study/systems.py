"""The systems that the study compares: each is a row of settings, over those that all share."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vqtok.config import PRESETS, Recipe
from vqtok.train import merge
from vqtok.train.begin import fit_to_data

DOWNSAMPLE = 4          # of the VQ-VAE: sides must be multiples of it
PRESET = "cifar"

# Mirror images would double the grids that a prior is trained on; few of these runs see all pictures even once.
COMMON: dict[str, Any] = {
    "precision": "bf16",
    "data": {"flip": False, "validation": 0.02, "validation_max": 64},
    "tokenizer_training": {"warmup": 50},
    "prior_training": {"warmup": 50},
}

TOKENIZERS: dict[str, dict[str, Any]] = {
    "vq": {"tokenizer": {"likelihood": "logistic", "levels": 2, "decoder_blocks": 2}},
}


@dataclass(frozen=True)
class System:
    """One row of the table."""

    name: str
    what: str                                   # a clause for the reader of the table
    tokenizer: str                              # a key of TOKENIZERS
    settings: Mapping[str, Any] = field(default_factory=dict)       # nested as in a recipe

    @property
    def trains_tokenizer(self) -> bool:
        """Whether the budget is shared by a tokenizer and a prior."""
        return self.tokenizer == "vq"


SYSTEMS: tuple[System, ...] = (
    System("vq-pixelcnn", "VQ-VAE, gated PixelCNN over its indices", "vq", {"prior": {"width": 128, "layers": 8, "dropout": 0.1}}),
)


@dataclass(frozen=True)
class Shape:
    """What all pictures of a study have in common."""

    side: int
    channels: int

    @property
    def dimensions(self) -> int:
        """Numbers in a picture, each of 256 values."""
        return self.side**2 * self.channels


class NoLabels:
    """What `fit_to_data` asks of a data set: labels are not used, so that bits of all systems mean the same."""

    labels = ()


def recipe_of(system: System, shape: Shape, seed: int) -> Recipe:
    """The system's recipe for pictures of that shape. How many steps it takes, the budget decides."""
    base = PRESETS[PRESET]
    base = replace(base, tokenizer=replace(base.tokenizer, channels=shape.channels), seed=seed)
    values = merge([COMMON, TOKENIZERS[system.tokenizer], dict(system.settings)])
    recipe = base.override(values, f"the system {system.name}")
    data = replace(recipe.data, size=shape.side, prior_size=shape.side)
    return fit_to_data(replace(recipe, data=data), NoLabels())     # type: ignore[arg-type]
