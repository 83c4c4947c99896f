"""Settings as frozen dataclasses: defaults < preset < TOML recipe < flags. Each class checks its own values."""

import difflib
import json
import math
import re
import reprlib
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

from vqtok.errors import FormatError, InputError, UsageError

LIKELIHOODS = ("mse", "l1", "charbonnier", "bce", "logistic", "heteroscedastic")
LEARNED = ("ema", "vq", "simvq", "fsq", "lfq")      # quantizers of what an encoder gives
NETWORKS = ("folded", "classic")
QUANTIZERS = (*LEARNED, "pixels")                   # and of the pixels themselves: no encoder, nothing to learn
GRAY_LEVELS = 256
LEVELS_MAX = 32
ENTROPY_CODES_MAX = 4096                # K up to which a table of 65,536 leaves each code enough to choose from
OPTIMIZERS = ("adamw", "muon")
ARCHITECTURES = ("pixelcnn", "pixelrnn", "transformer", "fvsbn")
OUTPUTS = ("softmax", "logistic")
TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes", tuple[str, ...]: "a list of texts",
         tuple[int, ...]: "a list of whole numbers"}      # fmt: skip
# Settings that are younger than format 1, and what files without them were made with.
BEFORE = {
    "level_dropout": 0.0, "shortcut": False,
    "architecture": "pixelcnn", "output": "softmax", "mixtures": 10, "heads": 4, "rows": 0, "columns": 0,
    "network": "folded", "stages": (), "attention": (), "groups": 0, "z_channels": 0,
}     # fmt: skip
T = TypeVar("T")


def _check(ok: bool, message: str, fix: str) -> None:
    if not ok:
        raise UsageError(message, fix)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    _check(low <= value <= high, f"{name} is {value}, outside [{low}, {high}]", f"choose a value from {low} to {high}")


