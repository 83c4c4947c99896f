"""Makes the parts of a one-file page; it fetches nothing, and shows what files hold as text.

A part is a string of HTML. Whatever a caller gives as a name, a number or a sentence is escaped
here. The Content-Security-Policy lets images come from data: URIs alone, and one script and one
style run, those whose hashes it names.
"""

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqtok.plots.curves import Panel, plot_svg
from vqtok.plots.tables import numeric, plain

SIDE_MAX = 1600  # pixels; larger images are shrunk to it: a page of a few MB
LOSSLESS_PIXELS = 2**16  # small images are kept bit for bit; larger ones are WebP at QUALITY
QUALITY = 88
ROWS_MAX = 400  # of a table; a log of a year must not make a page that no browser opens
TEXT_MAX = 20_000  # characters of one text out of a file


def text(value: object) -> str:
    """Escapes one line of text for use between tags and in a quoted attribute."""
    return escape(plain(value)[:TEXT_MAX])


def lines(value: str) -> str:
    """Escapes several lines of text for use between tags."""
    return "\n".join(text(line) for line in value[:TEXT_MAX].splitlines())


def data_uri(pixels: np.ndarray, lossless: bool | None = None) -> str:
    """Encodes an image uint8 (H, W, 1 or 3) as a data: URI; with lossless None only small images
    are lossless.
    """
    image = Image.fromarray(
        pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)
    )
    image.thumbnail((SIDE_MAX, SIDE_MAX))
    exact = image.width * image.height <= LOSSLESS_PIXELS if lossless is None else lossless
    file = io.BytesIO()
    image.convert("RGB").save(
        file, "WEBP", lossless=exact, quality=80 if exact else QUALITY, method=4
    )
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def image(
    pixels: np.ndarray, alt: str, zoom: int = 1, lossless: bool | None = None, kind: str = ""
) -> str:
    """Returns an img shown `zoom` times as large, with square pixels where zoom is more than 1."""
    height, width = pixels.shape[:2]
    small = max(1.0, max(height, width) / SIDE_MAX)
    size = f'width="{round(width * zoom / small)}" height="{round(height * zoom / small)}"'
    classes = " ".join(filter(None, ("pixels" if zoom > 1 else "", kind)))
    return f'<img src="{data_uri(pixels, lossless)}" alt="{text(alt)}" {size} class="{classes}">'


def figure(content: str, caption: str = "") -> str:
    return (
        f"<figure>{content}"
        + (f"<figcaption>{text(caption)}</figcaption>" if caption else "")
        + "</figure>"
    )


def figures(parts: Sequence[str]) -> str:
    """Lays figures out in rows that wrap."""
    return f'<div class="row">{"".join(parts)}</div>'


def paragraph(sentence: str, kind: str = "") -> str:
    return f'<p class="{text(kind)}">{text(sentence)}</p>' if kind else f"<p>{text(sentence)}</p>"


def preformatted(value: str) -> str:
    """Shows lines as they are, in a box that scrolls and that the keyboard reaches."""
    return f'<pre tabindex="0">{lines(value)}</pre>'


