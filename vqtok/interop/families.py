"""Networks that vqtok does not read, recognized by their tensors and refused by name."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from vqtok.errors import FormatError

_FIX = "import a tokenizer with one grid of codes; docs/interoperate.md lists those that are read"
Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Family:
    """A network that vqtok cannot hold, and the reason."""

    what: str
    why: str
    fits: Callable[[Tensors], bool]


def _has(names: Collection[str], *parts: str) -> bool:
    """Whether each of the parts is in a name."""
    return all(any(part in name for name in names) for part in parts)


def _is_lookup_free(tensors: Tensors) -> bool:
    taming = _has(tensors, "encoder.down.") and not _has(tensors, "quant")
    return taming and _has(tensors, "decoder.up.", "encoder.conv_in.", "encoder.conv_out.")


def _is_var(tensors: Tensors) -> bool:
    return _has(tensors, "quantize.quant_resi.") or _has(tensors, "ema_vocab_hit_SV")


FAMILIES = (
    Family(
        "a VAR tokenizer",
        "its multi-scale codes are ten grids of growing size that share one codebook, and vqtok's "
        "levels share one size",
        _is_var,
    ),
    Family(
        "a VQ-VAE-2 of rosinality's layout",
        "its top and bottom grids differ in size, and vqtok's levels share one size",
        lambda tensors: _has(tensors, "enc_b.", "enc_t.", "quantize_t.", "quantize_b."),
    ),
    Family(
        "an Open-MAGVIT2 tokenizer",
        "its codes are signs (lookup-free, no codebook), up to 2^18 of them, and vqtok holds "
        "65,536",
        _is_lookup_free,
    ),
    Family(
        "a MaskGIT-VQGAN",
        "it averages pixels where taming's network has strided convolutions",
        lambda tensors: _has(tensors, "encoder.down.", ".upsample_conv."),
    ),
    Family(
        "a VQGAN with a Gumbel quantizer",
        "vqtok reads vector quantizers only",
        lambda tensors: _has(tensors, "quantize.embed.weight", "quantize.proj."),
    ),
    Family(
        "a Cosmos tokenizer",
        "it works on wavelets with finite scalar quantization",
        lambda tensors: _has(tensors, ".patcher") or _has(tensors, ".patcher3d"),
    ),
    Family(
        "a one-dimensional tokenizer (TiTok)",
        "its codes have no place in the image",
        lambda tensors: _has(tensors, "latent_tokens", "encoder.transformer"),
    ),
)


def check(tensors: Tensors, origin: str) -> None:
    """Raises FormatError, with the network's name, where vqtok has no room for it."""
    found = next((family for family in FAMILIES if family.fits(tensors)), None)
    if found is not None:
        raise FormatError(f"{origin}: this is {found.what}: {found.why}", _FIX)
