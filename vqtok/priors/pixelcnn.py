"""A gated PixelCNN over index grids: which grids are likely (van den Oord et al. 2016, arXiv 1606.05328).

Two stacks run side by side. The vertical one sees the rows above, in a full rectangle; the horizontal one sees its own row to the
left, and is fed by the vertical one at every layer. Together they leave no blind spot. Both start from the embedded grid, shifted
by one row or one column, so that every later convolution may include its own position and needs no masked weights.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqtok.config import PriorConfig

CONTEXT_BLOCKS = 2
LOGITS_AT_ONCE = 2**24      # 64 MiB of float32; 64 grids of 8x8 with K = 65536 would take 1 GiB, and as much for the gradient


def receptive_field(config: PriorConfig) -> tuple[int, int]:
    """How far a prediction looks back: rows up, and columns to the left in its own row.

    In the rows above it sees one column fewer, to each side. At L > 1 it sees the levels below beyond its own position too.
    """
    reach = 1 + config.layers * (config.kernel // 2)
    return reach, reach


def gate(values: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) of (B, 2C, h, w) -> (B, C, h, w); eq. 2 of the paper."""
    a, b = values.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def gate_and_drop(values: Tensor, dropout: float) -> Tensor:
    """`gate` of (B, 2C, h, w) -> (B, C, h, w); of the results a part `dropout` becomes 0, and the others grow to keep the mean."""
    return _Gate.apply(values, _kept(values, dropout) if dropout else None)     # type: ignore[no-any-return]


class _Gate(torch.autograd.Function):
    """Written out: autograd takes more passes over memory. With `_kept` the cifar prior's step is 8 % (bfloat16: 15 %) shorter."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kept: Tensor | None) -> Tensor:
        a, b = values.chunk(2, dim=1)
        t, s = torch.tanh(a), torch.sigmoid(b)
        ctx.save_for_backward(t, s, kept)
        gated = t * s
        return gated if kept is None else gated.mul_(kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        t, s, kept = ctx.saved_tensors
        gradient = gradients[0] if kept is None else gradients[0] * kept
        for_s = gradient * s
        for_both = for_s * t
        B, C, h, w = t.shape
        result = t.new_empty(B, h, w, 2 * C).permute(0, 3, 1, 2)
        torch.addcmul(for_s, for_both, t, value=-1, out=result[:, :C])              # g s (1 - t^2)
        torch.addcmul(for_both, for_both, s, value=-1, out=result[:, C:])           # g t s (1 - s)
        return result, None


def _kept(values: Tensor, dropout: float) -> Tensor:
    """The factors of dropout, (B, C, h, w) for values (B, 2C, h, w): 0, or what keeps the mean. `dropout` counts in steps of 2^-16.

    Four factors from each 64 bits of the generator: torch's own, one from a draw, took 8 % of a training step in float32, 17 % in bfloat16.
    """
    B, C, h, w = values.shape[0], values.shape[1] // 2, *values.shape[2:]
    draws = torch.empty(-(-B * C * h * w // 4), dtype=torch.int64, device=values.device).random_(-(2**63), None)
    lost = round(dropout * 2**16)
    kept = values.new_empty(B * C * h * w)
    torch.ge(draws.view(torch.int16)[: len(kept)], lost - 2**15, out=kept)
    return kept.mul_(2**16 / (2**16 - lost)).view(B, h, w, C).permute(0, 3, 1, 2)


class GatedLayer(nn.Module):
    """One layer of both stacks: eq. 4 and figure 2 of the paper, with a residual in the vertical stack too."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        C, reach = config.width, config.kernel // 2
        self.reach, self.dropout = reach, config.dropout
        self.vertical = nn.Conv2d(C, 2 * C, (reach + 1, config.kernel))
        self.horizontal = nn.Conv2d(C, 2 * C, (1, reach + 1))
        self.link = nn.Conv2d(2 * C, 2 * C, 1, bias=False)
        self.out = nn.Conv2d(C, 2 * C, 1, bias=False)       # residual and skip; no bias, so that sampling adds both in one addmm
        self.label = nn.Embedding(len(config.labels) + 1, 4 * C) if config.labels else None
        self.context = nn.Conv2d(C, 4 * C, 1, bias=False) if config.levels > 1 else None

    def forward(self, v: Tensor, x: Tensor, rows: Tensor | None, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The next v and x, and this layer's skip, all (B, C, h, w). `rows` (B,) are the labels' rows in the embedding."""
        r = self.reach
        down = self.vertical(F.pad(v, (r, r, r, 0)))        # (B, 2C, h, w)
        right = self.horizontal(F.pad(x, (r, 0, 0, 0)))
        if self.label is not None and rows is not None:
            for_v, for_x = self.label(rows)[:, :, None, None].chunk(2, dim=1)
            down, right = down + for_v, right + for_x
        if self.context is not None and context is not None:
            for_v, for_x = self.context(context).chunk(2, dim=1)
            down, right = down + for_v, right + for_x
        dropout = self.dropout if self.training else 0.0
        v = v + gate_and_drop(down, dropout)
        residual, skip = self.out(gate_and_drop(right + self.link(down), dropout)).chunk(2, dim=1)
        return v, x + residual, skip


class Context(nn.Module):
    """What level l may know of the grids of all levels below it: their embeddings, summed, through residual 3x3 convolutions."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        C = config.width
        self.codebook_size = config.codebook_size
        self.embedding = nn.Embedding((config.levels - 1) * config.codebook_size, C)
        self.level = nn.Embedding(config.levels, C)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, padding=1), nn.ReLU(), nn.Conv2d(C, C, 1)) for _ in range(CONTEXT_BLOCKS)
        )

    def forward(self, indices: Tensor) -> Tensor:
        """(B, L, h, w) indices -> (B, L, C, h, w): entry l depends on the levels below l only."""
        B, L, h, w = indices.shape
        below = self.embedding(_offset(indices[:, :-1], self.codebook_size)).cumsum(1)      # (B, L-1, h, w, C)
        total = F.pad(below, (0, 0, 0, 0, 0, 0, 1, 0))                                      # (B, L, h, w, C)
        total = total + self.level.weight[:L, None, None, :]
        features = total.reshape(B * L, h, w, -1).permute(0, 3, 1, 2)
        for block in self.blocks:
            features = features + block(features)
        return features.reshape(B, L, -1, h, w)


