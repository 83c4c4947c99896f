"""Trains the integer prior: a causal network over index grids that gives compact files their
probabilities, and gives the same ones on every machine.

Every value is an integer times a power of two, held in floats: weights and activations of 8 bits,
and sums below 2^24, up to where float32 holds every integer. So results depend neither on the order
of summation nor on threads, batch size, library or device, and every machine can decode what
another has coded.

At position (i, j) of level l the network sees two things, as sums of embeddings: levels 0 to l at
the earlier positions that CAUSAL lists, and levels 0 to l - 1 at the 3x3 positions of AROUND.
It sees nothing else, so all positions with equal 2i + j + LAG * l can be decoded at once
(`integer_prior/neighborhood.py`).

The forward pass rounds, and gradients pass straight through the rounding (Jacob et al. 2018, arXiv
1712.05877). Inference, without PyTorch, is in the package `integer_prior`.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import EntropyConfig
from vqtok.integer_prior.arithmetic import (
    ACTIVATION_LIMIT,
    ACTIVATION_STEP,
    EMBEDDING_STEP,
    READ_STEP,
    STREAM_LIMIT,
    WEIGHT_LIMIT,
    weight_step,
)
from vqtok.integer_prior.neighborhood import AROUND, CAUSAL, REACH


def grid_round(x: Tensor, step: int, low: float, high: float) -> Tensor:
    """Rounds x to multiples of 2^-step, from low * 2^-step to high * 2^-step; halves go up.

    The gradient passes straight through where x is in that range, and is zero elsewhere.
    """
    scaled = x * 2.0**step
    clipped = scaled.clamp(low, high)
    return (clipped + (torch.floor(clipped.detach() + 0.5) - clipped.detach())) * 2.0**-step


class IntegerLinear(nn.Module):
    """Holds `kinds` matrices of 8-bit weights, and `bias_kinds` biases (by default as many), which
    are multiples of the step of the product.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        input_step: int,
        kinds: int = 1,
        bias_kinds: int | None = None,
    ) -> None:
        super().__init__()
        self.step, self.input_step = weight_step(fan_in), input_step
        self.weight = nn.Parameter(torch.randn(kinds, fan_out, fan_in) / math.sqrt(fan_in))
        self.bias = nn.Parameter(torch.zeros(bias_kinds or kinds, fan_out))

    @property
    def product_step(self) -> int:
        return self.step + self.input_step

    def rounded(self, quantize: bool) -> tuple[Tensor, Tensor]:
        """Returns weights (kinds, out, in) and biases (bias_kinds, out), rounded if `quantize`."""
        if not quantize:
            return self.weight, self.bias
        bias = grid_round(self.bias, self.product_step, -(2.0**22), 2.0**22)
        return grid_round(self.weight, self.step, -WEIGHT_LIMIT, WEIGHT_LIMIT), bias

    def integers(self) -> dict[str, np.ndarray]:
        """Returns the rounded weights as int8 and the biases as int32, in units of their steps."""
        weight, bias = self.rounded(True)
        return {
            "weight": (weight * 2**self.step).detach().cpu().numpy().astype(np.int8),
            "bias": (bias * 2**self.product_step).detach().cpu().numpy().astype(np.int32),
        }


class IntegerBlock(nn.Module):
    """Holds the two matrices of a residual block, which starts as the identity."""

    def __init__(self, width: int, levels: int, kinds: int = 1) -> None:
        super().__init__()
        self.rise = IntegerLinear(width, width, ACTIVATION_STEP, kinds, levels)
        self.fall = IntegerLinear(width, width, ACTIVATION_STEP, kinds, levels)
        nn.init.zeros_(self.fall.weight)


