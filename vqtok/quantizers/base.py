"""Declares the protocol that encoder, decoder and training know of a quantizer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Quantized:
    """Holds the vectors, indices and loss of a forward pass."""

    vectors: Tensor  # (B, D, h, w), with the gradient passed straight through
    indices: Tensor  # (B, L, h, w), int64
    loss: Tensor  # scalar: the codebook and commitment terms


class Quantizer(nn.Module, ABC):
    """Replaces vectors by entries of L codebooks of K entries.

    The training loop calls `update_codebook` after each optimizer step. What is random in a step it
    draws beforehand, on the host (`draw_depths`, `draw_rows`), and hands it over. State that only
    training needs lives in a submodule called `average`.
    """

    codebook_size: int
    levels: int

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """Quantizes z (B, D, h, w); gradients pass straight through (van den Oord
        et al. 2017, section 3.2).
        """

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """Returns vectors (B, D, h, w) for indices (B, L, h, w); the first few levels suffice."""

    def codebooks(self) -> Tensor:
        """Returns all entries, (L, K, D)."""
        assert self.levels == 1
        every = torch.arange(self.codebook_size, device=self._device())
        return self.lookup(every.view(1, 1, 1, -1))[0, :, 0].T[None]

    @abstractmethod
    def needs_init(self) -> bool:
        """Whether `initialize` is still to be called before training."""

    @abstractmethod
    def initialize(self, vectors: Tensor) -> None:
        """Sets the codebook from encoder outputs (N, D), N of 20,000 or more."""

    @abstractmethod
    def adopt_codebook(self) -> None:
        """Takes the codebook as it is to train on from, in place of `initialize`."""

    def draw_depths(self, images: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Draws from how many levels each image of a training batch is decoded, int64 (images,);
        None for all of them.
        """
        return None

    def draw_rows(self, vectors: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Draws the batch's vectors that dead codes move to: int64 (L, n); the i-th dead code of
        level l moves to vector [l, i]. None: no code moves.
        """
        return None

    def update_codebook(self, rows: Tensor | None = None, ok: Tensor | None = None) -> Tensor:
        """Moves the codebook by what the last forward saw:
        averages, and dead codes onto live vectors. Returns how many it revived.

        `rows` come from `draw_rows`, by default with torch's global generator. `ok` (bool, scalar):
        false leaves all as it is, whatever was seen. Nothing here waits for the device.
        """
        return torch.zeros((), dtype=torch.int64, device=self._device())

    def _device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers()), torch.empty(0)).device
