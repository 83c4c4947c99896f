"""Writes docs/commands.md: every command with all it takes, from the
declarations that `--help` shows.

Run as `python tests/make_commands_doc.py` after an option has changed; tests/test_docs.py compares.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vqtok.cli import app

TARGET = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
HEAD = """# All commands and options

What `vqtok COMMAND --help` says, written by `python tests/make_commands_doc.py` from the \
declarations themselves: nothing is missing.
Every command also has `-h`, `--help`. `vqtok --version` prints the version; `vqtok \
--install-completion` makes the shell complete
commands, options and names of models, and `--show-completion` prints what it installs \
([recipes](recipes.md#shell-completion)).

Exit codes: 0 done, 1 failure, 2 usage, 130 interrupted. Data goes to standard output, all else to \
standard error.
Environment: `VQTOK_MODEL` (default model), `VQTOK_MODELS` (folders of models), `VQTOK_DEVICE`, \
`VQTOK_RUNTIME` ([auto, onnxruntime or torch](recipes.md#a-quick-start)), \
`VQTOK_DEBUG=1` (tracebacks), `NO_COLOR`.
"""
PLACEHOLDERS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def text() -> str:
    """The page."""
    return HEAD + "".join(
        _section(command.name or "", command.callback) for command in app.registered_commands
    )


def _section(name: str, function: Any) -> str:
    """A heading, the docstring, and a table of arguments and options."""
    lines = [f"| {written} | {_cell(told)} |" for written, told in _parameters(function)]
    doc = inspect.cleandoc(function.__doc__ or "")
    return "\n".join(
        [f"\n## {name}", "", doc, "", "| what to write | what it does |", "|---|---|", *lines, ""]
    )


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """How each is written, and what it does."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(hints[name])[:2]
        types = [part for part in get_args(kind) or (kind,) if part is not type(None)]
        metavar = info.metavar or PLACEHOLDERS.get(types[0], "")
        forms = [
            form
            for form in (info.default, *(getattr(info, "param_decls", None) or ()))
            if isinstance(form, str)
        ]
        takes = f" {metavar}" if metavar and types[0] is not bool else ""
        flags = [flag for form in forms for flag in form.split("/")]
        written = (
            ", ".join(f"`{flag}{takes if flag == flags[-1] else ''}`" for flag in flags)
            or f"`{metavar}`"
        )
        yield (
            written,
            " ".join(
                filter(
                    None, (info.help, _bounds(info), _default(parameter.default, info.help or ""))
                )
            ),
        )


def _bounds(info: Any) -> str:
    if info.min is None and info.max is None:
        return ""
    return f"At least {info.min}." if info.max is None else f"From {info.min} to {info.max}."


def _default(value: Any, told: str) -> str:
    absent = any(value is none for none in (inspect.Parameter.empty, None, False))
    return "" if absent or "default:" in told.lower() else f"Default: {value}."


def _cell(told: str) -> str:
    return told.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
