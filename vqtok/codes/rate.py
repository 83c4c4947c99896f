"""Makes codes files at a number of levels, or at as many as a size allows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vqtok.codes.compact import Compact
from vqtok.codes.grids import Codes
from vqtok.codes.io import form, to_bytes


class Packer(Protocol):
    """Gives the compact form: a model, or its entropy coder."""

    def pack(self, codes: Codes, /) -> Compact: ...

    def pack_levels(self, codes: Codes, /) -> Callable[[int], Compact]:
        """Codes the levels once; the result gives the compact form of any number of the first
        levels.
        """
        ...


@dataclass(frozen=True)
class Encoded:
    """Holds a codes file in memory, and what it describes."""

    codes: Codes  # at the levels in the file
    form: str  # plain, packed or coded
    data: bytes

    @classmethod
    def of(cls, codes: Codes, packed: Compact | None = None) -> "Encoded":
        """Makes a plain file, or one of the compact form given where that is smaller."""
        data = to_bytes(codes)
        if packed is not None and len(smaller := to_bytes(packed)) < len(data):
            return cls(codes, form(packed), smaller)
        return cls(codes, form(codes), data)


@dataclass(frozen=True)
class RateTarget:
    """Asks for a number of levels, or the most that a file may take; nothing set means all levels.

    At most one of the three is set.
    """

    levels: int | None = None
    bpp: float | None = None  # bits of the whole file, for each pixel
    max_bytes: int | None = None

    @property
    def is_set(self) -> bool:
        return self != RateTarget()

    def byte_limit(self, pixels: int) -> float | None:
        """Returns the bytes that a file of so many pixels may take; None where no size is asked
        for.
        """
        if self.bpp is not None:
            # A billionth more, so that the bits per pixel of a file, given back as --bpp,
            # are not missed by rounding.
            return pixels * self.bpp / 8 * (1 + 1e-9)
        return None if self.max_bytes is None else float(self.max_bytes)


def encode_at_rate(codes: Codes, target: RateTarget, packer: Packer | None = None) -> Encoded:
    """Makes the file of codes at the levels that the target allows; with a packer the smaller of
    the plain and the compact one.

    Where one level takes more than the limit, the result takes more, too: compare it with
    `target.byte_limit`. UsageError where more levels are asked for than the codes hold.
    """
    limit = target.byte_limit(codes.pixels)
    if limit is not None:
        return fit_to_size(codes, limit, packer)
    kept = codes if target.levels is None else codes.first_levels(target.levels)
    return Encoded.of(kept, None if packer is None else packer.pack(kept))


def fit_to_size(codes: Codes, limit: float, packer: Packer | None = None) -> Encoded:
    """Makes the file with the most levels that takes at most `limit` bytes; with one level
    where even that takes more. Levels are coded once for all counts.
    """
    packed = None if packer is None else packer.pack_levels(codes)

    def make(count: int) -> Encoded:
        return Encoded.of(codes.first_levels(count), None if packed is None else packed(count))

    for count in range(codes.levels, 1, -1):
        encoded = make(count)
        if len(encoded.data) <= limit:
            return encoded
    return make(1)
