"""Layers that several networks share, as nodes of an ONNX graph.

Names of tensors are those of the modules in `vqtok.networks`, whose order of computation this
follows.
"""

from collections.abc import Sequence

import numpy as np

from vqtok.onnx.graph import Graph
from vqtok.onnx.tensors import Tensors


class Layers:
    """Adds layers to a graph, each with the tensors under its name; values are (B, C, H, W)."""

    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        self.graph, self.tensors = graph, tensors

    def conv(
        self,
        name: str,
        x: str,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        pads: Sequence[int] | None = None,
    ) -> str:
        """A convolution from `inputs` to `outputs` channels.

        pads are at the top, left, bottom and right; by default a kernel of 3 and stride 1 keeps
        the size, and so on: (kernel - 1) // 2 on all sides.
        """
        weight = self.tensors.get(f"{name}.weight", outputs, inputs, kernel, kernel)
        bias = self.tensors.get(f"{name}.bias", outputs)
        g, around = self.graph, [(kernel - 1) // 2] * 4 if pads is None else list(pads)
        return g.op("Conv", x, g.floats(weight), g.floats(bias), strides=[stride] * 2, pads=around)

    def transposed(self, name: str, x: str, inputs: int, outputs: int) -> str:
        """A transposed 4x4 convolution that doubles the resolution."""
        weight = self.tensors.get(f"{name}.weight", inputs, outputs, 4, 4)
        bias = self.tensors.get(f"{name}.bias", outputs)
        g = self.graph
        return g.op(
            "ConvTranspose", x, g.floats(weight), g.floats(bias), strides=[2, 2], pads=[1] * 4
        )

    def linear(self, name: str, x: str, inputs: int, outputs: int) -> str:
        """A linear layer over the last axis of x."""
        g, weight = self.graph, self.tensors.get(f"{name}.weight", outputs, inputs)
        bias = self.tensors.get(f"{name}.bias", outputs)
        return g.op("Add", g.op("MatMul", x, g.floats(weight.T)), g.floats(bias))

    def silu(self, x: str) -> str:
        return self.graph.op("Mul", x, self.graph.op("Sigmoid", x))

    def shuffle(self, x: str, factor: int) -> str:
        """PixelShuffle."""
        return self.graph.op("DepthToSpace", x, blocksize=factor, mode="CRD")

    def unshuffle(self, x: str, channels: int, factor: int) -> str:
        """PixelUnshuffle. SpaceToDepth gives the pixels of a place first, and then channels: they
        are put in order.
        """
        g = self.graph
        order = np.arange(factor**2 * channels).reshape(factor**2, channels).T.ravel().tolist()
        return g.op("Gather", g.op("SpaceToDepth", x, blocksize=factor), g.integers(*order), axis=1)

    def normalized(self, x: str, groups: int, epsilon: float) -> str:
        """x in groups of channels, each of mean 0 and variance 1."""
        g = self.graph
        parts = g.op("Reshape", x, g.integers(0, groups, -1))
        one, zero = g.floats(np.ones(groups, np.float32)), g.floats(np.zeros(groups, np.float32))
        normal = g.op("InstanceNormalization", parts, one, zero, epsilon=epsilon)
        return g.op("Reshape", normal, g.op("Shape", x))

    def group_norm(self, name: str, x: str, channels: int, groups: int, epsilon: float) -> str:
        g = self.graph
        normal = self.normalized(x, groups, epsilon)
        scale, offset = (
            g.floats(self.tensors.get(f"{name}.{part}", channels)[:, None, None])
            for part in ("weight", "bias")
        )
        return g.op("Add", g.op("Mul", normal, scale), offset)

    def scaled(self, x: str, scale: Sequence[float], shift: Sequence[float]) -> str:
        """x * scale + shift, of one number or one a channel; x where there are none."""
        if not scale:
            return x
        g = self.graph
        return g.op("Add", g.op("Mul", x, self._per_channel(scale)), self._per_channel(shift))

    def unscaled(self, x: str, scale: Sequence[float], shift: Sequence[float]) -> str:
        """Inverts `scaled`."""
        if not scale:
            return x
        g = self.graph
        return g.op("Div", g.op("Sub", x, self._per_channel(shift)), self._per_channel(scale))

    def _per_channel(self, values: Sequence[float]) -> str:
        return self.graph.floats(np.array(values, np.float32).reshape(1, -1, 1, 1))
