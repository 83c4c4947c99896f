"""Operations bound once to buffers that never move, and then only run.

A sampler writes its step down once, as operations on tensors. A backend makes calls without
arguments of them: for NumPy on a CPU, where at n = 1 most of torch's time goes into starting its
calls (2 us each, NumPy 0.3 to 0.9), or for torch on any device.
"""

import platform
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqtok.sampling.categorical import sample_categorical, sample_categorical_numpy

# multiplications: NumPy starts quicker (16x64x64: 1.0 us, torch 1.5), torch's BLAS is faster on
# Intel's processors (64x128x128: 11, NumPy 16). On AMD's NumPy is faster at any size (Zen 4,
# 8x192x256: 7 us, torch 12; 512x192x256: 489, torch 494)
SMALL = 2**18
Call = Callable[[], object]
Calls = list[Call]


@cache
def is_amd() -> bool:
    """Whether the processor is one of AMD's, for which MKL has no products as quick as NumPy's
    OpenBLAS.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            described = file.read(4096)
    except OSError:
        described = platform.processor()
    return "AuthenticAMD" in described


class NumpyBackend:
    """Calls of NumPy, and of torch for large products, for float32 tensors on a CPU.

    Arrays and tensors share their memory.
    """

    def native(self, values: Tensor) -> Any:
        """Returns the same memory in the form that this backend computes with."""
        return values.numpy()

    def twice(self, values: np.ndarray) -> np.ndarray:
        """(2n, ...) of values (n, ...): all of them, and all of them again."""
        return np.concatenate([values, values])

    def copy(self, a: Tensor, out: Tensor) -> Calls:
        return [partial(np.copyto, out.numpy(), a.numpy())]

    def add(self, a: Tensor, b: Tensor, out: Tensor) -> Calls:
        b = b.expand(a.shape).contiguous() if b.dim() < a.dim() else b  # weights: see `relu`
        return [partial(np.add, a.numpy(), b.numpy(), out.numpy())]

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> Calls:
        return [partial(np.multiply, a.numpy(), b.numpy(), out.numpy())]

    def tanh(self, a: Tensor, out: Tensor) -> Calls:
        return [partial(np.tanh, a.numpy(), out.numpy())]

    def relu(self, a: Tensor, out: Tensor) -> Calls:
        # of the same shape: to broadcast takes 0.3 us more
        return [partial(np.maximum, a.numpy(), np.zeros_like(a.numpy()), out=out.numpy())]

    def matmul(self, a: Tensor, b: Tensor, out: Tensor) -> Calls:
        """Computes a @ b, in whichever library is quicker at its size; all three are contiguous
        except for the rows of a.
        """
        a, out = a.view(-1, len(b)), out.view(-1, b.shape[1])
        if len(a) * b.numel() >= SMALL and not is_amd():
            return [partial(torch.mm, a, b, out=out)]
        return [partial(a.numpy().dot, b.numpy(), out.numpy())]

    def matmul_add(self, a: Tensor, b: Tensor, c: Tensor, out: Tensor, product: Tensor) -> Calls:
        """Computes a @ b + c; `product` is a contiguous buffer like out, or out itself."""
        return [*self.matmul(a, b, product), *self.add(product, c, out)]

    def gate(self, values: Tensor, out: Tensor) -> Calls:
        """Computes tanh(a) * (1 + tanh(b)) of values (n, 2C), which are overwritten, into out (n,
        C).
        """
        a, b = values.chunk(2, dim=1)
        return [*self.tanh(values, values), *self.multiply(a, b, out), *self.add(out, a, out)]

    def put(self, drawn: np.ndarray, out: np.ndarray, where: np.ndarray) -> None:
        """Writes drawn (n,) into out (n,) where that holds."""
        np.copyto(out, drawn, where=where)

    def categorical(
        self, temperature: float, top_k: int | None, top_p: float | None
    ) -> Callable[[Any, Any], Any]:
        """Draws indices (n,) from logits (n, K) and uniform numbers (n,).

        With top_k or top_p it goes through torch, whose order among equals is the promise.
        """
        if top_k is None and top_p is None:
            return partial(sample_categorical_numpy, temperature=temperature)
        return lambda logits, uniform: sample_categorical(
            torch.from_numpy(logits), torch.from_numpy(uniform), temperature, top_k, top_p
        ).numpy()


class TorchBackend:
    """The same operations in torch, in as few calls as possible: on a GPU starting them is what
    costs.
    """

    def native(self, values: Tensor) -> Any:
        return values

    def twice(self, values: Tensor) -> Tensor:
        return torch.cat([values, values])

    def copy(self, a: Tensor, out: Tensor) -> Calls:
        return [partial(out.copy_, a)]

    def add(self, a: Tensor, b: Tensor, out: Tensor) -> Calls:
        return [partial(torch.add, a, b, out=out)]

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> Calls:
        return [partial(torch.mul, a, b, out=out)]

    def tanh(self, a: Tensor, out: Tensor) -> Calls:
        return [partial(torch.tanh, a, out=out)]

    def relu(self, a: Tensor, out: Tensor) -> Calls:
        return [partial(torch.clamp_min, a, 0, out=out)]

    def matmul(self, a: Tensor, b: Tensor, out: Tensor) -> Calls:
        return [partial(torch.mm, a.view(-1, len(b)), b, out=out.view(-1, b.shape[1]))]

    def matmul_add(self, a: Tensor, b: Tensor, c: Tensor, out: Tensor, product: Tensor) -> Calls:
        return [partial(torch.addmm, c, a, b, out=out)]

    def gate(self, values: Tensor, out: Tensor) -> Calls:
        a, b = values.chunk(2, dim=1)
        return [*self.tanh(values, values), partial(torch.addcmul, a, a, b, out=out)]

    def put(self, drawn: Tensor, out: Tensor, where: Tensor) -> None:
        torch.where(where, drawn, out, out=out)

    def categorical(
        self, temperature: float, top_k: int | None, top_p: float | None
    ) -> Callable[[Any, Any], Any]:
        return partial(sample_categorical, temperature=temperature, top_k=top_k, top_p=top_p)


Backend = NumpyBackend | TorchBackend
NUMPY, TORCH = NumpyBackend(), TorchBackend()


def pick_backend(prior: nn.Module) -> Backend:
    """Picks NumPy for a prior in float32 on a CPU, else torch."""
    weights = prior.parameters()
    fits = all(part.device.type == "cpu" and part.dtype == torch.float32 for part in weights)
    return NUMPY if fits else TORCH


def run(calls: Calls) -> None:
    for call in calls:
        call()
