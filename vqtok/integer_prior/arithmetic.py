"""The numbers that the integer prior computes with, and the proof that its sums are exact.

Training (`priors/integer.py`) and inference take them from here.
"""

import math
from collections.abc import Mapping
from itertools import takewhile

import numpy as np

from vqtok.config import EntropyConfig
from vqtok.errors import FormatError
from vqtok.integer_prior.neighborhood import IMAGE, Neighborhood

EMBEDDING_STEP = 6  # embeddings are multiples of 2^-6,
ACTIVATION_STEP = 5  # activations of 2^-5: 0 to 255 of them
READ_STEP = 4  # what the readout multiplies, of 2^-4: -127 to 127
LOGIT_STEP = 5  # logits, in bits, of 2^-5
WEIGHT_LIMIT, ACTIVATION_LIMIT, STREAM_LIMIT = 127, 255, 4095
EXACT = 1 << 24  # float32 holds every integer below


def weight_step(fan_in: int) -> int:
    """Returns k, where weights are multiples of 2^-k: 127 of them are some eight standard
    deviations of a weight at the start.
    """
    # floor(log2(127 sqrt(fan_in) / 8)), by integers alone
    return ((WEIGHT_LIMIT**2 * fan_in // 64).bit_length() - 1) // 2


def integer_tensor_shapes(
    config: EntropyConfig, neighborhood: Neighborhood = IMAGE
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of a prior of that config, by name."""
    K, L, E = config.codebook_size, config.levels, config.embedding
    C, R, N = config.width, config.rank, config.matrices
    layers = {"first": (N, C, neighborhood.places * E)}
    for i in range(config.blocks):
        layers |= {f"blocks.{i}.rise": (N, C, C), f"blocks.{i}.fall": (N, C, C)}
    layers |= {"features": (L, R, C), "readout": (L, K, R)}
    shapes: dict[str, tuple[int, ...]] = {"embedding": (L, K, E)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (L, shape[1])}
    return shapes


def largest_sum(tensors: Mapping[str, np.ndarray]) -> int:
    """Returns the largest magnitude that any partial sum can reach, for all inputs and in any
    order. Raises FormatError unless it is below EXACT.
    """
    wide = {name: np.abs(value.astype(np.int64)) for name, value in tensors.items()}
    summed = wide["embedding"].max(1).sum(0)  # (E,): levels add up
    inputs = np.tile(summed, wide["first.weight"].shape[-1] // len(summed))
    sums = [(wide["first.weight"] @ inputs).max() + wide["first.bias"].max()]
    for name in tensors:
        if name.endswith("weight") and name != "first.weight":
            limit = WEIGHT_LIMIT if name.startswith("readout") else ACTIVATION_LIMIT
            sums.append(
                wide[name].sum(-1).max() * limit + wide[name.replace("weight", "bias")].max()
            )
    largest = int(max(sums)) + (1 << 16)  # rounding adds a power of two, at most that
    if largest >= EXACT:
        raise FormatError(
            f"a sum can reach {largest}, past what float32 holds exactly",
            "the file is damaged, or written by a newer vqtok",
        )
    return largest


def power_table(codebook_size: int) -> list[int]:
    """Returns the weights of indices by how far their logit is below the largest: T 2^(-d / 32),
    rounded down, for d from 0 to the first that gives 0.
    """
    top = min(EXACT // codebook_size, 1 << 16)
    return [*takewhile(bool, (_power(top, drop) for drop in range(1 << 16))), 0]


def _power(top: int, drop: int) -> int:
    """Computes top * 2^(-drop / 2^LOGIT_STEP), rounded down, by integers alone: the same table on
    every machine.
    """
    scale = 1 << 64
    value = top << 64
    root = _root_of_two(LOGIT_STEP, scale)
    for _ in range(drop % (1 << LOGIT_STEP)):
        value = value * scale // root
    return (value >> (drop >> LOGIT_STEP)) >> 64


def _root_of_two(times: int, scale: int) -> int:
    """Computes 2^(1 / 2^times) as an integer over scale."""
    value = 2 * scale
    for _ in range(times):
        value = math.isqrt(value * scale)
    return value
