"""The README's promises: each of its commands runs, and its lines stay few."""

import re
from pathlib import Path

import pytest
from docs_helpers import ROOT, lines, make_checkpoints, make_images, read_models_once, run_line

from vqtok import codes

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VQTOK_MODELS")
    read_models_once(monkeypatch)
    make_images(tmp_path)
    make_checkpoints(tmp_path)
    assert len(lines(README)) >= 12
    for line in lines(README):
        run_line(line)
    assert codes.read_any_codes(tmp_path / "tiny.npz") != codes.read_any_codes(
        tmp_path / "photo.npz"
    )


def test_the_tree_of_the_readme_is_there() -> None:
    """Every path of its table: the first of a row from the top, the others beside it,
    those in the remark below it.
    """
    table = README.partition("\n## The repository\n")[2].partition("\n\nEvery module")[0]
    rows = [re.findall(r"`([\w./]+)`", row) for row in table.splitlines() if row.startswith("| `")]
    assert len(rows) > 10
    for first, *others in rows:
        top = ROOT / first
        assert top.exists(), first
        for name in (name for name in others if name.endswith((".py", "/"))):
            assert any(
                (folder / name).exists()
                for folder in (ROOT, top.parent, top, *top.parent.iterdir())
            ), name


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 230
