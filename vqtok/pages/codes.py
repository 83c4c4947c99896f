"""Makes the page of a codes file: the image, its index grids in color, and where the bits and bytes
go.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vqtok import files
from vqtok.codes import Codes, Compact, count_levels
from vqtok.pages import html
from vqtok.plots.palette import heat
from vqtok.plots.sheets import sheet

SHOWN = 640  # pixels: grids are enlarged to about this side, several in a row to about half of it
SHEET_MAX = 36  # images of a file that are shown beside the first


@dataclass(frozen=True)
class Part:
    """A part of a file, and its size."""

    name: str
    bytes: float


@dataclass(frozen=True)
class CodesReport:
    """Everything that the page of a codes file shows."""

    name: str
    codes: Codes
    images: Sequence[np.ndarray]  # decoded, uint8 (H, W, C)
    colors: np.ndarray  # uint8 (L, K, 3): of the codes of each level
    bits: np.ndarray | None  # (n, L, h, w): what each index takes by the prior; None without one
    prior: str  # which prior that is
    parts: Sequence[Part]  # of the file
    coders: Sequence[Part]  # the same indices by other coders
    facts: Sequence[tuple[str, Any]]
    notes: Sequence[str] = ()


def breakdown(data: bytes, found: Codes | Compact, bits: np.ndarray | None) -> list[Part]:
    """Splits a codes file with the content `found` into parts; entropy-coded indices are split by
    level where `bits` are known.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {
            info.filename.removesuffix(".npy"): info.compress_size for info in archive.infolist()
        }
    if isinstance(found, Codes):
        parts = [
            Part("indices", members.pop("indices")),
            Part("description (meta)", members.pop("meta")),
        ]
    else:
        size = sum(map(len, found.streams))
        parts = (
            _levels(size, bits)
            if found.prior is not None and bits is not None
            else [Part("indices", size)]
        )
        member = members.pop("c" if "c" in members else "stream")
        parts.append(Part("description", max(0, member - size)))
    parts += [Part(f"member {name}", size) for name, size in members.items()]
    return [*parts, Part("zip: names and directory", len(data) - sum(part.bytes for part in parts))]


def _levels(size: int, bits: np.ndarray) -> list[Part]:
    """Splits the bytes of coded streams among the levels, in proportion to their bits under the
    prior.
    """
    shares = bits.sum((0, 2, 3))
    names = (
        [f"indices of level {i + 1}" for i in range(len(shares))]
        if len(shares) > 1
        else ["indices"]
    )
    return [
        Part(name, size * share / shares.sum()) for name, share in zip(names, shares, strict=True)
    ]


def page(grid: CodesReport) -> bytes:
    """Returns the page, one HTML file."""
    n, L, h, w = grid.codes.indices.shape
    size = files.human_bytes(round(sum(part.bytes for part in grid.parts)))
    several = f"{n} images, " if n > 1 else ""
    notes = [html.paragraph(note, "note") for note in grid.notes]
    return html.page(
        f"Codes {grid.name}",
        f"{several}grid {w}x{h}x{L} of {grid.codes.codebook_size:,} codes, {size}, "
        f"by model {grid.codes.model}",
        [
            *notes,
            _images(grid),
            _indices(grid),
            _bits(grid),
            _sizes(grid),
            html.section("Facts", html.table(["", ""], grid.facts)),
        ],
    )


