"""Makes all random draws of a training step on the host, from (seed, step): equal in a resumed run,
and on CPU and GPU.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqtok import distributed
from vqtok.quantizers import Quantizer


@dataclass(frozen=True)
class Draws:
    """Holds what is random in a step of the tokenizer, besides its images."""

    depths: Tensor | None  # int64 (B,): from how many levels each image is decoded
    rows: Tensor | None  # int64 (L, n): the vectors that dead codes move to


def draw(quantizer: Quantizer, seed: int, step: int, images: int, vectors: int) -> Draws:
    """Makes the draws of a step in which this process has `images` images of `vectors` vectors
    each.
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed, step + 1))
    depths = quantizer.draw_depths(images, generator)
    return Draws(
        depths, quantizer.draw_rows(images * vectors * distributed.world_size(), generator)
    )


def mixed_seed(seed: int, number: int) -> int:
    """Mixes the run's seed and a number into one seed for torch: 0 before the first step, step + 1
    in a step.
    """
    # shifted as a Python int: NumPy 1.26 shifts no uint64 by one
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]) >> 1
