"""Takes the names of wrappers off tensors: module., _orig_mod., model., any common one."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from vqtok.errors import UsageError

# parts of names that a network's own tensors have, whatever comes before them
_ROOTS = re.compile(r"(?:^|[./])(_?encoder|enc|_?enc_[bt1])(?=[./_])")
_EMA = re.compile(r"(?:^|[._/])ema(?:[._/]|$)")
LIT_EMA = "model_ema."  # of latent-diffusion: names without dots


def strip(tensors: Mapping[str, np.ndarray], part: str | None) -> tuple[dict[str, np.ndarray], str]:
    """Returns the tensors of one network, without the prefix before `encoder`; and which of several
    networks that was, "" where there is one.

    `part` names the one to take, like ema. UsageError where there is none of that name.
    """
    if part == "ema" and any(name.startswith(LIT_EMA) for name in tensors):
        averaged = _lit_ema(tensors)
        return strip(averaged, None)[0], "ema"
    averaged = any(name.startswith(LIT_EMA) for name in tensors)
    tensors = {name: value for name, value in tensors.items() if not name.startswith(LIT_EMA)}
    prefixes = _prefixes(tensors)
    if averaged and (part in (None, "model")) and prefixes == [""]:
        return tensors, "model"
    if not prefixes:
        return dict(tensors), ""
    several = [prefix for prefix in prefixes if prefix]
    chosen = prefixes[0]
    if part is not None and len(prefixes) > 1:
        fits = [prefix for prefix in several if part in re.split(r"[._/]", prefix)]
        fits = fits or ([""] if part == "model" and "" in prefixes else [])
        if not fits:
            raise UsageError(
                f"there are no weights named {part!r}",
                f"choose one of {', '.join(p.strip('.') or 'model' for p in prefixes)}",
            )
        chosen = fits[0]
    taken = (chosen.strip("./") or "model") if len(prefixes) > 1 else ""
    return {
        name.removeprefix(chosen): value
        for name, value in tensors.items()
        if name.startswith(chosen)
    }, taken


def _prefixes(names: Iterable[str]) -> list[str]:
    """Lists what comes before `encoder` in the names, the network with most tensors first. Those of
    losses and averages count only where there is no other.
    """
    counts: dict[str, int] = {}
    for name in names:
        found = _ROOTS.search(name)
        if found:
            prefix = name[: found.start(1)]
            counts[prefix] = counts.get(prefix, 0) + 1
    counts = {p: n for p, n in counts.items() if not re.search(r"loss|discrim|lpips|optim", p)}
    outer = [p for p in counts if not any(p != q and q and p.startswith(q) for q in counts)]
    plain = sorted(outer, key=lambda p: (bool(_EMA.search(p)), -counts[p], p))
    return plain


def _lit_ema(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Averages of latent-diffusion under the names of the weights that they follow."""
    return {
        name: tensors.get(LIT_EMA + name.replace(".", ""), value)
        for name, value in tensors.items()
        if not name.startswith((LIT_EMA, "loss."))
    }
