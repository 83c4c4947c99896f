"""Formats tables: Markdown for files, Rich for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Formats a Markdown table that ends in a newline; columns of numbers are aligned to the right,
    None is blank.
    """
    assert all(len(row) == len(headers) for row in rows)
    cells = [[plain(value).replace("|", "\\|") for value in row] for row in (headers, *rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    right = [numeric(column[1:]) for column in columns]
    rule = [
        "-" * (width - 1) + ":" if r else "-" * width
        for width, r in zip(widths, right, strict=True)
    ]
    lines = [
        [
            cell.rjust(width) if r else cell.ljust(width)
            for cell, width, r in zip(row, widths, right, strict=True)
        ]
        for row in (cells[0], rule, *cells[1:])
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], title: str = ""
) -> "Table":
    """Formats the same table for the terminal.

    Cells are shown as they are: no markup, no control characters.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    assert all(len(row) == len(headers) for row in rows)
    table = Table(
        title=Text(plain(title), no_wrap=True, overflow="ignore") if title else None,
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    cells = [[plain(value) for value in row] for row in rows]
    for i, header in enumerate(headers):
        table.add_column(
            Text(plain(header)), justify="right" if numeric([row[i] for row in cells]) else "left"
        )
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def plain(value: object) -> str:
    """Reduces a value to one line of printable text.

    File names may hold line breaks, terminal escapes and undecodable bytes: they become spaces.
    """
    text = "" if value is None else str(value)
    return "".join(character if character.isprintable() else " " for character in text)


def numeric(column: Sequence[str]) -> bool:
    """Returns whether every cell that is not blank begins like a number: `31.2 dB`, `-0.5`,
    `1,650`, `inf`.
    """
    filled = [cell for cell in column if cell]
    return bool(filled) and all(
        cell.lstrip("+-")[:1].isdigit() or cell in ("inf", "-inf", "nan") for cell in filled
    )
