"""`vqtok web`: a page that decodes a model's codes files in a browser."""

import time
from pathlib import Path
from typing import Annotated

import typer

from vqtok.cli import options as o
from vqtok.cli import output


@output.handle_errors
def web(
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder of the page.", metavar="DIR")],
    model: o.ModelName = None,
    encoder: Annotated[
        bool, typer.Option("--encoder", help="The page also makes codes files of photos.")
    ] = False,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Make a page that decodes a model's codes files in a browser.

    Open DIR/index.html, or put the folder on any web server. Whoever has the page needs no vqtok,
    and once it is loaded no network: drop a .npz on it, plain or compact, choose the number of
    levels, save a PNG. With --encoder it also makes a plain .npz of a photo. Models with the folded
    network only.
    """
    begin = time.perf_counter()
    from vqtok import files, model_registry

    files.check_free(out / "index.html", force)
    folder = model_registry.find_model(model)
    from vqtok.web import site

    made = site.make_site(folder, encoder)
    made.write(out, force)
    facts = {"model": made.model, "output": str(out), "files": len(made.contents)}
    if json:
        output.print_json({**facts, "bytes": made.bytes})
    else:
        output.say(
            f"{made.model} -> {out / 'index.html'}  {len(made.contents)} files, "
            f"{files.human_bytes(made.bytes)}, {time.perf_counter() - begin:.2f} s",
            quiet,
        )
