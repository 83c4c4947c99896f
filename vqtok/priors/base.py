"""Defines what every prior over index grids is: a likelihood of grids, level by level and in raster
order.

Dropout is here, too: PyTorch's draws from its generator for each feature, which took 8 to 17 % of a
training step on a CPU.
"""

import copy
import math
from abc import ABC, abstractmethod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqtok.config import PriorConfig
from vqtok.priors import outputs
from vqtok.priors.outputs import OutputLayer

CONTEXT_BLOCKS = 2
# of 1, 2, 4 and 8 half turns from black to white to start the embedding of gray levels from
WAVES = 4
# 64 MiB of float32; 64 grids of 8x8 with K = 65536 would take 1 GiB, and as much for the gradient
LOGITS_AT_ONCE = 2**24


class Context(nn.Module):
    """Computes what level l may know of the grids of all levels below it: their embeddings, summed,
    through residual 3x3 convolutions.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        C = config.width
        self.codebook_size = config.codebook_size
        self.embedding = code_embedding(config, C, config.levels - 1)
        self.level = nn.Embedding(config.levels, C)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, padding=1), nn.ReLU(), nn.Conv2d(C, C, 1))
            for _ in range(CONTEXT_BLOCKS)
        )

    def forward(self, indices: Tensor) -> Tensor:
        """Maps indices (B, L, h, w) to (B, L, C, h, w): entry l depends on levels below l only."""
        B, L, h, w = indices.shape
        # (B, L-1, h, w, C)
        below = self.embedding(offset(indices[:, :-1], self.codebook_size)).cumsum(1)
        total = F.pad(below, (0, 0, 0, 0, 0, 0, 1, 0))  # (B, L, h, w, C)
        total = total + self.level.weight[:L, None, None, :]
        features = total.reshape(B * L, h, w, -1).permute(0, 3, 1, 2)
        for block in self.blocks:
            features = features + block(features)
        return features.reshape(B, L, -1, h, w)


class Prior(nn.Module, ABC):
    """Defines p(indices) as the product, over levels and then raster order, of p(index | levels
    below, indices before; label).

    An architecture computes the features of each position in `hidden`; `readout` turns them into a
    distribution over the K codes.
    """

    readout: nn.ModuleList  # one Output for each level: each has a codebook of its own
    # Whether it says how likely a grid is, and reads one in raster order.
    has_likelihood = True

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def hidden(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Runs all layers but the last: int64 indices (B, L, h, w) to features (B, L, h, w, F), the
        input of `readout`.
        """

    def context_of(self, indices: Tensor) -> Tensor | None:
        """Returns features of the levels below each level, (B, L, C, h, w); None in a prior of one
        level.
        """
        context = getattr(self, "context", None)
        return None if context is None else context(indices)

    def fits(self, h: int, w: int) -> bool:
        """Returns whether the prior takes grids of that size; most take any."""
        return True

    def forward(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns logits (B, L, h, w, K) for int64 indices (B, L, h, w); (l, i, j) sees the levels
        below l, and level l before (i, j).

        Indices of the first few levels alone do as well: no level needs to know of those above it.
        Labels (B,) are class numbers, -1 for none; None is -1 for all.
        A prior without classes does not look at them.
        """
        hidden = self.hidden(indices, labels)
        return torch.stack(
            [self.output(level)(hidden[:, level]) for level in range(indices.shape[1])], dim=1
        )

    def output(self, level: int) -> OutputLayer:
        return cast(OutputLayer, self.readout[level])

    def label_rows(self, labels: Tensor | None, B: int, device: torch.device) -> Tensor | None:
        """Returns rows of the label embeddings, (B,): 0 is unconditional, 1 + c is class c.

        None where the prior has no classes.
        """
        if not self.config.labels:
            return None
        if labels is None:
            return torch.zeros(B, dtype=torch.int64, device=device)
        return labels.to(device) + 1

    def loss(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the mean cross-entropy in nats per index, a scalar; the distributions are in
        float32 also under bf16 autocast.
        """
        return self.nats(indices, labels).mean()

    def nats(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes -ln p of each index, (B, L, h, w).

        Holds at most LOGITS_AT_ONCE logits where there are many.
        """
        hidden = self.hidden(indices, labels)
        return torch.stack(
            [
                self._nats(level, hidden[:, level], indices[:, level])
                for level in range(indices.shape[1])
            ],
            dim=1,
        )

    def nats_of_known(self, indices: Tensor, known: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes -ln p of each index where `known` (L, h, w) holds, given all that the prior
        reads before it; 0 elsewhere, (B, L, h, w).
        """
        return self.nats(indices, labels).where(known, 0.0)

    def _nats(self, level: int, hidden: Tensor, target: Tensor) -> Tensor:
        output = self.output(level)
        flat, wanted = hidden.flatten(0, 2), target.flatten()  # (B*h*w, F), (B*h*w,)
        size = max(1, LOGITS_AT_ONCE // output.out_features)
        if len(flat) <= size:
            return output.nats(flat, wanted).view_as(target)
        parts = [
            checkpoint(output.nats, f, t, use_reentrant=False)
            for f, t in zip(flat.split(size), wanted.split(size), strict=True)
        ]
        return torch.cat(parts).view_as(target)  # type: ignore[arg-type]

    def _readouts(self, features: int) -> nn.ModuleList:
        return nn.ModuleList(
            outputs.build_output(self.config, features) for _ in range(self.config.levels)
        )


@torch.no_grad()
def cross_entropy(
    prior: Prior, indices: Tensor, labels: Tensor | None = None, batch: int = 32
) -> Tensor:
    """Computes -log2 p of each image's indices in bits, (B,) float64, without dropout, `batch`
    images at a time.
    """
    training = prior.training
    prior.eval()
    try:
        parts = []
        for start in range(0, len(indices), batch):
            some = None if labels is None else labels[start : start + batch]
            nats = prior.nats(indices[start : start + batch], some)
            # on the CPU: MPS has no float64
            parts.append(nats.flatten(1).cpu().double().sum(1) / math.log(2))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    finally:
        prior.train(training)


def leaning(prior: Prior, bias: Tensor) -> Prior:
    """Returns a prior with the same weights that adds bias (L, K) to the logits of the first L
    levels.

    Gray levels with a logistic output have no such logits: then it returns the prior itself.
    """
    if prior.config.output != "softmax":
        return prior
    moved = copy.copy(prior)
    moved._modules = dict(prior._modules)
    readout = []
    for level in range(prior.config.levels):
        output = copy.copy(prior.output(level))
        if level < len(bias):
            more = output.bias.detach() + bias[level].to(output.bias)
            output._parameters = {**output._parameters, "bias": nn.Parameter(more, False)}
        readout.append(output)
    moved.readout = nn.ModuleList(readout)
    return moved


def code_embedding(config: PriorConfig, size: int, levels: int) -> nn.Embedding:
    """Makes vectors (levels * K, size) for the codes of the first few levels, to be learned.

    They start at random, except where the output is logistic: there codes are gray levels, and near
    levels start with near vectors, random projections of the gray level v in [-1, 1] and of its
    sines and cosines. A PixelCNN of 4 layers of 32 channels took 4.67 bits a value after 400 steps
    on the middle of CIFAR-10 images, and 5.66 from random vectors.
    """
    K = config.codebook_size
    embedding = nn.Embedding(levels * K, size)
    if config.output == "logistic":
        v = torch.linspace(-1, 1, K)
        waves = [
            wave(math.pi * 2**k * v) / 2**k for k in range(WAVES) for wave in (torch.sin, torch.cos)
        ]
        features = torch.stack([3 * v, *waves], dim=1)  # (K, F)
        projections = (
            torch.randn(levels, features.shape[1], size) / features.square().mean(0).sum().sqrt()
        )
        with torch.no_grad():
            embedding.weight.copy_((features @ projections).flatten(0, 1))
    return embedding


@torch.no_grad()
def start_from_codebooks(prior: Prior, codebooks: Tensor) -> None:
    """Moves the first embeddings of a prior's codes, and the weights of its last layer, so that
    codes with near vectors start near each other: what is learned of one serves the others.

    codebooks (L, K, D) are the tokenizer's. To each random vector a random projection of its code
    is added. A PixelCNN over 8x8 grids of 256 codes took 5.14 bits an index after 100 steps, and
    5.78 from random vectors alone. A logistic output has gray levels' own order.
    """
    if prior.config.output != "softmax":
        return
    codes = codebooks.float().cpu()
    codes = codes / codes.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-12)
    tables = [
        module.weight
        for name, module in prior.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith("embedding")
    ]
    for table in tables:  # of all levels, or of all but the last
        levels = len(table) // prior.config.codebook_size
        _add(table, _projected(codes[:levels], table.shape[1]).flatten(0, 1))
    for level, vectors in enumerate(codes):
        weight = prior.output(level).weight
        _add(weight, _projected(vectors, weight.shape[1]))


def _projected(codes: Tensor, size: int) -> Tensor:
    """Projects vectors (..., K, D) of mean square 1 to (..., K, size), at random, of mean square
    about 1.
    """
    matrix = torch.randn(*codes.shape[:-2], codes.shape[-1], size)
    return codes @ (matrix / codes.shape[-1] ** 0.5)


def _add(weight: Tensor, more: Tensor) -> None:
    """Replaces half the variance of random weights by that of others, of mean square 1."""
    weight.add_(more.to(weight) * weight.std()).mul_(0.5**0.5)


def offset(indices: Tensor, K: int) -> Tensor:
    """Moves level l's indices up by l*K: the levels' embeddings lie in one table."""
    return indices + K * torch.arange(indices.shape[1], device=indices.device)[:, None, None]


def dropout_mask(shape: torch.Size | tuple[int, ...], like: Tensor, part: float) -> Tensor:
    """Draws dropout factors of that shape, in dtype and device of `like`: 0 for a part of them,
    1 / (1 - part) for the others.

    `part` counts in steps of 2^-16: each 64 bits of the generator give four factors.
    """
    count = torch.Size(shape).numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device).random_(
        -(2**63), None
    )
    lost = round(part * 2**16)
    factors = torch.ge(draws.view(torch.int16)[:count], lost - 2**15, out=like.new_empty(count))
    return factors.mul_(2**16 / (2**16 - lost)).view(shape)


def drop(values: Tensor, part: float) -> Tensor:
    """Sets a part of the values to zero; the others grow to keep the mean."""
    return values * dropout_mask(values.shape, values, part)
