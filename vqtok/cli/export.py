"""`vqtok export`: a model as the files of another program, or codes as training data of one."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok import files
from vqtok.cli import options as o
from vqtok.cli import output, progress
from vqtok.config import EXPORT_FORMATS, TOKEN_FORMATS
from vqtok.errors import InputError, UsageError
from vqtok.files import human_bytes, human_count

if TYPE_CHECKING:
    from vqtok.tokens import Sequences
    from vqtok.tokens.export import ExportReport


def _one_of(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def _complete_format(incomplete: str) -> list[str]:
    return [word for word in (*EXPORT_FORMATS, *TOKEN_FORMATS) if word.startswith(incomplete)]


@dataclass(frozen=True)
class SequenceOptions:
    """Options that only codes have: how a grid becomes tokens, and which images are taken."""

    order: Annotated[
        str,
        typer.Option(
            "--order",
            help=(
                "raster: the levels of a place side by side; level-major: all of level 1, "
                "then level 2."
            ),
            metavar="ORDER",
            autocompletion=o.complete_choice("raster", "level-major"),
        ),
    ] = "raster"
    offset: Annotated[
        bool,
        typer.Option("--offset", help="Give each level ids of its own: level l's start at l * K."),
    ] = False
    bos: Annotated[bool, typer.Option("--bos", help="Begin each image with a BOS token.")] = False
    eol: Annotated[
        bool, typer.Option("--eol", help="End each row of the grid with an EOL token.")
    ] = False
    eos: Annotated[bool, typer.Option("--eos", help="End each image with an EOS token.")] = False
    class_tokens: Annotated[
        bool,
        typer.Option("--class-tokens", help="Put a token for the class before those of the grid."),
    ] = False
    split: Annotated[
        str | None,
        typer.Option("--split", help="Images of this split only, like train.", metavar="NAME"),
    ] = None
    shuffle: Annotated[
        int | None,
        typer.Option(
            "--shuffle",
            help="Shuffle the images by this seed. Default: their own order.",
            metavar="SEED",
            min=0,
            max=2**31 - 1,
        ),
    ] = None
    header: Annotated[
        int | None,
        typer.Option(
            "--header", help="bin: 256 puts llm.c's 256 int32 words in front.", metavar="WORDS"
        ),
    ] = None
    block: Annotated[
        int | None,
        typer.Option(
            "--block",
            help="litdata: tokens of a block of the reader. Default: an image's.",
            metavar="N",
            min=2,
        ),
    ] = None

    @property
    def given(self) -> list[str]:
        """Returns the options that differ from the default, as typed."""
        changed = (f.name for f in fields(self) if getattr(self, f.name) != f.default)
        return [f"--{name.replace('_', '-')}" for name in changed]


@output.handle_errors
@o.grouped
def export(
    *,
    source: Annotated[
        str,
        typer.Argument(
            help=(
                "Codes file, folder of codes files, or folder of codes shards; "
                "or a model: its name, folder or tokenizer file."
            ),
            metavar="IN",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the new files, or the one new file.", metavar="PATH"
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help=f"Of codes: {_one_of(TOKEN_FORMATS)}. Of a model: {_one_of(EXPORT_FORMATS)}.",
            metavar="FORMAT",
            autocompletion=_complete_format,
        ),
    ] = "diffusers",
    tokenized: SequenceOptions,
    model: o.FileModel = None,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write codes as training data, or a model, for other programs.

    meta.json beside the data tells the vocabulary, the order and every special token;
    `vqtok import-tokens` brings sequences back. Of models, diffusers takes those with the classic
    network only: those that `vqtok import` made, or that were trained with it.
    """
    if to in EXPORT_FORMATS:
        given = [*tokenized.given, *(["--model"] if model is not None else [])]
        _refuse_token_options(source, to, given)
        return _export_model(source, out, to, force, json, quiet)
    if to not in TOKEN_FORMATS:
        raise UsageError(
            f"vqtok cannot export to {to!r}",
            f"choose {' or '.join(TOKEN_FORMATS)} for codes, {' or '.join(EXPORT_FORMATS)} "
            "for a model",
        )
    from vqtok import tokens

    t = tokenized
    if t.order not in tokens.ORDERS:
        raise UsageError(f"there is no order {t.order!r}", f"choose {' or '.join(tokens.ORDERS)}")
    begin = time.perf_counter()
    sequences = tokens.Sequences(
        open_codes(source, model),
        t.order,
        t.offset,
        t.bos,
        t.eol,
        t.eos,
        t.class_tokens,
        None,
        t.split,
    )
    request = tokens.ExportRequest(to, t.shuffle, t.header, t.block, force)
    with progress.bar(f"export to {to}", json or quiet) as advance:
        report = tokens.export_tokens(sequences, files.as_path(out), request, advance)
    _report(source, out, to, sequences, report, time.perf_counter() - begin, json, quiet)


