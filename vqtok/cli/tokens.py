"""`vqtok import-tokens`: a trainer's sequences to codes."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtok.cli import options as o
from vqtok.cli import output
from vqtok.errors import InputError, UsageError
from vqtok.files import human_count

if TYPE_CHECKING:
    from vqtok.codes import Codes


@output.handle_errors
def import_tokens(
    source: Annotated[
        Path,
        typer.Argument(
            help=(
                "Sequences: .npy (n, T), .bin, .jsonl, .tar or .parquet, or the folder of an "
                "export."
            ),
            metavar="IN",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Codes file; a folder, with a file for each grid size, where they differ.",
            metavar="PATH",
        ),
    ],
    meta: Annotated[
        Path | None,
        typer.Option(
            "--meta",
            help="meta.json of the export that was trained on. Default: the one beside IN.",
            metavar="FILE",
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            help="Rows and columns, where neither meta.json nor EOL tokens tell them: 16x16.",
            metavar="HxW",
        ),
    ] = None,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Turn a transformer's tokens, or an export, into codes.

    It undoes the order, offsets and special tokens that meta.json tells of. `vqtok decode` then
    makes images.
    """
    from vqtok import codes, tokens
    from vqtok.tokens.restore import read_sequences

    begin = time.perf_counter()
    if not source.exists():
        raise InputError(f"{source} does not exist", "check the name")
    if str(out) == "-":
        raise UsageError("codes of several grids may come of it", "give a file or folder: -o PATH")
    found = tokens.read_meta(meta or _beside(source))
    wanted = tokens.check_grid(grid) if grid is not None else None
    if out.suffix == ".npz":
        output.check_target(out, force)
    restored = tokens.restore(read_sequences(source, found), found, wanted, source)
    for target, each in zip(_targets(out, restored), restored, strict=True):
        codes.write_codes(target, each, force)
        _, levels, h, w = each.shape
        if json:
            output.print_json(
                {
                    "input": str(source),
                    "output": str(target),
                    "model": each.model,
                    "grid": [w, h, levels],
                    "images": len(each),
                    "seconds": round(time.perf_counter() - begin, 3),
                }
            )
        else:
            output.say(
                f"{source} -> {target}  {human_count(len(each), 'image')}, {w}x{h}x{levels}, "
                f"{time.perf_counter() - begin:.2f} s",
                quiet,
            )


def _beside(source: Path) -> Path:
    """Returns the meta.json that belongs to the sequences."""
    folder = source if source.is_dir() else source.parent
    path = folder / "meta.json"
    if not path.exists():
        raise InputError(
            f"there is no meta.json beside {source}",
            "name the one that vqtok export wrote: --meta FILE",
        )
    return path


def _targets(out: Path, restored: "list[Codes]") -> list[Path]:
    """Returns the files that the codes go to."""
    if out.suffix == ".npz" and not out.is_dir():
        if len(restored) > 1:
            raise UsageError(
                f"sequences of {len(restored)} grid sizes do not go into one codes file",
                "give a folder: -o DIR",
            )
        return [out]
    return [out / f"{each.shape[3]}x{each.shape[2]}.npz" for each in restored]
