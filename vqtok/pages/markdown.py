"""A model's card, README.md: its tables as values, and its Markdown as HTML that
can do nothing but be read.

What is understood is what cards are made of: headings, paragraphs, lists, tables, fenced blocks,
and in a line code, bold, links and images. Everything else, HTML too, is text. Images come from
`image`, which decides what a name may be.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vqtok.pages import html

LINES_MAX = 5000
_INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*|!\[(?P<alt>[^\]]*)\]\((?P<image>[^)\s]+)\)|\[(?P"
    r"<link>[^\]]+)\]\((?P<target>[^)\s]+)\)"
)


@dataclass(frozen=True)
class Table:
    """A Markdown table; cells are text without marks."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def columns(self, *names: str) -> list[list[float | str]] | None:
        """The rows reduced to these columns, numbers where they are some;
        None where a column is missing.
        """
        found = [header.lower() for header in self.headers]
        if not all(name in found for name in names):
            return None
        positions = [found.index(name) for name in names]
        return [[_number(row[i]) if i < len(row) else "" for i in positions] for row in self.rows]


def tables(card: str) -> list[Table]:
    """All tables of a card, those that are indented in lists too."""
    found, block = [], []
    for line in [*card.splitlines()[:LINES_MAX], ""]:
        if line.strip().startswith("|"):
            block.append(line)
            continue
        if len(block) >= 2 and _is_rule(block[1]):
            found.append(
                Table(tuple(_cells(block[0])), tuple(tuple(_cells(row)) for row in block[2:]))
            )
        block = []
    return found


def to_html(card: str, image: Callable[[str, str], str]) -> str:
    """The card as a part of a page; `image` makes a part of the name and the text of
    an image, empty for none.
    """
    out: list[str] = []
    lines, at = card.splitlines()[:LINES_MAX], 0
    while at < len(lines):
        at = _block(lines, at, out, image)
    return "".join(out)


def _block(lines: Sequence[str], at: int, out: list[str], image: Callable[[str, str], str]) -> int:
    """Adds what begins at a line, and returns where the next begins."""
    line = lines[at].strip()
    if not line or line.startswith("<!--"):
        return at + 1
    if line.startswith("```"):
        return _fence(lines, at + 1, out)
    if heading := re.fullmatch(r"(#+) (.*)", line):
        out.append(f"<h3>{_inline(heading[2], image)}</h3>")
        return at + 1
    kind = _kind(line)
    stop = at + 1
    while stop < len(lines) and lines[stop].strip() and _continues(kind, lines[stop].strip()):
        stop += 1
    block = [part.strip() for part in lines[at:stop]]
    if kind == "table" and len(block) >= 2 and _is_rule(block[1]):
        out.append(html.table(_cells(block[0]), [_cells(row) for row in block[2:]]))
    elif kind == "list":
        items = re.split(r"\n[-*] ", "\n" + "\n".join(block))[1:]
        out.append(
            "<ul>"
            + "".join(f"<li>{_inline(' '.join(item.split()), image)}</li>" for item in items)
            + "</ul>"
        )
    else:
        content = _inline(" ".join(block), image)
        out.append(content if content.startswith("<img") else f"<p>{content}</p>")
    return stop


def _fence(lines: Sequence[str], at: int, out: list[str]) -> int:
    stop = at
    while stop < len(lines) and not lines[stop].strip().startswith("```"):
        stop += 1
    indent = min(
        (len(line) - len(line.lstrip()) for line in lines[at:stop] if line.strip()), default=0
    )
    out.append(html.preformatted("\n".join(line[indent:] for line in lines[at:stop])))
    return stop + 1


def _kind(line: str) -> str:
    return "table" if line.startswith("|") else "list" if re.match(r"[-*] ", line) else "text"


def _continues(kind: str, line: str) -> bool:
    """Whether a line goes on with what came before:
    tables end at the first line that is none, text at what begins something.
    """
    if kind == "table":
        return line.startswith("|")
    begins = line.startswith(("```", "|", "# ", "## ", "### "))
    return not begins and (kind == "list" or not re.match(r"[-*] ", line))


def _cells(row: str) -> list[str]:
    parts = re.split(r"(?<!\\)\|", row.strip().strip("|"))
    return [re.sub(r"[`*]", "", part).replace("\\|", "|").strip() for part in parts]


def _is_rule(row: str) -> bool:
    return re.fullmatch(r"[\s|:-]+", row) is not None and "-" in row


def _number(cell: str) -> float | str:
    """A cell as a number where it is one; 95.3% stays what it is.

    Numbers of a few digits keep them.
    """
    return float(cell) if re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", cell) else cell


def _inline(line: str, image: Callable[[str, str], str]) -> str:
    """A line with its marks."""
    out, at = [], 0
    for mark in _INLINE.finditer(line):
        out.append(html.text(line[at : mark.start()]))
        at = mark.end()
        if mark["code"]:
            out.append(f"<code>{html.text(mark['code'])}</code>")
        elif mark["bold"]:
            out.append(f"<strong>{html.text(mark['bold'])}</strong>")
        elif mark["image"]:
            out.append(image(mark["image"], mark["alt"]))
        else:
            out.append(_link(mark["link"], mark["target"]))
    return "".join([*out, html.text(line[at:])])


def _link(name: str, target: str) -> str:
    """A link to the web, which only a click follows; the name alone for any other kind."""
    if not re.match(r"https?://", target):
        return html.text(name)
    return f'<a href="{html.text(target)}" rel="noopener noreferrer">{html.text(name)}</a>'
