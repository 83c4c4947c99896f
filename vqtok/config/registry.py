"""Lists the names that settings may have, and the class behind each: the one table to add a line
to.

A class is given as a dotted path, so that reading the table imports no PyTorch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """Declares a number that came with an entry: its value where none is given, and the range
    allowed.
    """

    default: float  # or a bool or int: the setting has its type
    low: float
    high: float


@dataclass(frozen=True)
class Entry:
    """A class by its dotted path, with its help and the settings that only it reads.

    `settings` are fields that a config class declares. `adds` are further ones: the config class
    gets a field for each. Files without them were made with the default.
    """

    path: str  # "package.module:Class", or a module alone
    help: str
    settings: tuple[str, ...] = ()
    adds: Mapping[str, Setting] = field(default_factory=dict)
    note: str = ""  # follows the name in an option's help

    def load(self) -> Any:
        """Imports the class, or the module."""
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name) if name else import_module(module)


Table = Mapping[str, Entry]

# What replaces the encoder's vectors by codes. `pixels` stands for no encoder at all.
QUANTIZERS: Table = {
    "ema": Entry(
        "vqtok.quantizers.codebook:EMAQuantizer",
        "codes follow moving averages of their vectors",
        ("beta", "decay", "restart"),
    ),
    "vq": Entry(
        "vqtok.quantizers.codebook:VectorQuantizer",
        "codes learn by gradient",
        ("beta", "decay", "restart"),
    ),
    "simvq": Entry(
        "vqtok.quantizers.simvq:SimVQuantizer", "one learned layer moves all codes", ("beta",)
    ),
    "fsq": Entry("vqtok.quantizers.finite:FSQuantizer", "each dimension rounded to a few values"),
    "lfq": Entry("vqtok.quantizers.finite:LFQuantizer", "each dimension rounded to a sign"),
    "pixels": Entry(
        "vqtok.quantizers.pixels:PixelQuantizer",
        "gray levels of the pixels",
        note="(by its preset)",
    ),
}

# What the decoder's output says about an image.
LIKELIHOODS: Table = {
    "mse": Entry("vqtok.losses.likelihood:MeanSquared", "a Gaussian of fixed variance"),
    "l1": Entry("vqtok.losses.likelihood:MeanAbsolute", "a Laplace distribution of fixed scale"),
    "charbonnier": Entry("vqtok.losses.likelihood:Charbonnier", "l1, smooth at its mean"),
    "bce": Entry("vqtok.losses.likelihood:Bernoulli", "binary cross-entropy"),
    "logistic": Entry("vqtok.losses.likelihood:Logistic", "a discretized logistic"),
    "heteroscedastic": Entry(
        "vqtok.losses.likelihood:Heteroscedastic", "a logistic with a scale for each pixel"
    ),
}

# Modules with an Encoder and a Decoder, each made from a TokenizerConfig.
NETWORKS: Table = {
    "folded": Entry(
        "vqtok.networks.vqvae",
        "convolutions that see a bounded neighborhood",
        ("shortcut", "decoder_widths", "decoder_depths"),
    ),
    "classic": Entry(
        "vqtok.networks.vqgan",
        "the VQGAN's, which sees the whole image",
        ("stages", "attention", "groups", "z_channels", "input_mean", "input_std"),
        adds={"middle_blocks": Setting(2, 1, 64)},
    ),
    "paper": Entry(
        "vqtok.networks.paper",
        "the VQ-VAE paper's own: strided and transposed convolutions, residual blocks",
        ("encoder_layers", "decoder_layers", "input_mean", "input_std"),
    ),
    "magvit2": Entry(
        "vqtok.networks.magvit2",
        "Open-MAGVIT2's: VQGAN's blocks, and normalization by the codes' mean and spread",
        ("stages", "groups", "input_mean", "input_std"),
    ),
    "vqvae2": Entry(
        "vqtok.networks.vqvae2",
        "VQ-VAE-2's with two grids of codes, as five levels",
        ("input_mean", "input_std"),
        # channels inside its residual blocks
        adds={"hidden": Setting(32, 1, 4096)},
    ),
}

# Terms beside the likelihood. A name is also the setting in LossConfig that holds the weight.
LOSSES: Table = {
    "ms_ssim": Entry("vqtok.losses.ms_ssim:StructureTerm", "1 - MS-SSIM"),
    "perceptual": Entry(
        "vqtok.losses.lpips:PerceptualTerm",
        "the LPIPS distance",
        ("perceptual_part", "perceptual_start"),
    ),
}

OPTIMIZERS: Table = {
    "adamw": Entry("torch.optim:AdamW", "Adam with decoupled weight decay"),
    "muon": Entry("vqtok.train.muon:Muon", "orthogonalized momentum", note="for the convolutions"),
}

# Every prior reads width and dropout, and output and mixtures for its last layer.
PRIORS: Table = {
    "pixelcnn": Entry("vqtok.priors.pixelcnn:PixelCNN", "gated convolutions", ("layers", "kernel")),
    "pixelrnn": Entry(
        "vqtok.priors.pixelrnn:PixelRNN", "a recurrence from row to row", ("layers", "kernel")
    ),
    "transformer": Entry(
        "vqtok.priors.transformer:Transformer", "causal attention", ("layers", "heads")
    ),
    "fvsbn": Entry(
        "vqtok.priors.fvsbn:FVSBN",
        "a regression on all earlier positions, for grids of one size",
        ("rows", "columns"),
    ),
    "masked": Entry(
        "vqtok.priors.masked:MaskedTransformer",
        "attention to all sides, drawn in a few steps",
        ("layers", "heads"),
    ),
}

# The sampler of each prior above.
SAMPLERS: Table = {
    "pixelcnn": Entry("vqtok.sampling.pixelcnn:PixelCNNSampler", "keeps the last activations"),
    "pixelrnn": Entry("vqtok.sampling.pixelrnn:PixelRNNSampler", "keeps the states of a row"),
    "transformer": Entry("vqtok.sampling.transformer:TransformerSampler", "keeps keys and values"),
    "fvsbn": Entry("vqtok.sampling.fvsbn:FVSBNSampler", "keeps sums over known positions"),
    "masked": Entry("vqtok.sampling.masked:MaskedSampler", "looks at the whole grid in each step"),
}

# The last layer of a prior.
OUTPUTS: Table = {
    "softmax": Entry("vqtok.priors.outputs:Softmax", "a probability for each code"),
    "logistic": Entry(
        "vqtok.priors.outputs:LogisticMixture", "for codes that are gray levels", ("mixtures",)
    ),
}

# Data sets: functions as `data.place.DataSource`, asked in this order.
# Folders and tars of image files come after them.
DATA_SOURCES: Table = {
    "npy": Entry("vqtok.data.arrays:npy_source", "one array of images"),
    "npz": Entry("vqtok.data.arrays:npz_source", "arrays of images and labels"),
    "zip": Entry("vqtok.data.archives:zip_source", "image files in a zip"),
    "cifar": Entry("vqtok.data.cifar:cifar_source", "CIFAR-10 and CIFAR-100, unpacked or not"),
    "stl": Entry("vqtok.data.cifar:stl_source", "STL-10"),
    "idx": Entry("vqtok.data.idx:idx_source", "MNIST and its kin"),
    "batch": Entry("vqtok.data.cifar:batch_source", "one binary batch of CIFAR"),
    "pairs": Entry("vqtok.data.arrays:pairs_source", "images and labels in files of their own"),
}

# What `vqtok export --to` writes; each function is called as `interop.export.Exporter` says.
EXPORT_FORMATS = {
    "diffusers": "vqtok.interop.diffusers:to_vqmodel",
    "safetensors-taming": "vqtok.interop.taming_export:to_taming",
    "onnx": "vqtok.interop.onnx:to_onnx",
}

# What `vqtok export --to` writes of codes; each class is a `tokens.formats.base.Writer`.
TOKEN_FORMATS = {
    "bin": Entry("vqtok.tokens.formats.flat:FlatWriter", "nanoGPT, OLMo-core, llm.c", ("header",)),
    "webdataset": Entry("vqtok.tokens.formats.webdataset:WebDatasetWriter", "tar shards"),
    "jsonl": Entry("vqtok.tokens.formats.jsonl:JsonLinesWriter", "1d-tokenizer: RAR, MaskGIT"),
    "llamagen": Entry("vqtok.tokens.formats.llamagen:LlamaGenWriter", "LlamaGen and its forks"),
    "megatron": Entry(
        "vqtok.tokens.formats.megatron:MegatronWriter", "Megatron-LM, NeMo, GPT-NeoX"
    ),
    "litdata": Entry("vqtok.tokens.formats.litdata:LitDataWriter", "litgpt", ("block",)),
    "mds": Entry("vqtok.tokens.formats.mds:MdsWriter", "MosaicML streaming"),
    "parquet": Entry("vqtok.tokens.formats.parquet:ParquetWriter", "Hugging Face datasets, Polars"),
}


def added_settings(*tables: Table) -> dict[str, Setting]:
    """Collects the settings that entries of the tables add, by name."""
    return {
        name: setting
        for table in tables
        for entry in table.values()
        for name, setting in entry.adds.items()
    }


def with_settings(*tables: Table) -> Callable[[type[T]], type[T]]:
    """Gives a class a field for each setting that the tables add; to stand below `dataclass`."""

    def extend(kind: type[T]) -> type[T]:
        added = added_settings(*tables)
        kind.__annotations__ = kind.__annotations__ | {
            name: type(setting.default) for name, setting in added.items()
        }
        for name, setting in added.items():
            setattr(kind, name, setting.default)
        return kind

    return extend


def setting_of(config: Any, name: str) -> Any:
    """Returns the value of a setting that an entry added, which type checkers cannot know of."""
    return getattr(config, name)


def one_of(table: Table) -> str:
    """Joins the names in a sentence: a, b or c."""
    *first, last = (f"{name} {entry.note}".rstrip() for name, entry in table.items())
    comma = "," if list(table.values())[-1].note else ""
    return f"{', '.join(first)}{comma} or {last}"


ADDED = added_settings(
    QUANTIZERS, LIKELIHOODS, NETWORKS, LOSSES, OPTIMIZERS, PRIORS, OUTPUTS
)  # in any config class
