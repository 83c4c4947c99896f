"""Quantizes without a codebook: a few numbers, each rounded on its own (`fsq`), or only their signs
(`lfq`).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqtok import distributed
from vqtok.config import TokenizerConfig
from vqtok.config.finite import fsq_levels, lfq_bits
from vqtok.errors import UsageError
from vqtok.quantizers.base import Quantized, Quantizer
from vqtok.quantizers.codebook import InitFlag, in_chunks, row_chunks

# standard deviation of what `fsq` bounds at the start: makes its values about equally frequent
SPREAD = 1.1
# of `lfq`'s probabilities, in units of the squared distance between a number and its signs
TEMPERATURE = 1.0
# of `lfq`'s entropies in nats: 19.5 dB at a perplexity of 0.8 K on the shapes;
# 16.5 dB at 0.1 K without it
ENTROPY_WEIGHT = 0.1
ELEMENTS = 2**18  # of a part of `lfq`'s probabilities
# numbers of vectors that the two layers work on at a time: 2 MiB; a quarter of it or eight times as
# much take 1.05 to 1.25 times as long
VECTORS = 2**19
# variance below which a direction counts as constant; float16 holds the weights that follow
SMALLEST = 1e-8


def pack(digits: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Packs digits (..., d), whole numbers of any type, into indices (...), int64, in a mixed
    radix; the first digit counts ones.
    """
    units = digits.new_tensor([math.prod(sizes[:i]) for i in range(len(sizes))])
    return (digits @ units).long()  # in float32, too: whole numbers below 2^24 are exact


