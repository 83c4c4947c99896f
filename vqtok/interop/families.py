"""Networks that vqtok does not read, recognized by their tensors and refused by name."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from vqtok.errors import FormatError

_FIX = "import a tokenizer with one grid of codes; docs/interoperate.md lists those that are read"
# what vqtok does for tokens of any tokenizer
_TOKENS = (
    "encode with its own program; vqtok packs its tokens: vqtok train TOKENS.npy --stage entropy, "
    "then vqtok pack"
)
Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Family:
    """A network that vqtok cannot hold, and the reason."""

    what: str
    why: str
    fits: Callable[[Tensors], bool]
    fix: str = _FIX


def _has(names: Collection[str], *parts: str) -> bool:
    """Whether each of the parts is in a name."""
    return all(any(part in name for name in names) for part in parts)


def _is_lookup_free(tensors: Tensors) -> bool:
    taming = _has(tensors, "encoder.down.") and not _has(tensors, "quant")
    adaptive = _has(tensors, "decoder.adaptive.")
    common = _has(tensors, "decoder.up.", "encoder.conv_in.", "encoder.conv_out.")
    return taming and common and not adaptive


def _is_var(tensors: Tensors) -> bool:
    return _has(tensors, "quantize.quant_resi.") or _has(tensors, "ema_vocab_hit_SV")


def _is_cosmos(tensors: Tensors) -> bool:
    """Whether images are folded by wavelets before the first layer, and no codebook is there."""
    first = tensors.get("encoder.conv_in.weight")
    folded = first is not None and first.ndim == 4 and first.shape[1] in (12, 48, 192)
    plain = _has(tensors, "quant_conv.") and not _has(tensors, "quantize.")
    return (folded and plain) or _has(tensors, ".patcher")


FAMILIES = (
    Family(
        "a VAR tokenizer",
        "its multi-scale codes are ten grids of 1x1 to 16x16 that share one codebook; their "
        "sizes do not divide each other, so they do not fold into the levels of one grid",
        _is_var,
        _TOKENS,
    ),
    Family(
        "a lookup-free tokenizer without Open-MAGVIT2's adaptive normalization",
        "vqtok knows no program whose decoder it is",
        _is_lookup_free,
    ),
    Family(
        "a VQGAN with a Gumbel quantizer",
        "vqtok reads vector quantizers only",
        lambda tensors: _has(tensors, "quantize.embed.weight", "quantize.proj."),
    ),
    Family(
        "a Cosmos tokenizer",
        "it works on wavelets, with finite scalar quantization whose steps its tensors do not tell",
        _is_cosmos,
        _TOKENS,
    ),
    Family(
        "a one-dimensional tokenizer (TiTok)",
        "its codes have no place in the image",
        lambda tensors: _has(tensors, "latent_tokens", "encoder.transformer"),
        _TOKENS,
    ),
    Family(
        "an RQ-VAE",
        "its levels share what each leaves of a vector, and vqtok reads no such quantizer",
        lambda tensors: _has(tensors, "quantizer.codebooks.0."),
        _TOKENS,
    ),
)


def check(tensors: Tensors, origin: str) -> None:
    """Raises FormatError, with the network's name, where vqtok has no room for it."""
    found = next((family for family in FAMILIES if family.fits(tensors)), None)
    if found is not None:
        raise FormatError(f"{origin}: this is {found.what}: {found.why}", found.fix)
