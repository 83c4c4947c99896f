"""Tokenizers as two ONNX graphs, which run without vqtok and torch.

`encoder.onnx` turns `image`, uint8 (B, C, H, W) of any size, into `indices`, int64 (B, L, h, w);
it pads as vqtok does. `decoder.onnx` turns `indices` (B, n, h, w) of the first n levels, n from 1
to L, into `image`, uint8 (B, C, h*f, w*f), which the caller crops. Weights are float16 where that
loses nothing, and are cast once, when a program loads them: all is computed in float32.
"""

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqtok import codec
from vqtok.config import TokenizerConfig
from vqtok.config.paper import pixel_scale
from vqtok.errors import InputError, ModelError
from vqtok.interop.export import Exported
from vqtok.losses.likelihood import Bernoulli, Heteroscedastic
from vqtok.model_registry import ModelFolder
from vqtok.networks import paper, vqgan, vqvae
from vqtok.quantizers import Quantizer
from vqtok.quantizers.codebook import Codebook
from vqtok.quantizers.finite import FSQuantizer, LFQuantizer
from vqtok.quantizers.pixels import PixelQuantizer
from vqtok.quantizers.residual import ResidualQuantizer
from vqtok.weights import Weights, codes_fingerprint

OPSET, IR_VERSION = 18, 10  # onnxruntime reads them since 1.18
_LIMIT = 2**31 - 2**20  # bytes: no file in this format is larger


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


class _Graph:
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
        """Adds a constant, int64 (n,)."""
        return self._constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """Adds a constant, a float32 scalar."""
        return self._constant(np.array(value, np.float32))

    def floats(self, values: Tensor | np.ndarray) -> str:
        """Adds a constant of float32, held as float16 where that loses nothing."""
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
        """Returns the bytes of the file; `facts` go into its metadata, one string each."""
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


# Encoder


def _encoder(onnx: Any, network: vqvae.VQVAE) -> _Graph:
    config = network.config
    sides: list[str | int] = ["B", config.channels, "H", "W"]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, sides)
    g = _Graph(onnx, [image])
    x = g.op("Cast", "image", to=onnx.TensorProto.FLOAT)
    x = _pad(g, x, config.downsample)
    x = g.op("Sub", g.op("Div", x, g.number(127.5)), g.number(1))
    z = _emit(g, network.encoder, x)
    indices = g.op("Identity", _quantize(g, network.quantizer, z))
    g.nodes[-1].output[0] = "indices"
    assert indices
    shape: list[str | int] = ["B", config.levels, "h", "w"]
    g.outputs = [onnx.helper.make_tensor_value_info("indices", onnx.TensorProto.INT64, shape)]
    return g


def _pad(g: _Graph, x: str, f: int) -> str:
    """Pads (B, C, H, W) at the bottom and right by its edge until f divides H and W."""
    sides = g.op("Slice", g.op("Shape", x), g.integers(2), g.integers(4))
    rest = g.op("Mod", sides, g.integers(f))
    missing = g.op("Mod", g.op("Sub", g.integers(f), rest), g.integers(f))  # (2,)
    pads = g.op("Concat", g.integers(0, 0, 0, 0, 0, 0), missing, axis=0)
    return g.op("Pad", x, pads, mode="edge")


def _quantize(g: _Graph, quantizer: Quantizer, z: str) -> str:
    """Adds the quantizer: indices (B, L, h, w) of vectors (B, D, h, w)."""
    if isinstance(quantizer, PixelQuantizer):
        bounded = g.op("Clip", z, g.number(-1), g.number(1))
        scale = g.number((quantizer.codebook_size - 1) / 2)
        rounded = g.op("Round", g.op("Mul", g.op("Add", bounded, g.number(1)), scale))
        return g.op("Cast", rounded, to=g.onnx.TensorProto.INT64)
    residual = g.op("Transpose", z, perm=[0, 2, 3, 1])  # (B, h, w, D)
    levels = (
        [part for part in quantizer.quantizers if isinstance(part, Quantizer)]
        if isinstance(quantizer, ResidualQuantizer)
        else [quantizer]
    )
    found = []
    for number, level in enumerate(levels):
        index = _nearest(g, level, residual)  # (B, h, w)
        found.append(g.op("Unsqueeze", index, g.integers(1)))
        if number + 1 < len(levels):
            entries = g.floats(level.codebooks()[0])
            residual = g.op("Sub", residual, g.op("Gather", entries, index))
    return g.op("Concat", *found, axis=1)


def _nearest(g: _Graph, level: Quantizer, x: str) -> str:
    """Adds one level: indices (B, h, w) for x (B, h, w, D)."""
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


def _digits(g: _Graph, level: FSQuantizer | LFQuantizer, x: str) -> str:
    sizes = np.array(level.sizes)
    inner = _linear(g, level.inward, x)  # (B, h, w, d)
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


