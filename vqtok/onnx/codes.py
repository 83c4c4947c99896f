"""Quantizers as nodes of an ONNX graph: vectors to indices, and indices to vectors.

The arithmetic is that of `vqtok.quantizers`, in float32.
"""

import numpy as np

from vqtok.config import TokenizerConfig
from vqtok.config.finite import fsq_levels, lfq_bits
from vqtok.onnx import protobuf
from vqtok.onnx.graph import Graph, Made
from vqtok.onnx.tensors import Tensors


class Codes:
    """Adds the quantizer of a tokenizer to a graph."""

    def __init__(self, graph: Graph, tensors: Tensors, config: TokenizerConfig) -> None:
        self.graph, self.tensors, self.config = graph, tensors, config
        self.K, self.L, self.D = config.codebook_size, config.levels, config.part_dim
        self.finite = config.quantizer in ("fsq", "lfq")

    def quantize(self, z: str) -> str:
        """Indices (B, L, h, w) of vectors (B, D, h, w)."""
        g = self.graph
        if self.config.is_pixels:
            bounded = g.op("Clip", z, g.number(-1), g.number(1))
            steps = g.op("Mul", g.op("Add", bounded, g.number(1)), g.number((self.K - 1) / 2))
            return g.op("Cast", g.op("Round", steps), to=protobuf.INT64)
        vectors = residual = g.op("Transpose", z, perm=[0, 2, 3, 1])  # (B, h, w, D)
        found = []
        for level in range(self.L):
            if self.config.product:
                start, stop = g.integers(level * self.D), g.integers((level + 1) * self.D)
                residual = g.op("Slice", vectors, start, stop, g.integers(3))
            index = self._nearest(level, residual)  # (B, h, w)
            found.append(g.op("Unsqueeze", index, g.integers(1)))
            if level + 1 < self.L and not self.config.product:
                entries = g.floats(self._entries(level))
                residual = g.op("Sub", residual, g.op("Gather", entries, index))
        return g.op("Concat", *found, axis=1)

    def quantized(self, level: int, x: str) -> str:
        """The entry (B, D, h, w) of one level nearest to each vector of x (B, D, h, w)."""
        g = self.graph
        index = self._nearest(level, g.op("Transpose", x, perm=[0, 2, 3, 1]))
        entries = g.floats(self._entries(level))
        return g.op("Transpose", g.op("Gather", entries, index), perm=[0, 3, 1, 2])

    def lookup(self, indices: str) -> str:
        """Vectors (B, D, h, w) of indices (B, n, h, w), any n from 1 to L."""
        g, L, K = self.graph, self.L, self.K
        count = g.op("Slice", g.op("Shape", indices), g.integers(1), g.integers(2))  # (1,)
        numbers = g.op("Slice", g.integers(*range(L)), g.integers(0), count)  # (n,)
        starts = g.op("Unsqueeze", g.op("Mul", numbers, g.integers(K)), g.integers(1, 2))
        places = g.op("Add", indices, starts)  # starts are (n, 1, 1)
        parts = g.op("Gather", g.floats(self._table()), places)  # (B, n, h, w, D)
        total = g.op("ReduceSum", parts, g.integers(1), keepdims=0)  # (B, h, w, D)
        if L > 1 and not self.config.is_pixels:
            marks = self.tensors.get("quantizer.depth", L, self.config.code_dim)
            last = g.op("Sub", count, g.integers(1))
            total = g.op("Add", total, g.op("Gather", g.floats(marks), last))
        if L > 1 and self.config.is_pixels:
            # channels that are missing show the mean of those that are known
            known = g.op("Less", g.integers(*range(L)), count)  # (L,)
            sums = g.op("ReduceSum", total, g.integers(-1))
            mean = g.op("Div", sums, g.op("Cast", count, to=protobuf.FLOAT))
            total = g.op("Where", known, total, mean)
        return g.op("Transpose", total, perm=[0, 3, 1, 2])

    def _name(self, level: int) -> str:
        return "quantizer" if self.L == 1 else f"quantizer.quantizers.{level}"

    def _nearest(self, level: int, x: str) -> str:
        """Indices (B, h, w) of one level for x (B, h, w, D)."""
        g = self.graph
        if self.finite:
            return self._digits(level, x)
        if self.config.normalize:
            length = g.op("ReduceL2", x, g.integers(-1))
            x = g.op("Div", x, g.op("Max", length, g.number(1e-12)))
        entries = self._entries(level)
        products = g.op("MatMul", x, g.floats(lambda: 2 * entries().T))
        if self.config.distance == "dot":
            return g.op("ArgMax", products, axis=-1, keepdims=0)
        scores = g.op("Sub", products, g.floats(lambda: _squares(entries())))
        return g.op("ArgMax", scores, axis=-1, keepdims=0)

    def _digits(self, level: int, x: str) -> str:
        """As `_nearest`, of fsq and lfq: numbers that are each rounded, in a mixed radix."""
        g, sizes = self.graph, self._sizes()
        count = len(sizes)
        weight = self.tensors.get(f"{self._name(level)}.inward.weight", count, self.D)
        bias = self.tensors.get(f"{self._name(level)}.inward.bias", count)
        inner = g.op("Add", g.op("MatMul", x, g.floats(weight.T)), g.floats(bias))
        if self.config.quantizer == "lfq":
            digits = g.op("Cast", g.op("Greater", inner, g.number(0)), to=protobuf.FLOAT)
        else:
            reach = ((sizes - 1) / 2 * (1 - 1e-3)).astype(np.float32)
            offset = np.where(sizes % 2 == 0, 0.5, 0).astype(np.float32)
            half = (sizes // 2).astype(np.float32)
            bent = g.op("Tanh", g.op("Add", inner, g.floats(np.arctanh(offset / reach))))
            bounded = g.op(
                "Sub", g.op("Mul", bent, g.floats(reach / half)), g.floats(offset / half)
            )
            digits = g.op("Round", g.op("Mul", bounded, g.floats(half)))
            digits = g.op("Add", digits, g.floats(half))
        whole = g.op("Cast", digits, to=protobuf.INT64)
        units = [int(unit) for unit in np.concatenate([[1], np.cumprod(sizes[:-1])])]
        weighted = g.op("Mul", whole, g.integers(*units))
        return g.op("ReduceSum", weighted, g.integers(-1), keepdims=0)

    def _sizes(self) -> np.ndarray:
        """How many values each number of fsq or lfq takes."""
        if self.config.quantizer == "fsq":
            return np.array(fsq_levels(self.K))
        return np.full(lfq_bits(self.K), 2)

    def _entries(self, level: int) -> Made:
        """Returns what makes the codebook of one level, float32 (K, D)."""
        name, K, D = self._name(level), self.K, self.D
        ask = self.tensors.get
        if self.finite:
            weight = ask(f"{name}.outward.weight", D, len(self._sizes()))
            bias = ask(f"{name}.outward.bias", D)
            return lambda: self._values() @ _wide(weight).T + _wide(bias)
        codebook = ask(f"{name}.codebook", K, D)
        if self.config.quantizer == "simvq":
            weight, bias = ask(f"{name}.layer.weight", D, D), ask(f"{name}.layer.bias", D)
            return lambda: self._projected(_wide(codebook) @ _wide(weight).T + _wide(bias))
        return lambda: self._projected(_wide(codebook))

    def _projected(self, entries: np.ndarray) -> np.ndarray:
        """Returns entries (K, D) on the unit sphere where the config says so."""
        if not self.config.normalize:
            return entries
        return entries / np.maximum(np.sqrt(_squares(entries)), 1e-12)[:, None]

    def _values(self) -> np.ndarray:
        """What the digits of each code stand for, float32 (K, d) in [-1, 1]."""
        indices, columns = np.arange(self.K), []
        for size in self._sizes():
            columns.append(indices % size)
            indices = indices // size
        digits = np.stack(columns, 1).astype(np.float32)
        if self.config.quantizer == "lfq":
            return 2 * digits - 1
        half = (self._sizes() // 2).astype(np.float32)
        return (digits - half) / half

    def _table(self) -> Made:
        """Returns what makes the entries of all levels as vectors of the decoder, float32 (L*K, D):
        what a level says nothing of is 0.
        """
        L, K, D, dim = self.L, self.K, self.D, self.config.code_dim
        if self.config.is_pixels:
            palette = self.tensors.get("quantizer.palette", L, K)
            levels: list[Made] = [
                lambda i=i: _wide(palette[i])[:, None] / 127.5 - 1 for i in range(L)
            ]
        else:
            levels = [self._entries(level) for level in range(L)]

        def make() -> np.ndarray:
            table = np.zeros((L, K, dim), np.float32)
            for level, entries in enumerate(levels):
                start = level * D if self.config.product else level if self.config.is_pixels else 0
                made = entries()
                table[level, :, start : start + made.shape[1]] = made
            return table.reshape(L * K, dim)

        return make


def _wide(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32, copy=False)


def _squares(entries: np.ndarray) -> np.ndarray:
    """Returns the squared length of each entry, (K,)."""
    return np.einsum("kd,kd->k", entries, entries)
