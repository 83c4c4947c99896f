"""The sampler of the transformer: keeps the keys and values of all tokens so far, and computes one
token more at each step.

Tokens are computed when a place's features are asked for. Where places were known and nothing was
asked, the tokens since then are computed together: completing the lower half of an image takes
one pass for the upper half.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.priors.transformer import Block, Transformer, rotary_cos_sin, rotate
from vqtok.sampling.base import Sampler

TOGETHER = 1024  # tokens at most in one pass, whose mask has as many rows


class BlockState:
    """Runs a block with the keys and values of the tokens so far: on several tokens at once, or on
    one in fewer calls.
    """

    def __init__(self, block: Block, n: int, T: int) -> None:
        self.block, self.n, self.C = block, n, block.merge.in_features
        self.shape = (3, block.heads, self.C // block.heads)
        self.kv_cache = block.qkv.weight.new_empty(2, n, block.heads, T, self.shape[2])
        self.keys, self.values = self.kv_cache  # (n, heads, T, D), keys turned
        self.flat_keys, self.flat_values = self.kv_cache.flatten(1, 2)  # (n*heads, T, D)
        self.project = _with_quarter_turns(block).T  # (C, 5C)
        self.merge, self.up, self.down = (
            block.merge.weight.T,
            block.up.weight.T,
            block.down.weight.T,
        )

    def several(self, x: Tensor, start: int, end: int, cos: Tensor, sin: Tensor) -> Tensor:
        """Runs tokens `start` to `end` (n, end - start, C) through the block."""
        block, positions = self.block, torch.arange(end, device=x.device)
        qkv = rotate(
            block.qkv(block.attention_norm(x)).view(*x.shape[:2], *self.shape),
            cos[start:end],
            sin[start:end],
        )
        q, self.keys[:, :, start:end], self.values[:, :, start:end] = qkv.transpose(1, 3).unbind(2)
        k, v = self.keys[:, :, :end], self.values[:, :, :end]
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=positions <= positions[start:, None]
        )
        x = x + block.merge(attended.transpose(1, 2).reshape(x.shape))
        return x + block.down(F.gelu(block.up(block.mlp_norm(x))))

    def one(self, x: Tensor, t: int, cos: Tensor, sin: Tensor) -> Tensor:
        """Runs token t (n, C) through the block; `cos` and `sin` are that token's (2C,)."""
        block, n, C, D = self.block, self.n, self.C, self.shape[2]
        projected = torch.mm(_norm(x, block.attention_norm), self.project)  # (n, 5C)
        turned = torch.addcmul(projected[:, : 2 * C] * cos, projected[:, 3 * C :], sin)
        self.keys[:, :, t] = turned[:, C:].unflatten(1, self.shape[1:])
        self.values[:, :, t] = projected[:, 2 * C : 3 * C].unflatten(1, self.shape[1:])
        scores = torch.bmm(
            turned[:, :C].reshape(-1, 1, D), self.flat_keys[:, : t + 1].transpose(1, 2)
        )  # (n*heads, 1, t + 1)
        attended = torch.bmm(scores.softmax(-1), self.flat_values[:, : t + 1]).view(n, C)
        x = torch.addmm(x, attended, self.merge)
        return torch.addmm(x, F.gelu(torch.mm(_norm(x, block.mlp_norm), self.up)), self.down)


class TransformerSampler(Sampler[Transformer]):
    def start_level(self, level: int, indices: Tensor) -> "TransformerCursor":
        n, h, w = self.n, self.h, self.w
        added = self.prior.added(indices, self.rows)
        if added is not None:
            added = added[:, min(level, added.shape[1] - 1)].expand(n, h * w, -1)
        return TransformerCursor(self.prior, level, n, h, w, added)


class TransformerCursor:
    """A `Cursor` that keeps the keys and values of all tokens so far."""

    def __init__(
        self, prior: Transformer, level: int, n: int, h: int, w: int, added: Tensor | None
    ) -> None:
        K, weights = prior.config.codebook_size, prior.embedding.weight
        self.embedding, self.start = weights[level * K : (level + 1) * K], prior.start
        self.added, self.norm, self.readout = added, prior.norm, prior.output(level)
        self.cos, self.sin = rotary_cos_sin(h, w, prior.head_size, weights.device)
        self.cos_rows, self.sin_rows = (
            _rows(turn, prior.config.heads) for turn in (self.cos, self.sin)
        )
        self.blocks = [
            BlockState(
                block,  # type: ignore[arg-type]
                n,
                h * w,
            )
            for block in prior.blocks
        ]
        self.indices = torch.zeros(n, h * w, dtype=torch.int64, device=weights.device)
        self.features = self.start  # of the position, (n, C)
        self.w, self.i, self.j = w, -1, -1
        self.done = 0  # tokens

    def next_row(self, above: Tensor | None) -> None:
        if above is not None:
            self.indices[:, self.i * self.w : (self.i + 1) * self.w] = above
        self.i, self.j = self.i + 1, -1

    def next_column(self, left: Tensor | None) -> None:
        self.j += 1
        t = self.i * self.w + self.j
        if left is not None:
            self.indices[:, t - 1] = left
        while self.done < t - TOGETHER:
            self._compute(self.done + TOGETHER)
        self.features = self._compute(t + 1)

    def logits(self) -> Tensor:
        return self.readout(self.norm(self.features))

    def _compute(self, end: int) -> Tensor:
        """Runs the tokens up to `end` that are missing through all blocks; returns the last one's
        features (n, C).
        """
        start, self.done = self.done, end
        x = self._tokens(start, end)
        if end - start == 1:
            x = x[:, 0]
            for block in self.blocks:
                x = block.one(x, start, self.cos_rows[start], self.sin_rows[start])
            return x
        for block in self.blocks:
            x = block.several(x, start, end, self.cos, self.sin)
        return x[:, -1]

    def _tokens(self, start: int, end: int) -> Tensor:
        """Returns what goes into the first block."""
        x = F.embedding(self.indices[:, max(start - 1, 0) : end - 1], self.embedding)
        if start == 0:
            x = torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)
        return x if self.added is None else x + self.added[:, start:end]


def _rows(turn: Tensor, heads: int) -> Tensor:
    """Lays out (T, 2, 1, D/2) for both halves of all heads of queries and keys, as they lie in a
    row: (T, 2C).
    """
    return turn.repeat(1, 1, heads, 2).flatten(1)


def _norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _with_quarter_turns(block: Block) -> Tensor:
    """Returns weights (5C, C) of queries, keys, values, and of queries and keys turned by 90
    degrees; queries are divided by the root of D.

    A turn by any angle is then cos times the one plus sin times the other: two calls.
    """
    q, k, v = block.qkv.weight.chunk(3)
    q = q * (block.heads / len(q)) ** 0.5
    # halves a and b of each head: (a, b) -> (-b, a)
    turned = torch.cat([q, k]).view(2 * block.heads, 2, -1, q.shape[1])
    return torch.cat(
        [q, k, v, torch.stack([-turned[:, 1], turned[:, 0]], dim=1).view(-1, q.shape[1])]
    )
