"""How much of an image a codes file keeps:
`--levels`, `--bpp` and `--max-bytes`, for the commands that write one.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from vqtok.errors import InputError, UsageError

if TYPE_CHECKING:
    from vqtok.codes import Codes, Compact
    from vqtok.model_registry import ModelFolder

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?) ?(?:([kmg])(i?))?b?", re.ASCII | re.IGNORECASE)
_POWERS = {None: 0, "k": 1, "m": 2, "g": 3}


@dataclass(frozen=True)
class RateTarget:
    """What is asked for: a number of levels, or the most that a file may take;
    nothing means all levels.
    """

    levels: int | None = None
    bpp: float | None = None  # bits of the whole file, for each pixel
    max_bytes: int | None = None

    @classmethod
    def parse(cls, levels: int | None, bpp: float | None, max_bytes: str | None) -> "RateTarget":
        """The options as typed. UsageError where several are given, or one makes no sense."""
        given = {"--levels": levels, "--bpp": bpp, "--max-bytes": max_bytes}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise UsageError(
                f"{' and '.join(named)} do not go together", "leave all but one of them out"
            )
        if bpp is not None and not 0 < bpp < math.inf:
            raise UsageError(f"--bpp is {bpp:g}", "give a number above 0, like 0.1")
        return cls(levels, bpp, None if max_bytes is None else parse_bytes(max_bytes))

    @property
    def is_set(self) -> bool:
        return self != RateTarget()

    def apply(
        self, codes: "Codes", name: object, pack: "Callable[[Codes], bytes] | None" = None
    ) -> tuple["Codes", bytes]:
        """The codes at as many levels as asked for, and their file, which `pack`
        makes (None: a plain one).

        InputError where the image `name` allows no such choice.
        """
        from vqtok.codes import fit_to_size, to_bytes

        pack = pack or to_bytes
        if self.bpp is None and self.max_bytes is None:
            codes = codes if self.levels is None else first_levels(codes, self.levels, name)
            return codes, pack(codes)
        # A billionth more, so that the bits per pixel of a file, given back as --bpp,
        # are not missed by rounding.
        limit = (
            codes.pixels * self.bpp / 8 * (1 + 1e-9)
            if self.bpp is not None
            else float(self.max_bytes or 0)
        )
        kept, data = fit_to_size(codes, limit, pack)
        if len(data) > limit:
            takes, asked, fix = self._in_words(len(data), codes.pixels)
            raise InputError(
                f"{name} takes {takes} with one level, more than {asked}", f"give {fix} or more"
            )
        return kept, data

    def _in_words(self, size: int, pixels: int) -> tuple[str, str, str]:
        """What a file takes, what was asked for, and what to ask for to get it."""
        if self.bpp is None:
            return f"{size} bytes", f"--max-bytes {self.max_bytes}", f"--max-bytes {size}"
        needed = _rounded_up(8 * size / pixels)
        return f"{needed} bpp", f"--bpp {self.bpp:g}", f"--bpp {needed}"


def first_levels(codes: "Codes", levels: int, name: object) -> "Codes":
    """`Codes.first_levels` for a file of a batch:
    the error names it, and it is that file's alone.
    """
    try:
        return codes.first_levels(levels)
    except UsageError as error:
        raise InputError(f"{name}: {error}", error.fix) from None


def parse_bytes(text: str) -> int:
    """Bytes from '2000', '2k', '1.5kB' (thousands) or '2KiB' (1024 each). Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    number, prefix, binary = match.groups() if match else ("0", None, "")
    size = int(Decimal(number) * (1024 if binary else 1000) ** _POWERS[prefix and prefix.lower()])
    if size < 1:
        raise UsageError(f"{text!r} is no size of a file", "write it like 2000, 2k, 1.5kB or 2KiB")
    return size


def model_levels(folder: "ModelFolder") -> int:
    """L, from the header of a model's tokenizer; FormatError where it is damaged."""
    from vqtok import weights

    return weights.tokenizer_config(folder.tokenizer).levels


def check_levels(levels: int | None, model: str | None) -> None:
    """UsageError where the model has not so many levels:
    torch takes seconds to import, so this is told before.
    """
    if levels is None:
        return
    from vqtok import codes, model_registry

    folder = model_registry.find_model(model)
    most = model_levels(folder)
    if levels > most:
        raise UsageError(
            f"the model {folder.name} has {codes.count_levels(most)}, not {levels}",
            codes.levels_fix(most),
        )


def facts(codes: "Codes | Compact", size: int, form: str | None = None) -> dict[str, Any]:
    """What a program wants to know of a codes file that was written, of `size` bytes."""
    from vqtok import codes as codes_format

    _, L, h, w = codes.shape
    return {
        "grid": [w, h, L],
        "levels": L,
        "form": form or codes_format.form(codes),
        "bytes": size,
        "bpp": round(8 * size / codes.pixels, 4),
        "raw_bpp": round(codes.bits / codes.pixels, 4),
    }


def shown(size: int, bpp: float) -> str:
    """'3.2 kB, 0.083 bpp': three digits where two would hide the difference between two levels."""
    from vqtok.files import human_bytes

    return f"{human_bytes(size)}, {bpp:.{2 if bpp >= 0.1 else 3}f} bpp"


def _rounded_up(value: float) -> str:
    """Two digits of it, and not less than it."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / step - 1e-9) * step:.10g}"
