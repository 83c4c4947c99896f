"""Tokenizers as two ONNX graphs, which run without vqtok and torch.

`encoder.onnx` turns `image`, uint8 (B, C, H, W) of any size, into `indices`, int64 (B, L, h, w);
it pads as vqtok does. `decoder.onnx` turns `indices` (B, n, h, w) of the first n levels, n from 1
to L, into `image`, uint8 (B, C, h*f, w*f), which the caller crops. Weights are float16 where that
loses nothing, and are cast once, when a program loads them: all is computed in float32.
"""

from importlib import import_module
from typing import Any

import torch

from vqtok import codec
from vqtok.config import TokenizerConfig
from vqtok.errors import InputError
from vqtok.interop.export import Exported
from vqtok.interop.onnx_codes import lookup, quantize
from vqtok.interop.onnx_graph import Graph
from vqtok.interop.onnx_layers import emit
from vqtok.losses.likelihood import Bernoulli, Heteroscedastic
from vqtok.model_registry import ModelFolder
from vqtok.networks import vqvae
from vqtok.weights import Weights, codes_fingerprint


def to_onnx(stored: Weights, settings: TokenizerConfig, folder: ModelFolder) -> Exported:
    """Makes encoder.onnx and decoder.onnx of a tokenizer.

    InputError where the package onnx is not installed. ModelError where a file would be too large.
    """
    onnx = _import_onnx()
    fingerprint = codes_fingerprint(stored)
    network = codec.tokenizer_from_weights(stored, folder.tokenizer).eval()
    with torch.inference_mode():
        graphs = {"encoder": _encoder(onnx, network), "decoder": _decoder(onnx, network)}
    facts = {
        "model": folder.name,
        "fingerprint": fingerprint,
        "downsample": settings.downsample,
        "levels": settings.levels,
        "codebook_size": settings.codebook_size,
        "channels": settings.channels,
    }
    contents = {f"{name}.onnx": graph.model(name, facts) for name, graph in graphs.items()}
    tensors = sum(len(graph.weights) for graph in graphs.values())
    return Exported("model", contents, tensors)


def _import_onnx() -> Any:
    try:
        for part in ("onnx", "onnx.helper", "onnx.numpy_helper"):
            import_module(part)
    except ImportError:
        raise InputError(
            "the package onnx is not installed, which writes these files",
            "pip install 'vqtok[onnx]'",
        ) from None
    return import_module("onnx")


# Encoder


def _encoder(onnx: Any, network: vqvae.VQVAE) -> Graph:
    config = network.config
    sides: list[str | int] = ["B", config.channels, "H", "W"]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, sides)
    g = Graph(onnx, [image])
    x = g.op("Cast", "image", to=onnx.TensorProto.FLOAT)
    x = _pad(g, x, config.downsample)
    x = g.op("Sub", g.op("Div", x, g.number(127.5)), g.number(1))
    z = emit(g, network.encoder, x)
    indices = g.op("Identity", quantize(g, network.quantizer, z))
    g.nodes[-1].output[0] = "indices"
    assert indices
    shape: list[str | int] = ["B", config.levels, "h", "w"]
    g.outputs = [onnx.helper.make_tensor_value_info("indices", onnx.TensorProto.INT64, shape)]
    return g


def _pad(g: Graph, x: str, f: int) -> str:
    """Pads (B, C, H, W) at the bottom and right by its edge until f divides H and W."""
    sides = g.op("Slice", g.op("Shape", x), g.integers(2), g.integers(4))
    rest = g.op("Mod", sides, g.integers(f))
    missing = g.op("Mod", g.op("Sub", g.integers(f), rest), g.integers(f))  # (2,)
    pads = g.op("Concat", g.integers(0, 0, 0, 0, 0, 0), missing, axis=0)
    return g.op("Pad", x, pads, mode="edge")


# Decoder


def _decoder(onnx: Any, network: vqvae.VQVAE) -> Graph:
    config = network.config
    sides: list[str | int] = ["B", "n", "h", "w"]
    indices = onnx.helper.make_tensor_value_info("indices", onnx.TensorProto.INT64, sides)
    g = Graph(onnx, [indices])
    output = emit(g, network.decoder, lookup(g, network.quantizer))
    likelihood = network.likelihood
    if isinstance(likelihood, Heteroscedastic):
        output = g.op("Slice", output, g.integers(0), g.integers(config.channels), g.integers(1))
    if isinstance(likelihood, Bernoulli):
        output = g.op("Sub", g.op("Mul", g.op("Sigmoid", output), g.number(2)), g.number(1))
    bounded = g.op("Clip", output, g.number(-1), g.number(1))
    gray = g.op("Mul", g.op("Add", bounded, g.number(1)), g.number(127.5))
    g.op("Cast", g.op("Round", gray), to=onnx.TensorProto.UINT8)
    g.nodes[-1].output[0] = "image"
    shape: list[str | int] = ["B", config.channels, "H", "W"]
    g.outputs = [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, shape)]
    return g
