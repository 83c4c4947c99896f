"""Defines a causal transformer over index grids, in raster order (Vaswani et al. 2017, arXiv
1706.03762; Parmar et al. 2018, arXiv 1802.05751).

Each level is a sequence of its own of h*w tokens. Token t asks for the t-th index: it carries the
one before it, the label, and what is known of the levels below around the place that it asks for.

Rotary positions in two dimensions (Su et al. 2021, arXiv 2104.09864, eq. 34):
attention sees how far apart two places are.

Component m of a head and component m + D/2 are a pair, a point of the plane that is turned by its
place's angle; the first half of the pairs are turned by the row, the others by the column. No angle
is learned and none belongs to a size: every grid has them.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import PriorConfig
from vqtok.priors.base import Context, Prior, code_embedding, drop, offset

# the slowest pair turns once in about 2 pi * 100 places:
# grids are 8 to 64 places wide, where text takes 10,000
BASE = 100.0

# tokens up to which attention is in float32 on a CPU:
# torch 2.13's bfloat16 gradient took 19 ms at 64 tokens, float32's 2.5
SHORT = 256


def token_positions(h: int, w: int) -> tuple[Tensor, Tensor]:
    """Returns (row, column) of what each of the h*w tokens asks for, and of the index that it
    carries; both int64 (h*w, 2).

    A token carries the index before the one it asks for: to the left or, at the left edge, the last
    of the row above. With both places told apart the index to the left is always (0, 1) away and
    the one above (1, 0), also across the edge. The first token carries none and stands where that
    would be, left of the first place.

    Nothing else tells a token where it is. That is enough: of one fixed 8x8 grid of 16 codes with
    10 % noise, where the place alone tells the code, four blocks of width 64 learned all there is
    (0.81 bits an index) in 200 steps of 16.
    """
    asked = torch.stack(
        torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), dim=-1
    ).view(-1, 2)
    return asked, torch.cat([torch.tensor([[0, -1]]), asked[:-1]])


def angles(positions: Tensor, size: int) -> Tensor:
    """Computes (..., size/2) float32 angles of positions (..., 2) for heads of that many
    components, a multiple of 4.
    """
    # (size/4,), from 1 radian a place down
    frequencies = BASE ** -(torch.arange(size // 4) / (size // 4))
    return (positions[..., None].float() * frequencies).flatten(-2)


def rotary_cos_sin(h: int, w: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Computes cosines and sines (h*w, 2, 1, size/2) for `rotate`: queries by the position that is
    asked for, keys by that of the index.
    """
    turned = angles(torch.stack(token_positions(h, w), dim=1), size)[:, :, None].to(device)
    return turned.cos(), turned.sin()


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the queries and keys of (N, T, 3, heads, D); the values stay."""
    return _Rotate.apply(qkv, cos.to(qkv.dtype), sin.to(qkv.dtype))  # type: ignore[no-any-return]


class _Rotate(torch.autograd.Function):
    """Rotates without keeping anything for the gradient, which is turned back, and without copying
    a half.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(qkv, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, sin, -1), None, None


def _turned(qkv: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    result = torch.empty_like(qkv)
    (a, b), (to_a, to_b) = qkv[:, :, :2].chunk(2, dim=-1), result[:, :, :2].chunk(2, dim=-1)
    torch.addcmul(a * cos, b, sin, value=-direction, out=to_a)
    torch.addcmul(b * cos, a, sin, value=direction, out=to_b)
    result[:, :, 2] = qkv[:, :, 2]
    return result


class Block(nn.Module):
    """Computes x + attention(norm(x)), and adds mlp(norm()) of that."""

    def __init__(self, config: PriorConfig, causal: bool = True) -> None:
        super().__init__()
        C = config.width
        self.heads, self.dropout, self.causal = config.heads, config.dropout, causal
        self.attention_norm, self.mlp_norm = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv = nn.Linear(C, 3 * C, bias=False)
        self.merge = nn.Linear(C, C, bias=False)
        self.up = nn.Linear(C, 4 * C, bias=False)
        self.down = nn.Linear(4 * C, C, bias=False)
        for layer in (self.qkv, self.up):
            nn.init.normal_(layer.weight, std=C**-0.5)
        # 2 * layers of them are added up (Radford et al. 2019, section 2.3)
        for layer in (self.merge, self.down):
            nn.init.normal_(layer.weight, std=(layer.in_features * 2 * config.layers) ** -0.5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Maps (N, T, C) to (N, T, C): token t sees the tokens up to t, or all where the block is
        not causal.

        Cosines and sines as `rotary_cos_sin` gives them.
        """
        N, T, C = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(N, T, 3, self.heads, C // self.heads)
        x = self._add(x, self.merge(attention(qkv, cos, sin, self.causal).reshape(N, T, C)))
        return self._add(x, self.down(F.gelu(self.up(self.mlp_norm(x)))))

    def _add(self, x: Tensor, change: Tensor) -> Tensor:
        return x + (drop(change, self.dropout) if self.training and self.dropout else change)


def attention(qkv: Tensor, cos: Tensor, sin: Tensor, causal: bool = True) -> Tensor:
    """Computes (N, T, heads, D) of queries, keys and values (N, T, 3, heads, D), without a mask
    tensor or dropout, for the flash kernel.
    """
    short = qkv.device.type == "cpu" and qkv.shape[1] <= SHORT
    with torch.autocast("cpu", enabled=False) if short else nullcontext():
        # (N, heads, T, D), views
        q, k, v = rotate(qkv.float() if short else qkv, cos, sin).transpose(1, 3).unbind(2)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


class Transformer(Prior):
    """Predicts each index by causal attention over those before it."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        C, L = config.width, config.levels
        self.embedding = code_embedding(config, C, L)
        self.start = nn.Parameter(torch.randn(C))  # in place of the index before the first
        self.label = nn.Embedding(1 + len(config.labels), C) if config.labels else None
        self.context = Context(config) if L > 1 else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(C)
        self.readout = self._readouts(C)

    @property
    def head_size(self) -> int:
        return self.config.width // self.config.heads

    def hidden(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns features (B, L, h, w, C)."""
        B, L, h, w = indices.shape
        assert self.config.levels >= L, f"{L} levels in, {self.config.levels} in the prior"
        carried = self.embedding(offset(indices, self.config.codebook_size)).flatten(2, 3)[
            :, :, :-1
        ]  # (B, L, h*w - 1, C)
        x = torch.cat([self.start.to(carried.dtype).expand(B, L, 1, -1), carried], dim=2)
        added = self.added(indices, self.label_rows(labels, B, indices.device))
        x = (x if added is None else x + added).flatten(0, 1)  # (B*L, h*w, C)
        if self.training and self.config.dropout:
            x = drop(x, self.config.dropout)
        cos, sin = rotary_cos_sin(h, w, self.head_size, indices.device)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x).view(B, L, h, w, -1)

    def added(self, indices: Tensor, rows: Tensor | None) -> Tensor | None:
        """Returns what a token carries besides its index, to be broadcast to (B, L, h*w, C): the
        label, and the levels below; None for nothing.
        """
        context, label = self.context_of(indices), None
        if self.label is not None and rows is not None:
            label = self.label(rows)[:, None, None]  # (B, 1, 1, C)
        if context is None:
            return label
        context = context.flatten(3).transpose(2, 3)  # (B, L, h*w, C)
        return context if label is None else context + label