@dataclass(frozen=True)
class TokenizerConfig:
    """The network that turns pictures into indices and back; with the tensors, all that decoding needs."""

    channels: int = 3                   # of the pictures: 1 or 3
    downsample: int = 8                 # f: pixels per code along each axis
    fold: int = 4                       # pixels per side folded into channels before the first convolution
    width: int = 128                    # channels at the finest stage; each coarser one has twice as many
    encoder_blocks: int = 2             # residual blocks at each stage
    decoder_blocks: int = 4
    shortcut: bool = True               # a path without weights around each change of resolution
    quantizer: str = "ema"
    codebook_size: int = 1024           # K
    code_dim: int = 8                   # D
    levels: int = 1                     # L: more than 1 quantizes what the levels before have left (residual quantization)
    level_dropout: float = 0.0          # part of the training pictures that are decoded from their first few levels only
    normalize: bool = True              # codes and vectors on the unit sphere (Yu et al. 2022, arXiv 2110.04627); not fsq, lfq
    beta: float = 0.25                  # weight of the commitment term
    decay: float = 0.99                 # of the moving averages of the codebook
    restart: float = 0.1                # restart a code used less than this part of the mean use; 0 never
    likelihood: str = "mse"
    network: str = "folded"             # or classic: the VQGAN's, which sees the whole picture; the settings below are its own
    stages: tuple[int, ...] = ()        # channels of each stage, finest first; each but the last halves the resolution
    attention: tuple[int, ...] = ()     # numbers of the stages with attention, 0 the finest; one past the last is the middle
    groups: int = 0                     # of its normalization over space
    z_channels: int = 0                 # between encoder and codes, and codes and decoder

    def __post_init__(self) -> None:
        _check(self.channels in (1, 3), f"channels is {self.channels}", "choose 1 (gray) or 3 (color)")
        if self.identity:
            self._check_pixels()
        _check(self.identity or self.downsample in (2, 4, 8, 16), f"downsample is {self.downsample}", "choose 2, 4, 8 or 16")
        _check(
            self.fold in (1, 2, 4) and self.fold <= self.downsample,
            f"fold is {self.fold} at downsample {self.downsample}",
            "choose 1, 2 or 4, at most downsample",
        )
        _check_range("codebook size", self.codebook_size, 2, 65536)
        _check_range("code dimension", self.code_dim, 1, 1024)
        _check_range("width", self.width, 4, 2048)
        _check_range("encoder blocks", self.encoder_blocks, 0, 64)
        _check_range("decoder blocks", self.decoder_blocks, 0, 64)
        _check_range("beta", self.beta, 0.1, 2.0)
        _check_range("decay", self.decay, 0.0, 0.9999)
        _check_range("restart", self.restart, 0.0, 1.0)
        _check_range("levels", self.levels, 1, LEVELS_MAX)
        _check_range("level dropout", self.level_dropout, 0.0, 1.0)
        _check(
            not (self.normalize and self.levels > 1),
            "codes on the unit sphere cannot hold what other levels have left, which differs in length",
            "use --no-normalize with several levels",
        )
        _check(
            not (self.normalize and self.code_dim == 1),
            "code dimension 1 leaves two points on the unit sphere",
            "use a code dimension of 2 or more, or --no-normalize",
        )
        _check_choice("quantizer", self.quantizer, QUANTIZERS)
        _check_choice("likelihood", self.likelihood, LIKELIHOODS)
        _check_choice("network", self.network, NETWORKS)
        if self.network == "classic":
            self._check_classic()
        else:
            own = (self.stages, self.attention, self.groups, self.z_channels)
            _check(own == ((), (), 0, 0), "stages, attention, groups and z_channels are of the classic network", "leave them out")

    def _check_classic(self) -> None:
        count = len(self.stages)
        made = f"{count} stages do not make downsample {self.downsample}"
        _check(2 ** (count - 1) == self.downsample, made, "there is a halving between two stages")
        _check((self.fold, self.shortcut) == (1, False), "the classic network has no fold and no shortcut", "set fold=1, shortcut=false")
        _check(self.width == self.stages[0], f"width {self.width} is not that of the first stage", f"set width={self.stages[0]}")
        _check(min(self.encoder_blocks, self.decoder_blocks) > 0, "the classic network has blocks at each stage", "choose 1 or more blocks")
        _check_range("groups", self.groups, 1, 2048)
        _check_range("z channels", self.z_channels, 1, 2048)
        for channels in self.stages:
            _check_range("channels of a stage", channels, 4, 2048)
            _check(channels % self.groups == 0, f"{channels} channels make no {self.groups} equal groups", "choose another groups")
        fits = all(0 <= stage <= count for stage in self.attention) and len(set(self.attention)) == len(self.attention)
        _check(fits, f"attention {list(self.attention)} does not fit {count} stages", f"choose from 0 to {count}, each once")

    def _check_pixels(self) -> None:
        found = (self.downsample, self.fold, self.levels, self.code_dim)
        _check(
            found == (1, 1, self.channels, self.channels) and not self.normalize,
            f"the pixels quantizer needs downsample 1, fold 1, {self.channels} levels and code dimensions (channels), and no normalization",
            "use --preset pixels, and of the tokenizer's settings choose the codebook size alone",
        )
        fix = f"choose a codebook size from 2 (black and white) to {GRAY_LEVELS} (bytes as they are)"
        _check(2 <= self.codebook_size <= GRAY_LEVELS, f"a channel has {GRAY_LEVELS} values, not {self.codebook_size}", fix)
        shown = ("mse", "l1", "charbonnier", "logistic")
        _check(self.likelihood in shown, f"pixels are no parameters of {self.likelihood}", f"choose one of {', '.join(shown)}")

    @property
    def identity(self) -> bool:
        """Whether indices are the pixels themselves: encoder and decoder are the identity then, and nothing is learned."""
        return self.quantizer == "pixels"

    @property
    def grid(self) -> str:
        """What a place of the grid stands for, in words."""
        if self.identity:
            return f"{'a gray value' if self.channels == 1 else '3 gray values'} of {self.codebook_size} for each pixel"
        levels = "" if self.levels == 1 else f"{self.levels} levels, each "
        return f"{levels}one of {self.codebook_size} codes for {self.downsample}x{self.downsample} pixels"


