"""How images are drawn: settings that a prior file may hold, what of an image is kept, and which of
several candidates is best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqtok.codec import inputs
from vqtok.errors import FormatError, UsageError
from vqtok.priors import Prior
from vqtok.priors.base import leaning
from vqtok.sampling.guidance import GUIDANCE_MAX
from vqtok.sampling.sample import by_level, sample_grids

CANDIDATES_MAX = 1000
GRIDS_AT_ONCE = 32  # that the prior weighs together
PALETTE_MAX = 10.0
# what a code that is nowhere in the kept part counts: a 4,000th of its places
ABSENT = 1 / 4000
Numbers = float | Sequence[float]


@dataclass(frozen=True)
class DrawDefaults:
    """Settings of drawing that a prior file holds, where its maker has chosen them.

    They stand in its record, under "sampling", and those for completing an image, where they are
    others, under "completing"; a file without them draws what was learned.
    """

    temperature: Numbers = 1.0
    top_p: Numbers | None = None
    guidance: float = 1.0
    # of completing alone: how many levels are drawn, None for all; and see `complete_grids`
    levels: int | None = None
    palette: float = 0.0

    @classmethod
    def of_record(
        cls, record: dict[str, Any], levels: int, origin: object, completing: bool = False
    ) -> "DrawDefaults":
        """Reads them from a prior file's record. FormatError where they are no such settings."""
        given, names = record.get("sampling", {}), {"temperature", "top_p", "guidance"}
        if completing and "completing" in record:
            given, names = record["completing"], {*names, "levels", "palette"}
        if not isinstance(given, dict) or not set(given) <= names:
            raise _damaged(origin)
        chosen = cls(**given)
        if chosen.levels is not None and not (
            inputs.is_count(chosen.levels) and chosen.levels <= levels
        ):
            raise _damaged(origin)
        checked = (
            (chosen.temperature, 0.0, 100.0),
            (1.0 if chosen.top_p is None else chosen.top_p, 1e-9, 1.0),
        )
        for values, low, high in checked:
            listed = values if isinstance(values, list) else [values]
            if not 1 <= len(listed) <= levels or not all(_within(x, low, high) for x in listed):
                raise _damaged(origin)
        if not _within(chosen.guidance, 0.0, GUIDANCE_MAX) or not _within(
            chosen.palette, 0.0, PALETTE_MAX
        ):
            raise _damaged(origin)
        return chosen

    def fill(
        self, options: dict[str, Any], levels: int, drawn: int | None = None
    ) -> dict[str, Any]:
        """Returns the options with these settings in place of those that are None or missing, for
        the first few levels, of which the first `drawn` are drawn; None: all of them.
        """
        filled, drawn = dict(options), levels if drawn is None else drawn
        for name in ("temperature", "top_p"):
            if filled.get(name) is None:
                filled[name] = by_level(getattr(self, name), max(levels, self._longest))
            else:
                filled[name] = by_level(filled[name], levels)
            filled[name] = filled[name][:drawn]
        if filled.get("guidance") is None:
            filled["guidance"] = self.guidance
        return filled

    @property
    def _longest(self) -> int:
        return max(
            len(value) if isinstance(value, Sequence) else 1
            for value in (self.temperature, self.top_p)
        )


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and low <= value <= high


def _damaged(origin: object) -> FormatError:
    return FormatError(
        f"{origin} holds settings of sampling that are none",
        "copy or download the file again; or train it again",
    )


