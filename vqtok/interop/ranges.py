"""The pixel range that a foreign network expects: read from text, and the candidates to try."""

from dataclasses import dataclass

from vqtok.errors import UsageError

_FIX = (
    "write LOW:HIGH, like 0:1, -1:1 or -0.5:0.5, or MEAN:STD of pixels in 0 to 1, "
    "like 0.485,0.456,0.406:0.229,0.224,0.225"
)


@dataclass(frozen=True)
class PixelRange:
    """Pixels p in [0, 1] go into the network as (p - mean) / std; one number, or one a channel."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def parse_range(text: str) -> PixelRange:
    """Reads LOW:HIGH or MEAN:STD. A range begins at 0 or below, a mean lies above 0.

    UsageError where it is neither.
    """
    try:
        first, second = ([float(n) for n in side.split(",")] for side in text.split(":"))
    except ValueError:
        raise UsageError(f"{text[:60]!r} is no range of pixels", _FIX) from None
    finite = all(abs(n) <= 1e4 for n in first + second)  # false for nan
    if not finite or len(first) != len(second) or len(first) not in (1, 3):
        raise UsageError(f"{text[:60]!r} is no range of pixels", _FIX)
    if len(first) == 1 and first[0] <= 0:
        width = second[0] - first[0]
        if width < 1e-3:
            raise UsageError(f"{text[:60]!r} is no range of pixels", _FIX)
        return PixelRange(text, (-first[0] / width,), (1 / width,))
    if min(second) < 1e-3:
        raise UsageError(f"{text[:60]!r} has a standard deviation of 0 or below", _FIX)
    return PixelRange(text, tuple(first), tuple(second))


def candidates(channels: int) -> list[PixelRange]:
    """Returns the ranges that shared checkpoints have; the last is ImageNet's mean and
    deviation.
    """
    names = ["0:1", "-1:1", "-0.5:0.5"]
    names += ["0.485,0.456,0.406:0.229,0.224,0.225"] if channels == 3 else []
    return [parse_range(name) for name in names]
