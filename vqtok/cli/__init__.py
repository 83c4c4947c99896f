"""The `vqtok` command.

Each command parses, calls the library and prints; torch is imported inside commands only.
"""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vqtok._version import __version__
from vqtok.cli import (
    decode,
    encode,
    evaluate,
    export,
    info,
    interop,
    output,
    pack,
    report,
    sample,
    study,
    tokens,
    train,
    view,
    web,
)
from vqtok.errors import UsageError

_ParseError: Any = typer.BadParameter.__mro__[2]  # Typer's ClickException, which has no public name


class _Commands(TyperGroup):
    """The commands. Errors that Typer finds on the command line are printed in two lines, like all
    others.
    """

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


app = typer.Typer(
    name="vqtok",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vqtok {__version__}")
        raise typer.Exit


@app.callback()
def _vqtok(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Images to tokens and back: train a VQ-VAE, encode, decode and sample.

    The first things to try: vqtok encode photo.jpg, vqtok decode photo.npz, vqtok sample.
    Each command has its own --help.
    """


for name, command in (
    ("encode", encode.encode),
    ("decode", decode.decode),
    ("truncate", pack.truncate),
    ("pack", pack.pack),
    ("unpack", pack.unpack),
    ("sample", sample.sample),
    ("train", train.train),
    ("eval", evaluate.evaluate),
    ("info", info.info),
    ("models", info.models),
    ("import", interop.import_),
    ("export", export.export),
    ("import-tokens", tokens.import_tokens),
    ("report", report.report),
    ("view", view.view),
    ("web", web.web),
    ("study", study.run_study),
):
    app.command(name)(command)


def main() -> None:
    """Runs the command."""
    if "_VQTOK_COMPLETE" in os.environ:  # a shell asks what a word may become
        # Typer breaks help at this width, and fish takes the second line for a word of its own
        os.environ["COLUMNS"] = "1000"
    app()