class IntegerPrior(nn.Module):
    """Gives each index a probability from the indices that its position sees; the product over
    positions and levels is the probability of the grid.
    """

    def __init__(self, config: EntropyConfig) -> None:
        super().__init__()
        self.config, self.quantize = config, True
        E, C, L = config.embedding, config.width, config.levels
        self.embedding = nn.Parameter(torch.randn(L, config.codebook_size, E) * 0.3)
        N = config.matrices
        self.first = IntegerLinear((len(CAUSAL) + len(AROUND)) * E, C, EMBEDDING_STEP, N, L)
        self.blocks = nn.ModuleList(IntegerBlock(C, L, N) for _ in range(config.blocks))
        self.features = IntegerLinear(C, config.rank, ACTIVATION_STEP, L)
        self.readout = IntegerLinear(config.rank, config.codebook_size, READ_STEP, L)

    def init_from_codebooks(self, codebooks: Tensor) -> None:
        """Starts embeddings and readout from the tokenizer's codebooks (L, K, D), rotated to their
        principal axes, the one of most variance first.
        """
        L, K, D = codebooks.shape
        _, _, turn = torch.linalg.svd(codebooks.reshape(L * K, D), full_matrices=False)
        turned = codebooks @ turn.T[:, : self.config.embedding]
        turned = turned * (0.6 / turned[0].square().mean().sqrt())
        with torch.no_grad():
            n = min(turned.shape[-1], self.config.rank)
            self.embedding[..., : turned.shape[-1]] = turned
            scale = self.readout.weight.std() / turned.square().mean((1, 2), keepdim=True).sqrt()
            self.readout.weight[..., :n] = (turned * scale)[..., :n]

    def sums(self, indices: Tensor) -> Tensor:
        """Returns sums (L + 1, B, h, w, E) for indices (B, L, h, w): entry l is the sum of the
        embeddings of levels 0 to l - 1.
        """
        table = (
            grid_round(self.embedding, EMBEDDING_STEP, -WEIGHT_LIMIT, WEIGHT_LIMIT)
            if self.quantize
            else self.embedding
        )
        each = torch.stack(
            [F.embedding(indices[:, level], table[level]) for level in range(indices.shape[1])]
        )
        return F.pad(each.cumsum(0), (0, 0, 0, 0, 0, 0, 0, 0, 1, 0))

    def forward(self, indices: Tensor) -> Tensor:
        """Returns logits in bits, (l, B, h, w, K), for the indices (B, l, h, w) of the first l
        levels.
        """
        sums = self.sums(indices)  # (l+1, B, h, w, E)
        levels, B, h, w = sums.shape[0] - 1, *sums.shape[1:4]
        weight, bias = self.first.rounded(self.quantize)
        each = [
            self._look(sums[part.start : part.stop + 1], weight[number])
            for number, part in self._shared(levels, len(weight))
        ]
        x = torch.cat(each) if len(each) > 1 else each[0]  # (l, n, C)
        x = self._stream(x.float() + bias[:levels, None])
        for block in self.blocks:
            assert isinstance(block, IntegerBlock)
            hidden = self._active(self._matmul(block.rise, self._active(x), levels))
            x = self._stream(x + self._matmul(block.fall, hidden, levels))
        features = self._matmul(self.features, self._active(x), levels)
        if self.quantize:
            features = grid_round(features, READ_STEP, -WEIGHT_LIMIT, WEIGHT_LIMIT)
        logits = self._matmul(self.readout, features, levels)
        return logits.reshape(levels, B, h, w, -1)

    def integers(self) -> dict[str, np.ndarray]:
        """Returns the tensors of inference by name: int8 embeddings and weights, int32 biases."""
        embedding = (
            grid_round(self.embedding, EMBEDDING_STEP, -WEIGHT_LIMIT, WEIGHT_LIMIT)
            * 2**EMBEDDING_STEP
        )
        tensors = {"embedding": embedding.detach().cpu().numpy().astype(np.int8)}
        for name, module in self.named_modules():
            if isinstance(module, IntegerLinear):
                tensors |= {f"{name}.{part}": value for part, value in module.integers().items()}
        return tensors

    def bits(self, indices: Tensor) -> Tensor:
        """Returns -log2 p of each index, (B, l, h, w)."""
        logits = self(indices) * math.log(2)
        target = indices.transpose(0, 1)
        nats = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view_as(
            target
        )
        return nats.transpose(0, 1) / math.log(2)

    def _shared(self, levels: int, matrices: int) -> list[tuple[int, slice]]:
        """Lists the matrices that the first `levels` levels use, with the levels of each."""
        used = min(levels, matrices)
        stops = [*range(1, used), levels]
        return [(number, slice(number, stop)) for number, stop in enumerate(stops)]

    def _look(self, sums: Tensor, weight: Tensor) -> Tensor:
        """Multiplies the sums (l + 1, B, h, w, E) that each position sees by the first layer's
        matrix: (l, B * h * w, C).
        """
        causal, around = self._kernels(weight)
        seen = sums[1:].flatten(0, 1).permute(0, 3, 1, 2)
        below = sums[:-1].flatten(0, 1).permute(0, 3, 1, 2)
        x = F.conv2d(F.pad(seen, (REACH, REACH, REACH, 0)), causal) + F.conv2d(
            below, around, padding=1
        )
        return x.permute(0, 2, 3, 1).reshape(len(sums) - 1, -1, len(weight))

    def _kernels(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Turns the first layer's matrix (C, positions * E) into two convolution kernels
        (C, E, rows, columns), for CAUSAL and for AROUND.
        """
        parts = weight.view(weight.shape[0], -1, self.config.embedding)
        causal = parts.new_zeros(weight.shape[0], REACH + 1, 2 * REACH + 1, self.config.embedding)
        rows, columns = ([position[axis] + REACH for position in CAUSAL] for axis in (0, 1))
        causal[:, rows, columns] = parts[:, : len(CAUSAL)]
        around = parts[:, len(CAUSAL) :].unflatten(1, (3, 3))
        return causal.permute(0, 3, 1, 2), around.permute(0, 3, 1, 2)

    def _matmul(self, linear: IntegerLinear, x: Tensor, levels: int) -> Tensor:
        """Multiplies x (l, n, in) by the matrix of each level, and adds the biases: (l, n, out)."""
        weight, bias = linear.rounded(self.quantize)
        if len(weight) == 1:
            y = F.linear(x, weight[0])
        elif len(weight) >= levels:
            y = torch.bmm(x, weight[:levels].transpose(1, 2))
        else:
            shared = self._shared(levels, len(weight))
            y = torch.cat([F.linear(x[part], weight[number]) for number, part in shared])
        return y.float() + bias[:levels, None]

    def _active(self, x: Tensor) -> Tensor:
        return (
            grid_round(x, ACTIVATION_STEP, 0, ACTIVATION_LIMIT)
            if self.quantize
            else x.clamp(0, ACTIVATION_LIMIT / 2**ACTIVATION_STEP)
        )

    def _stream(self, x: Tensor) -> Tensor:
        return grid_round(x, ACTIVATION_STEP, -STREAM_LIMIT, STREAM_LIMIT) if self.quantize else x
