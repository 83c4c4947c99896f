"""Products of float32 matrices by oneDNN, on an x86 CPU."""

import torch
from torch import Tensor


def has_onednn(tensor: Tensor) -> bool:
    """Whether `onednn_linear` takes tensors like this one: float32 on an x86 CPU."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias, (n, D) and (K, D) to (n, K), by oneDNN and without gradient; all
    contiguous.

    PyTorch takes MKL for such products of float32. On an AMD processor MKL uses AVX2 alone: where
    AVX-512 is twice as wide (Zen 5), that is half the rate of oneDNN, which convolutions use.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
