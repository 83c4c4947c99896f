"""Finds the best file of another codec within a number of bytes: of JPEG, WebP or AVIF, and of JPEG
XL or HEIC where Pillow's plugin is installed.
"""

import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, features

from vqtok import images
from vqtok.evaluate.comparator import Comparator, Quality

# at a tenth of a bit per pixel, half or a quarter of the resolution looks better than blocks
DIVISORS = (1, 2, 4)


@dataclass(frozen=True)
class _Format:
    """Pillow's settings for a format, with its worst and best quality."""

    kind: str
    feature: str
    worst: int
    best: int
    gray: bool = False
    plugin: str = ""  # the module that adds the format to Pillow
    options: Mapping[str, Any] = field(default_factory=dict)


# One thread, so that an AVIF has the same bytes on every machine: they differ between one thread
# and more (Pillow 13.0.0 with libavif 1.4.2), and one is not always smaller. Its speed stays at
# Pillow's 6: 4 saves 2 to 5 % of the bytes and takes 6 to 12 times as long, for a search that
# writes twenty files of an image.
_FORMATS = {
    "jpeg": _Format(
        "JPEG", "jpg", 1, 95, gray=True, options={"optimize": True, "progressive": True}
    ),
    "webp": _Format("WEBP", "webp", 0, 100, options={"method": 6}),
    "avif": _Format("AVIF", "avif", 0, 100, options={"max_threads": 1}),
    # pillow-jxl-plugin 1.3.8 writes more at 0 than at 1, and takes 100 for a contradiction
    "jxl": _Format("JXL", "", 1, 99, gray=True, plugin="pillow_jxl", options={"num_threads": 1}),
    "heic": _Format("HEIF", "", 0, 100, gray=True, plugin="pillow_heif"),
}
CODECS = tuple(_FORMATS)
USUAL = ("jpeg", "webp", "avif")  # that Pillow brings, and that are compared with unasked


@cache
def writable(codec: str) -> bool:
    """Returns whether this Pillow can write the format, by itself or by an installed plugin."""
    plugin = _FORMATS[codec].plugin
    if not plugin:
        return bool(features.check(_FORMATS[codec].feature))
    try:
        module = importlib.import_module(plugin)
    except ImportError:
        return False
    if codec == "heic":  # the other registers itself
        module.register_heif_opener()
    return True


@dataclass(frozen=True)
class Attempt:
    """A file of an image: written at 1/divisor of its sides, at that quality."""

    divisor: int
    quality: int
    bytes: int


class ReferenceCodec:
    """Writes and measures one image in one format.

    Each file is written once, and each that is chosen is measured once, whatever the budgets.
    """

    def __init__(self, codec: str, original: np.ndarray, comparator: Comparator) -> None:
        self.codec, self.original, self.comparator = codec, original, comparator
        self._format = _FORMATS[codec]
        self._files: dict[tuple[int, int], bytes | None] = {}
        self._scores: dict[Attempt, tuple[float, float | None]] = {}
        self._qualities: dict[Attempt, Quality] = {}

    def best(self, budget: int) -> Attempt | None:
        """Finds the best file of at most `budget` bytes: lowest LPIPS, or highest MS-SSIM without
        it.

        Where none is that small, the smallest of all;
        None where the format does not take an image of this size.
        """
        found = [self._largest(divisor, budget) for divisor in DIVISORS]
        fitting = [attempt for attempt in found if attempt is not None]
        if not fitting:
            smallest = [self._attempt(divisor, self._format.worst) for divisor in DIVISORS]
            return min(
                (attempt for attempt in smallest if attempt is not None),
                key=lambda attempt: attempt.bytes,
                default=None,
            )
        return (
            min(fitting, key=lambda attempt: self._score(attempt)[0])
            if len(fitting) > 1
            else fitting[0]
        )

    def quality(self, attempt: Attempt) -> Quality:
        """Returns the figures of a decoded file."""
        if attempt not in self._qualities:
            distance = self._scores[attempt][1] if attempt in self._scores else None
            self._qualities[attempt] = self.comparator.quality(
                self.original, self.shown(attempt), distance
            )
        return self._qualities[attempt]

    def shown(self, attempt: Attempt) -> np.ndarray:
        """Decodes a file at the original's size: uint8 (H, W, C)."""
        data = self._file(attempt.divisor, attempt.quality)
        assert data is not None
        H, W, C = self.original.shape
        with Image.open(io.BytesIO(data)) as file:
            decoded = np.array(file.convert("L" if C == 1 else "RGB")).reshape(*file.size[::-1], C)
        if decoded.shape == self.original.shape:
            return decoded
        image = Image.fromarray(decoded[..., 0] if C == 1 else decoded)
        return np.array(image.resize((W, H), Image.Resampling.BICUBIC)).reshape(H, W, C)

    def _score(self, attempt: Attempt) -> tuple[float, float | None]:
        """Returns a score, lower is better, and the LPIPS, if any."""
        if attempt not in self._scores:
            image = self.shown(attempt)
            distance = self.comparator.distance(self.original, image)
            if distance is None:
                self._qualities[attempt] = quality = self.comparator.quality(self.original, image)
                self._scores[attempt] = -quality.ms_ssim, None
            else:
                self._scores[attempt] = distance, distance
        return self._scores[attempt]

    def _largest(self, divisor: int, budget: int) -> Attempt | None:
        """Finds the highest quality that fits by bisection: the bytes grow with the quality.

        None where not even the worst does.
        """
        low, high = self._format.worst, self._format.best
        found = self._attempt(divisor, low)
        if found is None or found.bytes > budget:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            attempt = self._attempt(divisor, middle)
            if attempt is not None and attempt.bytes <= budget:
                low, found = middle, attempt
            else:
                high = middle - 1
        return found

    def _attempt(self, divisor: int, quality: int) -> Attempt | None:
        data = self._file(divisor, quality)
        return None if data is None else Attempt(divisor, quality, len(data))

    def _file(self, divisor: int, quality: int) -> bytes | None:
        """Writes the file; None where the format does not take the size."""
        if (divisor, quality) not in self._files:
            self._files[divisor, quality] = self._write(divisor, quality)
        return self._files[divisor, quality]

    def _write(self, divisor: int, quality: int) -> bytes | None:
        H, W, C = self.original.shape
        reduced = images.resize_to(
            self.original, max(1, round(H / divisor)), max(1, round(W / divisor))
        )
        image = Image.fromarray(reduced[..., 0] if C == 1 else reduced)
        image = image if C == 3 or self._format.gray else image.convert("RGB")
        file = io.BytesIO()
        try:
            image.save(file, self._format.kind, quality=quality, **self._format.options)
        except (OSError, ValueError, SystemError):
            # more pixels a side than the format has bits for
            return None
        return file.getvalue()