# Decoder


def _decoder(onnx: Any, network: vqvae.VQVAE) -> _Graph:
    config = network.config
    sides: list[str | int] = ["B", "n", "h", "w"]
    indices = onnx.helper.make_tensor_value_info("indices", onnx.TensorProto.INT64, sides)
    g = _Graph(onnx, [indices])
    output = _emit(g, network.decoder, _lookup(g, network.quantizer))
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


def _lookup(g: _Graph, quantizer: Quantizer) -> str:
    """Adds the lookup: vectors (B, D, h, w) of the input `indices` (B, n, h, w), any n from 1
    to L.
    """
    entries = quantizer.codebooks()  # (L, K, D)
    L, K, D = entries.shape
    count = g.op("Slice", g.op("Shape", "indices"), g.integers(1), g.integers(2))  # (1,)
    numbers = g.op("Slice", g.integers(*range(L)), g.integers(0), count)  # (n,)
    starts = g.op("Unsqueeze", g.op("Mul", numbers, g.integers(K)), g.integers(1, 2))  # (n, 1, 1)
    places = g.op("Add", "indices", starts)
    # (B, n, h, w, D)
    parts = g.op("Gather", g.floats(entries.reshape(L * K, D)), places)
    total = g.op("ReduceSum", parts, g.integers(1), keepdims=0)  # (B, h, w, D)
    if isinstance(quantizer, ResidualQuantizer):
        last = g.op("Sub", count, g.integers(1))
        total = g.op("Add", total, g.op("Gather", g.floats(quantizer.depth), last))
    if isinstance(quantizer, PixelQuantizer) and L > 1:
        # channels that are missing show the mean of those that are known
        known = g.op("Less", g.integers(*range(L)), count)  # (L,)
        sums = g.op("ReduceSum", total, g.integers(-1))
        mean = g.op("Div", sums, g.op("Cast", count, to=g.onnx.TensorProto.FLOAT))
        total = g.op("Where", known, total, mean)
    return g.op("Transpose", total, perm=[0, 3, 1, 2])


# Layers


def _emit(g: _Graph, module: nn.Module, x: str) -> str:
    """Adds what a module of the networks does to x (B, C, H, W)."""
    for kind, emit in _LAYERS.items():
        if isinstance(module, kind):
            return emit(g, module, x)
    raise AssertionError(type(module))


def _sequence(g: _Graph, module: Any, x: str) -> str:
    for part in module:
        x = _emit(g, part, x)
    return x


def _convolution(g: _Graph, module: nn.Conv2d | nn.ConvTranspose2d, x: str) -> str:
    assert isinstance(module.padding, tuple)
    assert module.bias is not None
    (top, left), weight = module.padding, g.floats(module.weight)
    return g.op(
        "Conv" if isinstance(module, nn.Conv2d) else "ConvTranspose",
        *(x, weight, g.floats(module.bias)),
        strides=list(module.stride),
        pads=[top, left, top, left],
    )


def _linear(g: _Graph, module: nn.Linear, x: str) -> str:
    return g.op("Add", g.op("MatMul", x, g.floats(module.weight.T)), g.floats(module.bias))


