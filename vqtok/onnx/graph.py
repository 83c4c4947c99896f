"""An ONNX graph that is built node by node."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vqtok.errors import ModelError
from vqtok.onnx import protobuf

OPSET, IR_VERSION = 18, 10  # onnxruntime reads them since 1.18
Made = Callable[[], np.ndarray]  # makes an array when it is needed
_LIMIT = 2**31 - 2**20  # bytes: no file in this format is larger
_INLINE = 128  # numbers: smaller constants are in the graph in any case


class Graph:
    """Nodes one after another; values go by name."""

    def __init__(self, apart: bool = False) -> None:
        """`apart`: weights stay arrays beside the graph, in `arrays`, and are copied nowhere. Else
        they are in the file, as float16 where that loses nothing, so that it is half as large.
        """
        self.apart = apart
        self.arrays: dict[str, np.ndarray] = {}
        self.inputs: list[protobuf.Message] = []
        self.outputs: list[protobuf.Message] = []
        self.nodes: list[protobuf.Message] = []
        self.weights: list[protobuf.Message] = []
        self._bytes = 0  # of the weights

    def add_input(self, name: str, kind: int, shape: Sequence[str | int]) -> str:
        """Declares an input, and returns its name. A side that is text is free."""
        self.inputs.append(protobuf.value_info(name, kind, shape))
        return name

    def add_output(self, value: str, name: str, kind: int, shape: Sequence[str | int]) -> None:
        """Gives a value out under that name."""
        self.nodes.append(protobuf.node("Identity", [value], name, {}))
        self.outputs.append(protobuf.value_info(name, kind, shape))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node, and returns the name of what it gives."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(protobuf.node(kind, inputs, name, attributes))
        return name

    def integers(self, *values: int) -> str:
        """A constant, int64 (n,)."""
        return self._constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant, a float32 scalar."""
        return self._constant(np.array(value, np.float32))

    def floats(self, values: np.ndarray | Made) -> str:
        """A constant of float32, of any shape, or what makes one."""
        values = values if isinstance(values, np.ndarray) else values()
        half = None
        if self.apart:
            half = values if values.dtype == np.float16 else None
        elif values.size > 1:
            half = _halved(values)
        if half is None:
            return self._constant(values.astype(np.float32, copy=False))
        return self.op("Cast", self._constant(half), to=protobuf.FLOAT)

    def _constant(self, values: np.ndarray) -> str:
        name = f"constant_{len(self.weights)}"
        if self.apart and values.size >= _INLINE:
            self.arrays[name] = np.ascontiguousarray(values)
            self.weights.append(protobuf.tensor_apart(name, values))
        else:
            self._bytes += values.nbytes
            self.weights.append(protobuf.tensor(name, values))
        return name

    def model(self, name: str, facts: Mapping[str, Any]) -> bytes:
        """The bytes of the file; `facts` go into its metadata, one string each. ModelError where
        the file would be too large.
        """
        if self._bytes > _LIMIT:
            raise ModelError(
                "the network is larger than 2 GiB, which ONNX files hold at most",
                "export it to another format",
            )
        graph: protobuf.Message = []
        for field, messages in ((1, self.nodes), (5, self.weights)):
            for one in messages:
                graph += protobuf.message(field, one)
            graph += protobuf.text(2, name) if field == 1 else []
        for field, messages in ((11, self.inputs), (12, self.outputs)):
            for one in messages:
                graph += protobuf.message(field, one)
        words = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in facts.items()
        }
        return protobuf.model(graph, OPSET, IR_VERSION, words)


def _halved(values: np.ndarray) -> np.ndarray | None:
    """Returns values as float16, or None where that would lose something."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16, copy=False)
    lossless = half is values or np.array_equal(half.astype(np.float32), values)
    return half if lossless else None


class NoGraph(Graph):
    """Takes nodes and weights, and keeps none: to learn which tensors a network asks for."""

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return ""

    def floats(self, values: np.ndarray | Made) -> str:
        return ""

    def _constant(self, values: np.ndarray) -> str:
        return ""