@dataclass(frozen=True)
class PriorConfig:
    """The network that knows which index grids are likely."""

    codebook_size: int = 1024           # K, the tokenizer's
    levels: int = 1                     # L, the tokenizer's
    width: int = 128
    layers: int = 10
    kernel: int = 3                     # columns that a layer sees (pixelcnn, pixelrnn); odd. 5 takes 2.5 times pixelcnn's weights
    dropout: float = 0.1
    labels: tuple[str, ...] = ()        # class names; none: unconditional
    architecture: str = "pixelcnn"
    output: str = "softmax"             # or logistic, for codes that are gray levels: a mixture of discretized logistics
    mixtures: int = 10                  # of the logistic output
    heads: int = 4                      # of the transformer's attention
    rows: int = 0                       # of the grids that it knows, and their columns, where it knows one size only (fvsbn); else 0
    columns: int = 0

    def __post_init__(self) -> None:
        _check_range("codebook size", self.codebook_size, 2, 65536)
        _check_range("levels", self.levels, 1, LEVELS_MAX)
        _check_range("prior width", self.width, 4, 2048)
        _check_range("prior layers", self.layers, 1, 64)
        _check(self.kernel in (3, 5, 7, 9), f"prior kernel is {self.kernel}", "choose 3, 5, 7 or 9")
        _check_range("prior dropout", self.dropout, 0.0, 0.9)
        _check_choice("prior", self.architecture, ARCHITECTURES)
        _check_choice("prior output", self.output, OUTPUTS)
        _check_range("mixtures", self.mixtures, 1, 100)
        _check_range("heads", self.heads, 1, 64)
        _check(
            self.architecture != "transformer" or self.width % (4 * self.heads) == 0,
            f"prior width {self.width} does not go with {self.heads} heads",
            f"choose a multiple of {4 * self.heads}, or fewer heads: each takes a multiple of 4",
        )
        _check_range("prior rows", self.rows, 0, 4096)
        _check_range("prior columns", self.columns, 0, 4096)
        # They come from folder names, are printed, and go into TOML, which holds neither kind: Cc control, Cs stray surrogate.
        bad = [label for label in self.labels if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in label)]
        _check(not bad, f"the label {bad[:1]} holds control characters, or is not UTF-8", "rename the folder it comes from")


    def for_grid(self, h: int, w: int) -> "PriorConfig":
        """With the size of the grids to come, where the network has weights for each of their places."""
        return replace(self, rows=h, columns=w) if self.architecture == "fvsbn" else self


@dataclass(frozen=True)
class EntropyConfig:
    """The integer prior that compact files are coded with."""

    codebook_size: int = 1024           # K, the tokenizer's
    levels: int = 1                     # L, the tokenizer's
    embedding: int = 32                 # dimension of a code's embedding
    width: int = 192
    blocks: int = 2                     # residual blocks after the first layer
    rank: int = 64                      # dimension of the features that the logits are linear in

    def __post_init__(self) -> None:
        _check_range("codebook size", self.codebook_size, 2, 65536)     # training passes over those past ENTROPY_CODES_MAX
        _check_range("levels", self.levels, 1, LEVELS_MAX)
        _check_range("entropy embedding", self.embedding, 1, 256)
        _check_range("entropy width", self.width, 4, 1024)
        _check_range("entropy blocks", self.blocks, 0, 16)
        _check_range("entropy rank", self.rank, 1, 512)


@dataclass(frozen=True)
class LossConfig:
    """What the tokenizer learns from besides its likelihood; each weight is relative to that, 0 leaves the term out."""

    ms_ssim: float = 0.0                # weight of 1 - MS-SSIM
    perceptual: float = 0.0             # weight of the LPIPS distance; its network is given by --perceptual FILE
    perceptual_part: float = 1.0        # of each batch that this distance is measured on: it costs more than the tokenizer
    adversarial: float = 0.0            # weight of the patch discriminator's opinion
    adversarial_start: float = 0.6      # part of the steps that pass before it is asked
    feature_matching: float = 1.0       # weight of the distance of its features, relative to its opinion
    lecam: float = 0.01                 # weight of the regularization of its scores

    def __post_init__(self) -> None:
        for name in ("ms_ssim", "perceptual", "adversarial", "feature_matching", "lecam"):
            _check_range(name.replace("_", " "), getattr(self, name), 0.0, 100.0)
        _check_range("adversarial start", self.adversarial_start, 0.0, 1.0)
        _check(0 < self.perceptual_part <= 1, f"perceptual part is {self.perceptual_part}", "choose a value in (0, 1]")


@dataclass(frozen=True)
class StageConfig:
    """How one network is trained; the tokenizer and the prior each have one."""

    steps: int = 1000
    batch: int = 16
    learning_rate: float = 1e-3
    optimizer: str = "adamw"            # or muon, which learns more in a step of a convolutional network
    warmup: int = 100                   # steps of linear rise
    clip: float = 1.0                   # largest gradient norm
    ema: float = 0.0                    # decay of the moving average of the weights, which is what is kept; 0: the weights themselves
    validate_every: int = 250

    def __post_init__(self) -> None:
        _check_range("steps", self.steps, 1, 10**9)
        _check_range("batch", self.batch, 1, 65536)
        _check(0 < self.learning_rate <= 1, f"learning rate is {self.learning_rate}", "choose a value in (0, 1]")
        _check_range("warmup", self.warmup, 0, 10**9)
        _check(self.clip > 0, f"clip is {self.clip}", "choose a value above 0")
        _check_range("ema", self.ema, 0.0, 0.99999)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_range("validate every", self.validate_every, 1, 10**9)


