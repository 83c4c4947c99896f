"""Names that settings may have, and the class behind each: the one table to add a line to.

A class stands as a dotted path, so that reading the table imports no PyTorch.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """The class behind a name, what it is in a few words, and the settings that it alone reads."""

    path: str  # "package.module:Class"
    help: str
    settings: tuple[str, ...] = ()

    def load(self) -> Any:
        """Imports the class."""
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)


# Every prior reads width and dropout, and output and mixtures for its last layer.
PRIORS = {
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
}

# The sampler of each prior above.
SAMPLERS = {
    "pixelcnn": Entry("vqtok.sampling.pixelcnn:PixelCNNSampler", "keeps the last activations"),
    "pixelrnn": Entry("vqtok.sampling.pixelrnn:PixelRNNSampler", "keeps the states of a row"),
    "transformer": Entry("vqtok.sampling.transformer:TransformerSampler", "keeps keys and values"),
    "fvsbn": Entry("vqtok.sampling.fvsbn:FVSBNSampler", "keeps sums over known positions"),
}

# What `vqtok export --to` writes; each function is called as `interop.export.Exporter` says.
EXPORT_FORMATS = {
    "diffusers": "vqtok.interop.diffusers:to_vqmodel",
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
