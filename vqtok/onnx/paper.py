"""The networks of the VQ-VAE paper and of VQ-VAE-2 (`vqtok.networks.paper`, `vqvae2`) as nodes of
an ONNX graph.
"""

import math
from collections.abc import Sequence

from vqtok.config import TokenizerConfig
from vqtok.config.paper import layers_of, parse_layer, pixel_scale
from vqtok.config.registry import setting_of
from vqtok.onnx.codes import Codes
from vqtok.onnx.layers import Layers

_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def sequence(net: Layers, name: str, specs: Sequence[str], x: str, channels: int) -> str:
    """Layers named by specs like "down 64", one after the other."""
    g = net.graph
    for number, spec in enumerate(specs):
        kind, size = parse_layer(spec)
        one = f"{name}.{number}"
        if kind in _ACTIVATIONS:
            x = g.op(_ACTIVATIONS[kind], x)
        elif kind in ("block", "block3"):
            y = net.conv(f"{one}.first", g.op("Relu", x), channels, size)
            kernel = 3 if kind == "block3" else 1
            y = net.conv(f"{one}.second", g.op("Relu", y), size, channels, kernel)
            x = g.op("Add", x, y)
        elif kind == "up":
            x = net.transposed(one, x, channels, size)
        else:
            kernel, stride = {"down": (4, 2), "conv": (3, 1), "point": (1, 1)}[kind]
            x = net.conv(one, x, channels, size, kernel, stride)
        channels = size if kind in ("down", "up", "conv", "point") else channels
    return x


def encoder(net: Layers, config: TokenizerConfig, x: str, outputs: int) -> str:
    """The paper's encoder: images (B, C, H, W) in [-1, 1] to vectors (B, D, h, w)."""
    specs, _ = layers_of(config)
    x = net.scaled(x, *pixel_scale(config))
    return sequence(net, "encoder.layers", specs, x, config.channels)


def decoder(net: Layers, config: TokenizerConfig, x: str, outputs: int) -> str:
    """The paper's decoder: vectors (B, D, h, w) to what the likelihood needs."""
    _, specs = layers_of(config)
    made = sequence(
        net, "decoder.layers", specs or _own_decoder(config, outputs), x, config.code_dim
    )
    return net.unscaled(made, *pixel_scale(config))


def _own_decoder(config: TokenizerConfig, outputs: int) -> list[str]:
    """The paper's encoder in reverse, as `vqtok.networks.paper` has it."""
    count, half = int(math.log2(config.downsample)), max(4, config.width // 2)
    specs = [f"conv {config.width}", *[f"block {config.width}"] * config.decoder_blocks, "relu"]
    sizes = [*[config.width] * (count - 2), half, outputs][-count:]
    for size in sizes:
        specs += [f"up {size}", "relu"]
    return specs[:-1]


def vqvae2_encoder(net: Layers, config: TokenizerConfig, x: str, outputs: int) -> str:
    """VQ-VAE-2's encoder: the vectors of the top grid, and those of four places of the bottom."""
    width, dim, g = config.width, config.part_dim, net.graph
    half = max(1, width // 2)
    blocks = [f"block {setting_of(config, 'hidden')}"] * config.encoder_blocks
    down = [f"down {half}", "relu"]
    end = [f"conv {width}", *blocks, "relu"]
    x = net.scaled(x, *pixel_scale(config))
    specs = [*down, f"down {width}", "relu", *end]
    bottom = sequence(net, "encoder.bottom", specs, x, config.channels)
    top = sequence(net, "encoder.top", [*down, *end], bottom, width)
    top = net.conv("encoder.top_vectors", top, width, dim, 1)
    quantized = Codes(g, net.tensors, config).quantized(0, top)
    specs = [f"conv {width}", *blocks, "relu", f"up {dim}"]
    above = sequence(net, "encoder.from_top", specs, quantized, dim)
    joined = g.op("Concat", above, bottom, axis=1)
    vectors = net.conv("encoder.bottom_vectors", joined, dim + width, dim, 1)
    # pixels of a place first, and then channels, as the parts of a vector stand
    return g.op("Concat", top, g.op("SpaceToDepth", vectors, blocksize=2), axis=1)


def vqvae2_decoder(net: Layers, config: TokenizerConfig, x: str, outputs: int) -> str:
    """VQ-VAE-2's decoder."""
    width, dim, g = config.width, config.part_dim, net.graph
    blocks = [f"block {setting_of(config, 'hidden')}"] * config.decoder_blocks
    top = g.op("Slice", x, g.integers(0), g.integers(dim), g.integers(1))
    rest = g.op("Slice", x, g.integers(dim), g.integers(5 * dim), g.integers(1))
    bottom = g.op("DepthToSpace", rest, blocksize=2, mode="DCR")
    wide = net.transposed("decoder.widen_top", top, dim, dim)
    joined = g.op("Concat", wide, bottom, axis=1)
    specs = [f"conv {width}", *blocks, "relu", f"up {max(1, width // 2)}", "relu", f"up {outputs}"]
    made = sequence(net, "decoder.layers", specs, joined, 2 * dim)
    return net.unscaled(made, *pixel_scale(config))