def _refuse_token_options(source: str, to: str, given: list[str]) -> None:
    """Raises UsageError where a model is to be exported with the options of codes, or codes as a
    model.
    """
    fix = f"choose one with --to: {', '.join(TOKEN_FORMATS)}"
    if given:
        raise UsageError(f"{given[0]} is for codes, and {to} is a format of models", fix)
    if source.endswith(".npz") or _holds_codes(source):
        raise UsageError(f"{source} holds codes, and {to} is a format of models", fix)


def _holds_codes(folder: str) -> bool:
    """Whether it is a folder of codes shards or of codes files, and no model."""
    if os.path.isfile(os.path.join(folder, "manifest.json")):
        return True
    if os.path.isfile(os.path.join(folder, "tokenizer.safetensors")):
        return False
    return any(name.endswith(".npz") for _, _, names in os.walk(folder) for name in names)


def open_codes(source: str, model: str | None) -> Any:
    """Opens the codes in a file, a folder of files or a folder of shards."""
    from vqtok import tokens
    from vqtok.bulk import MANIFEST, CodesDataset

    if files.is_url(source):
        if (files.as_path(source) / MANIFEST).is_file():
            return CodesDataset(source, model=model)
        return tokens.CodesFiles([source], model)
    if os.path.isfile(os.path.join(source, MANIFEST)):
        return CodesDataset(source, model=model)
    if not os.path.exists(source) and not any(letter in source for letter in "*?["):
        raise InputError(
            f"{source} does not exist",
            "give a codes file (.npz), a folder of them, or a folder of codes shards",
        )
    return tokens.CodesFiles([source], model)


def _report(
    source: str,
    out: Path,
    to: str,
    sequences: "Sequences",
    report: "ExportReport",
    seconds: float,
    json: bool,
    quiet: bool,
) -> None:
    v = sequences.vocabulary
    notes = _notes(sequences, to)
    if json:
        output.print_json(
            {
                "input": source,
                "output": str(report.folder),
                "to": to,
                "meta": str(report.meta),
                "files": list(report.files),
                "sequences": report.sequences,
                "tokens": report.tokens,
                "vocabulary_size": v.size,
                "bytes": report.bytes,
                "seconds": round(seconds, 3),
                "notes": notes,
            }
        )
        return
    for note in notes:
        output.say(f"{source}: {note}", quiet)
    output.say(
        f"{source} -> {out}  {to}, {human_count(report.sequences, 'sequence')}, "
        f"{report.tokens:,} tokens of {v.size:,}, {human_bytes(report.bytes)}, {seconds:.2f} s",
        quiet,
    )


def _notes(sequences: "Sequences", to: str) -> list[str]:
    v, notes = sequences.vocabulary, []
    ends = v.eol is not None and (v.eos is not None or v.bos is not None)
    if sequences.only_grid is None and not ends and not TOKEN_FORMATS[to].load().tells_grids:
        notes.append("grids differ, and nothing in the sequences tells which: --eol and --eos do")
    if sequences.source.origin.levels > 1 and not v.offset:
        notes.append(
            f"all {v.levels} levels share the ids 0 to {v.codebook_size - 1}: see --offset"
        )
    return notes


def _export_model(model: str, out: Path, to: str, force: bool, json: bool, quiet: bool) -> None:
    from vqtok import model_registry

    begin = time.perf_counter()
    folder = model_registry.find_model(model)
    from vqtok import interop

    exported = interop.export_model(folder, to)
    exported.write(out, force)
    if json:
        facts = {
            "model": folder.name,
            "output": str(out),
            "to": to,
            "tensors": exported.tensors,
            "bytes": exported.bytes,
        }
        output.print_json(facts)
        return
    output.say(
        f"{folder.name} -> {out}  {to} {exported.what}, {exported.tensors} tensors, "
        f"{human_bytes(exported.bytes)}, {time.perf_counter() - begin:.2f} s",
        quiet,
    )