@dataclass(frozen=True)
class DataConfig:
    """How pictures become batches."""

    size: int = 128                     # side of the training crops, in pixels
    min_scale: float = 1.0              # crops are taken from the picture shrunk by a factor from here to 1
    flip: bool = True
    prior_size: int = 256               # side of the windows the prior learns from, in pixels of the picture
    validation: float = 0.02            # part of the pictures set aside
    validation_max: int = 256

    def __post_init__(self) -> None:
        _check_range("size", self.size, 2, 4096)
        _check_range("prior size", self.prior_size, 2, 4096)
        _check(0 < self.min_scale <= 1, f"min scale is {self.min_scale}", "choose a value in (0, 1]")
        _check_range("validation part", self.validation, 0.0, 0.5)
        _check_range("validation max", self.validation_max, 1, 10**6)


@dataclass(frozen=True)
class Recipe:
    """All that a training run is, apart from its data: same recipe, same seed, same machine, same weights."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    tokenizer_training: StageConfig = field(default_factory=StageConfig)
    prior_training: StageConfig = field(default_factory=StageConfig)
    seed: int = 0
    precision: str = "fp32"
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    entropy_training: StageConfig = field(default_factory=lambda: StageConfig(learning_rate=5e-3))

    def __post_init__(self) -> None:
        _check_range("seed", self.seed, 0, 2**31 - 1)
        _check_choice("precision", self.precision, ("fp32", "bf16"))
        _check(
            self.data.size % self.tokenizer.downsample == 0,
            f"size {self.data.size} is no multiple of downsample {self.tokenizer.downsample}",
            "choose a multiple",
        )

    def override(self, values: Mapping[str, Any], origin: str = "recipe") -> Self:
        """A copy with the given values, nested as in the TOML file. Unknown keys raise UsageError and name the nearest one."""
        return _override(self, values, origin)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, f"{name} {reprlib.repr(value)} is not known", f"choose one of {', '.join(choices)}")


def _override(config: Any, values: Mapping[str, Any], origin: str) -> Any:
    types, changes = get_type_hints(type(config)), {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0.0)
            raise UsageError(f"{origin} has the unknown key {key!r}", f"did you mean {near[0]!r}?")
        old = getattr(config, key)
        if hasattr(old, "__dataclass_fields__"):
            _check(isinstance(value, Mapping), f"{origin}: {key} is not a table", f"write it as [{key}]")
            changes[key] = _override(old, value, origin)
        else:
            changes[key] = _convert(key, value, types[key], origin)
    return replace(config, **changes)


def _convert(key: str, value: Any, kind: Any, origin: str) -> Any:
    if type(value) is int and abs(value) >= 2**63:      # TOML's own limit; Python refuses to turn the largest into float or text
        raise UsageError(f"{origin}: {key} is too large a number", f"write {TYPES[kind]}")
    if kind is float and type(value) is int:
        return float(value)
    entry = get_args(kind)[0] if get_origin(kind) is tuple else None
    if entry and isinstance(value, list | tuple) and all(type(v) is entry for v in value):
        return tuple(value)
    _check(type(value) is kind, f"{origin}: {key} is {reprlib.repr(value)}", f"write {TYPES[kind]}")
    return value


def from_dict(kind: type[T], values: Any, origin: str) -> T:
    """A config dataclass from a file's JSON; raises FormatError where keys, types or values are wrong."""
    names = {f.name for f in fields(kind)}     # type: ignore[arg-type]
    if not isinstance(values, dict) or not names - set(BEFORE) <= set(values) <= names:
        raise FormatError(f"{origin} holds no valid {kind.__name__}", "the file is damaged, or written by a newer vqtok")
    try:
        return _override(kind(), {**{key: value for key, value in BEFORE.items() if key in names}, **values}, origin)
    except UsageError as error:
        raise FormatError(f"{origin}: {error}", "the file is damaged, or written by a newer vqtok") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """The nested values of a TOML recipe, unchecked: `Recipe.override` checks them."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}", "give the path of a TOML file") from None
    except (ValueError, RecursionError) as error:       # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path} is not TOML: {error}", "mend the line it names") from None


def parse_setting(text: str) -> dict[str, Any]:
    """{"prior": {"width": 192}} from "prior.width=192"; the value is written as in TOML, a bare word counts as a string."""
    key, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        try:
            setting = tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError:
            setting = tomllib.loads(f"{key} = {_toml(value.strip())}")
        if not setting:     # all of it was a comment
            raise ValueError
        return setting
    except (ValueError, RecursionError):    # TOMLDecodeError is a ValueError
        raise UsageError(f"{text!r} is no setting", "write it like prior.width=192") from None


def parse_duration(text: str) -> float:
    """Seconds from '90', '90s', '10m', '1.5h' or '1h30m'. Only a lone number goes without a unit: '1h30' could mean two things."""
    text, number = text.strip(), r"(\d+(?:\.\d+)?)"
    lone = re.fullmatch(number, text)
    match = re.fullmatch(f"(?:{number}h)?(?:{number}m)?(?:{number}s)?", f"{text}s" if lone else text)
    if not match or not text:
        raise UsageError(f"{text!r} is no duration", "write it like 90s, 10m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def to_toml(recipe: Recipe) -> str:
    """The recipe as a TOML file that `read_recipe` and `Recipe.override` turn into an equal one."""
    values = recipe.to_dict()
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for table, entries in values.items():
        if isinstance(entries, dict):
            lines += ["", f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in entries.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Numbers, strings, booleans and lists of strings are written alike in JSON and TOML, but for two things."""
    return "inf" if value == math.inf else json.dumps(value, ensure_ascii=False)    # TOML has no \ud83d\ude00 for one letter


