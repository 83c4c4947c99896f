"""The VQGAN's network and Open-MAGVIT2's (`vqtok.networks.vqgan`, `magvit2`) as nodes of an ONNX
graph.
"""

from collections.abc import Callable

import numpy as np

from vqtok.config import TokenizerConfig
from vqtok.config.paper import pixel_scale
from vqtok.config.registry import setting_of
from vqtok.onnx.layers import Layers

EPSILON = 1e-6  # of the normalization
Resample = Callable[[str, str, int], str]  # of a name, a value and its channels


class Classic:
    """Adds the blocks that both networks are made of."""

    def __init__(self, net: Layers, config: TokenizerConfig) -> None:
        self.net, self.config, self.groups = net, config, config.groups

    def norm(self, name: str, x: str, channels: int) -> str:
        return self.net.group_norm(name, x, channels, self.groups, EPSILON)

    def block(self, name: str, x: str, inputs: int, outputs: int) -> str:
        net = self.net
        y = net.silu(self.norm(f"{name}.norm1", x, inputs))
        y = net.conv(f"{name}.conv1", y, inputs, outputs)
        y = net.silu(self.norm(f"{name}.norm2", y, outputs))
        y = net.conv(f"{name}.conv2", y, outputs, outputs)
        kept = x if inputs == outputs else net.conv(f"{name}.shortcut", x, inputs, outputs, 1)
        return net.graph.op("Add", kept, y)

    def attention(self, name: str, x: str, channels: int) -> str:
        """Adds to x (B, C, h, w) what each position gathers from all others."""
        net, g = self.net, self.net.graph
        normal = self.norm(f"{name}.norm", x, channels)
        flat = g.op("Reshape", normal, g.integers(0, channels, -1))
        tokens = g.op("Transpose", flat, perm=[0, 2, 1])  # (B, h*w, C)
        query, key, value = (
            net.linear(f"{name}.{part}", tokens, channels, channels)
            for part in ("query", "key", "value")
        )
        scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 2, 1]))
        shares = g.op("Softmax", g.op("Mul", scores, g.number(channels**-0.5)), axis=-1)
        y = net.linear(f"{name}.out", g.op("MatMul", shares, value), channels, channels)
        y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1]), g.op("Shape", x))
        return g.op("Add", x, y)

    def stage(
        self,
        name: str,
        x: str,
        inputs: int,
        outputs: int,
        count: int,
        attention: bool = False,
        resample: Resample | None = None,
    ) -> str:
        """Blocks at one resolution, and the change to the next."""
        for i in range(count):
            x = self.block(f"{name}.blocks.{i}", x, outputs if i else inputs, outputs)
            if attention:
                x = self.attention(f"{name}.attention.{i}", x, outputs)
        return x if resample is None else resample(f"{name}.resample", x, outputs)

    def middle(self, name: str, x: str) -> str:
        """The VQGAN's blocks at the coarsest resolution."""
        channels, count = self.config.stages[-1], setting_of(self.config, "middle_blocks")
        x = self.block(f"{name}.before", x, channels, channels)
        if len(self.config.stages) in self.config.attention:
            x = self.attention(f"{name}.attention", x, channels)
        names = [f"{name}.after", *(f"{name}.more.{i}" for i in range(count - 2))]
        for later in names[: count - 1]:
            x = self.block(later, x, channels, channels)
        return x

    def coarser(self, name: str, x: str, channels: int) -> str:
        """Halves the resolution; padded at the right and at the bottom alone."""
        return self.net.conv(name, x, channels, channels, 3, stride=2, pads=(0, 0, 1, 1))

    def coarser_magvit2(self, name: str, x: str, channels: int) -> str:
        return self.net.conv(name, x, channels, channels, 3, stride=2)

    def finer(self, name: str, x: str, channels: int) -> str:
        """Doubles the resolution: each position four times, then a convolution."""
        g = self.net.graph
        scales = g.floats(np.array([1, 1, 2, 2], np.float32))
        words = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        x = g.op("Resize", x, "", scales, mode="nearest", **words)
        return self.net.conv(name, x, channels, channels)

    def finer_magvit2(self, name: str, x: str, channels: int) -> str:
        return self.net.shuffle(self.net.conv(name, x, channels, 4 * channels), 2)


def encoder(net: Layers, config: TokenizerConfig, x: str, outputs: int) -> str:
    """The VQGAN's encoder: images (B, C, H, W) in [-1, 1] to vectors (B, D, h, w)."""
    part, stages = Classic(net, config), config.stages
    x = _coarser_stages(part, x, part.coarser)
    x = net.silu(part.norm("encoder.norm", part.middle("encoder.middle", x), stages[-1]))
    x = net.conv("encoder.last", x, stages[-1], config.z_channels)
    return net.conv("encoder.project", x, config.z_channels, config.code_dim, 1)


