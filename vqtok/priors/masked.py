"""Defines a masked transformer over index grids, which sees all sides (Chang et al. 2022, MaskGIT,
arXiv 2202.04200).

A part of a level's indices is hidden, and each hidden one is predicted from all that are not, from
the label, and from the levels below. A new grid starts with all places hidden; in each of a few
steps `sampling.masked` draws them all and keeps those that the network is surest of.

It gives no likelihood of a grid: places that are predicted together are taken for independent.
"""

import math

import torch
from torch import Tensor, nn

from vqtok.config import PriorConfig
from vqtok.priors.base import Context, Prior, code_embedding, drop, offset
from vqtok.priors.transformer import Block, angles

WAVES = 4  # of 1/2, 1, 2 and 4 turns across the grid, from which a place's vector is made


def places(h: int, w: int, device: torch.device) -> Tensor:
    """Computes (h*w, 4 * WAVES): sines and cosines of where each place lies in the grid.

    Rotary positions say how far apart two places are. Where all are hidden that tells nothing: a
    token learns here where it is. Edges lie at 0 and 1 in grids of every size.
    """
    rows = (torch.arange(h, device=device) + 0.5) / h
    columns = (torch.arange(w, device=device) + 0.5) / w
    where = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).view(-1, 2)
    turns = where[..., None] * (math.pi * 2.0 ** torch.arange(WAVES, device=device))
    return torch.cat([turns.sin(), turns.cos()], dim=-1).flatten(1)


def rotary_cos_sin(h: int, w: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Computes cosines and sines (h*w, 2, 1, size/2) for `transformer.rotate`: queries and keys
    both stand at their own place.
    """
    grid = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), dim=-1)
    turned = angles(grid.view(-1, 1, 2).expand(-1, 2, -1), size)[:, :, None].to(device)
    return turned.cos(), turned.sin()


class MaskedTransformer(Prior):
    """Predicts hidden indices from all others of their level, and from the levels below."""

    has_likelihood = False

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        C, L = config.width, config.levels
        self.embedding = code_embedding(config, C, L)
        self.hidden_token = nn.Parameter(torch.randn(L, C))  # in place of a hidden index
        self.place = nn.Linear(4 * WAVES, C)
        self.label = nn.Embedding(1 + len(config.labels), C) if config.labels else None
        self.context = Context(config) if L > 1 else None
        self.blocks = nn.ModuleList(Block(config, causal=False) for _ in range(config.layers))
        self.norm = nn.LayerNorm(C)
        self.readout = self._readouts(C)

    def hidden(
        self, indices: Tensor, labels: Tensor | None = None, masked: Tensor | None = None
    ) -> Tensor:
        """Returns features (B, L, h, w, C) of places; where `masked` (B, L, h, w) holds, their own
        level does not see the index. None hides all of them.

        A level sees those below it whole, whatever is masked there.
        """
        B, L, h, w = indices.shape
        assert self.config.levels >= L, f"{L} levels in, {self.config.levels} in the prior"
        own = self.hidden_token[:L, None, None].expand(B, L, h, w, -1)
        if masked is not None:
            embedded = self.embedding(offset(indices, self.config.codebook_size))
            own = torch.where(masked[..., None], own, embedded)
        x = own.flatten(2, 3) + self.place(places(h, w, indices.device))  # (B, L, h*w, C)
        rows = self.label_rows(labels, B, indices.device)
        if self.label is not None and rows is not None:
            x = x + self.label(rows)[:, None, None]
        context = self.context_of(indices)
        if context is not None:
            x = x + context.flatten(3).transpose(2, 3)
        x = x.flatten(0, 1)  # (B*L, h*w, C)
        if self.training and self.config.dropout:
            x = drop(x, self.config.dropout)
        cos, sin = rotary_cos_sin(h, w, self.config.width // self.config.heads, indices.device)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x).view(B, L, h, w, -1)

    def loss(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the mean cross-entropy in nats per hidden index, a scalar.

        The part that is hidden is drawn for each level of each grid: cos(pi/2 u) with u uniform,
        and at least one place (section 3.1 of the paper). Outside training the draws are always
        the same, so that validations can be compared.
        """
        masked = draw_masks(indices, None if self.training else 0)
        nats = self.nats(indices, labels, masked)
        return (nats * masked).sum() / masked.sum()

    def nats(
        self, indices: Tensor, labels: Tensor | None = None, masked: Tensor | None = None
    ) -> Tensor:
        """Computes -ln p of each index, (B, L, h, w), with those hidden where `masked` holds; all
        of them if that is None. These add up to no likelihood.
        """
        hidden = self.hidden(indices, labels, masked)
        return torch.stack(
            [
                self._nats(level, hidden[:, level], indices[:, level])
                for level in range(indices.shape[1])
            ],
            dim=1,
        )

    def nats_of_known(self, indices: Tensor, known: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes -ln p of each known index, hidden, given all that are not known."""
        masked = known.expand(indices.shape)
        return self.nats(indices, labels, masked).where(masked, 0.0)


def draw_masks(indices: Tensor, seed: int | None) -> Tensor:
    """Draws what is hidden of grids (B, L, h, w), bool: a part cos(pi/2 u) of each level, at least
    one place. By torch's own generator, or from a seed.
    """
    B, L, h, w = indices.shape
    generator = None if seed is None else torch.Generator(indices.device).manual_seed(seed)
    draws = torch.rand(B, L, 1 + h * w, device=indices.device, generator=generator)
    part = (draws[..., :1] * (math.pi / 2)).cos()
    rank = draws[..., 1:].argsort(-1).argsort(-1)
    return (rank < (part * (h * w)).ceil().clamp(min=1)).view(B, L, h, w)