class PixelCNN(nn.Module):
    """p(indices) = the product, over levels and then raster order, of p(index | levels below, indices before; label)."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        C, K, L = config.width, config.codebook_size, config.levels
        self.embedding = nn.Embedding(L * K, C)
        self.context = Context(config) if L > 1 else None
        self.layers = nn.ModuleList(GatedLayer(config) for _ in range(config.layers))
        self.head = nn.Linear(C, 2 * C)
        self.readout = nn.ModuleList(nn.Linear(2 * C, K) for _ in range(L))     # each level has a codebook of its own
        for linear in self.readout:
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=0.02)        # nearly uniform at first: the loss starts at ln K
            nn.init.zeros_(linear.bias)

    def forward(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, L, h, w, K) for int64 indices (B, L, h, w); (l, i, j) sees the levels below l, and level l before (i, j).

        Indices of the first few levels alone do as well: no level needs to know of those above it.
        Labels (B,) are class numbers, -1 for none; None is -1 for all. A prior without classes does not look at them.
        """
        hidden = self.hidden(indices, labels)
        return torch.stack([read(hidden[:, level]) for level, read in enumerate(self.readout[: indices.shape[1]])], dim=1)

    def hidden(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, L, h, w, 2C): all but the last layer."""
        B, L, h, w = indices.shape
        assert self.config.levels >= L, f"{L} levels in, {self.config.levels} in the prior"
        embedded = self.embedding(_offset(indices, self.config.codebook_size))          # (B, L, h, w, C)
        embedded = embedded.reshape(B * L, h, w, -1).permute(0, 3, 1, 2)                # (B*L, C, h, w), channels last
        context = None if self.context is None else self.context(indices).flatten(0, 1)
        rows = self.label_rows(labels, B, indices.device)
        rows = None if rows is None else rows.repeat_interleave(L)
        v = F.pad(embedded, (0, 0, 1, -1))      # row i holds row i-1
        x = F.pad(embedded, (1, -1, 0, 0))      # column j holds column j-1
        total = torch.zeros_like(x)
        for layer in self.layers:
            v, x, skip = layer(v, x, rows, context)
            total = total + skip
        features = total.permute(0, 2, 3, 1).reshape(B, L, h, w, -1)
        return F.relu(self.head(F.relu(features)))

    def label_rows(self, labels: Tensor | None, B: int, device: torch.device) -> Tensor | None:
        """Rows of the label embeddings, (B,): 0 is unconditional, 1 + c is class c. None where the prior has no classes."""
        if not self.config.labels:
            return None
        if labels is None:
            return torch.zeros(B, dtype=torch.int64, device=device)
        return labels.to(device) + 1

    def loss(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats per index, a scalar; the softmax is in float32 also under bf16 autocast."""
        return self.nats(indices, labels).mean()

    def nats(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """-ln p of each index, (B, L, h, w). Holds at most LOGITS_AT_ONCE logits where K is large."""
        hidden = self.hidden(indices, labels)
        return torch.stack([self._nats(level, hidden[:, level], indices[:, level]) for level in range(indices.shape[1])], dim=1)

    def _nats(self, level: int, hidden: Tensor, target: Tensor) -> Tensor:
        def cost(features: Tensor, wanted: Tensor) -> Tensor:
            return F.cross_entropy(self.readout[level](features).float(), wanted, reduction="none")

        flat, wanted = hidden.flatten(0, 2), target.flatten()       # (B*h*w, 2C), (B*h*w,)
        size = max(1, LOGITS_AT_ONCE // self.config.codebook_size)
        if len(flat) <= size:
            return cost(flat, wanted).view_as(target)
        parts = [checkpoint(cost, f, t, use_reentrant=False) for f, t in zip(flat.split(size), wanted.split(size), strict=True)]
        return torch.cat(parts).view_as(target)     # type: ignore[arg-type]


@torch.no_grad()
def cross_entropy(prior: PixelCNN, indices: Tensor, labels: Tensor | None = None, batch: int = 32) -> Tensor:
    """-log2 p of each picture's indices in bits, (B,) float64, without dropout, `batch` pictures at a time."""
    training = prior.training
    prior.eval()
    try:
        parts = []
        for start in range(0, len(indices), batch):
            some = None if labels is None else labels[start : start + batch]
            nats = prior.nats(indices[start : start + batch], some)
            parts.append(nats.flatten(1).cpu().double().sum(1) / math.log(2))       # on the CPU: MPS has no float64
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    finally:
        prior.train(training)


def _offset(indices: Tensor, K: int) -> Tensor:
    """Level l's indices moved up by l*K: the levels' embeddings lie in one table."""
    return indices + K * torch.arange(indices.shape[1], device=indices.device)[:, None, None]
