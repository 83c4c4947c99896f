"""Plots a model's quality over its bits per pixel, beside other codecs.

They are drawn from what `vqtok eval --json` prints; a model's folder may hold it as figures.json.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vqtok import files
from vqtok.errors import FormatError
from vqtok.plots.curves import Panel, Series

FIGURES_FILE = "figures.json"  # in a model's folder, beside the card
FIGURES_BYTES = 64 << 20
QUALITIES = {
    "lpips": "LPIPS: lower is better",
    "ms_ssim": "MS-SSIM: higher is better",
    "ssim": "SSIM: higher is better",
    "psnr": "PSNR, dB: higher is better",
}
CODEC_TITLES = {
    "jpeg": "JPEG",
    "webp": "WebP",
    "avif": "AVIF",
    "jxl": "JPEG XL",
    "heic": "HEIC",
}


def read_figures(path: Path) -> dict[str, Any]:
    """Reads what `vqtok eval --json` printed. InputError, FormatError."""
    try:
        found = json.loads(files.read_bytes(path, FIGURES_BYTES))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("levels"), list):
        raise FormatError(
            f"{path} holds no figures of a model",
            "make it with: vqtok eval IMAGES --json > figures.json",
        )
    return found


def rate_panels(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Panel]:
    """Makes a panel for each quality that was measured, from the figures of each model by name,
    without values that are no numbers.

    A model has a curve over compact files, where it has an entropy prior, and one over plain files.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for model, found in figures.items():
        for name, bits, row in _points(found, model):
            for quality in QUALITIES:
                if _is_number(bits) and _is_number(row.get(quality)):
                    points = curves.setdefault(quality, {}).setdefault(name, [])
                    points.append((float(bits), float(row[quality])))
    return {
        quality: Panel(
            title,
            "bits per pixel, files",
            [Series(name, points) for name, points in curves[quality].items()],
        )
        for quality, title in QUALITIES.items()
        if quality in curves
    }


def _points(figures: Mapping[str, Any], model: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yields the name of a curve, the bits per pixel of a point, and the figures there."""
    for row in _rows(figures, "levels"):
        if row.get("bpp_compact") is not None:
            yield f"vqtok {model}", row["bpp_compact"], row
    for row in _rows(figures, "levels"):
        plain = "" if row.get("bpp_compact") is None else ", plain files"
        yield f"vqtok {model}{plain}", row.get("bpp_plain", row.get("bpp_packed")), row
    for row in _rows(figures, "codecs"):
        codec = str(row.get("codec"))
        yield CODEC_TITLES.get(codec, codec), row.get("bpp"), row


def _rows(figures: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = figures.get(key)
    return [
        row for row in (rows if isinstance(rows, list | tuple) else ()) if isinstance(row, dict)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
