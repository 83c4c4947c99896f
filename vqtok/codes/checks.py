"""Checks both forms of a codes file, and weights files."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vqtok.errors import FormatError

FORMAT = 1
COPY_AGAIN = "copy or download the file again"


def parse_meta(text: str) -> dict[str, Any]:
    """Parses the JSON object that is the metadata of a codes or weights file; FormatError where
    damaged or of a newer format.
    """
    try:
        if not text.isascii():
            raise ValueError
        meta = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # ValueError: also an integer of thousands of digits
        raise FormatError("the metadata is damaged", COPY_AGAIN) from None
    number = meta.get("format") if isinstance(meta, dict) else None
    require(is_int(number, 1, math.inf), "the metadata is damaged")
    if number != FORMAT:
        raise FormatError(
            f"written in format {str(number)[:20]}, newer than this vqtok reads", "upgrade vqtok"
        )
    return meta


@contextmanager
def name_in_errors(origin: object) -> Iterator[None]:
    """Puts the file's name before the message of a FormatError."""
    try:
        yield
    except FormatError as error:
        raise error.about(origin) from None


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def require(ok: bool, message: str, fix: str = COPY_AGAIN) -> None:
    if not ok:
        raise FormatError(message, fix)


def is_int(value: object, low: int, high: float) -> bool:
    return type(value) is int and low <= value <= high
