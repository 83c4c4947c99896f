"""Quantizers as nodes of an ONNX graph: vectors to indices, and indices to vectors."""

import numpy as np
import torch
from torch import nn

from vqtok.interop.onnx_graph import Graph
from vqtok.quantizers import LevelQuantizer, ProductQuantizer, Quantizer
from vqtok.quantizers.codebook import Codebook
from vqtok.quantizers.finite import FSQuantizer, LFQuantizer
from vqtok.quantizers.pixels import PixelQuantizer


def quantize(g: Graph, quantizer: Quantizer, z: str) -> str:
    """Indices (B, L, h, w) of vectors (B, D, h, w)."""
    if isinstance(quantizer, PixelQuantizer):
        bounded = g.op("Clip", z, g.number(-1), g.number(1))
        scale = g.number((quantizer.codebook_size - 1) / 2)
        rounded = g.op("Round", g.op("Mul", g.op("Add", bounded, g.number(1)), scale))
        return g.op("Cast", rounded, to=g.onnx.TensorProto.INT64)
    vectors = residual = g.op("Transpose", z, perm=[0, 2, 3, 1])  # (B, h, w, D)
    levels = (
        [part for part in quantizer.quantizers if isinstance(part, Quantizer)]
        if isinstance(quantizer, LevelQuantizer)
        else [quantizer]
    )
    found = []
    for number, level in enumerate(levels):
        if isinstance(quantizer, ProductQuantizer):
            size = quantizer.depth.shape[1] // quantizer.levels
            start, stop = g.integers(number * size), g.integers((number + 1) * size)
            residual = g.op("Slice", vectors, start, stop, g.integers(3))
        index = nearest(g, level, residual)  # (B, h, w)
        found.append(g.op("Unsqueeze", index, g.integers(1)))
        if number + 1 < len(levels) and not isinstance(quantizer, ProductQuantizer):
            entries = g.floats(level.codebooks()[0])
            residual = g.op("Sub", residual, g.op("Gather", entries, index))
    return g.op("Concat", *found, axis=1)


def nearest(g: Graph, level: Quantizer, x: str) -> str:
    """Indices (B, h, w) of one level for x (B, h, w, D)."""
    if isinstance(level, FSQuantizer | LFQuantizer):
        return _digits(g, level, x)
    assert isinstance(level, Codebook)
    if level.normalize:
        length = g.op("ReduceL2", x, g.integers(-1))
        x = g.op("Div", x, g.op("Max", length, g.number(1e-12)))
    entries = level.codebooks()[0]  # (K, D)
    products = g.op("MatMul", x, g.floats(2 * entries.T))
    if level.dot:
        return g.op("ArgMax", products, axis=-1, keepdims=0)
    scores = g.op("Sub", products, g.floats(torch.linalg.vecdot(entries, entries)))
    return g.op("ArgMax", scores, axis=-1, keepdims=0)


def _digits(g: Graph, level: FSQuantizer | LFQuantizer, x: str) -> str:
    sizes = np.array(level.sizes)
    inner = linear(g, level.inward, x)  # (B, h, w, d)
    if isinstance(level, LFQuantizer):
        digits = g.op("Cast", g.op("Greater", inner, g.number(0)), to=g.onnx.TensorProto.FLOAT)
    else:
        reach = torch.tensor([(n - 1) / 2 * (1 - 1e-3) for n in level.sizes])
        offset = torch.tensor([0.5 * (n % 2 == 0) for n in level.sizes])
        half = torch.tensor([float(n // 2) for n in level.sizes])
        bent = g.op("Tanh", g.op("Add", inner, g.floats(torch.atanh(offset / reach))))
        bounded = g.op("Sub", g.op("Mul", bent, g.floats(reach / half)), g.floats(offset / half))
        digits = g.op("Round", g.op("Mul", bounded, g.floats(half)))
        digits = g.op("Add", digits, g.floats(half))
    whole = g.op("Cast", digits, to=g.onnx.TensorProto.INT64)
    units = np.concatenate([[1], np.cumprod(sizes[:-1])]).astype(np.int64)
    weighted = g.op("Mul", whole, g.integers(*units.tolist()))
    return g.op("ReduceSum", weighted, g.integers(-1), keepdims=0)


def lookup(g: Graph, quantizer: Quantizer) -> str:
    """Vectors (B, D, h, w) of the input `indices` (B, n, h, w), any n from 1 to L."""
    entries = quantizer.codebooks()  # (L, K, D)
    L, K, D = entries.shape
    count = g.op("Slice", g.op("Shape", "indices"), g.integers(1), g.integers(2))  # (1,)
    numbers = g.op("Slice", g.integers(*range(L)), g.integers(0), count)  # (n,)
    starts = g.op("Unsqueeze", g.op("Mul", numbers, g.integers(K)), g.integers(1, 2))  # (n, 1, 1)
    places = g.op("Add", "indices", starts)
    # (B, n, h, w, D)
    parts = g.op("Gather", g.floats(entries.reshape(L * K, D)), places)
    total = g.op("ReduceSum", parts, g.integers(1), keepdims=0)  # (B, h, w, D)
    if isinstance(quantizer, LevelQuantizer):
        last = g.op("Sub", count, g.integers(1))
        total = g.op("Add", total, g.op("Gather", g.floats(quantizer.depth), last))
    if isinstance(quantizer, PixelQuantizer) and L > 1:
        # channels that are missing show the mean of those that are known
        known = g.op("Less", g.integers(*range(L)), count)  # (L,)
        sums = g.op("ReduceSum", total, g.integers(-1))
        mean = g.op("Div", sums, g.op("Cast", count, to=g.onnx.TensorProto.FLOAT))
        total = g.op("Where", known, total, mean)
    return g.op("Transpose", total, perm=[0, 3, 1, 2])


def linear(g: Graph, module: nn.Linear, x: str) -> str:
    return g.op("Add", g.op("MatMul", x, g.floats(module.weight.T)), g.floats(module.bias))
