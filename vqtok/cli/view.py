"""`vqtok view`: an image, or what codes decode to, in the terminal."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtok.cli import options as o
from vqtok.cli import output, rate, shards
from vqtok.cli.start import ModelOptions
from vqtok.errors import ModelError, UsageError, VqtokError

if TYPE_CHECKING:
    import numpy as np

    from vqtok.codec import Model
    from vqtok.codes import Codes, Compact

LINES_BELOW = 3  # left for the line of text and the prompt


@output.handle_errors
def view(
    file: Annotated[
        str,
        typer.Argument(help="An image, a codes file, or a folder of codes shards.", metavar="FILE"),
    ],
    grid: Annotated[
        bool, typer.Option("--grid", help="Show the codes' index grids, a color for each code.")
    ] = False,
    number: Annotated[
        int,
        typer.Option(
            "--picture",
            help="Which of several images in a codes file or in shards.",
            metavar="N",
            min=1,
        ),
    ] = 1,
    levels: o.Levels = None,
    always: Annotated[
        bool, typer.Option("--always", help="Print even where standard output is no terminal.")
    ] = False,
    model: o.FileModel = None,
    device: o.Device = None,
    quiet: o.Quiet = False,
) -> None:
    """Show an image, or what codes decode to, in the terminal."""
    from vqtok import files
    from vqtok.plots import terminal_image

    terminal = sys.stdout is not None and sys.stdout.isatty()
    if not terminal and not always:
        output.say(
            "nothing is shown: standard output is no terminal (--always shows it all the same)",
            quiet,
        )
        return
    if shards.is_shards(file):
        codes = True
    else:
        with files.open_input(Path(file)) as opened:
            codes = opened.read(2) == b"PK"
    if not codes and (grid or levels is not None or number > 1 or model is not None):
        raise UsageError(
            f"{file} is no codes file", "leave --grid, --levels, --picture and --model out"
        )
    pixels, text = (
        _of_codes(file, grid, number, levels, model, device) if codes else _of_image(file)
    )
    size = shutil.get_terminal_size()
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    shown = terminal_image.lines(
        pixels,
        size.columns,
        max(1, size.lines - LINES_BELOW),
        terminal_image.colors_of(os.environ, encoding),
    )
    output.write_stdout(("\n".join(shown) + "\n").encode(encoding))
    output.say(f"{file}  {text}", quiet)


def _of_image(file: str) -> tuple["np.ndarray", str]:
    from vqtok import images

    pixels = images.read_image(Path(file)).pixels
    return pixels, f"{pixels.shape[1]}x{pixels.shape[0]}"


def _of_codes(
    file: str, grid: bool, number: int, levels: int | None, model: str | None, device: str | None
) -> tuple["np.ndarray", str]:
    """Returns the image to show, and what there is to say of it."""
    from dataclasses import replace

    from vqtok import codes as codes_format

    name, held = "", shards.open_shards(Path(file), model) if shards.is_shards(file) else None
    found = codes_format.read_any_codes(Path(file)) if held is None else None
    count = len(held if held is not None else found or ())
    if number > count:
        raise UsageError(
            f"{file} holds {count} {'image' if count == 1 else 'images'}, not {number}",
            "choose another",
        )
    if held is not None:
        found, name = held.codes(number - 1), f"{held.name(number - 1)}: "
        number = 1
    assert found is not None
    try:
        codec = _model(found, grid, model, device)
        plain = codes_format.unpack(found) if codec is None else codec.unpack(found)
        plain = rate.first_levels(plain, levels, file)
        one = replace(
            plain,
            indices=plain.indices[number - 1 : number],
            sizes=plain.sizes[number - 1 : number],
        )
        if grid:
            _, L, h, w = one.indices.shape
            colors = (
                ""
                if codec is not None
                else "; its model is not here, so colors tell codes apart and nothing else"
            )
            text = f"{name}grid {w}x{h}x{L} of {one.codebook_size} codes{colors}"
            return _grids(one, codec), text
        assert codec is not None
        (H, W), levels_text = (
            one.sizes[0],
            f", {one.levels} of {codec.config.levels} levels" if codec.config.levels > 1 else "",
        )
        return codec.decode(one), f"{name}{W}x{H} decoded by {one.model}{levels_text}"
    except ModelError as error:
        raise error.about(file) from None


def _model(
    found: "Codes | Compact", grid: bool, model: str | None, device: str | None
) -> "Model | None":
    """Loads the model of the codes; None where it is not here, and a grid can be shown without."""
    from vqtok.codes import Codes

    chosen = ModelOptions(model, device)
    if model is not None:
        return chosen.load()
    try:
        return chosen.load_for(found)
    except VqtokError:
        if grid and (isinstance(found, Codes) or found.prior is None):
            return None
        raise


def _grids(codes: "Codes", codec: "Model | None") -> "np.ndarray":
    """Draws the index grids of one image in color, uint8 (H, W, 3); several levels side by side."""
    from vqtok import plots
    from vqtok.plots.palette import by_number

    _, L, h, w = codes.indices.shape
    if codec is not None:
        from vqtok.evaluate.inspect_model import index_colors

        colors = index_colors(codec)
        images = [colors[level][codes.indices[0, level]] for level in range(L)]
    else:
        images = [by_number(codes.indices[0, level]) for level in range(L)]
    columns = 1 if L == 1 else 2 if L <= 4 else 4
    return (
        images[0]
        if L == 1
        else plots.sheet(images, columns, gap=max(1, min(h, w) // 16), background=(0, 0, 0))
    )