def unpack(indices: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Unpacks indices (...) into digits (..., d)."""
    digits = []
    for size in sizes:
        digits.append(indices % size)
        indices = indices // size
    return torch.stack(digits, -1)


class _Rounded(torch.autograd.Function):
    """Replaces numbers by their rounded values; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, bounded: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


class _ChunkedLinear(torch.autograd.Function):
    """Computes x @ weight.T + bias as F.linear does, (N, i) to (N, o), where one of i and o is a
    few numbers: a chunk of the vectors at a time, forward and backward.

    Such a product is limited by memory: all that reads the same chunk (backward, two products and
    a sum) does so while it is in cache. Where o is the small one, the result is laid out as (o, N)
    and returned transposed: PyTorch's products then take a third of the time, and elementwise
    operations with one constant per number a quarter.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = _empty_rows(x, len(weight), len(weight) < x.shape[1])
        for part in row_chunks(len(x), max(weight.shape), x.device, VECTORS):
            if len(weight) < x.shape[1]:
                torch.addmm(bias[:, None], weight, x[part].T, out=out[part].T)
            else:
                torch.addmm(bias, x[part], weight.T, out=out[part])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor]:
        (given,), (x, weight) = gradients, ctx.saved_tensors
        outputs, inputs = weight.shape
        for_x = _empty_rows(x, inputs, inputs < outputs)
        # the few numbers first, as above: twice as fast
        small = x.new_zeros(min(outputs, inputs), max(outputs, inputs))
        for_bias = weight.new_zeros(outputs)
        for part in row_chunks(len(x), max(outputs, inputs), x.device, VECTORS):
            some = given[part]
            if inputs < outputs:
                torch.mm(weight.T, some.T, out=for_x[part].T)
                small.addmm_(x[part].T, some)
            else:
                torch.mm(some, weight, out=for_x[part])
                small.addmm_(some.T, x[part])
            for_bias += some.sum(0)
        return for_x, small.T if inputs < outputs else small, for_bias


def _empty_rows(like: Tensor, numbers: int, transposed: bool) -> Tensor:
    """Allocates vectors (N, numbers), laid out as (numbers, N) if `transposed`."""
    N = len(like)
    return like.new_empty(numbers, N).T if transposed else like.new_empty(N, numbers)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Applies the layer to vectors (N, i); its inputs or its outputs are few."""
    if in_chunks(x.device) and not torch.compiler.is_compiling():
        return _ChunkedLinear.apply(x, layer.weight, layer.bias)  # type: ignore[no-any-return]
    if len(layer.weight) < x.shape[1]:
        return torch.addmm(layer.bias[:, None], layer.weight, x.T).T
    return layer(x)


class _ScalarQuantizer(Quantizer):
    """Rounds d numbers from a linear layer one by one, and maps them back by another: what `fsq`
    and `lfq` share.

    The gradient passes straight through the rounding, as in the papers, and then through the two
    layers, which learn by it: z gets the part of the gradient that lies in the d directions. Giving
    z the whole gradient, as a codebook does, was worse by 2 dB with `fsq` and 0.5 dB with `lfq`
    (300 steps on the shapes), as z then leaves the range of the values. The settings `normalize`,
    `decay` and `restart` have no effect here.
    """

    levels = 1
    _spread = 1.0  # standard deviation of what inward gives at the start

    def __init__(self, config: TokenizerConfig, sizes: tuple[int, ...]) -> None:
        super().__init__()
        if config.code_dim < len(sizes):
            raise UsageError(
                f"{config.quantizer} with {config.codebook_size} codes needs code dimension "
                f"{len(sizes)} or more, not {config.code_dim}",
                f"use --code-dim {len(sizes)} or more, or a smaller --codebook-size",
            )
        self.codebook_size, self.beta, self.sizes = config.codebook_size, config.beta, sizes
        self.inward = nn.Linear(config.code_dim, len(sizes))
        self.outward = nn.Linear(len(sizes), config.code_dim)
        self.average = InitFlag()

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            batch, dim, height, width = z.shape
            flat = z.float().permute(0, 2, 3, 1).reshape(-1, dim)  # (N, D)
            inner = _linear(self.inward, flat)  # (N, d)
            bounded = self._bound(inner)
            digits = self._digits(bounded)
            values = _Rounded.apply(bounded, self._values(digits))  # type: ignore[misc]
            # (B, D, h, w)
            wide = _linear(self.outward, values).view(batch, height, width, dim)
            vectors = wide.permute(0, 3, 1, 2)
            return Quantized(
                vectors, pack(digits, self.sizes).view(batch, 1, height, width), self._loss(inner)
            )

    def lookup(self, indices: Tensor) -> Tensor:
        # (B, D, h, w)
        return self.outward(self._values(unpack(indices[:, 0], self.sizes))).permute(0, 3, 1, 2)

    def needs_init(self) -> bool:
        return not bool(self.average.initialized)

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        """Sets inward to the d directions in which vectors (N, D) vary most, each at the same
        spread, outward to what undoes it best.

        Every value of every number is then in use at the start, at any scale of the vectors.
        """
        exact = vectors.detach().cpu().double()
        mean = exact.mean(0)
        # rising
        variances, directions = torch.linalg.eigh((exact - mean).T @ (exact - mean) / len(exact))
        variances, directions = (
            variances.flip(0)[: len(self.sizes)],
            directions.flip(1)[:, : len(self.sizes)],
        )
        floor = max(SMALLEST, 1e-6 * float(variances[0]))
        weight = (directions * (self._spread / variances.clamp(min=floor).sqrt())).T  # (d, D)
        self.inward.weight.copy_(weight)
        self.inward.bias.copy_(-weight @ mean)
        values = (
            self._values(self._digits(self._bound(self.inward(vectors.float())))).cpu().double()
        )  # (N, d)
        centered = values - values.mean(0)
        back = (
            torch.linalg.pinv(centered.T @ centered, hermitian=True) @ centered.T @ (exact - mean)
        )  # (d, D): least squares
        self.outward.weight.copy_(back.T)
        self.outward.bias.copy_(mean - values.mean(0) @ back)
        self.adopt_codebook()

    def adopt_codebook(self) -> None:
        self.average.initialized.fill_(True)

    def _bound(self, inner: Tensor) -> Tensor:
        """Bounds the numbers before rounding, in the units of `_values`: (..., d) -> (..., d)."""
        raise NotImplementedError

    def _digits(self, bounded: Tensor) -> Tensor:
        """Returns the positions of the nearest values: (..., d) -> whole numbers of the same type
        (..., d).
        """
        raise NotImplementedError

    def _values(self, digits: Tensor) -> Tensor:
        """Returns numbers in [-1, 1] from their positions, whole numbers (..., d), in float32 if
        these are int64.
        """
        raise NotImplementedError

    def _loss(self, inner: Tensor) -> Tensor:
        """Returns a further loss of the numbers (N, d), a scalar: zero, unless a subclass says
        otherwise.
        """
        return inner.new_zeros(())


class FSQuantizer(_ScalarQuantizer):
    """Bounds each number by tanh and rounds it (Mentzer et al. 2023, arXiv 2309.15505, section 3
    and its appendix's code).
    """

    _spread = SPREAD

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, fsq_levels(config.codebook_size))

    def _bound(self, inner: Tensor) -> Tensor:
        """Bounds n values between -(n - 1)/2 and (n - 1)/2, moved by half a step where n is even so
        that 0 is one of them.
        """
        reach = inner.new_tensor([(n - 1) / 2 * (1 - 1e-3) for n in self.sizes])  # (d,)
        offset = inner.new_tensor([0.5 * (n % 2 == 0) for n in self.sizes])
        half = inner.new_tensor([n // 2 for n in self.sizes])
        return torch.addcmul(
            -offset / half, torch.tanh(inner + torch.atanh(offset / reach)), reach / half
        )

    def _digits(self, bounded: Tensor) -> Tensor:
        half = bounded.new_tensor([n // 2 for n in self.sizes])
        return (bounded * half).round_().add_(half)

    def _values(self, digits: Tensor) -> Tensor:
        half = digits.new_tensor([n // 2 for n in self.sizes])
        return (digits - half) / half


class LFQuantizer(_ScalarQuantizer):
    """Keeps only the sign of each number (Yu et al. 2023, arXiv 2310.05737, section 3.1).

    The paper's entropy term, used in training only, makes each vector sure of its code and all
    codes equally frequent. In the backward pass the paper replaces the sign by the identity; here
    it is replaced by tanh, whose slope fades as the numbers grow. With one level both are equally
    good. With three levels the identity lost 0.6 dB on the shapes, and at half the weight of the
    entropies it diverged: it promises larger changes than signs can make, so that the gradients
    of the levels before point the wrong way.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, (2,) * lfq_bits(config.codebook_size))

    def _bound(self, inner: Tensor) -> Tensor:
        return torch.tanh(inner)

    def _digits(self, bounded: Tensor) -> Tensor:
        return (bounded > 0).to(bounded.dtype)

    def _values(self, digits: Tensor) -> Tensor:
        return 2.0 * digits - 1

    def _loss(self, inner: Tensor) -> Tensor:
        """Adds the commitment of the numbers to their signs, and the entropies."""
        if not self.training:
            return inner.new_zeros(())
        single, overall = entropies(4 / TEMPERATURE * inner)
        signs = self._values(self._digits(inner))
        return self.beta * F.mse_loss(inner, signs) + ENTROPY_WEIGHT * (single - overall)


def entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the mean entropy of each vector's code, and the entropy of the mean distribution
    over all codes, in nats.

    logits (N, d) are those of independent bits. Squared distances to +1 and -1 differ by 4 x,
    hence the logit 4 x / temperature. The distribution over 2^d codes is a product, so the first
    entropy is a sum over bits, and the mean over N of the second is one product of two (N,
    2^(d/2)) matrices: exact, and cheap for 65,536 codes. Both matrices are made a part at a time,
    and again for the gradient.
    """
    single = (F.softplus(logits) - logits * logits.sigmoid()).sum(1).mean()
    rows = max(1, ELEMENTS // 2 ** -(-logits.shape[1] // 2))
    if len(logits) <= rows:
        total = _joint(logits)
    else:
        total = torch.stack(
            [checkpoint(_joint, part, use_reentrant=False) for part in logits.split(rows)]
        ).sum(0)  # type: ignore[arg-type]
    mean = distributed.mean_over_ranks(total / len(logits))
    mean = mean.clamp(min=1e-30)  # the slope of x log x at 0 is infinite
    return single, -(mean * mean.log()).sum()


def _joint(logits: Tensor) -> Tensor:
    """Sums over logits (N, d) the probabilities of all codes: (2^(d/2), 2^(d/2)), rounded up and
    down.
    """
    low, high = logits.sigmoid().tensor_split(2, 1)
    return _distribution(high).T @ _distribution(low)


def _distribution(bits: Tensor) -> Tensor:
    """Computes probabilities (N, 2^d) of all codes from those of independent bits (N, d); the first
    bit counts ones.
    """
    codes = bits.new_ones(len(bits), 1)
    for i in range(bits.shape[1]):
        codes = torch.cat([codes * (1 - bits[:, i : i + 1]), codes * bits[:, i : i + 1]], 1)
    return codes
