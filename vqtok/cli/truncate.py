"""`vqtok truncate`: codes files cut to their first levels, without a model."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqtok.cli import options as o
from vqtok.cli import output, rate
from vqtok.cli.decode import CodesFiles
from vqtok.cli.encode import Job, start
from vqtok.errors import UsageError, VqtokError

if TYPE_CHECKING:
    from vqtok.files import Source

SUFFIX = ".truncated.npz"


@output.guarded
def truncate(
    inputs: CodesFiles,
    out: o.Output = None,
    levels: o.Levels = None,
    bpp: o.Bpp = None,
    max_bytes: o.MaxBytes = None,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Cut codes to fewer levels: img.npz -> img.truncated.npz."""
    from vqtok import files

    wanted = rate.Rate.parse(levels, bpp, max_bytes)
    if not wanted.given:
        raise UsageError("nothing says how much to keep", "give --levels N, --bpp X or --max-bytes SIZE")
    sources = files.expand(inputs, frozenset({".npz"}))
    jobs = [(source, files.output_path(source, SUFFIX, out, len(sources) > 1)) for source in sources]
    batch, jobs = start(_without_results(jobs, quiet), force, skip_existing, json, quiet)
    for source, target in jobs:
        try:
            with output.memory_errors(source):
                result = _truncate_one(source, target, force, wanted)
        except VqtokError as error:
            batch.fail(error)
            continue
        if json:
            output.print_json(result)
        else:
            output.say(_summary(result, source, target), quiet)
    batch.finish()


def _without_results(jobs: list[Job], quiet: bool) -> list[Job]:
    """The jobs but for those whose input is another's result: a folder may be truncated twice, its files not twice over."""
    results = {target for source, target in jobs if target != source.path}
    left = [(source, target) for source, target in jobs if source.path not in results]
    if len(left) < len(jobs):
        output.say(f"{len(jobs) - len(left)} of {len(jobs)} are results of others and are left out", quiet)
    return left


def _truncate_one(source: "Source", target: Path, force: bool, wanted: rate.Rate) -> dict[str, Any]:
    """Writes what is kept of one codes file, and returns what there is to say of it."""
    from vqtok import codes, files

    begin = time.perf_counter()
    found = codes.read(source.path or files.read_stdin(codes.FILE_LIMIT))
    kept, data = wanted.cut(found, source)
    output.write(target, data, force)
    return {
        "input": str(source.path or "-"), "output": str(target), "model": kept.model, "fingerprint": kept.fingerprint,
        "source_levels": found.levels, **rate.facts(kept, len(data)), "seconds": round(time.perf_counter() - begin, 3),
    }     # fmt: skip


def _summary(result: dict[str, Any], source: "Source", target: Path) -> str:
    """img.npz -> img.truncated.npz  96x64x2, 2.1 kB, 0.12 bpp, 2 of 8 levels, 0.01 s"""
    grid, size = "x".join(map(str, result["grid"])), rate.shown(result["bytes"], result["bpp"])
    part = f"{result['levels']} of {result['source_levels']} levels"
    return f"{source} -> {output.named(target)}  {grid}, {size}, {part}, {result['seconds']:.2f} s"
