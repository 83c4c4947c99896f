"""The layers of all networks as nodes of an ONNX graph."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from vqtok.config.paper import pixel_scale
from vqtok.interop.onnx_codes import linear, nearest
from vqtok.interop.onnx_graph import Graph
from vqtok.networks import magvit2, paper, vqgan, vqvae, vqvae2


def emit(g: Graph, module: nn.Module, x: str) -> str:
    """Adds what a module of the networks does to x (B, C, H, W)."""
    for kind, emit in _LAYERS.items():
        if isinstance(module, kind):
            return emit(g, module, x)
    raise AssertionError(type(module))


def _sequence(g: Graph, module: Any, x: str) -> str:
    for part in module:
        x = emit(g, part, x)
    return x


def _convolution(g: Graph, module: nn.Conv2d | nn.ConvTranspose2d, x: str) -> str:
    assert isinstance(module.padding, tuple)
    assert module.bias is not None
    (top, left), weight = module.padding, g.floats(module.weight)
    return g.op(
        "Conv" if isinstance(module, nn.Conv2d) else "ConvTranspose",
        *(x, weight, g.floats(module.bias)),
        strides=list(module.stride),
        pads=[top, left, top, left],
    )


def _silu(g: Graph, module: Any, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", x))


def _shuffle(g: Graph, module: nn.PixelShuffle, x: str) -> str:
    return g.op("DepthToSpace", x, blocksize=module.upscale_factor, mode="CRD")


def _unshuffle(g: Graph, channels: int, factor: int, x: str) -> str:
    """PixelUnshuffle. SpaceToDepth gives the pixels of a place first, and then channels: they are
    put in order.
    """
    order = np.arange(factor**2 * channels).reshape(factor**2, channels).T.ravel().tolist()
    return g.op("Gather", g.op("SpaceToDepth", x, blocksize=factor), g.integers(*order), axis=1)


def _encoder_layers(g: Graph, module: vqvae.Encoder, x: str) -> str:
    if not len(module):
        return x
    fold, first = module[0], module[1]
    assert isinstance(fold, nn.PixelUnshuffle)
    assert isinstance(first, nn.Conv2d)
    factor = fold.downscale_factor
    x = _unshuffle(g, first.in_channels // factor**2, factor, x)
    return _sequence(g, list(module)[1:], x)


def _paper_block(g: Graph, module: paper.ResidualBlock, x: str) -> str:
    y = g.op("Relu", _convolution(g, module.first, g.op("Relu", x)))
    return g.op("Add", x, _convolution(g, module.second, y))


def _scaled(g: Graph, module: Any, x: str) -> str:
    """Pixels in [-1, 1] in the range of the network."""
    scale, shift = _scale(g, module)
    return g.op("Add", g.op("Mul", x, scale), shift) if scale else x


def _unscaled(g: Graph, module: Any, x: str) -> str:
    scale, shift = _scale(g, module)
    return g.op("Div", g.op("Sub", x, shift), scale) if scale else x


def _scale(g: Graph, module: Any) -> list[str]:
    return [
        g.floats(np.array(values, np.float32).reshape(1, -1, 1, 1)) if values else ""
        for values in pixel_scale(module.config)
    ]


def _paper_encoder(g: Graph, module: paper.Encoder, x: str) -> str:
    return _sequence(g, module.layers, _scaled(g, module, x))


def _paper_decoder(g: Graph, module: paper.Decoder, x: str) -> str:
    return _unscaled(g, module, _sequence(g, module.layers, x))


def _residual_block(g: Graph, module: vqvae.ResidualBlock, x: str) -> str:
    y = _convolution(g, module.first, _silu(g, None, x))
    return g.op("Add", x, _convolution(g, module.second, _silu(g, None, y)))


def _downsample(g: Graph, module: vqvae.Downsample, x: str) -> str:
    inputs, outputs = module.in_channels, module.out_channels
    folded = _unshuffle(g, inputs, 2, x)
    count = 4 * inputs // outputs
    means = g.floats(np.full((outputs, count, 1, 1), 1 / count, np.float32))
    return g.op("Add", _convolution(g, module, x), g.op("Conv", folded, means, group=outputs))


def _upsample(g: Graph, module: vqvae.Upsample, x: str) -> str:
    count = module.out_channels // module.in_channels
    which = g.integers(*(channel // count for channel in range(module.out_channels)))
    return g.op("Add", _convolution(g, module, x), g.op("Gather", x, which, axis=1))


def _normalized(g: Graph, groups: int, epsilon: float, x: str) -> str:
    parts = g.op("Reshape", x, g.integers(0, groups, -1))
    one, zero = g.floats(np.ones(groups, np.float32)), g.floats(np.zeros(groups, np.float32))
    normal = g.op("InstanceNormalization", parts, one, zero, epsilon=epsilon)
    return g.op("Reshape", normal, g.op("Shape", x))


def _group_norm(g: Graph, module: nn.GroupNorm, x: str) -> str:
    normal = _normalized(g, module.num_groups, module.eps, x)
    scale, offset = (g.floats(part[:, None, None]) for part in (module.weight, module.bias))
    return g.op("Add", g.op("Mul", normal, scale), offset)


def _resnet_block(g: Graph, module: vqgan.ResnetBlock, x: str) -> str:
    y = _convolution(g, module.conv1, _silu(g, None, _group_norm(g, module.norm1, x)))
    y = _convolution(g, module.conv2, _silu(g, None, _group_norm(g, module.norm2, y)))
    kept = _convolution(g, module.shortcut, x) if hasattr(module, "shortcut") else x
    return g.op("Add", kept, y)


def _attention(g: Graph, module: vqgan.Attention, x: str) -> str:
    channels = module.query.in_features
    flat = g.op("Reshape", _group_norm(g, module.norm, x), g.integers(0, channels, -1))
    tokens = g.op("Transpose", flat, perm=[0, 2, 1])  # (B, h*w, C)
    query, key, value = (
        linear(g, part, tokens) for part in (module.query, module.key, module.value)
    )
    scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 2, 1]))
    shares = g.op("Softmax", g.op("Mul", scores, g.number(channels**-0.5)), axis=-1)
    y = linear(g, module.out, g.op("MatMul", shares, value))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1]), g.op("Shape", x))
    return g.op("Add", x, y)


def _coarser(g: Graph, module: vqgan.Downsample, x: str) -> str:
    assert module.bias is not None
    weight, bias = g.floats(module.weight), g.floats(module.bias)
    return g.op("Conv", x, weight, bias, strides=[2, 2], pads=[0, 0, 1, 1])


def _finer(g: Graph, module: vqgan.Upsample, x: str) -> str:
    scales = g.floats(np.array([1, 1, 2, 2], np.float32))
    words = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _convolution(g, module, g.op("Resize", x, "", scales, mode="nearest", **words))


def _stage(g: Graph, module: vqgan.Stage, x: str) -> str:
    for i, block in enumerate(module.blocks):
        x = emit(g, block, x)
        if len(module.attention):
            x = emit(g, module.attention[i], x)
    return x if module.resample is None else emit(g, module.resample, x)


def _middle(g: Graph, module: vqgan.MidBlock, x: str) -> str:
    for part in (module.before, module.attention, module.after, module.more):
        x = emit(g, part, x)
    return x


def _classic_encoder(g: Graph, module: vqgan.Encoder, x: str) -> str:
    x = emit(g, module.first, _scaled(g, module, x))
    x = emit(g, module.middle, _sequence(g, module.stages, x))
    x = emit(g, module.last, _silu(g, None, _group_norm(g, module.norm, x)))
    return emit(g, module.project, x)


def _classic_decoder(g: Graph, module: vqgan.Decoder, x: str) -> str:
    x = emit(g, module.middle, emit(g, module.first, emit(g, module.project, x)))
    x = _group_norm(g, module.norm, _sequence(g, module.stages, x))
    return _unscaled(g, module, emit(g, module.last, _silu(g, None, x)))


def _magvit2_encoder(g: Graph, module: magvit2.Encoder, x: str) -> str:
    x = emit(g, module.first, _scaled(g, module, x))
    x = emit(g, module.middle, _sequence(g, module.stages, x))
    return emit(g, module.last, _silu(g, None, _group_norm(g, module.norm, x)))


def _magvit2_decoder(g: Graph, module: magvit2.Decoder, x: str) -> str:
    codes = g.op("Reshape", x, g.integers(0, module.first.in_channels, -1))  # (B, D, h*w)
    size = g.op("Slice", g.op("Shape", codes), g.integers(2), g.integers(3))
    others = g.op("Max", g.op("Sub", size, g.integers(1)), g.integers(1))
    mean = g.op("ReduceMean", codes, g.integers(2), keepdims=1)
    apart = g.op("Sub", codes, mean)
    squares = g.op("ReduceSum", g.op("Mul", apart, apart), g.integers(2), keepdims=0)
    variance = g.op("Div", squares, g.op("Cast", others, to=g.onnx.TensorProto.FLOAT))
    spread = g.op("Sqrt", g.op("Add", variance, g.number(vqgan.EPSILON)))  # (B, D)
    mean = g.op("Squeeze", mean, g.integers(2))
    x = emit(g, module.middle, emit(g, module.first, x))
    for adapt, stage in zip(module.adapt, module.stages, strict=True):
        assert isinstance(adapt, magvit2.AdaptiveNorm)
        scale, shift = (
            g.op("Unsqueeze", linear(g, layer, values), g.integers(2, 3))
            for layer, values in ((adapt.scale, spread), (adapt.shift, mean))
        )
        normal = _normalized(g, adapt.groups, vqgan.EPSILON, x)
        x = emit(g, stage, g.op("Add", g.op("Mul", normal, scale), shift))
    x = _silu(g, None, _group_norm(g, module.norm, x))
    return _unscaled(g, module, emit(g, module.last, x))


def _shuffled(g: Graph, module: magvit2.Upsample, x: str) -> str:
    return g.op("DepthToSpace", _convolution(g, module, x), blocksize=2, mode="CRD")


def _two_grids_encoder(g: Graph, module: vqvae2.Encoder, x: str) -> str:
    bottom = emit(g, module.bottom, _scaled(g, module, x))
    top = emit(g, module.top_vectors, emit(g, module.top, bottom))
    index = nearest(g, module.top_quantizer, g.op("Transpose", top, perm=[0, 2, 3, 1]))
    entries = g.floats(module.top_quantizer.codebooks()[0])
    quantized = g.op("Transpose", g.op("Gather", entries, index), perm=[0, 3, 1, 2])
    joined = g.op("Concat", emit(g, module.from_top, quantized), bottom, axis=1)
    vectors = emit(g, module.bottom_vectors, joined)
    # pixels of a place first, and then channels, as the parts of a vector stand
    return g.op("Concat", top, g.op("SpaceToDepth", vectors, blocksize=2), axis=1)


def _two_grids_decoder(g: Graph, module: vqvae2.Decoder, x: str) -> str:
    dim = module.config.part_dim
    top = g.op("Slice", x, g.integers(0), g.integers(dim), g.integers(1))
    rest = g.op("Slice", x, g.integers(dim), g.integers(5 * dim), g.integers(1))
    bottom = g.op("DepthToSpace", rest, blocksize=2, mode="DCR")
    joined = g.op("Concat", emit(g, module.widen_top, top), bottom, axis=1)
    return _unscaled(g, module, emit(g, module.layers, joined))


# Subclasses before their base.
_LAYERS: dict[type[nn.Module], Callable[[Graph, Any, str], str]] = {
    paper.Encoder: _paper_encoder,
    paper.Decoder: _paper_decoder,
    vqvae2.Encoder: _two_grids_encoder,
    vqvae2.Decoder: _two_grids_decoder,
    magvit2.Downsample: _convolution,
    magvit2.Upsample: _shuffled,
    magvit2.Encoder: _magvit2_encoder,
    magvit2.Decoder: _magvit2_decoder,
    paper.ResidualBlock: _paper_block,
    nn.ConvTranspose2d: _convolution,
    nn.ReLU: lambda g, _, x: g.op("Relu", x),
    nn.Tanh: lambda g, _, x: g.op("Tanh", x),
    nn.Sigmoid: lambda g, _, x: g.op("Sigmoid", x),
    vqvae.Encoder: _encoder_layers,
    vqvae.ResidualBlock: _residual_block,
    vqvae.Downsample: _downsample,
    vqvae.Upsample: _upsample,
    vqgan.Downsample: _coarser,
    vqgan.Upsample: _finer,
    vqgan.ResnetBlock: _resnet_block,
    vqgan.Attention: _attention,
    vqgan.Stage: _stage,
    vqgan.MidBlock: _middle,
    vqgan.Encoder: _classic_encoder,
    vqgan.Decoder: _classic_decoder,
    nn.Identity: lambda g, module, x: x,
    nn.SiLU: _silu,
    nn.PixelShuffle: _shuffle,
    nn.Conv2d: _convolution,
    nn.Sequential: _sequence,
}
