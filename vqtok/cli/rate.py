"""The options --levels, --bpp and --max-bytes, and messages about the size of a codes file."""

import math
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from vqtok.errors import InputError, UsageError

if TYPE_CHECKING:
    from vqtok.codes import Codes, Compact, Encoded, RateTarget
    from vqtok.codes.rate import Packer

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?) ?(?:([kmg])(i?))?b?", re.ASCII | re.IGNORECASE)
_POWERS = {None: 0, "k": 1, "m": 2, "g": 3}


def parse(levels: int | None, bpp: float | None, max_bytes: str | None) -> "RateTarget":
    """Reads the options as typed. UsageError where several are given, or one makes no sense."""
    from vqtok.codes import RateTarget

    given = {"--levels": levels, "--bpp": bpp, "--max-bytes": max_bytes}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(
            f"{' and '.join(named)} do not go together", "leave all but one of them out"
        )
    if bpp is not None and not 0 < bpp < math.inf:
        raise UsageError(f"--bpp is {bpp:g}", "give a number above 0, like 0.1")
    return RateTarget(levels, bpp, None if max_bytes is None else parse_bytes(max_bytes))


def parse_bytes(text: str) -> int:
    """Parses a size: '2000', '2k', '1.5kB' (thousands) or '2KiB' (1024 each). Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    number, prefix, binary = match.groups() if match else ("0", None, "")
    size = int(Decimal(number) * (1024 if binary else 1000) ** _POWERS[prefix and prefix.lower()])
    if size < 1:
        raise UsageError(f"{text!r} is no size of a file", "write it like 2000, 2k, 1.5kB or 2KiB")
    return size


def encode(
    codes: "Codes", target: "RateTarget", name: object, packer: "Packer | None" = None
) -> "Encoded":
    """Makes a codes file as `codes.encode_at_rate`; InputError, which names the input, where it
    holds fewer levels or one level takes more than was asked for.
    """
    from vqtok.codes import encode_at_rate

    try:
        encoded = encode_at_rate(codes, target, packer)
    except UsageError as error:
        raise InputError(f"{name}: {error}", error.fix, error.command_fix) from None
    size, limit = len(encoded.data), target.byte_limit(codes.pixels)
    if limit is not None and size > limit:
        takes, asked, fix = _in_words(target, size, codes.pixels)
        raise InputError(
            f"{name} takes {takes} with one level, more than {asked}", f"give {fix} or more"
        )
    return encoded


def first_levels(codes: "Codes", levels: int | None, name: object) -> "Codes":
    """Keeps the first levels (None: all); InputError, with the input's name, where it has fewer."""
    if levels is None:
        return codes
    try:
        return codes.first_levels(levels)
    except UsageError as error:
        raise InputError(f"{name}: {error}", error.fix, error.command_fix) from None


def _in_words(target: "RateTarget", size: int, pixels: int) -> tuple[str, str, str]:
    """Returns what a file takes, what was asked for, and what to ask for to get it."""
    if target.bpp is None:
        return f"{size} bytes", f"--max-bytes {target.max_bytes}", f"--max-bytes {size}"
    needed = _rounded_up(8 * size / pixels)
    return f"{needed} bpp", f"--bpp {target.bpp:g}", f"--bpp {needed}"


def _rounded_up(value: float) -> str:
    """Rounds up to two digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / step - 1e-9) * step:.10g}"


def only_packed(model: str) -> str:
    """Returns what is said where compact codes are asked for of a model that cannot code them."""
    return (
        f"the model {model} has no entropy prior: bits are packed, not coded "
        "(vqtok train --stage entropy makes one)"
    )


def facts(codes: "Codes | Compact", form: str, size: int) -> dict[str, Any]:
    """Describes a codes file of `size` bytes, for JSON."""
    _, L, h, w = codes.shape
    return {
        "grid": [w, h, L],
        "levels": L,
        "form": form,
        "bytes": size,
        "bpp": round(8 * size / codes.pixels, 4),
        "raw_bpp": round(codes.bits / codes.pixels, 4),
    }


def shown(size: int, bpp: float) -> str:
    """Returns text like '3.2 kB, 0.083 bpp', with three digits where two would hide the difference
    between two levels.
    """
    from vqtok.files import human_bytes

    return f"{human_bytes(size)}, {bpp:.{2 if bpp >= 0.1 else 3}f} bpp"
