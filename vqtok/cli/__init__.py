"""The `vqtok` command.

Each command parses, calls the library and prints; torch is imported inside commands only.
"""

import os
import pkgutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vqtok._version import __version__
from vqtok.cli import output
from vqtok.cli.quick import QuickCommand, spared
from vqtok.errors import UsageError

_ParseError: Any = typer.BadParameter.__mro__[2]  # Typer's ClickException, which has no public name


class _Commands(TyperGroup):
    """The commands. Errors that Typer finds on the command line are printed in two lines, like all
    others.
    """

    def get_params(self, ctx: Any) -> Any:
        return spared(super().get_params(ctx), self.callback)

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        try:
            code = super().main(*args, standalone_mode=False, **more)
        except typer.Abort:
            code = 130
        except _ParseError as error:
            code = _show_parse_error(error)
        if standalone_mode:
            sys.exit(code)
        return code


def _show_parse_error(error: Any) -> int:
    context = getattr(error, "ctx", None)
    message = error.format_message().strip()
    # the message is the whole help
    if context is None or not message or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        first, *_ = message.split(" ", 1)
        start = first.lower() if first[1:].islower() else first
        output.show_error(
            UsageError(
                start + message[len(first) :].rstrip("."), f"see {context.command_path} --help"
            )
        )
    return error.exit_code


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vqtok {__version__}")
        raise typer.Exit


def _vqtok(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Images to tokens and back: train a VQ-VAE, encode, decode and sample.

    The first things to try: vqtok encode photo.jpg, vqtok decode photo.npz, vqtok sample.
    Each command has its own --help.
    """


_COMMANDS = {
    "encode": "vqtok.cli.encode:encode",
    "decode": "vqtok.cli.decode:decode",
    "truncate": "vqtok.cli.pack:truncate",
    "pack": "vqtok.cli.pack:pack",
    "unpack": "vqtok.cli.pack:unpack",
    "sample": "vqtok.cli.sample:sample",
    "train": "vqtok.cli.train:train",
    "eval": "vqtok.cli.evaluate:evaluate",
    "info": "vqtok.cli.info:info",
    "models": "vqtok.cli.info:models",
    "import": "vqtok.cli.interop:import_",
    "export": "vqtok.cli.export:export",
    "import-tokens": "vqtok.cli.tokens:import_tokens",
    "report": "vqtok.cli.report:report",
    "view": "vqtok.cli.view:view",
    "web": "vqtok.cli.web:web",
    "study": "vqtok.cli.study:run_study",
}


def build_app(names: Iterable[str] = _COMMANDS) -> typer.Typer:
    """Makes the application with these commands, and imports the modules of no others."""
    made = typer.Typer(
        name="vqtok",
        cls=_Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
    )
    made.callback()(_vqtok)
    for name in names:
        made.command(name, cls=QuickCommand)(pkgutil.resolve_name(_COMMANDS[name]))
    return made


def main() -> None:
    """Runs the command."""
    if "_VQTOK_COMPLETE" in os.environ:  # a shell asks what a word may become
        # Typer breaks help at this width, and fish takes the second line for a word of its own
        os.environ["COLUMNS"] = "1000"
    # the modules of all commands take 1/20 of the import of torch
    first = sys.argv[1:2] if "_VQTOK_COMPLETE" not in os.environ else []
    build_app(first if first and first[0] in _COMMANDS else _COMMANDS)()


if not TYPE_CHECKING:  # the application with all commands, made when it is asked for

    def __getattr__(name: str) -> Any:
        if name != "app":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()["app"] = build_app()
        return globals()["app"]

else:
    app = build_app()
