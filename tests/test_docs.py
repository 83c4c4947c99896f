"""The pages' promises: their commands run, their links lead somewhere, their lists are whole, their
sentences about formats are true.
"""

import hashlib
import importlib
import re
from pathlib import Path

import make_commands_doc
import numpy as np
import pytest
from cli_helpers import ok
from docs_helpers import ROOT, lines, make_checkpoints, make_images, read_models_once, run_line

from vqtok import codes, weights
from vqtok.cli import app
from vqtok.codes import Codes
from vqtok.data import Shapes
from vqtok.errors import FormatError

PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
WITH_COMMANDS = [
    page.name
    for page in PAGES
    if page.parent == ROOT / "docs" and lines(page.read_text(encoding="utf-8"))
]
WITH_SNIPPETS = [
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("recipes.md", "tokens.md", "transformer.md")),
]
NAMED = [
    word
    for page in PAGES
    for word in re.findall(r"`(tests/[\w/]+\.py::\w+)`", page.read_text(encoding="utf-8"))
]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_every_command_of_a_page_runs_in_order(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("VQTOK_MODELS")
    # what a full training step takes, which --dry-run measures: test_cli_train_recipe.py
    module = importlib.import_module("vqtok.train.plan")  # vqtok.train.plan is the function
    monkeypatch.setattr(module, "_seconds", lambda *_: 0.1)
    monkeypatch.setattr("vqtok.study.image_set.open_data", lambda *_: Shapes(200))
    read_models_once(monkeypatch)
    make_images(tmp_path)
    make_checkpoints(tmp_path)
    for line in lines((ROOT / "docs" / name).read_text(encoding="utf-8")):
        run_line(line)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.name)
def test_snippets_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Those that begin with an import of ours or of NumPy;
    examples, which begin with a docstring, have tests of their own.
    """
    read_models_once(monkeypatch)
    make_images(tmp_path)
    for line in ("vqtok encode photo.jpg", "vqtok encode holiday/ --bulk -o codes/ --workers 0"):
        run_line(line)
    snippets = re.findall(
        r"```python\n((?:import vqtok|from vqtok|import numpy).*?)```",
        page.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_tests_that_pages_name_are_there():
    assert len(NAMED) > 20
    for name in NAMED:
        path, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), name


def test_the_list_of_commands_is_current():
    current = make_commands_doc.TARGET.read_text(encoding="utf-8")
    assert current == make_commands_doc.text(), "run python tests/make_commands_doc.py"


def test_the_list_of_commands_has_all_that_help_shows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    page = make_commands_doc.TARGET.read_text(encoding="utf-8")
    for command in app.registered_commands:
        section = page.partition(f"\n## {command.name}\n")[2].partition("\n## ")[0]
        shown = ok(command.name, "--help").stdout
        heads = " ".join(re.findall(r"^  (-.*?)  ", shown.partition("Options:")[2], re.MULTILINE))
        options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", heads)) - {"--help", "-h"}
        assert options, command.name
        assert not {option for option in options if f"`{option}" not in section}, command.name
        assert section.count("\n| `") == section.count("\n| ") - 1


def test_every_command_is_shown_at_work():
    shown = "\n".join(line for page in PAGES for line in lines(page.read_text(encoding="utf-8")))
    for command in app.registered_commands:
        assert f"vqtok {command.name}" in shown, command.name


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


# docs/format.md


def make(K: int = 4, f: int = 4, model: str = "m", L: int = 1) -> Codes:
    return Codes(
        np.zeros((1, L, 1, 1), codes.index_dtype(K)), model, "0badcafe", K, f, 3, ((1, 1),)
    )


def test_limits_of_the_formats():
    for K, f, model in ((2, 1, "m"), (1 << 32, 1024, "m" * 255), (65536, 4, "ü ")):
        one = make(K, f, model)
        assert codes.read_plain_codes(codes.to_bytes(one)) == one
        assert codes.read_plain_codes(codes.to_bytes(codes.to_compact(one))) == one
    for K, f, model in (
        (1, 4, "m"),
        (1 << 32 | 1, 4, "m"),
        (4, 1025, "m"),
        (4, 0, "m"),
        (4, 4, "m" * 256),
        (4, 4, ""),
        (4, 4, "a\nb"),
    ):
        with pytest.raises(FormatError):
            make(K, f, model)
    assert codes.FILE_LIMIT == 4 << 30
    assert (weights.HEADER_LIMIT, weights.FILE_LIMIT) == (16 << 20, 64 << 30)


def test_a_file_of_both_forms_is_a_plain_one(tmp_path: Path):
    plain = codes.to_bytes(make())
    (tmp_path / "a.npz").write_bytes(plain)
    with np.load(tmp_path / "a.npz") as archive:
        np.savez(tmp_path / "b.npz", **archive, stream=np.zeros(3, np.uint8))
    assert codes.read_plain_codes(tmp_path / "b.npz") == make()


@pytest.mark.slow
def test_a_fingerprint_by_the_page():
    path = ROOT / "models" / "photo" / "tokenizer.safetensors"
    tensors = weights.load_weights(path, "tokenizer").tensors
    digest = hashlib.sha256()
    for name in sorted(tensors):
        shape = ",".join(map(str, tensors[name].shape))
        digest.update(
            b"\0".join(
                [
                    name.encode(),
                    tensors[name].dtype.name.encode(),
                    shape.encode(),
                    tensors[name].tobytes(),
                ]
            )
        )
    assert digest.hexdigest()[:8] == weights.tokenizer_fingerprint(path)
