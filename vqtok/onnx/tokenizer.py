"""A tokenizer as two ONNX graphs: pixels to indices, and indices to pixels."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vqtok.config import TokenizerConfig
from vqtok.errors import ModelError
from vqtok.onnx import classic, folded, paper, protobuf
from vqtok.onnx.codes import Codes
from vqtok.onnx.graph import Graph, NoGraph
from vqtok.onnx.layers import Layers
from vqtok.onnx.tensors import Asked, Tensors

# Adds an encoder or decoder to a graph: of the config, a value, and the decoder's channels.
Part = Callable[[Layers, TokenizerConfig, str, int], str]
NETWORKS: Mapping[str, tuple[Part, Part]] = {
    "folded": (folded.encoder, folded.decoder),
    "classic": (classic.encoder, classic.decoder),
    "magvit2": (classic.magvit2_encoder, classic.magvit2_decoder),
    "paper": (paper.encoder, paper.decoder),
    "vqvae2": (paper.vqvae2_encoder, paper.vqvae2_decoder),
}
ENTRIES_MAX = 2**28  # numbers in the table of all levels' codes
QUANTIZERS = ("ema", "vq", "simvq", "fsq", "lfq", "pixels")
# numbers that the decoder gives for each value of an image
LIKELIHOODS = {
    "mse": 1,
    "l1": 1,
    "charbonnier": 1,
    "bce": 1,
    "logistic": 1,
    "heteroscedastic": 2,
}


def build_encoder(
    tensors: Mapping[str, np.ndarray], config: TokenizerConfig, apart: bool = False
) -> Graph:
    """Builds the graph of `image`, uint8 (B, C, H, W) of any size, to `indices`, int64 (B, L, h,
    w); it pads as vqtok does. `apart` as in `Graph`. ModelError where the config has a part that no
    graph is known of.
    """
    _check(config)
    g = Graph(apart)
    _add_encoder(g, Tensors(tensors), config)
    return g


def build_decoder(
    tensors: Mapping[str, np.ndarray], config: TokenizerConfig, apart: bool = False
) -> Graph:
    """Builds the graph of `indices`, int64 (B, n, h, w) of the first n levels, to `image`, uint8
    (B, C, h*f, w*f). Else as `build_encoder`.
    """
    _check(config)
    if config.levels * config.codebook_size * config.code_dim > ENTRIES_MAX:
        raise ModelError(
            "the codebooks are too large for an ONNX graph: more than 1 GiB",
            "use the model with PyTorch",
        )
    g = Graph(apart)
    _add_decoder(g, Tensors(tensors), config)
    return g


def tensor_shapes(config: TokenizerConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors of a tokenizer's file, by name. Errors as `build_encoder`;
    UsageError where a quantizer cannot have that many codes.
    """
    _check(config)
    asked = Asked()
    _add_encoder(NoGraph(), asked, config)
    _add_decoder(NoGraph(), asked, config)
    asked.get("likelihood.log_scale", config.channels)
    return asked.shapes


def _check(config: TokenizerConfig) -> None:
    for kind, known in (
        ("network", NETWORKS),
        ("quantizer", QUANTIZERS),
        ("likelihood", LIKELIHOODS),
    ):
        if (name := getattr(config, kind)) not in known:
            raise ModelError(
                f"no ONNX graph is known of the {kind} {name}", "use the model with PyTorch"
            )


def _add_encoder(g: Graph, tensors: Tensors, config: TokenizerConfig) -> None:
    image = g.add_input("image", protobuf.UINT8, ("B", config.channels, "H", "W"))
    x = _pad(g, g.op("Cast", image, to=protobuf.FLOAT), config.downsample)
    x = g.op("Sub", g.op("Div", x, g.number(127.5)), g.number(1))
    encode, _ = NETWORKS[config.network]
    z = encode(Layers(g, tensors), config, x, 0)
    indices = Codes(g, tensors, config).quantize(z)
    g.add_output(indices, "indices", protobuf.INT64, ("B", config.levels, "h", "w"))


def _pad(g: Graph, x: str, f: int) -> str:
    """Pads (B, C, H, W) at the bottom and right by its edge until f divides H and W."""
    sides = g.op("Slice", g.op("Shape", x), g.integers(2), g.integers(4))
    rest = g.op("Mod", sides, g.integers(f))
    missing = g.op("Mod", g.op("Sub", g.integers(f), rest), g.integers(f))  # (2,)
    pads = g.op("Concat", g.integers(0, 0, 0, 0, 0, 0), missing, axis=0)
    return g.op("Pad", x, pads, mode="edge")


def _add_decoder(g: Graph, tensors: Tensors, config: TokenizerConfig) -> None:
    indices = g.add_input("indices", protobuf.INT64, ("B", "n", "h", "w"))
    _, decode = NETWORKS[config.network]
    outputs = config.channels * LIKELIHOODS[config.likelihood]
    vectors = Codes(g, tensors, config).lookup(indices)
    output = decode(Layers(g, tensors), config, vectors, outputs)
    if outputs > config.channels:
        output = g.op("Slice", output, g.integers(0), g.integers(config.channels), g.integers(1))
    if config.likelihood == "bce":
        output = g.op("Sub", g.op("Mul", g.op("Sigmoid", output), g.number(2)), g.number(1))
    bounded = g.op("Clip", output, g.number(-1), g.number(1))
    gray = g.op("Mul", g.op("Add", bounded, g.number(1)), g.number(127.5))
    image = g.op("Cast", g.op("Round", gray), to=protobuf.UINT8)
    g.add_output(image, "image", protobuf.UINT8, ("B", config.channels, "H", "W"))


def facts(model: str, fingerprint: str, config: TokenizerConfig) -> dict[str, Any]:
    """What an ONNX file says of the model that it is made of."""
    names = ("downsample", "levels", "codebook_size", "channels")
    return {
        "model": model,
        "fingerprint": fingerprint,
        **{name: getattr(config, name) for name in names},
    }
