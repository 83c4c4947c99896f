"""An ONNX graph that is built node by node."""

import json
from typing import Any

import numpy as np
from torch import Tensor

from vqtok.errors import ModelError

OPSET, IR_VERSION = 18, 10  # onnxruntime reads them since 1.18
_LIMIT = 2**31 - 2**20  # bytes: no file in this format is larger


class Graph:
    """Nodes one after another; values go by name."""

    def __init__(self, onnx: Any, inputs: list[Any]) -> None:
        self.onnx, self.inputs, self.outputs = onnx, inputs, []
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node, and returns the name of what it gives."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def integers(self, *values: int) -> str:
        """A constant, int64 (n,)."""
        return self._constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant, a float32 scalar."""
        return self._constant(np.array(value, np.float32))

    def floats(self, values: Tensor | np.ndarray) -> str:
        """A constant of float32, held as float16 where that loses nothing."""
        wide = np.ascontiguousarray(
            values.detach().numpy() if isinstance(values, Tensor) else values
        )
        with np.errstate(over="ignore"):
            half = wide.astype(np.float16)
        if wide.size < 2 or not np.array_equal(half.astype(np.float32), wide):
            return self._constant(wide.astype(np.float32))
        return self.op("Cast", self._constant(half), to=self.onnx.TensorProto.FLOAT)

    def _constant(self, values: np.ndarray) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(self.onnx.numpy_helper.from_array(values, name))
        return name

    def model(self, name: str, facts: dict[str, Any]) -> bytes:
        """The bytes of the file; `facts` go into its metadata, one string each."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.weights)
        model = helper.make_model(
            graph,
            producer_name="vqtok",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        words = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in facts.items()
        }
        helper.set_model_props(model, words)
        if model.ByteSize() > _LIMIT:
            raise ModelError(
                "the network is larger than 2 GiB, which ONNX files hold at most",
                "export it to another format",
            )
        return model.SerializeToString(deterministic=True)
