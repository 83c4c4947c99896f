"""Draws contact sheets of images."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vqtok.plots.tables import plain

Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
FONT_SIZE = 12
LINE_HEIGHT = 16  # holds ascenders and descenders of FONT_SIZE
LABEL_WIDTH = 160  # a label may widen a narrow image's column up to here; what is longer is cut


def sheet(
    images: Sequence[np.ndarray],
    columns: int,
    labels: Sequence[str] | None = None,
    gap: int = 4,
    background: Color = WHITE,
    scale: int = 1,
) -> np.ndarray:
    """Places images row by row on a contact sheet, with an optional label under each.

    Images are uint8 (H, W, 1 or 3) of any sizes, each centered in its column and row, and
    enlarged `scale` times by repeating pixels. Returns uint8 (H, W, 3).
    """
    assert images
    assert columns >= 1
    assert labels is None or len(labels) == len(images)
    cells = [_enlarge(image, scale) for image in images]
    if labels is not None:
        cells = [
            _caption(cell, label, background) for cell, label in zip(cells, labels, strict=True)
        ]
    return _grid(cells, min(columns, len(cells)), gap, background)


def side_by_side(
    rows: Sequence[Sequence[np.ndarray]],
    headings: Sequence[str] = (),
    gap: int = 4,
    background: Color = WHITE,
    scale: int = 1,
    labels: Sequence[Sequence[str]] | None = None,
) -> np.ndarray:
    """Places images to compare in rows, such as original and reconstruction, under optional
    `headings`.

    Images are as in `sheet`, and so are `labels`, a row of them for each row;
    all rows are of equal length. Returns uint8 (H, W, 3).
    """
    columns = len(rows[0])
    assert columns >= 1
    assert all(len(row) == columns for row in rows)
    assert len(headings) in (0, columns)
    cells = [_enlarge(image, scale) for row in rows for image in row]
    if labels is not None:
        texts = [label for line in labels for label in line]
        cells = [_caption(cell, text, background) for cell, text in zip(cells, texts, strict=True)]
    widths = [max(cell.shape[1] for cell in cells[column::columns]) for column in range(columns)]
    titles = [
        _text(heading, max(width, LABEL_WIDTH), background)
        for heading, width in zip(headings, widths, strict=False)
    ]
    return _grid(titles + cells, columns, gap, background)


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Repeats pixels: uint8 (H, W, 1 or 3) -> (H*scale, W*scale, 3)."""
    assert scale >= 1
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.size
    H, W = image.shape[:2]
    color = np.broadcast_to(image, (H, W, 3))
    return color.repeat(scale, axis=0).repeat(scale, axis=1)


def _text(text: str, width: int, background: Color) -> np.ndarray:
    """Draws one line of text, cut to `width` pixels: uint8 (LINE_HEIGHT, at most width, 3), in
    black or white, whichever shows on the background.
    """
    font = ImageFont.load_default(FONT_SIZE)
    whole = line = plain(text)[:width]  # no glyph is narrower than a pixel
    while line and font.getlength(line) > width:
        whole = whole[:-1]
        line = whole.rstrip() + "..." if whole else ""
    ink = (0, 0, 0) if sum(background) > 382 else WHITE
    image = Image.new("RGB", (max(1, int(np.ceil(font.getlength(line)))), LINE_HEIGHT), background)
    ImageDraw.Draw(image).text((0, 0), line, fill=ink, font=font)
    return np.asarray(image)


def _caption(image: np.ndarray, label: str, background: Color) -> np.ndarray:
    """Adds the label under the image."""
    return _grid(
        [image, _text(label, max(image.shape[1], LABEL_WIDTH), background)],
        1,
        2,
        background,
        margin=0,
    )


def _grid(
    cells: Sequence[np.ndarray],
    columns: int,
    gap: int,
    background: Color,
    margin: int | None = None,
) -> np.ndarray:
    """Centers cells (H, W, 3) on a background; a column is as wide as its widest cell, a row as
    high as its highest.
    """
    margin = gap if margin is None else margin
    widths = [max(cell.shape[1] for cell in cells[i::columns]) for i in range(columns)]
    heights = [
        max(cell.shape[0] for cell in cells[i : i + columns]) for i in range(0, len(cells), columns)
    ]
    size = (
        sum(heights) + gap * (len(heights) - 1) + 2 * margin,
        sum(widths) + gap * (len(widths) - 1) + 2 * margin,
    )
    canvas = np.full((*size, 3), background, np.uint8)
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        H, W = cell.shape[:2]
        top = margin + sum(heights[:row]) + gap * row + (heights[row] - H) // 2
        left = margin + sum(widths[:column]) + gap * column + (widths[column] - W) // 2
        canvas[top : top + H, left : left + W] = cell
    return canvas