def table(headers: Sequence[object], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """Returns a table; the first cell of a row is its heading, columns of numbers are aligned to
    the right, None is blank.
    """
    right = [
        i > 0 and numeric([plain(row[i]) for row in rows if i < len(row)])
        for i in range(len(headers))
    ]
    head = "".join(
        f'<th scope="col"{_kind(r)}>{text(header)}</th>'
        for header, r in zip(headers, right, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(_cell(value, i == 0, right[i]) for i, value in enumerate(row[: len(headers)]))
        + "</tr>"
        for row in rows[:ROWS_MAX]
    )
    name = f"<caption>{text(caption)}</caption>" if caption else ""
    rest = (
        paragraph(f"{len(rows) - ROWS_MAX} further rows are left out.")
        if len(rows) > ROWS_MAX
        else ""
    )
    top = f"<thead><tr>{head}</tr></thead>" if any(headers) else ""
    label = text(caption or "table")
    return (
        '<div class="wide" tabindex="0" role="region" '
        f'aria-label="{label}"><table>{name}{top}<tbody>{body}</tbody></table></div>{rest}'
    )


def _cell(value: object, first: bool, right: bool) -> str:
    return (
        f'<th scope="row">{number(value)}</th>'
        if first
        else f"<td{_kind(right)}>{number(value)}</td>"
    )


def _kind(right: bool) -> str:
    return ' class="n"' if right else ""


def number(value: object) -> str:
    """Formats a value in a few digits, escaped."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return (
            f"{value:.4g}"
            if math.isfinite(value) and abs(value) < 1e5
            else text(f"{value:,.0f}" if math.isfinite(value) else value)
        )
    return f"{value:,}" if isinstance(value, int) else text(value)


def folded(summary: str, content: str, opened: bool = False) -> str:
    """Hides content until a click or the Enter key unfolds it."""
    return (
        f"<details{' open' if opened else ''}><summary>{text(summary)}</summary>{content}</details>"
    )


def chart(panel: Panel, title: str = "") -> str:
    """Draws curves, and describes them in a sentence and a table for readers who cannot see them;
    an empty string without any points.
    """
    curves = [
        (s.name, [(x, y) for x, y in s.points if math.isfinite(x) and math.isfinite(y)])
        for s in panel.series
    ]
    curves = [(name, sorted(points)) for name, points in curves if points]
    if not curves:
        return ""
    title = title or panel.title
    told = "; ".join(
        f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in curves
    )
    svg = plot_svg(f"{title} over {panel.x_label}: {told}", [panel], legend=False).decode()
    rows = [[name, x, y] for name, points in curves for x, y in points]
    values = folded("Values", table(["curve", panel.x_label, panel.title], rows, title))
    return f'<figure class="chart">{svg}{values}</figure>'


@dataclass(frozen=True)
class Pair:
    """Two images of one size, one drawn over the other."""

    name: str
    before: np.ndarray  # uint8 (H, W, 1 or 3)
    after: np.ndarray


def compare(
    pairs: Sequence[Pair],
    label: str,
    before: str = "original",
    after: str = "decoded",
    choice: str = "validation",
) -> str:
    """Shows one pair at a time, with a slider that uncovers the second image; with several pairs
    another slider chooses.

    Without a script all of them show, one below another.
    """
    shown = []
    shared = ""  # most pairs share their first image: it is stored once
    for i, pair in enumerate(pairs):
        height, width = pair.before.shape[:2]
        top = pair.before if i == 0 or not np.array_equal(pair.before, pairs[0].before) else None
        shared = data_uri(pair.before) if i == 0 else shared
        source = shared if i == 0 else data_uri(pair.before) if top is not None else ""
        first = f'src="{source}"' if source else "data-first"
        size = f'width="{width}" height="{height}"'
        under = f'<img class="before" {first} alt="{text(f"{pair.name}: {before}")}" {size}>'
        over = (
            f'<img class="after" src="{data_uri(pair.after)}" '
            f'alt="{text(f"{pair.name}: {after}")}" {size}>'
        )
        shown.append(f'<div class="pair" data-name="{text(pair.name)}">{under}{over}</div>')
    last = len(pairs) - 1
    pick = (
        (
            f'<label>{text(choice)} <input type="range" class="choose" min="0" max="{last}" '
            f'value="{last}" step="1" aria-label="{text(f"{label}: {choice}")}"></label>'
        )
        if last
        else ""
    )
    wipe = (
        f'<label>{text(before)} <input type="range" class="wipe" min="0" max="100" value="50" '
        f'step="1" aria-label="{text(f"{label}: how much is {after}, the rest is {before}")}"> '
        f"{text(after)}</label>"
    )
    name = '<output class="name" aria-live="polite"></output>'
    return (
        f'<div class="compare"><div class="stage">{"".join(shown)}</div><div '
        f'class="controls">{wipe}{pick}{name}</div></div>'
    )


def script_data(name: str, value: Any) -> str:
    """Embeds JSON for the page's script; no value can end its element."""
    safe = (
        json.dumps(value, allow_nan=False)
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
    return f'<script type="application/json" class="{text(name)}">{safe}</script>'


def section(title: str, *parts: str) -> str:
    """Returns a section with a heading; an empty string where it has no content."""
    content = "".join(parts)
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""


def page(title: str, subtitle: str, sections: Sequence[str]) -> bytes:
    """Returns the whole page, UTF-8."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src "
        f"'{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    content = "\n".join(filter(None, sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header><h1>{text(title)}</h1><p>{text(subtitle)}</p></header>
<main>
{content}
</main>
<script>{script}</script>
</body>
</html>
""".encode()


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
