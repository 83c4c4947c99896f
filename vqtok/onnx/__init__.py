"""Tokenizers as ONNX graphs, built from config and tensors in NumPy: neither PyTorch nor the
package onnx is needed, and a program that runs ONNX needs nothing of vqtok.
"""

from typing import TYPE_CHECKING

from vqtok.lazy import lazy_names

if TYPE_CHECKING:
    from vqtok.onnx.tokenizer import build_decoder, build_encoder, facts, tensor_shapes

__all__ = ["build_decoder", "build_encoder", "facts", "tensor_shapes"]


# Imported on first use: whether onnxruntime is there, `session` says without these.
if not TYPE_CHECKING:  # type checkers would take every name for one that is here
    __getattr__, __dir__ = lazy_names(
        __name__,
        __all__,
        tokenizer="build_decoder build_encoder facts tensor_shapes",
    )
