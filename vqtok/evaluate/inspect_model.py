"""Looks inside a model for its report: codes decoded alone, their use, bits per index, samples."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from vqtok import plots
from vqtok.codec import Model
from vqtok.codes import Codes
from vqtok.networks.vqvae import to_uint8
from vqtok.pages.codebook import CODES_MAX, CodebookMap, columns_for
from vqtok.plots.palette import by_vectors

# a code is decoded amid as many of its like on each side: its middle sees no edge of the image
TILE_GRID = 3
TILE_PIXELS = 2**19  # decoded at once
TEMPERATURES = (0.6, 0.8, 1.0, 1.2)


def count_codes(codes: Sequence[Codes]) -> np.ndarray:
    """Counts how often each code is chosen: int64 (L, K)."""
    L, K = codes[0].levels, codes[0].codebook_size
    return np.stack(
        [
            np.sum(
                [np.bincount(one.indices[:, level].ravel(), minlength=K) for one in codes], axis=0
            )
            for level in range(L)
        ]
    )


def codebook_map(model: Model, counts: np.ndarray, counted: str) -> CodebookMap | None:
    """Collects the first level's codebook and the use (L, K) of all levels; None where the codebook
    is too large to show.
    """
    if model.config.codebook_size > CODES_MAX:
        return None
    return CodebookMap(code_vectors(model)[0], code_tiles(model), counts, counted)


@torch.inference_mode()
def code_vectors(model: Model) -> np.ndarray:
    """Returns the entries of all codebooks, float32 (L, K, D)."""
    return model.quantizer.codebooks().float().cpu().numpy()


@torch.inference_mode()
def code_tiles(model: Model) -> np.ndarray:
    """Decodes each code of the first level in a grid filled with it, and keeps the middle: uint8
    (K, f, f, C).
    """
    K, f = model.config.codebook_size, model.config.downsample
    middle = slice(TILE_GRID // 2 * f, (TILE_GRID // 2 + 1) * f)
    found = []
    for part in torch.arange(K, device=model.device).split(
        max(1, TILE_PIXELS // (TILE_GRID * f) ** 2)
    ):
        grids = part.view(-1, 1, 1, 1).expand(-1, 1, TILE_GRID, TILE_GRID)  # (k, 1, 3, 3)
        output = model.decoder(model.quantizer.lookup(grids)).float()
        found.append(
            to_uint8(model.likelihood.mean(output))[:, :, middle, middle]
            .permute(0, 2, 3, 1)
            .cpu()
            .numpy()
        )
    return np.concatenate(found)


def index_colors(model: Model) -> np.ndarray:
    """Colors each code of each level, uint8 (L, K, 3): similar codes look alike."""
    return np.stack([by_vectors(level) for level in code_vectors(model)])


def index_bits(model: Model, codes: Codes) -> tuple[np.ndarray, str] | None:
    """Returns the bits of each index (n, L, h, w) and the name of the prior: the integer prior
    where there is one, else the float prior; None without either.
    """
    if model.entropy_coder is not None:
        return model.entropy_coder.prior.bits(codes.indices), "the integer prior of compact files"
    if (
        model.folder.prior is None
        or not model.prior.has_likelihood
        or not model.prior.fits(*codes.indices.shape[2:])
    ):
        return None
    indices = torch.from_numpy(codes.indices.astype(np.int64)).to(model.device)
    with torch.inference_mode():
        found = [model.prior.nats(indices[i : i + 1]) for i in range(len(indices))]
    return torch.cat(found).cpu().double().numpy() / math.log(
        2
    ), "the prior that samples are drawn from"


def sample_sheets(
    model: Model, count: int, progress: Callable[[int, int], None] | None = None
) -> tuple[list[tuple[str, np.ndarray]], Codes]:
    """Draws `count` samples at each of TEMPERATURES; returns captions and sheets, and the codes of
    those at temperature 1.
    """
    sheets, plain = [], None
    for i, temperature in enumerate(TEMPERATURES):
        codes = model.sample_codes(count, temperature=temperature)
        plain = codes if temperature == 1 else plain
        images = model.decode_all(codes)
        labels = (
            [model.labels[j % len(model.labels)] for j in range(count)] if model.labels else None
        )
        scale = max(1, 96 // max(images[0].shape[:2]))
        columns = columns_for(count)
        sheets.append(
            (
                f"{count} samples at temperature {temperature:g}, seed 0",
                plots.sheet(images, columns, labels, scale=scale),
            )
        )
        if progress is not None:
            progress(i + 1, len(TEMPERATURES))
    assert plain is not None
    return sheets, plain
