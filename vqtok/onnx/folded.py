"""The folded network (`vqtok.networks.vqvae`) as nodes of an ONNX graph."""

from collections.abc import Iterator
from itertools import count

import numpy as np

from vqtok.config import TokenizerConfig
from vqtok.onnx.layers import Layers


def encoder(net: Layers, config: TokenizerConfig, x: str, outputs: int) -> str:
    """Images (B, C, H, W) in [-1, 1] to vectors (B, D, h, w)."""
    if config.is_pixels:
        return x
    widths, numbers = config.encoder_widths, count(1)
    x = net.unshuffle(x, config.channels, config.fold)
    x = net.conv(_at("encoder", numbers), x, config.channels * config.fold**2, widths[0])
    for stage, width in enumerate(widths):
        if stage:
            name, finer = _at("encoder", numbers), widths[stage - 1]
            y = net.conv(name, x, finer, width, 4, stride=2)
            x = net.graph.op("Add", y, _averaged(net, x, finer, width)) if config.shortcut else y
        for _ in range(config.encoder_blocks):
            x = _block(net, _at("encoder", numbers), x, width)
    next(numbers)  # SiLU
    return net.conv(_at("encoder", numbers), net.silu(x), widths[-1], config.code_dim, 1)


def decoder(net: Layers, config: TokenizerConfig, x: str, outputs: int) -> str:
    """Vectors (B, D, h, w) to what the likelihood needs, `outputs` channels, (B, n*C, H, W)."""
    if config.is_pixels:
        return x
    stages, numbers = config.decoder_stages, count()
    x = net.conv(_at("decoder", numbers), x, config.code_dim, stages[-1][0])
    for stage in reversed(range(len(stages))):
        width, depth = stages[stage]
        for _ in range(depth):
            x = _block(net, _at("decoder", numbers), x, width)
        if stage:
            wide = 4 * stages[stage - 1][0]
            y = net.conv(_at("decoder", numbers), x, width, wide)
            y = net.graph.op("Add", y, _repeated(net, x, width, wide)) if config.shortcut else y
            x = net.shuffle(y, 2)
            next(numbers)  # PixelShuffle
    next(numbers)  # SiLU
    fold = config.downsample // 2 ** (len(stages) - 1)
    last = net.conv(_at("decoder", numbers), net.silu(x), stages[0][0], outputs * fold**2)
    return net.shuffle(last, fold)


def _at(part: str, numbers: Iterator[int]) -> str:
    return f"{part}.{next(numbers)}"


def _block(net: Layers, name: str, x: str, width: int) -> str:
    y = net.conv(f"{name}.first", net.silu(x), width, width)
    return net.graph.op("Add", x, net.conv(f"{name}.second", net.silu(y), width, width))


def _averaged(net: Layers, x: str, inputs: int, outputs: int) -> str:
    """Folds 2x2 positions of x into channels, and averages neighboring ones."""
    parts = 4 * inputs // outputs
    means = net.graph.floats(np.full((outputs, parts, 1, 1), 1 / parts, np.float32))
    return net.graph.op("Conv", net.unshuffle(x, inputs, 2), means, group=outputs)


def _repeated(net: Layers, x: str, inputs: int, outputs: int) -> str:
    """Repeats each channel of x."""
    times = outputs // inputs
    which = net.graph.integers(*(channel // times for channel in range(outputs)))
    return net.graph.op("Gather", x, which, axis=1)
