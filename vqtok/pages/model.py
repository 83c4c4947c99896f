"""The page of a model: its card, its figures, and the curve of its quality over its bits
beside that of other codecs.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqtok import images
from vqtok.errors import VqtokError
from vqtok.pages import codebook as codebook_page
from vqtok.pages import html, markdown
from vqtok.pages.run import samples, settings
from vqtok.plots.curves import Panel, Series

CODECS = {"avif": "AVIF", "webp": "WebP", "jpeg": "JPEG"}
QUALITIES = {
    "lpips": "LPIPS: lower is better",
    "ms_ssim": "MS-SSIM: higher is better",
    "ssim": "SSIM: higher is better",
    "psnr": "PSNR, dB: higher is better",
}
_HEADERS = {
    "lpips": ("lpips",),
    "ms_ssim": ("ms-ssim",),
    "ssim": ("ssim",),
    "psnr": ("psnr, db", "psnr"),
}
_BITS = ("in files", "files", "bpp")
_IMAGE = re.compile(r"[\w-][\w.-]*\.(png|jpg|jpeg|webp)", re.IGNORECASE)

# by quality and then by coder: (bits per pixel, quality)
Curves = dict[str, dict[str, list[tuple[float, float]]]]


@dataclass(frozen=True)
class ModelReport:
    """What is known of a model without running it, and what running it has told."""

    name: str
    fingerprint: str
    card: str  # Markdown; "" for none
    curves: Curves
    source: str  # where the curves are from, as a sentence
    facts: list[tuple[str, Any]]  # names and values
    recipe: dict[str, Any]
    codebook: codebook_page.CodebookMap | None = None
    samples: list[tuple[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def curves_of_card(card: str, model: str) -> Curves:
    """Quality over the bits per pixel of files, from a card's tables:
    one of levels, and one of codecs.
    """
    curves: Curves = {}
    for quality, names in _HEADERS.items():
        for name in names:
            for table in markdown.tables(card):
                _add(curves, quality, table, name, model)
            if quality in curves:
                break
    return curves


def _add(curves: Curves, quality: str, table: markdown.Table, name: str, model: str) -> None:
    levels = next((rows for bits in _BITS if (rows := table.columns("levels", bits, name))), None)
    codecs = table.columns("codec", "bpp", name)
    for who, bpp, value in levels or codecs or []:
        if isinstance(bpp, float) and isinstance(value, float):
            series = f"vqtok {model}" if levels else CODECS.get(str(who), str(who))
            curves.setdefault(quality, {}).setdefault(series, []).append((bpp, value))


def curves_of_figures(figures: dict[str, Any], model: str) -> Curves:
    """The same from what `vqtok eval --json` printed; what is no number is left out."""
    curves: Curves = {}
    for key, bits, name in (("levels", "bpp_packed", None), ("codecs", "bpp", "codec")):
        rows = figures.get(key)
        for row in rows if isinstance(rows, list) else []:
            if not isinstance(row, dict) or not _is_number(row.get(bits)):
                continue
            series = (
                f"vqtok {model}"
                if name is None
                else CODECS.get(str(row.get(name)), str(row.get(name)))
            )
            for quality in QUALITIES:
                if _is_number(row.get(quality)):
                    curves.setdefault(quality, {}).setdefault(series, []).append(
                        (float(row[bits]), float(row[quality]))
                    )
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def page(model: ModelReport, folder: Path) -> bytes:
    """The page; images of the card come from the model's folder."""
    notes = [html.paragraph(note, "note") for note in model.notes]
    card = (
        markdown.to_html(_without_title(model.card), lambda name, alt: _image(folder, name, alt))
        if model.card
        else ""
    )
    return html.page(
        f"Model {model.name}",
        f"fingerprint {model.fingerprint}",
        [
            *notes,
            html.section("Facts", html.table(["", ""], model.facts)),
            _rates(model),
            "" if model.codebook is None else codebook_page.section(model.codebook),
            samples(model.samples),
            html.section("Card", f'<div class="card">{card}</div>' if card else ""),
            html.section("Settings", settings(model.recipe)),
        ],
    )


def _without_title(card: str) -> str:
    """Page and card would both begin with the model's name."""
    first, _, rest = card.partition("\n")
    return rest if first.startswith("# ") else card


def _rates(model: ModelReport) -> str:
    """Curves with several points; a model of one rate has none to show, and its
    figures stand in the card.
    """
    charts = []
    for quality, title in QUALITIES.items():
        found = model.curves.get(quality, {})
        if sum(map(len, found.values())) > 1:
            series = [Series(name, points) for name, points in found.items()]
            charts.append(html.chart(Panel(title, "bits per pixel, files", series)))
    if not charts:
        hint = (
            "vqtok eval IMAGES --json > figures.json measures them, "
            "and vqtok report --figures figures.json draws them here."
        )
        return html.section(
            "Quality over bits",
            html.paragraph(
                f"There are no curves: the card has one rate, and no other codec. {hint}"
            ),
        )
    return html.section(
        "Quality over bits",
        html.paragraph(model.source),
        f'<div class="charts">{"".join(charts)}</div>',
    )


def _image(folder: Path, name: str, alt: str) -> str:
    """An image that lies in the model's own folder;
    its text alone where the name leads elsewhere or nothing can be read.
    """
    if not _IMAGE.fullmatch(name):
        return html.text(alt)
    try:
        return html.image(images.read_image(folder / name).pixels, alt or name)
    except VqtokError:
        return html.text(alt)
