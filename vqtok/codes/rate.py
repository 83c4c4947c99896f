"""Makes codes files at a number of levels, or at as many as a size allows."""

from collections.abc import Callable
from dataclasses import dataclass

from vqtok.codes.compact import Compact
from vqtok.codes.grids import Codes
from vqtok.codes.io import form, to_bytes

Pack = Callable[[Codes], Codes | Compact]


@dataclass(frozen=True)
class Encoded:
    """A codes file in memory, and what it holds."""

    codes: Codes  # at the levels in the file
    form: str  # plain, packed or coded
    data: bytes

    @classmethod
    def of(cls, codes: Codes, pack: Pack | None = None) -> "Encoded":
        """Makes a plain file, or one of the compact form that `pack` gives."""
        packed = codes if pack is None else pack(codes)
        return cls(codes, form(packed), to_bytes(packed))


@dataclass(frozen=True)
class RateTarget:
    """A number of levels, or the most that a file may take; nothing set means all levels.

    At most one of the three is set.
    """

    levels: int | None = None
    bpp: float | None = None  # bits of the whole file, for each pixel
    max_bytes: int | None = None

    @property
    def is_set(self) -> bool:
        return self != RateTarget()

    def byte_limit(self, pixels: int) -> float | None:
        """Bytes that a file of so many pixels may take; None where no size is asked for."""
        if self.bpp is not None:
            # A billionth more, so that the bits per pixel of a file, given back as --bpp,
            # are not missed by rounding.
            return pixels * self.bpp / 8 * (1 + 1e-9)
        return None if self.max_bytes is None else float(self.max_bytes)


def encode_at_rate(codes: Codes, target: RateTarget, pack: Pack | None = None) -> Encoded:
    """Makes the file of codes at the levels that the target allows; `pack` as in `Encoded.of`.

    Where one level takes more than the limit, the result takes more, too: compare it with
    `target.byte_limit`. UsageError where more levels are asked for than the codes hold.
    """
    limit = target.byte_limit(codes.pixels)
    if limit is not None:
        return fit_to_size(codes, limit, pack)
    return Encoded.of(codes if target.levels is None else codes.first_levels(target.levels), pack)


def fit_to_size(codes: Codes, limit: float, pack: Pack | None = None) -> Encoded:
    """Makes the file with the most levels that takes at most `limit` bytes; with one level
    where even that takes more.
    """
    for count in range(codes.levels, 1, -1):
        encoded = Encoded.of(codes.first_levels(count), pack)
        if len(encoded.data) <= limit:
            return encoded
    return Encoded.of(codes.first_levels(1), pack)
