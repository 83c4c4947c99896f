"""A causal transformer over index grids, in raster order (Vaswani et al. 2017, arXiv 1706.03762;
Parmar et al. 2018, arXiv 1802.05751).

Each level is a sequence of its own of h*w tokens. Token t asks for the t-th index: it carries the
one before it, the label, and what is known of the levels below around the place that it asks for.
"""

import torch
from torch import Tensor, nn

from vqtok.config import PriorConfig
from vqtok.priors.base import Context, Prior, code_embedding, offset
from vqtok.priors.dropout import drop
from vqtok.priors.transformer.block import Block
from vqtok.priors.transformer.cache import Cache
from vqtok.priors.transformer.rotary import turns


class Transformer(Prior):
    """The transformer."""

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
        """(B, L, h, w, C)."""
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
        cos, sin = turns(h, w, self.head_size, indices.device)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x).view(B, L, h, w, -1)

    def added(self, indices: Tensor, rows: Tensor | None) -> Tensor | None:
        """What a token carries besides its index, to be broadcast to (B, L, h*w, C):
        the label, and the levels below; None for nothing.
        """
        context, label = self.context_of(indices), None
        if self.label is not None and rows is not None:
            label = self.label(rows)[:, None, None]  # (B, 1, 1, C)
        if context is None:
            return label
        context = context.flatten(3).transpose(2, 3)  # (B, L, h*w, C)
        return context if label is None else context + label

    def cursor(
        self, level: int, n: int, h: int, w: int, rows: Tensor | None, indices: Tensor
    ) -> Cache:
        added = self.added(indices, rows)
        if added is not None:
            added = added[:, min(level, added.shape[1] - 1)].expand(n, h * w, -1)
        return Cache(self, level, n, h, w, added)
