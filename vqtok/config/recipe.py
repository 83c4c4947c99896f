"""Declares the settings of priors, losses, data and training; together they are a recipe."""

import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from vqtok.config.coerce import check_added, check_choice, check_range, override, require
from vqtok.config.registry import LOSSES, OPTIMIZERS, OUTPUTS, PRIORS, with_settings
from vqtok.config.tokenizer import CODES_MAX, LEVELS_MAX, TokenizerConfig

ENTROPY_CODES_MAX = 4096  # K up to which a table of 65,536 leaves each code enough to choose from
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
@with_settings(PRIORS, OUTPUTS)
class PriorConfig:
    """Configures the network that knows which index grids are likely."""

    codebook_size: int = 1024  # K, the tokenizer's
    levels: int = 1  # L, the tokenizer's
    width: int = 128
    layers: int = 10
    # columns that a layer sees (pixelcnn, pixelrnn); odd. 5 takes 2.5 times pixelcnn's weights
    kernel: int = 3
    dropout: float = 0.1
    labels: tuple[str, ...] = ()  # class names; none: unconditional
    architecture: str = "pixelcnn"
    # or logistic, for codes that are gray levels: a mixture of discretized logistics
    output: str = "softmax"
    mixtures: int = 10  # of the logistic output
    heads: int = 4  # of the transformer's attention
    # of the grids that it knows, and their columns, where it knows one size only (fvsbn); else 0
    rows: int = 0
    columns: int = 0

    def __post_init__(self) -> None:
        check_range("codebook size", self.codebook_size, 2, CODES_MAX)
        check_range("levels", self.levels, 1, LEVELS_MAX)
        check_range("prior width", self.width, 4, 2048)
        check_range("prior layers", self.layers, 1, 64)
        require(
            self.kernel in (3, 5, 7, 9), f"prior kernel is {self.kernel}", "choose 3, 5, 7 or 9"
        )
        check_range("prior dropout", self.dropout, 0.0, 0.9)
        check_choice("prior", self.architecture, PRIORS)
        check_choice("prior output", self.output, OUTPUTS)
        check_added(self)
        check_range("mixtures", self.mixtures, 1, 100)
        check_range("heads", self.heads, 1, 64)
        require(
            "heads" not in PRIORS[self.architecture].settings or self.width % (4 * self.heads) == 0,
            f"prior width {self.width} does not go with {self.heads} heads",
            f"choose a multiple of {4 * self.heads}, or fewer heads: each takes a multiple of 4",
        )
        check_range("prior rows", self.rows, 0, 4096)
        check_range("prior columns", self.columns, 0, 4096)
        # They come from folder names, are printed, and go into TOML, which holds neither kind:
        # Cc control, Cs stray surrogate.
        bad = [
            label
            for label in self.labels
            if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in label)
        ]
        require(
            not bad,
            f"the label {bad[:1]} holds control characters, or is not UTF-8",
            "rename the folder it comes from",
        )

    def for_grid(self, h: int, w: int) -> "PriorConfig":
        """Sets the size of the grids to come, where the network has weights for each of their
        places.
        """
        has_size = "rows" in PRIORS[self.architecture].settings
        return replace(self, rows=h, columns=w) if has_size else self


@dataclass(frozen=True)
class EntropyConfig:
    """Configures the integer prior that compact files are coded with."""

    codebook_size: int = 1024  # K, the tokenizer's
    levels: int = 1  # L, the tokenizer's
    embedding: int = 32  # dimension of a code's embedding
    width: int = 192
    blocks: int = 2  # residual blocks after the first layer
    rank: int = 64  # dimension of the features that the logits are linear in
    # matrices that the first layer has, and each in a block: level l takes number l, or the last
    kinds: int = 1

    def __post_init__(self) -> None:
        # training passes over those past ENTROPY_CODES_MAX
        check_range("codebook size", self.codebook_size, 2, CODES_MAX)
        check_range("levels", self.levels, 1, LEVELS_MAX)
        check_range("entropy embedding", self.embedding, 1, 256)
        check_range("entropy width", self.width, 4, 1024)
        check_range("entropy blocks", self.blocks, 0, 16)
        check_range("entropy rank", self.rank, 1, 512)
        check_range("entropy kinds", self.kinds, 1, LEVELS_MAX)

    @property
    def matrices(self) -> int:
        """Counts the matrices of the first layer: no more than levels."""
        return min(self.kinds, self.levels)


