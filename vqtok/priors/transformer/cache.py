"""The sampler's arithmetic: the keys and values of all tokens so far are kept, and each step computes one token more.

Tokens are computed when a place's features are asked for. Where places were known and nothing was asked, the tokens since then are
computed together: completing the lower half of a picture takes one pass for the upper half.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.priors.transformer.block import Block
from vqtok.priors.transformer.rotary import rotate, turns

if TYPE_CHECKING:
    from vqtok.priors.transformer.network import Transformer

TOGETHER = 1024         # tokens at most in one pass, whose mask has as many rows


class CachedBlock:
    """A block with the keys and values of the tokens so far."""

    def __init__(self, block: Block, n: int, T: int, like: Tensor) -> None:
        self.block, C = block, block.merge.in_features
        self.shape = (3, block.heads, C // block.heads)
        self.kept = like.new_empty(n, T, 2, *self.shape[1:])        # keys, turned, and values
        self.keys, self.values = self.kept.permute(2, 0, 3, 1, 4)   # (n, heads, T, D), views

    def next(self, x: Tensor, start: int, end: int, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens `start` to `end` (n, end - start, C) through the block."""
        block = self.block
        qkv = rotate(block.qkv(block.attention_norm(x)).view(*x.shape[:2], *self.shape), cos, sin)
        self.kept[:, start:end] = qkv[:, :, 1:]
        q, k, v = qkv[:, :, 0].transpose(1, 2), self.keys[:, :, :end], self.values[:, :, :end]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        x = x + block.merge(attended.reshape(x.shape))
        return x + block.down(F.gelu(block.up(block.mlp_norm(x))))


class Cache:
    """The prior part-way through one level of n grids."""

    def __init__(self, prior: "Transformer", level: int, n: int, h: int, w: int, added: Tensor | None) -> None:
        K, weights = prior.config.codebook_size, prior.embedding.weight
        self.embedding, self.start = weights[level * K : (level + 1) * K], prior.start
        self.added, self.norm, self.readout = added, prior.norm, prior.output(level)
        self.cos, self.sin = turns(h, w, prior.head_size, weights.device)
        self.blocks = [CachedBlock(block, n, h * w, weights) for block in prior.blocks]       # type: ignore[arg-type]
        self.indices = torch.zeros(n, h * w, dtype=torch.int64, device=weights.device)
        self.w, self.i, self.j = w, -1, -1
        self.done = 0       # tokens

    def next_row(self, above: Tensor | None) -> None:
        """Moves on to the next row; `above` (n, w) are the indices of the row before it, None at the top."""
        if above is not None:
            self.indices[:, self.i * self.w : (self.i + 1) * self.w] = above
        self.i, self.j = self.i + 1, -1

    def next_column(self, left: Tensor | None) -> Tensor:
        """Moves on to the next column; `left` (n,) are the indices of the column before it. Features (n, C)."""
        self.j += 1
        t = self.i * self.w + self.j
        if left is not None:
            self.indices[:, t - 1] = left
        while self.done < t - TOGETHER:
            self._compute(self.done + TOGETHER)
        return self._compute(t + 1)[:, -1]

    def logits(self, features: Tensor) -> Tensor:
        """(n, C) -> (n, K)."""
        return self.readout(self.norm(features))

    def _compute(self, end: int) -> Tensor:
        """The tokens up to `end` that are missing, (n, end - done, C)."""
        start, self.done = self.done, end
        x, mask = self._tokens(start, end), None
        if end - start > 1:
            places = torch.arange(end, device=x.device)
            mask = places <= places[start:, None]       # (end - start, end)
        cos, sin = self.cos[start:end], self.sin[start:end]
        for block in self.blocks:
            x = block.next(x, start, end, cos, sin, mask)
        return x

    def _tokens(self, start: int, end: int) -> Tensor:
        """What goes into the first block."""
        x = F.embedding(self.indices[:, max(start - 1, 0) : end - 1], self.embedding)
        if start == 0:
            x = torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)
        return x if self.added is None else x + self.added[:, start:end]
