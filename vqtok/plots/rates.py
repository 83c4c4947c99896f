"""Plots a model's quality over its bits per pixel, beside other codecs.

They are drawn from what `vqtok eval --json` prints; a model's folder may hold it as figures.json.
"""

import json
from collections.abc import Mapping
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
CODEC_TITLES = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}


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


def rate_panels(figures: Mapping[str, Any], model: str) -> dict[str, Panel]:
    """Makes a panel for each quality that was measured, without values that are no numbers."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key, bits in (("levels", "bpp_plain"), ("codecs", "bpp")):
        rows = figures.get(key)
        for row in rows if isinstance(rows, list | tuple) else ():
            if isinstance(row, dict) and key == "levels":
                row = {bits: row.get("bpp_packed"), **row}  # as older figures call it
            if not isinstance(row, dict) or not _is_number(row.get(bits)):
                continue
            codec = str(row.get("codec"))
            name = f"vqtok {model}" if key == "levels" else CODEC_TITLES.get(codec, codec)
            for quality in QUALITIES:
                if _is_number(row.get(quality)):
                    point = (float(row[bits]), float(row[quality]))
                    curves.setdefault(quality, {}).setdefault(name, []).append(point)
    return {
        quality: Panel(
            title,
            "bits per pixel, files",
            [Series(name, points) for name, points in curves[quality].items()],
        )
        for quality, title in QUALITIES.items()
        if quality in curves
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