@dataclass(frozen=True)
@with_settings(LOSSES)
class LossConfig:
    """Weighs the losses beside the likelihood; each weight is relative to that, 0 leaves the term
    out.
    """

    ms_ssim: float = 0.0  # weight of 1 - MS-SSIM
    # weight of the LPIPS distance; its network is given by --perceptual FILE
    perceptual: float = 0.0
    # of each batch that this distance is measured on: it costs more than the tokenizer
    perceptual_part: float = 1.0
    perceptual_start: float = 0.0  # part of the steps that pass before it is asked
    adversarial: float = 0.0  # weight of the patch discriminator's opinion
    adversarial_start: float = 0.6  # part of the steps that pass before it is asked
    feature_matching: float = 1.0  # weight of the distance of its features, relative to its opinion
    lecam: float = 0.01  # weight of the regularization of its scores

    def __post_init__(self) -> None:
        for name in (*LOSSES, "adversarial", "feature_matching", "lecam"):
            check_range(name.replace("_", " "), getattr(self, name), 0.0, 100.0)
        check_added(self)
        check_range("adversarial start", self.adversarial_start, 0.0, 1.0)
        check_range("perceptual start", self.perceptual_start, 0.0, 1.0)
        require(
            0 < self.perceptual_part <= 1,
            f"perceptual part is {self.perceptual_part}",
            "choose a value in (0, 1]",
        )


@dataclass(frozen=True)
@with_settings(OPTIMIZERS)
class StageConfig:
    """Configures how one network is trained; the tokenizer and the priors each have one."""

    steps: int = 1000
    batch: int = 16
    learning_rate: float = 1e-3
    optimizer: str = "adamw"  # or muon, which learns more in a step of a convolutional network
    warmup: int = 100  # steps of linear rise
    # half a cosine down to 0; or constant, and a linear fall to 0 in the last part of the steps:
    schedule: str = "cosine"
    cooldown: float = 0.3  # that part. The weights before it are what a longer run goes on from
    clip: float = 1.0  # largest gradient norm
    # decay of the moving average of the weights, which is what is kept; 0: the weights themselves
    ema: float = 0.0
    validate_every: int = 250

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1, 10**9)
        check_range("batch", self.batch, 1, 65536)
        require(
            0 < self.learning_rate <= 1,
            f"learning rate is {self.learning_rate}",
            "choose a value in (0, 1]",
        )
        check_range("warmup", self.warmup, 0, 10**9)
        require(self.clip > 0, f"clip is {self.clip}", "choose a value above 0")
        check_range("ema", self.ema, 0.0, 0.99999)
        check_added(self)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        require(0 < self.cooldown <= 1, f"cooldown is {self.cooldown}", "choose a value in (0, 1]")
        check_range("validate every", self.validate_every, 1, 10**9)


@dataclass(frozen=True)
class TokenizerStageConfig(StageConfig):
    """Configures how a tokenizer is trained."""

    # Only the decoder learns; the encoder and the codebook are those of --init, and so the codes
    # of the two models are the same, and files and priors of one serve the other.
    freeze_encoder: bool = False


@dataclass(frozen=True)
class PriorStageConfig(StageConfig):
    """Configures how the prior is trained that images are drawn from."""

    # Part of the grids that are shown without their label, so that one prior also draws without
    # one, and away from that: guidance.
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("label dropout", self.label_dropout, 0.0, 1.0)


@dataclass(frozen=True)
class DataConfig:
    """Configures how images become batches."""

    size: int = 128  # side of the training crops, in pixels
    min_scale: float = 1.0  # crops are taken from the image shrunk by a factor from here to 1
    flip: bool = True
    prior_size: int = 256  # side of the windows the prior learns from, in pixels of the image
    validation: float = 0.02  # part of the images set aside
    validation_max: int = 256

    def __post_init__(self) -> None:
        check_range("size", self.size, 2, 4096)
        check_range("prior size", self.prior_size, 2, 4096)
        require(
            0 < self.min_scale <= 1, f"min scale is {self.min_scale}", "choose a value in (0, 1]"
        )
        check_range("validation part", self.validation, 0.0, 0.5)
        check_range("validation max", self.validation_max, 1, 10**6)


@dataclass(frozen=True)
class SamplingConfig:
    """Configures how images are drawn where the user does not say; the prior's file keeps it."""

    temperature: float = 1.0  # at all levels
    top_p: float = 1.0
    guidance: float = 1.0  # of images of a class; 1: none

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 0.0, 100.0)
        check_range("top p", self.top_p, 1e-9, 1.0)
        check_range("guidance", self.guidance, 0.0, 100.0)

    def changes(self) -> dict[str, float]:
        """Returns what differs from drawing what was learned, by its name."""
        return {name: value for name, value in asdict(self).items() if value != 1.0}


@dataclass(frozen=True)
class Recipe:
    """Holds all settings of a training run, apart from its data: same recipe, same seed, same
    machine, same weights.
    """

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    tokenizer_training: TokenizerStageConfig = field(default_factory=TokenizerStageConfig)
    prior_training: PriorStageConfig = field(default_factory=PriorStageConfig)
    seed: int = 0
    precision: str = "fp32"
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    entropy_training: StageConfig = field(default_factory=lambda: StageConfig(learning_rate=5e-3))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_choice("precision", self.precision, ("fp32", "bf16"))
        require(
            self.data.size % self.tokenizer.downsample == 0,
            f"size {self.data.size} is no multiple of downsample {self.tokenizer.downsample}",
            "choose a multiple",
        )

    def override(self, values: Mapping[str, Any], origin: str = "recipe") -> Self:
        """Returns a copy with the given values, nested as in the TOML file.

        Unknown keys raise UsageError and name the nearest one.
        """
        return override(self, values, origin)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
