"""The files that docs/architecture.md names are there, and an image goes through ten stops."""

import re

from docs_helpers import ROOT

FOLDERS = ("vqtok", "tests", "benchmarks", "examples")
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    found = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert found, heading
    return found


def test_files_that_the_page_names_are_there() -> None:
    named = {
        path for path in re.findall(r"`((?:vqtok|tests)/[\w./]+)`", PAGE) if "NAME" not in path
    }
    assert len(named) > 40
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_short_names_stand_beside_a_file_that_is_named_in_full() -> None:
    """`base.py` on the line of `vqtok/quantizers/NAME.py` is vqtok/quantizers/base.py."""
    for line in PAGE.splitlines():
        folders = {ROOT / path for path in re.findall(r"`(vqtok/(?:\w+/)*)[\w.]*`", line)}
        for name in re.findall(r"`(\w+\.py)`", line) if folders else ():
            assert any((folder / name).exists() for folder in folders), (name, line)


def test_no_line_is_wider_than_100_columns() -> None:
    """Ruff passes over lines that end in a comment for a tool."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > 100
    ]
    assert wide == []


def test_the_journey_has_ten_stops_and_each_names_a_file() -> None:
    stops = re.split(r"\n(?=\d+\. )", section("An image's journey"))[1:]
    assert [stop.partition(".")[0] for stop in stops] == [str(number) for number in range(1, 11)]
    assert all("`vqtok/" in stop for stop in stops)
