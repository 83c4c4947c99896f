"""Tokenizers as two ONNX graphs, which run without vqtok and torch.

`encoder.onnx` turns `image`, uint8 (B, C, H, W) of any size, into `indices`, int64 (B, L, h, w);
it pads as vqtok does. `decoder.onnx` turns `indices` (B, n, h, w) of the first n levels, n from 1
to L, into `image`, uint8 (B, C, h*f, w*f), which the caller crops. Weights are float16 where that
loses nothing, and are cast once, when a program loads them: all is computed in float32.
"""

from vqtok import onnx, weights
from vqtok.config import TokenizerConfig
from vqtok.interop.export import Exported
from vqtok.model_registry import ModelFolder
from vqtok.weights import Weights, codes_fingerprint


def to_onnx(stored: Weights, settings: TokenizerConfig, folder: ModelFolder) -> Exported:
    """Makes encoder.onnx and decoder.onnx of a tokenizer.

    FormatError where the tensors are not those of the config. ModelError where no graph is known of
    a part, and where a file would be too large.
    """
    shapes = onnx.tensor_shapes(settings)
    weights.check_tensors(stored.tensors, shapes, folder.tokenizer)
    facts = onnx.facts(folder.name, codes_fingerprint(stored), settings)
    graphs = {
        "encoder": onnx.build_encoder(stored.tensors, settings),
        "decoder": onnx.build_decoder(stored.tensors, settings),
    }
    contents = {f"{name}.onnx": graph.model(name, facts) for name, graph in graphs.items()}
    return Exported("model", contents, sum(len(graph.weights) for graph in graphs.values()))
