"""Options in groups: what the shell sees, and what the command gets."""

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import typer
from cli_helpers import runner

import vqtok
from vqtok import train as training
from vqtok.cli import bulk, export
from vqtok.cli import options as o
from vqtok.cli import train as command
from vqtok.config import Recipe
from vqtok.data import Shapes


@dataclass(frozen=True)
class Group:
    name: Annotated[str, typer.Argument(help="Who.")] = "x"
    count: Annotated[int, typer.Option("--count", help="How many."), "table.count"] = 1


def test_a_command_gets_its_options_in_groups() -> None:
    seen: list[Any] = []

    @o.grouped
    def run(group: Group, quiet: o.Quiet = False) -> None:
        seen.append((group, quiet))

    app = typer.Typer()
    app.command()(run)
    assert runner().invoke(app, ["a", "--count", "3", "-q"]).exit_code == 0
    assert runner().invoke(app, []).exit_code == 0
    assert seen == [(Group("a", 3), True), (Group(), False)]
    assert runner().invoke(app, ["--count", "b"]).exit_code == 2
    assert "How many." in runner().invoke(app, ["--help"]).stdout


def test_each_option_of_train_that_changes_a_setting_names_one() -> None:
    """All options at once make a recipe: a wrong name of a table or setting would not."""
    hints = inspect.get_annotations(command.SettingOptions)
    paths = {
        name: [w for w in hint.__metadata__ if isinstance(w, str)] for name, hint in hints.items()
    }
    assert [name for name, found in paths.items() if not found] == ["perceptual"]
    recipe = Recipe().to_dict()
    for found in paths.values():
        for path in found:
            table, _, key = path.rpartition(".")
            assert key in (recipe[table] if table else recipe), path
    given = command.SettingOptions(steps=7, prior="fvsbn", seed=3, normalize=False)
    assert given.values() == {
        "tokenizer_training": {"steps": 7},
        "prior": {"architecture": "fvsbn"},
        "seed": 3,
        "tokenizer": {"normalize": False},
    }


def test_training_keeps_its_memory_also_without_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(training, "keep_memory", lambda: calls.append(1))
    monkeypatch.setattr(training, "refuse_codes", _stop)
    run = training.RunContext(training.RunSpec(), torch.device("cpu"))
    with pytest.raises(StopIteration):
        training.train(run, Shapes(4))
    assert calls == [1]


def _stop(_data: object) -> None:
    raise StopIteration


def _parameters(path: Path) -> dict[str, int]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))
    return {n.name: len(n.args.posonlyargs + n.args.args + n.args.kwonlyargs) for n in nodes}


@pytest.mark.slow
def test_no_function_has_over_12_parameters() -> None:
    root = Path(vqtok.__file__).parent
    files = list(root.rglob("*.py"))
    assert len(files) > 150
    long = {(path.name, k): n for path in files for k, n in _parameters(path).items() if n > 12}
    assert long == {}


def test_options_that_are_given_are_told_from_defaults() -> None:
    assert export.SequenceOptions().given == []
    given = export.SequenceOptions(order="level-major", bos=True, class_tokens=True, shuffle=0)
    assert given.given == ["--order", "--bos", "--class-tokens", "--shuffle"]
    assert bulk.ShardOptions(workers=0) != bulk.ShardOptions()
    assert bulk.is_bulk(["a.png"], bulk.ShardOptions(workers=0))
    assert not bulk.is_bulk(["a.png"], bulk.ShardOptions())
