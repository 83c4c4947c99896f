"""Converts values deeper than 8 bits to 8: which range of them becomes 0 to 255, and how much of it
is used.

Files: gray of 16 or 32 bits or float, colors of 16 bits. Arrays: any integers, floats and bools.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vqtok.errors import InputError, UsageError

Range = tuple[float, float]  # the values that become 0 and 255
OVERSHOOT = 0.05  # how far floats may pass 0 and 1: resizing and sharpening make such values
NARROW = 0.25  # a smaller part of the range in use is said: 6 of 8 bits are left there
_STRIP = 1 << 20  # values that are worked on at once, 8 MB as float64
# what programs write where there is no measurement; counted as such where far from all other values
_MARKERS = (-9999.0, -99999.0, -32768.0, -32767.0, -999.0, -9999999.0, 65535.0, 32767.0)
_HUGE = 1e20  # of floats: larger ones are markers, such as 1e20, 9.97e36 and -3.4e38


@dataclass(frozen=True)
class Scaled:
    """Values as 8 bits, and how they were made."""

    pixels: np.ndarray  # uint8, of the shape of the values
    range: Range  # the values that became 0 and 255
    narrow: Range | None  # the values in use, where they are a small part of the range, or made it
    notes: tuple[str, ...]
    nan: int = 0  # how many values are NaN, and became black


def parse_range(text: str | None) -> Range | None:
    """Parses LOW:HIGH; None for auto, and for no text. Raises UsageError."""
    if text is None or text.strip().lower() in ("", "auto"):
        return None
    low, _, high = text.partition(":")
    try:
        found = float(low), float(high)
    except ValueError:
        found = (math.nan, math.nan)
    if not all(map(math.isfinite, found)) or not found[0] < found[1]:
        raise UsageError(
            f"{text!r} is no range of values", "write auto, or LOW:HIGH like 0:4095 or -1000:3000"
        )
    return found


def _checked_range(given: Range) -> Range:
    """Returns a caller's range as two floats. Raises UsageError."""
    low, high = (float(end) for end in given)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"{given} is no range of values", "give (LOW, HIGH) with LOW below HIGH")
    return low, high


def range_of_record(record: Mapping[str, Any]) -> Range | None:
    """Returns the range that a model's training record names; None where it names none, or no valid
    one.
    """
    found = record.get("range")
    try:
        low, high = (float(value) for value in found or ())
    except (TypeError, ValueError):
        return None
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def show_range(values: Range) -> str:
    """Formats a range as `parse_range` reads it, like 0:4095."""
    return ":".join(f"{value:.15g}" for value in values)


def to_8_bits(
    values: np.ndarray,
    given: Range | None = None,
    bits: int | None = None,
    nodata: float | None = None,
    check: bool = True,
) -> Scaled:
    """Scales values of any integer or float type to uint8 of the same shape.

    `given` are the values that become 0 and 255; those beyond are cut. None chooses: of integers of
    up to 16 bits their type's range (`bits`: of unsigned ones, where the file says fewer), of
    larger ones 0 to 65535 where that holds them; of floats 0 to 1 with some overshoot, or 0
    to 255; else from the lowest to the highest value. Values that are not finite, or are `nodata`,
    never count, and become 0; +inf becomes 255. Without `check` nothing is said, and `given` is
    needed. Raises InputError where no value counts.
    """
    assert values.dtype.kind in "iuf", values.dtype
    given = None if given is None else _checked_range(given)
    if not check:  # of a part of a set, whose range is known
        assert given is not None
        return Scaled(_scale(values, given, nodata), given, None, ())
    used, gap = _used(values, nodata)
    if given is not None:
        chosen, notes, made = given, _cut(values, given, nodata), False
    else:
        chosen, notes, made = _choose(values.dtype, used, bits, values)
    if gap:
        notes = [*notes, gap]
    nan = count_nan(values)
    if nan:
        notes = [*notes, nan_note(nan, values.size)]
    pixels = _scale(values, chosen, nodata)
    share = (used[1] - used[0]) / (chosen[1] - chosen[0]) if chosen[1] > chosen[0] else 1.0
    narrow = used if used[1] > used[0] and (share < NARROW or made) else None
    if narrow is not None and share < NARROW:
        notes = [*notes, _narrow_note(share, chosen, narrow)]
    elif narrow is not None:
        # made of the values themselves, it is another for each image
        notes = [*notes, f"for a set give one range, like --range {show_range(narrow)}"]
    return Scaled(pixels, chosen, narrow, tuple(notes), nan)


def count_nan(values: np.ndarray) -> int:
    """Counts the values that are NaN: 0 of integers."""
    return int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0


def nan_note(nan: int, count: int) -> str:
    """Says how many of an image's values, or of a set's, are NaN."""
    return f"{nan:,} of {count:,} values are NaN and become black"


def _narrow_note(share: float, chosen: Range, used: Range) -> str:
    wanted = show_range(suggest([used]))
    return (
        f"only {share:.2%} of the range {show_range(chosen)} is used: "
        f"--range {wanted} would use it all"
    )


def used_range(values: np.ndarray) -> Range:
    """Returns the lowest and highest value that counts. Raises InputError where there is none."""
    return _used(values, None)[0]


def suggest(used: list[Range]) -> Range:
    """Suggests one range for images that use these: of whole numbers up to a power of two, else
    from the lowest to the highest.
    """
    low, high = min(a for a, _ in used), max(b for _, b in used)
    if low >= 0 and high >= 2 and float(high).is_integer() and float(low).is_integer():
        return 0.0, float(2 ** int(high).bit_length() - 1)
    return low, high


