"""The `vqtok` command. Each command parses, calls the library and prints; torch is imported inside commands only."""

from typing import Annotated

import typer

from vqtok import __version__
from vqtok.cli import decode, encode, evaluate, info, sample, train

app = typer.Typer(
    name="vqtok",
    help="Pictures to tokens and back: train a VQ-VAE, encode, decode and sample.",
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
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Pictures to tokens and back: train a VQ-VAE, encode, decode and sample."""


for name, command in (
    ("train", train.train),
    ("encode", encode.encode),
    ("decode", decode.decode),
    ("sample", sample.sample),
    ("eval", evaluate.evaluate),
    ("info", info.info),
    ("models", info.models),
):
    app.command(name)(command)


def main() -> None:
    """Entry point of the command."""
    app()
