"""Tokenizers as ONNX graphs, built from config and tensors in NumPy: neither PyTorch nor the
package onnx is needed, and a program that runs ONNX needs nothing of vqtok.
"""

from vqtok.onnx.tokenizer import build_decoder, build_encoder, facts, tensor_shapes

__all__ = ["build_decoder", "build_encoder", "facts", "tensor_shapes"]