def _images(grid: CodesReport) -> str:
    first = grid.images[0]
    H, W = first.shape[:2]
    zoom = max(1, SHOWN // (2 * max(H, W)))
    shown = html.image(first, f"The image decoded from {grid.name}, {W}x{H} pixels", zoom)
    parts = [
        html.figure(
            shown, f"Decoded from the {count_levels(grid.codes.levels)} that the file holds."
        )
    ]
    if len(grid.images) > 1:
        some = grid.images[:SHEET_MAX]
        side = max(max(image.shape[:2]) for image in some)
        all_of_them = sheet(some, 6, scale=max(1, 96 // side))
        caption = (
            f"The first {len(some)} of {len(grid.images)} images; "
            "the rest of the page is about the first."
        )
        parts.append(html.figure(html.image(all_of_them, caption), caption))
    return html.section("Image", html.figures(parts))


def _zoom(h: int, w: int, several: bool) -> int:
    return max(1, SHOWN // (2 if several else 1) // max(h, w))


def _indices(grid: CodesReport) -> str:
    _, L, h, w = grid.codes.indices.shape
    parts = []
    for level in range(L):
        indices = grid.codes.indices[0, level]
        used = len(np.unique(indices))
        text = (
            f"Level {level + 1}: {used} different codes in {h * w} places"
            if L > 1
            else f"{used} different codes in {h * w} places"
        )
        parts.append(
            html.figure(
                html.image(
                    grid.colors[level][indices], f"Index grid. {text}", _zoom(h, w, L > 1), True
                ),
                text,
            )
        )
    how = (
        "A color for each code: codes whose vectors are alike have colors that are alike, "
        "and lightness alone tells most of it."
    )
    values = html.folded("Indices of level 1, first rows", _numbers(grid.codes.indices[0, 0]))
    return html.section("Index grids", html.paragraph(how), html.figures(parts), values)


def _numbers(indices: np.ndarray) -> str:
    rows = [" ".join(f"{index:>5}" for index in row[:32]) for row in indices[:32]]
    return html.preformatted("\n".join(rows))


def _bits(grid: CodesReport) -> str:
    if grid.bits is None:
        return ""
    bits = grid.bits[0]
    L, h, w = bits.shape
    total, top = bits.sum(0), float(bits.max())
    maps = [("All levels together", total, float(total.max()))] if L > 1 else []
    maps += [(f"Level {i + 1}" if L > 1 else "Bits", level, top) for i, level in enumerate(bits)]
    parts = []
    for name, values, limit in maps:
        text = (
            f"{name}: {values.mean():.2f} bits a place on average, "
            f"from {values.min():.2f} to {values.max():.2f}"
        )
        parts.append(
            html.figure(
                html.image(heat(values, limit), f"Map of bits. {text}", _zoom(h, w, L > 1), True),
                text,
            )
        )
    scale = heat(np.linspace(0, 1, 256)[None].repeat(12, 0), 1.0)
    legend = html.figure(
        html.image(scale, "Scale of the maps, from dark for none to light for the most", 1, True),
        f"From 0 (dark) to the most (light): {top:.1f} bits in the maps of single levels.",
    )
    raw = np.log2(grid.codes.codebook_size)
    how = (
        f"Where {grid.prior} spends its bits: a place that it sees coming is dark. Raw, "
        f"an index takes {raw:.2f} bits."
    )
    return html.section("Bits", html.paragraph(how), html.figures(parts), legend)


def _sizes(grid: CodesReport) -> str:
    total = sum(part.bytes for part in grid.parts)
    pixels = grid.codes.pixels
    rows = [
        [
            part.name,
            round(part.bytes),
            f"{part.bytes / total:.1%}",
            f"{8 * part.bytes / pixels:.4f}",
        ]
        for part in grid.parts
    ]
    rows.append(["whole file", round(total), "100.0%", f"{8 * total / pixels:.4f}"])
    table = html.table(["part", "bytes", "of the file", "bits per pixel"], rows)
    others = [
        [part.name, round(part.bytes), f"{8 * part.bytes / pixels:.4f}"] for part in grid.coders
    ]
    compared = html.table(
        ["coder", "bytes", "bits per pixel"],
        others,
        "the same indices by other coders, without a file around them",
    )
    return html.section("Size", bar(grid.parts), table, compared)


def bar(parts: Sequence[Part]) -> str:
    """Draws the parts of a whole as one bar, wide parts with their names in it, and a table of all
    below it.
    """
    total = sum(part.bytes for part in parts) or 1.0
    marks, left = [], 0.0
    for i, part in enumerate(parts):
        width = 900 * max(0.0, part.bytes) / total
        position = f'class="c{i % 6}" x="{left:.1f}" y="0" width="{width:.1f}" height="26"'
        marks.append(f"<rect {position}><title>{html.text(part.name)}</title></rect>")
        name = part.name.removeprefix("indices of ")
        if width > 8 * len(name) + 8:
            marks.append(
                f'<text class="ink" x="{left + 4:.1f}" y="42" '
                f'font-size="12">{html.text(name)}</text>'
            )
        left += width
    told = html.text(
        "Parts of the file: " + ", ".join(f"{part.name} {part.bytes / total:.0%}" for part in parts)
    )
    return (
        '<svg class="parts" viewBox="0 0 900 48" role="img" '
        f'aria-label="{told}">{"".join(marks)}</svg>'
    )
