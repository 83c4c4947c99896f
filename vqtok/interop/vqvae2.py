"""VQ-VAE-2 with two grids of codes, in rosinality's layout.

Source: github.com/rosinality/vq-vae-2-pytorch, vqvae.py.
"""

from collections.abc import Mapping

import numpy as np

from vqtok.config import TokenizerConfig
from vqtok.errors import FormatError, UsageError
from vqtok.interop.options import Converted, ImportOptions
from vqtok.interop.pieces import Pieces
from vqtok.interop.trial import distance_settings

NAME = "rosinality VQ-VAE-2"
OWN_RANGE, ASKS = "-1:1", True  # copies differ
LEVELS = 5  # a code of the top, four of the bottom


def fits(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the tensors are such a tokenizer's."""
    return {"quantize_t.embed", "quantize_b.embed"} <= set(tensors)


def convert(tensors: Mapping[str, np.ndarray], options: ImportOptions, origin: str) -> Converted:
    """Settings and tensors of our network. FormatError, UsageError."""
    distance = distance_settings(options, normalize=False)
    pieces = Pieces(tensors, origin)
    number = {"enc_b": 5, "enc_t": 3, "dec_t": 1, "dec": 1}  # of the first block in each
    blocks = sum(pieces.has(f"enc_b.blocks.{5 + i}.conv.1.weight") for i in range(64))
    out: dict[str, np.ndarray] = {}
    parts = {
        "enc_b": ("encoder.bottom", ["0", "2", "4"], []),
        "enc_t": ("encoder.top", ["0", "2"], []),
        "dec_t": ("encoder.from_top", ["0"], [0]),
        "dec": ("decoder.layers", ["0"], [0, 2]),
    }
    for theirs, (ours, before, after) in parts.items():
        for place in before:
            pieces.layer(f"{ours}.{place}", f"{theirs}.blocks.{place}", out)
        start = number[theirs]
        for i in range(start, start + blocks):
            pieces.layer(f"{ours}.{i}.first", f"{theirs}.blocks.{i}.conv.1", out)
            pieces.layer(f"{ours}.{i}.second", f"{theirs}.blocks.{i}.conv.3", out)
        for gap in after:  # a ReLU stands before each
            place = start + blocks + 1 + gap
            _transposed(pieces, f"{ours}.{place}", f"{theirs}.blocks.{place}", out)
    pieces.layer("encoder.top_vectors", "quantize_conv_t", out)
    pieces.layer("encoder.bottom_vectors", "quantize_conv_b", out)
    _transposed(pieces, "decoder.widen_top", "upsample_t", out)
    books = [pieces.get(f"quantize_{name}.embed", 2).T for name in "tb"]
    pieces.finish("enc_", "dec", "quantize", "upsample_t", ignored=(".cluster_size", ".embed_avg"))
    size, dim = books[0].shape
    if books[1].shape != (size, dim) or not blocks:
        raise FormatError(
            f"{origin} has {len(books[0])} codes at the top and {len(books[1])} at the bottom, of "
            f"{dim} and {books[1].shape[1]} dimensions, and {blocks} residual blocks",
            "vqtok reads VQ-VAE-2 with equal codebooks and one block or more",
        )
    for level in range(LEVELS):
        book = np.ascontiguousarray(books[min(level, 1)])
        out[f"quantizer.quantizers.{level}.codebook"] = book
    out["quantizer.depth"] = _marks(books)
    first = out["encoder.bottom.0.weight"]
    try:
        settings = TokenizerConfig(
            channels=first.shape[1],
            downsample=8,
            width=len(out["encoder.bottom.4.weight"]),
            encoder_blocks=blocks,
            decoder_blocks=blocks,
            quantizer="vq",
            codebook_size=size,
            code_dim=LEVELS * dim,
            levels=LEVELS,
            product=True,
            beta=0.25 if options.beta is None else options.beta,
            network="vqvae2",
            hidden=len(out["encoder.bottom.5.first.weight"]),  # type: ignore[call-arg]
            **distance,
        )
    except UsageError as error:
        raise FormatError(
            f"{origin} holds a network that vqtok has no room for: {error}",
            "import another checkpoint",
        ) from None
    return Converted(NAME, settings, out)


def _transposed(pieces: Pieces, ours: str, theirs: str, out: dict[str, np.ndarray]) -> None:
    """Takes a transposed convolution, whose outputs are its second axis."""
    pieces.layer(ours, theirs, out)
    if not pieces.has(f"{theirs}.bias"):
        out[f"{ours}.bias"] = np.zeros(out[f"{ours}.weight"].shape[1], np.float32)


def _marks(books: list[np.ndarray]) -> np.ndarray:
    """What stands for levels that are not given, float32 (5, 5*D): the mean of their codes."""
    dim = books[0].shape[1]
    means = [book.mean(0, dtype=np.float64) for book in (books[0], *[books[1]] * 4)]
    marks = np.zeros((LEVELS, LEVELS * dim), np.float32)
    for level in range(LEVELS):
        for missing in range(level + 1, LEVELS):
            marks[level, missing * dim : (missing + 1) * dim] = means[missing]
    return marks