PRESETS: dict[str, Recipe] = {
    # Small enough for a laptop's CPU: a working model of 32x32 pictures in minutes.
    "tiny": Recipe(
        tokenizer=TokenizerConfig(downsample=4, width=64, encoder_blocks=1, decoder_blocks=2, shortcut=False, codebook_size=128),
        prior=PriorConfig(codebook_size=128, width=64, layers=6, dropout=0.0),
        data=DataConfig(size=32, prior_size=32),
        tokenizer_training=StageConfig(steps=1200, batch=64, validate_every=200),
        prior_training=StageConfig(steps=8000, batch=16, learning_rate=2e-3, validate_every=1000),
        entropy=EntropyConfig(codebook_size=128, width=96, blocks=1),
        entropy_training=StageConfig(steps=1000, batch=16, learning_rate=5e-3, validate_every=500),
    ),
    # CIFAR-10 and other 32x32 pictures: 8x8 grid of 512 codes.
    "cifar": Recipe(
        tokenizer=TokenizerConfig(
            downsample=4, fold=2, width=64, encoder_blocks=2, decoder_blocks=3, shortcut=False, codebook_size=512, code_dim=64,
            normalize=False,
        ),
        prior=PriorConfig(codebook_size=512, layers=8, dropout=0.2),
        data=DataConfig(size=32, prior_size=32),
        tokenizer_training=StageConfig(steps=7000, batch=64, warmup=200, validate_every=500),
        prior_training=StageConfig(steps=4000, batch=64, validate_every=500),
        entropy=EntropyConfig(codebook_size=512),
        entropy_training=StageConfig(steps=2000, batch=64, learning_rate=5e-3, validate_every=250),
        precision="bf16",
    ),
    # No tokenizer at all, for small pictures: a prior over the gray values of each pixel, and with it a lossless codec.
    "pixels": Recipe(
        tokenizer=TokenizerConfig(
            downsample=1, fold=1, quantizer="pixels", codebook_size=256, code_dim=3, levels=3, normalize=False, likelihood="logistic",
        ),
        prior=PriorConfig(codebook_size=256, levels=3, width=64, layers=8, dropout=0.05),
        data=DataConfig(size=32, prior_size=32),
        prior_training=StageConfig(steps=8000, batch=32, warmup=200, validate_every=500),
        entropy=EntropyConfig(codebook_size=256, levels=3, width=128),
        entropy_training=StageConfig(steps=2000, batch=16, learning_rate=5e-3, validate_every=250),
        precision="bf16",
    ),
    # Photographs of any size, f16: eight levels of 10 bits for 16x16 pixels, 0.04 to 0.31 bits per pixel.
    "photo": Recipe(
        tokenizer=TokenizerConfig(
            downsample=16, width=56, encoder_blocks=2, decoder_blocks=3, codebook_size=1024, code_dim=32, levels=8, level_dropout=0.75,
            normalize=False, likelihood="charbonnier",
        ),
        prior=PriorConfig(codebook_size=1024, levels=8, width=96, layers=6),
        data=DataConfig(size=128, min_scale=0.5),
        losses=LossConfig(ms_ssim=0.5),
        tokenizer_training=StageConfig(steps=20000, batch=16, optimizer="muon", ema=0.998, validate_every=500),
        prior_training=StageConfig(steps=6000, batch=8, validate_every=500),
        entropy=EntropyConfig(codebook_size=1024, levels=8),
        entropy_training=StageConfig(steps=4000, batch=8, learning_rate=5e-3, validate_every=250),
        precision="bf16",
    ),
}