def _used(values: np.ndarray, nodata: float | None) -> tuple[Range, str]:
    """Returns the lowest and highest value that counts, and a note where a marker was left out."""
    if values.size == 0:
        raise InputError("the image has no pixels", "give an image of at least 1x1")
    flat = values.reshape(-1)
    low, high, second_low, second_high = math.inf, -math.inf, math.inf, -math.inf
    for i in range(0, flat.size, _STRIP):
        part = flat[i : i + _STRIP]
        if part.dtype.kind == "f":
            part = part[np.isfinite(part)]
            part = part[np.abs(part) < _HUGE] if part.dtype.itemsize > 2 else part
        if nodata is not None:
            part = part[part != nodata]
        if not part.size:
            continue
        low, high = min(low, _decimal(part.min())), max(high, _decimal(part.max()))
        rest = part[~np.isin(part, np.array(_MARKERS).astype(np.float64))]
        if rest.size:
            second_low = min(second_low, _decimal(rest.min()))
            second_high = max(second_high, _decimal(rest.max()))
    if low > high:
        raise InputError("no value of the image is a finite number", "give an image that has some")
    width = max(second_high - second_low, 1.0)
    marker = None
    if second_low < math.inf:
        if low in _MARKERS and second_low - low > width:
            low, marker = second_low, low
        # 0 and 65535 alone are a mask
        several = values.dtype.kind != "u" or second_high > second_low
        if high in _MARKERS and high - second_high > width and several:
            high, marker = second_high, high
    note = "" if marker is None else f"the value {marker:.10g} counts as no data"
    return (low, high), note


def _decimal(value: np.generic) -> float:
    """Returns a number by the shortest text that means it: 1.3 of float32 is 1.3, not
    1.2999999523.
    """
    return float(str(value))


def _choose(
    dtype: np.dtype, used: Range, bits: int | None, values: np.ndarray
) -> tuple[Range, list[str], bool]:
    """Chooses the range for values of a type; returns it, what to say of it, and whether it was
    made of the values.
    """
    low, high = used
    scaled = [f"values from {low:.6g} to {high:.6g} scaled to 8 bits"]
    if dtype.kind == "f":
        turned = ["float values turned into 8 bits"]
        if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
            return (0.0, 1.0), turned, False
        whole = high > 1.05 and _is_whole(values)
        if low >= 0 and high <= 255 and (whole or high >= NARROW * 255):
            return (0.0, 255.0), turned, False
        return (low, high), scaled, True
    if dtype.itemsize == 1 and dtype.kind == "u":
        return (0.0, 255.0), [], False
    if bits is not None and bits < 16:
        return (0.0, 2.0**bits - 1), [f"{bits}-bit values reduced to 8 bits"], False
    if dtype.itemsize <= 2:
        limits = np.iinfo(dtype)
        name = f"{8 * dtype.itemsize}-bit values reduced to 8 bits"
        return (float(limits.min), float(limits.max)), [name], False
    if low >= 0 and high <= 65535:
        return (0.0, 65535.0), ["16-bit values reduced to 8 bits"], False
    return (low, high), scaled, True


def _is_whole(values: np.ndarray) -> bool:
    flat = values.reshape(-1)
    parts = (flat[i : i + _STRIP] for i in range(0, flat.size, _STRIP))
    return all(bool((p == np.rint(p)).all()) for p in (part[np.isfinite(part)] for part in parts))


def _cut(values: np.ndarray, given: Range, nodata: float | None) -> list[str]:
    """Says how many values a given range does not hold."""
    flat, outside, count = values.reshape(-1), 0, 0
    for i in range(0, flat.size, _STRIP):
        part = flat[i : i + _STRIP]
        part = part[np.isfinite(part)] if part.dtype.kind == "f" else part
        part = part if nodata is None else part[part != nodata]
        count += part.size
        outside += int(((part < given[0]) | (part > given[1])).sum())
    notes = [f"values {show_range(given)} turned into 8 bits"]
    if outside:
        notes.append(f"{outside / count:.2%} of the values lie outside of it and are cut")
    return notes


def _scale(values: np.ndarray, chosen: Range, nodata: float | None) -> np.ndarray:
    low, high = chosen
    pixels = np.empty(values.size, np.uint8)
    flat = values.reshape(-1)
    for i in range(0, flat.size, _STRIP):
        part = flat[i : i + _STRIP]
        if chosen == (0.0, 65535.0) and part.dtype.kind != "f":
            # as Pillow does it with 16-bit colors
            wide = np.clip(part, 0, 65535 if part.dtype.itemsize > 1 else 255)
            scaled = (wide // 256).astype(np.uint8)
        elif chosen == (0.0, 255.0) and part.dtype == np.uint8:
            scaled = part
        else:
            wide = np.clip(part.astype(np.float64), low, high)  # NaN stays
            wide = (wide - low) * (255.0 / max(high - low, 1e-300))
            scaled = np.rint(np.nan_to_num(wide, nan=0.0)).astype(np.uint8)
        if nodata is not None:
            scaled = np.where(part == nodata, np.uint8(0), scaled)
        pixels[i : i + _STRIP] = scaled
    return pixels.reshape(values.shape)


def narrow_of_bytes(high: np.ndarray) -> Range | None:
    """Returns the values in use of 16-bit colors, of which only the high bytes are at hand, where
    these are a small part of their range.
    """
    low, top = int(high.min()), int(high.max())
    return (256.0 * low, 256.0 * top + 255) if top - low < NARROW * 256 and top else None


def words_note(used: Range) -> str:
    """Says of colors, as of gray, how much of 16 bits they use."""
    return _narrow_note((used[1] - used[0]) / 65535, (0.0, 65535.0), used)


def parse_nodata(text: object) -> float | None:
    """Parses the number in GDAL's tag 42113; None where it is none."""
    found = re.fullmatch(r"\s*([-+.\deE]+)\s*\0?", str(text))
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None
