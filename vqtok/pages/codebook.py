"""Draws a codebook as a map: what each code looks like, how often it is used, and which codes are
near.
"""

import math
from dataclasses import dataclass

import numpy as np

from vqtok.metrics import usage_perplexity
from vqtok.pages import html
from vqtok.plots.curves import Panel, Series
from vqtok.plots.palette import heat

NEAR = 8  # neighbors shown of a code
ATLAS_SIDE = 460  # pixels of the map of codes; smaller ones are enlarged to about this
CODES_MAX = 4096  # that are shown; more take a page of many MB


@dataclass(frozen=True)
class CodebookMap:
    """K codes of L levels to show; tiles, vectors and colors are of the first level."""

    vectors: np.ndarray  # (K, D)
    tiles: np.ndarray  # uint8 (K, f, f, C): each code decoded alone
    counts: np.ndarray  # int64 (L, K): how often each was chosen
    counted: str  # what they were counted on


def neighbors(vectors: np.ndarray, count: int = NEAR) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest other codes of each of K (K, D): their numbers and distances, (K, n) both,
    nearest first.
    """
    v = vectors.astype(np.float64)
    squares = (v * v).sum(1)
    squared = squares[:, None] + squares[None] - 2 * v @ v.T
    np.fill_diagonal(squared, np.inf)
    order = squared.argsort(1, kind="stable")[:, : min(count, len(v) - 1)]
    return order, np.sqrt(np.maximum(np.take_along_axis(squared, order, 1), 0))


def arrangement(vectors: np.ndarray, columns: int) -> np.ndarray:
    """Returns the order (K,) that places similar codes side by side in a grid filled row by row.

    Rows go by the first principal component, and the places in a row by the second.
    """
    centered = vectors.astype(np.float64) - vectors.mean(0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    first = centered @ axes[0]
    second = centered @ axes[min(1, len(axes) - 1)]
    by_row = first.argsort(kind="stable")
    rows = [by_row[i : i + columns] for i in range(0, len(by_row), columns)]
    return np.concatenate([row[second[row].argsort(kind="stable")] for row in rows])


def section(book: CodebookMap) -> str:
    """Returns the codebook's section of a page."""
    K = len(book.vectors)
    if not 2 <= K <= CODES_MAX:
        return ""
    columns = columns_for(K)
    order = arrangement(book.vectors, columns)
    tile = book.tiles.shape[1]
    zoom = max(1, ATLAS_SIDE // (columns * tile))
    atlas = _atlas(book.tiles[order], columns)
    counts = book.counts[0]
    use = _atlas(_use_tiles(counts[order], max(8, tile * zoom)), columns)
    maps = html.figures(
        [
            html.figure(
                html.image(
                    atlas,
                    f"Map of {K} decoded codes; codes that are alike stand near one another",
                    zoom,
                    True,
                    "atlas",
                ),
                "Each code decoded alone, amid its like. Neighbors in the map are neighbors in "
                "the codebook. A click chooses a code.",
            ),
            html.figure(
                html.image(
                    use,
                    f"Map of how often each of the {K} codes is used, in the same order",
                    1,
                    True,
                ),
                f"How often each code of the same place is used, {book.counted}: "
                "lighter is more often, a light cross is never.",
            ),
        ]
    )
    return html.section(
        "Codebook",
        _sentence(book),
        f'<div class="explorer">{maps}{_explorer(book, order, columns)}</div>',
        _ranks(book),
    )


def columns_for(count: int) -> int:
    """Chooses the columns of a grid a little wider than high, its last row full where possible."""
    wanted = math.sqrt(count * 1.6)
    even = [
        c
        for c in range(math.ceil(math.sqrt(count)), math.ceil(2.5 * math.sqrt(count)))
        if count % c == 0
    ]
    return min(even, key=lambda c: abs(c - wanted), default=math.ceil(wanted))


def _use_tiles(counts: np.ndarray, side: int) -> np.ndarray:
    """Draws a tile for each count (K,), uint8 (K, side, side, 3): lightness grows with the square
    root of the count; a count of 0 is a cross.
    """
    tiles = (
        heat(np.sqrt(counts), float(np.sqrt(counts.max())))[:, None, None]
        .repeat(side, 1)
        .repeat(side, 2)
    )
    cross = np.maximum(np.eye(side), np.eye(side)[::-1])[..., None]
    tiles[counts == 0] = (40 + 150 * cross).astype(np.uint8)
    return tiles


def _atlas(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Places tiles (K, t, t, C) row by row in one image; the rest of the last row is gray."""
    K, t, _, C = tiles.shape
    rows = -(-K // columns)
    full = np.full((rows * columns, t, t, C), 128, np.uint8)
    full[:K] = tiles
    return (
        full.reshape(rows, columns, t, t, C)
        .transpose(0, 2, 1, 3, 4)
        .reshape(rows * t, columns * t, C)
    )


def _sentence(book: CodebookMap) -> str:
    """Says how many codes are used; with several levels also as a table."""
    use = [usage_perplexity(counts) for counts in book.counts]
    K = len(book.vectors)
    if len(use) == 1:
        return html.paragraph(
            f"Used {book.counted}: {round(use[0][0] * K)} of {K} codes, "
            f"as if {use[0][1]:.0f} were used equally often."
        )
    rows = [
        [f"level {i + 1}", round(usage * K), f"{usage:.1%}", round(perplexity)]
        for i, (usage, perplexity) in enumerate(use)
    ]
    text = "The map is that of level 1; later levels refine what it gives, and mean nothing alone."
    return html.paragraph(text) + html.table(
        [f"used {book.counted}", f"of {K} codes", "part", "perplexity"], rows
    )


def _explorer(book: CodebookMap, order: np.ndarray, columns: int) -> str:
    """Returns the controls that show one code and those near it, and a table for readers without
    scripts.
    """
    near, distances = neighbors(book.vectors)
    counts, total = book.counts[0], max(1, int(book.counts[0].sum()))
    times = ["once" if count == 1 else f"{count:,} times" for count in counts.tolist()]
    used = [
        f"used {often} ({count / total:.2%})" if count else "never used"
        for often, count in zip(times, counts, strict=True)
    ]
    data = html.script_data(
        "codebook",
        {
            "order": order.tolist(),
            "columns": columns,
            "side": int(book.tiles.shape[1]),
            "near": near.tolist(),
            "distances": [[f"{value:.3g}" for value in row] for row in distances],
            "used": used,
        },
    )
    last = len(book.vectors) - 1
    controls = (
        f'<div class="controls"><label>code <input type="range" min="0" max="{last}" step="1" '
        'aria-label="Code to look at"></label><label>number <input type="number" min="0" '
        f'max="{last}" step="1" aria-label="Number of the code to look at"></label></div><canvas '
        'width="720" height="96" role="img" aria-label="The chosen code and those near '
        'it"></canvas><output aria-live="polite"></output>'
    )
    top = counts.argsort(kind="stable")[::-1][:20]
    rows = [[f"code {i}", int(counts[i]), *(int(j) for j in near[i][:4])] for i in top]
    headers = ["code", "used", *("nearest", "2nd", "3rd", "4th")[: near.shape[1]]]
    return (
        data
        + controls
        + html.folded("The most used codes, and those nearest to them", html.table(headers, rows))
    )


def _ranks(book: CodebookMap) -> str:
    """Plots the share of each code at a few levels, from the most used to the least."""
    levels = sorted({0, len(book.counts) // 2, len(book.counts) - 1})
    series = []
    for level in levels:
        counts = np.sort(book.counts[level])[::-1]
        shares = 100 * counts / max(1, counts.sum())
        positions = np.unique(np.geomspace(1, len(counts), 40).round().astype(int))
        series.append(
            Series(
                f"level {level + 1}" if len(levels) > 1 else "share",
                [(float(p), float(shares[p - 1])) for p in positions],
            )
        )
    panel = Panel("share of all places, %", "codes, from the most used to the least", series)
    return f'<div class="charts">{html.chart(panel, "How often codes are used")}</div>'