def _silu(g: _Graph, module: Any, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", x))


def _shuffle(g: _Graph, module: nn.PixelShuffle, x: str) -> str:
    return g.op("DepthToSpace", x, blocksize=module.upscale_factor, mode="CRD")


def _unshuffle(g: _Graph, channels: int, factor: int, x: str) -> str:
    """Adds a PixelUnshuffle. SpaceToDepth gives the pixels of a position first, and then channels:
    they are put in order.
    """
    order = np.arange(factor**2 * channels).reshape(factor**2, channels).T.ravel().tolist()
    return g.op("Gather", g.op("SpaceToDepth", x, blocksize=factor), g.integers(*order), axis=1)


def _encoder_layers(g: _Graph, module: vqvae.Encoder, x: str) -> str:
    if not len(module):
        return x
    fold, first = module[0], module[1]
    assert isinstance(fold, nn.PixelUnshuffle)
    assert isinstance(first, nn.Conv2d)
    factor = fold.downscale_factor
    x = _unshuffle(g, first.in_channels // factor**2, factor, x)
    return _sequence(g, list(module)[1:], x)


def _paper_block(g: _Graph, module: paper.ResidualBlock, x: str) -> str:
    y = g.op("Relu", _convolution(g, module.first, g.op("Relu", x)))
    return g.op("Add", x, _convolution(g, module.second, y))


def _paper_side(g: _Graph, module: paper.Encoder | paper.Decoder, x: str) -> str:
    """Adds the layers between the scalings of the pixels."""
    scale, shift = (
        g.floats(np.array(values, np.float32).reshape(1, -1, 1, 1)) if values else ""
        for values in pixel_scale(module.config)
    )
    if scale and isinstance(module, paper.Encoder):
        x = g.op("Add", g.op("Mul", x, scale), shift)
    x = _sequence(g, module.layers, x)
    if scale and isinstance(module, paper.Decoder):
        x = g.op("Div", g.op("Sub", x, shift), scale)
    return x


def _residual_block(g: _Graph, module: vqvae.ResidualBlock, x: str) -> str:
    y = _convolution(g, module.first, _silu(g, None, x))
    return g.op("Add", x, _convolution(g, module.second, _silu(g, None, y)))


def _downsample(g: _Graph, module: vqvae.Downsample, x: str) -> str:
    inputs, outputs = module.in_channels, module.out_channels
    folded = _unshuffle(g, inputs, 2, x)
    count = 4 * inputs // outputs
    means = g.floats(np.full((outputs, count, 1, 1), 1 / count, np.float32))
    return g.op("Add", _convolution(g, module, x), g.op("Conv", folded, means, group=outputs))


def _upsample(g: _Graph, module: vqvae.Upsample, x: str) -> str:
    count = module.out_channels // module.in_channels
    which = g.integers(*(channel // count for channel in range(module.out_channels)))
    return g.op("Add", _convolution(g, module, x), g.op("Gather", x, which, axis=1))


def _group_norm(g: _Graph, module: nn.GroupNorm, x: str) -> str:
    groups = module.num_groups
    parts = g.op("Reshape", x, g.integers(0, groups, -1))
    one, zero = g.floats(np.ones(groups, np.float32)), g.floats(np.zeros(groups, np.float32))
    normal = g.op("InstanceNormalization", parts, one, zero, epsilon=module.eps)
    normal = g.op("Reshape", normal, g.op("Shape", x))
    scale, offset = (g.floats(part[:, None, None]) for part in (module.weight, module.bias))
    return g.op("Add", g.op("Mul", normal, scale), offset)


def _resnet_block(g: _Graph, module: vqgan.ResnetBlock, x: str) -> str:
    y = _convolution(g, module.conv1, _silu(g, None, _group_norm(g, module.norm1, x)))
    y = _convolution(g, module.conv2, _silu(g, None, _group_norm(g, module.norm2, y)))
    kept = _convolution(g, module.shortcut, x) if hasattr(module, "shortcut") else x
    return g.op("Add", kept, y)


def _attention(g: _Graph, module: vqgan.Attention, x: str) -> str:
    channels = module.query.in_features
    flat = g.op("Reshape", _group_norm(g, module.norm, x), g.integers(0, channels, -1))
    tokens = g.op("Transpose", flat, perm=[0, 2, 1])  # (B, h*w, C)
    query, key, value = (
        _linear(g, part, tokens) for part in (module.query, module.key, module.value)
    )
    scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 2, 1]))
    shares = g.op("Softmax", g.op("Mul", scores, g.number(channels**-0.5)), axis=-1)
    y = _linear(g, module.out, g.op("MatMul", shares, value))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1]), g.op("Shape", x))
    return g.op("Add", x, y)


def _coarser(g: _Graph, module: vqgan.Downsample, x: str) -> str:
    assert module.bias is not None
    weight, bias = g.floats(module.weight), g.floats(module.bias)
    return g.op("Conv", x, weight, bias, strides=[2, 2], pads=[0, 0, 1, 1])


def _finer(g: _Graph, module: vqgan.Upsample, x: str) -> str:
    scales = g.floats(np.array([1, 1, 2, 2], np.float32))
    words = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _convolution(g, module, g.op("Resize", x, "", scales, mode="nearest", **words))


def _stage(g: _Graph, module: vqgan.Stage, x: str) -> str:
    for i, block in enumerate(module.blocks):
        x = _emit(g, block, x)
        if len(module.attention):
            x = _emit(g, module.attention[i], x)
    return x if module.resample is None else _emit(g, module.resample, x)


def _middle(g: _Graph, module: vqgan.MidBlock, x: str) -> str:
    for part in (module.before, module.attention, module.after):
        x = _emit(g, part, x)
    return x


def _classic_encoder(g: _Graph, module: vqgan.Encoder, x: str) -> str:
    x = _emit(g, module.first, x)
    x = _emit(g, module.middle, _sequence(g, module.stages, x))
    x = _emit(g, module.last, _silu(g, None, _group_norm(g, module.norm, x)))
    return _emit(g, module.project, x)


def _classic_decoder(g: _Graph, module: vqgan.Decoder, x: str) -> str:
    x = _emit(g, module.middle, _emit(g, module.first, _emit(g, module.project, x)))
    x = _group_norm(g, module.norm, _sequence(g, module.stages, x))
    return _emit(g, module.last, _silu(g, None, x))


# Subclasses before their base.
_LAYERS: dict[type[nn.Module], Callable[[_Graph, Any, str], str]] = {
    paper.Encoder: _paper_side,
    paper.Decoder: _paper_side,
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