def decoder(net: Layers, config: TokenizerConfig, x: str, outputs: int) -> str:
    """The VQGAN's decoder: vectors (B, D, h, w) to images (B, C, H, W)."""
    part, stages, last = Classic(net, config), config.stages, len(config.stages) - 1
    x = net.conv("decoder.project", x, config.code_dim, config.z_channels, 1)
    x = net.conv("decoder.first", x, config.z_channels, stages[-1])
    x = part.middle("decoder.middle", x)
    for number, i in enumerate(reversed(range(len(stages)))):
        x = part.stage(
            f"decoder.stages.{number}",
            x,
            stages[min(i + 1, last)],
            stages[i],
            config.decoder_blocks,
            i in config.attention,
            part.finer if i else None,
        )
    x = net.silu(part.norm("decoder.norm", x, stages[0]))
    return net.unscaled(
        net.conv("decoder.last", x, stages[0], config.channels), *pixel_scale(config)
    )


def magvit2_encoder(net: Layers, config: TokenizerConfig, x: str, outputs: int) -> str:
    """Open-MAGVIT2's encoder."""
    part, channels = Classic(net, config), config.stages[-1]
    x = _coarser_stages(part, x, part.coarser_magvit2)
    for i in range(config.encoder_blocks):
        x = part.block(f"encoder.middle.{i}", x, channels, channels)
    x = net.silu(part.norm("encoder.norm", x, channels))
    return net.conv("encoder.last", x, channels, config.code_dim, 1)


def magvit2_decoder(net: Layers, config: TokenizerConfig, x: str, outputs: int) -> str:
    """Open-MAGVIT2's decoder, which scales and shifts features by mean and spread of the codes."""
    part, stages, dim, g = Classic(net, config), config.stages, config.code_dim, net.graph
    mean, spread = _moments(net, x, dim)
    x = net.conv("decoder.first", x, dim, stages[-1])
    for i in range(config.decoder_blocks):
        x = part.block(f"decoder.middle.{i}", x, stages[-1], stages[-1])
    inputs = [*stages[1:], stages[-1]]
    for number, i in enumerate(reversed(range(len(stages)))):
        scale, shift = (
            g.op(
                "Unsqueeze",
                net.linear(f"decoder.adapt.{number}.{name}", values, dim, inputs[i]),
                g.integers(2, 3),
            )
            for name, values in (("scale", spread), ("shift", mean))
        )
        normal = net.normalized(x, config.groups, EPSILON)
        x = part.stage(
            f"decoder.stages.{number}",
            g.op("Add", g.op("Mul", normal, scale), shift),
            inputs[i],
            stages[i],
            config.decoder_blocks,
            resample=part.finer_magvit2 if i else None,
        )
    x = net.silu(part.norm("decoder.norm", x, stages[0]))
    return net.unscaled(net.conv("decoder.last", x, stages[0], outputs), *pixel_scale(config))


def _coarser_stages(part: Classic, x: str, resample: Resample) -> str:
    """The first convolution of an encoder and its stages."""
    config, stages, net = part.config, part.config.stages, part.net
    x = net.conv("encoder.first", net.scaled(x, *pixel_scale(config)), config.channels, stages[0])
    for i, channels in enumerate(stages):
        x = part.stage(
            f"encoder.stages.{i}",
            x,
            stages[max(0, i - 1)],
            channels,
            config.encoder_blocks,
            i in config.attention,
            resample if i < len(stages) - 1 else None,
        )
    return x


def _moments(net: Layers, x: str, dim: int) -> tuple[str, str]:
    """Mean and standard deviation over positions of codes x (B, D, h, w), (B, D) each."""
    g = net.graph
    codes = g.op("Reshape", x, g.integers(0, dim, -1))  # (B, D, h*w)
    size = g.op("Slice", g.op("Shape", codes), g.integers(2), g.integers(3))
    others = g.op("Max", g.op("Sub", size, g.integers(1)), g.integers(1))
    mean = g.op("ReduceMean", codes, g.integers(2), keepdims=1)
    apart = g.op("Sub", codes, mean)
    squares = g.op("ReduceSum", g.op("Mul", apart, apart), g.integers(2), keepdims=0)
    variance = g.op("Div", squares, g.op("Cast", others, to=1))  # to float32
    spread = g.op("Sqrt", g.op("Add", variance, g.number(EPSILON)))
    return g.op("Squeeze", mean, g.integers(2)), spread