def known_part(keep: str | None, hole: Sequence[int] | None, h: int, w: int, f: int) -> Tensor:
    """Returns which places of an h x w grid are kept, bool (h, w), where a place is f x f pixels.

    keep is SIDE:PART; hole is x, y, width, height in pixels, all of whose places are
    invented. UsageError where nothing or all would be kept.
    """
    kept = torch.zeros(h, w, dtype=torch.bool)
    if hole is None:
        kept[inputs.parse_keep("top:0.5" if keep is None else keep, h, w)] = True
        return kept
    if keep is not None:
        raise UsageError("a side to keep does not go with a hole", "give one of them")
    if len(hole) != 4 or not all(inputs.is_integer(value) for value in hole):
        raise UsageError(f"{hole!r} is no hole", "give four integers: x, y, width, height")
    x, y, width, height = hole
    if x < 0 or y < 0 or width < 1 or height < 1 or x >= w * f or y >= h * f:
        raise UsageError(
            f"the hole {x},{y},{width},{height} lies outside the image",
            f"choose x below {w * f}, y below {h * f}, and sides of 1 or more",
        )
    kept[:] = True
    kept[y // f : -(-(y + height) // f), x // f : -(-(x + width) // f)] = False
    if not kept.any():
        raise UsageError("the hole takes all of the image", "choose a smaller one")
    return kept


def complete_grids(
    prior: Prior, known: Tensor, n: int, candidates: int = 1, *, seed: int = 0, **options: Any
) -> Tensor:
    """Draws n grids (n, L, h, w) that keep what is known of one, int64 (L, h, w), -1 where it is
    not; options as in `sample_grids`.

    Of `candidates` for each grid, the one is taken under which what is known is likeliest. Most
    priors draw in raster order and do not see what is known further on; a candidate that does
    not lead to it makes it unlikely. (These are the weights of importance sampling.)
    UsageError where the number of candidates is none.
    """
    if not inputs.is_count(candidates) or candidates > CANDIDATES_MAX:
        raise UsageError(
            f"{candidates} candidates cannot be drawn", f"ask for 1 to {CANDIDATES_MAX}"
        )
    h, w = known.shape[1:]
    fixed = known.expand(n, *known.shape)
    draw = partial(sample_grids, prior, n, (h, w), known=fixed, levels=len(known), **options)
    best, least = draw(seed=seed), None
    for number in range(1, candidates):
        least = _known_nats(prior, best, known, options) if least is None else least
        # 2**32 apart: no candidate is that of a neighboring seed
        other = draw(seed=seed + number * 2**32)
        nats = _known_nats(prior, other, known, options)
        better = nats < least
        best[better], least[better] = other[better], nats[better]
    return best


def leaning_to_known(prior: Prior, known: Tensor, weight: float) -> Prior:
    """Returns the prior with the odds of each code times its share of the kept places of its level,
    to the power `weight`: what is invented keeps to the colors and textures of the image.

    known (L, h, w), -1 where it is not. A code that is nowhere there still has a chance.
    UsageError where the weight is out of range.
    """
    if not _within(weight, 0.0, PALETTE_MAX):
        raise UsageError(
            f"palette is {weight}", f"choose 0 (none) to {PALETTE_MAX:.0f}; 1 is strong already"
        )
    if weight == 0:
        return prior
    shares = []
    for level in known:
        kept = level[level >= 0]
        counts = torch.bincount(kept, minlength=prior.config.codebook_size).float()
        shares.append(counts / max(1, len(kept)))
    return leaning(prior, weight * (torch.stack(shares) + ABSENT).log())


def with_plain_levels(grids: Tensor, known: Tensor, codebook: Tensor) -> Tensor:
    """Adds the levels that were not drawn to grids (n, l, h, w): what is known of (L, h, w), and
    elsewhere the code whose vector in codebook (L, K, D) is the shortest, which says the least.
    """
    plain = codebook.norm(dim=-1).argmin(1).cpu()[:, None, None]
    more = torch.where(known >= 0, known, plain[: len(known)])[grids.shape[1] :]
    return torch.cat([grids.cpu(), more.expand(len(grids), *more.shape)], dim=1)


def _known_nats(prior: Prior, grids: Tensor, known: Tensor, options: dict[str, Any]) -> Tensor:
    """Returns -ln p of what is known in each grid, (n,) float64: see `Prior.nats_of_known`."""
    labels = options.get("labels")
    with torch.inference_mode():
        nats = [
            prior.nats_of_known(
                some,
                (known >= 0).to(some.device),
                None if labels is None else labels[start : start + GRIDS_AT_ONCE],
            )
            .cpu()
            .double()
            .sum((1, 2, 3))
            for start, some in zip(
                range(0, len(grids), GRIDS_AT_ONCE), grids.split(GRIDS_AT_ONCE), strict=True
            )
        ]
    return torch.cat(nats).clone()
