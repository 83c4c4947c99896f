"""`vqtok pack`, `vqtok unpack` and `vqtok truncate`:
codes files to codes files, without the image and without its network.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqtok.cli import options as o
from vqtok.cli import output, rate
from vqtok.cli.decode import CodesFiles
from vqtok.cli.encode import Job, start_batch
from vqtok.errors import ModelError, UsageError, VqtokError

if TYPE_CHECKING:
    from vqtok.codes import Codes, Compact
    from vqtok.files import Source

Change = Callable[["EntropyCoders", "Codes | Compact", object], tuple["Codes | Compact", bytes]]


@output.handle_errors
def pack(
    inputs: CodesFiles,
    out: o.Output = None,
    model: o.FileModel = None,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Make codes files small: img.npz -> img.compact.npz."""
    _rewrite(inputs, ".compact.npz", out, model, force, skip_existing, json, quiet, _packed)


@output.handle_errors
def unpack(
    inputs: CodesFiles,
    out: o.Output = None,
    model: o.FileModel = None,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Make compact codes files plain again: img.npz -> img.plain.npz."""
    _rewrite(inputs, ".plain.npz", out, model, force, skip_existing, json, quiet, _unpacked)


@output.handle_errors
def truncate(
    inputs: CodesFiles,
    out: o.Output = None,
    model: o.FileModel = None,
    levels: o.Levels = None,
    bpp: o.Bpp = None,
    max_bytes: o.MaxBytes = None,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Cut codes to fewer levels: img.npz -> img.truncated.npz."""
    wanted = rate.RateTarget.parse(levels, bpp, max_bytes)
    if not wanted.is_set:
        raise UsageError(
            "nothing says how much to keep", "give --levels N, --bpp X or --max-bytes SIZE"
        )

    def cut(
        coders: EntropyCoders, found: "Codes | Compact", name: object
    ) -> tuple["Codes | Compact", bytes]:
        from vqtok import codes

        if isinstance(found, codes.Codes):
            return wanted.apply(found, name)
        kept, data = wanted.apply(
            coders.unpack(found), name, lambda part: codes.to_bytes(coders.pack(part))
        )
        return kept, data

    _rewrite(inputs, ".truncated.npz", out, model, force, skip_existing, json, quiet, cut)


class EntropyCoders:
    """The entropy coders that files ask for, each loaded once; torch is imported with the first."""

    def __init__(self, model: str | None) -> None:
        self.model, self.loaded = model, {}

    def pack(self, plain: "Codes") -> "Compact":
        from vqtok import codes

        coder = self._coder(plain)
        return codes.to_compact(plain) if coder is None else coder.pack(plain)

    def unpack(self, packed: "Compact") -> "Codes":
        if packed.prior is None:
            return packed.unpacked()
        coder = self._coder(packed)
        if coder is None:
            from vqtok.codec import without_prior

            raise without_prior(packed)
        return coder.unpack(packed)

    def check_model(self, found: "Codes | Compact") -> None:
        """ModelError where a model was named, and it is not the one that made these codes."""
        from vqtok import model_registry, weights

        if self.model is None:
            return
        folder = model_registry.find_model(self.model)
        mine = weights.tokenizer_fingerprint(folder.tokenizer)
        if mine != found.fingerprint:
            raise ModelError(
                f"written with model {found.model} ({found.fingerprint}), "
                f"but --model is {folder.name} ({mine})",
                f"leave --model out, or give --model {found.model}",
            )

    def _coder(self, found: "Codes | Compact") -> Any:
        from vqtok import model_registry

        if found.fingerprint not in self.loaded:
            folder = (
                model_registry.find_model(self.model)
                if self.model
                else model_registry.find_by_fingerprint(found.model, found.fingerprint)
            )
            if folder.entropy is None:
                self.loaded[found.fingerprint] = None
            else:
                from vqtok.codec import EntropyCoder

                self.loaded[found.fingerprint] = EntropyCoder(folder)
        return self.loaded[found.fingerprint]


def _packed(
    coders: EntropyCoders, found: "Codes | Compact", name: object
) -> tuple["Codes | Compact", bytes]:
    from vqtok import codes

    compact = coders.pack(coders.unpack(found) if isinstance(found, codes.Compact) else found)
    return compact, codes.to_bytes(compact)


def _unpacked(
    coders: EntropyCoders, found: "Codes | Compact", name: object
) -> tuple["Codes | Compact", bytes]:
    from vqtok import codes

    plain = coders.unpack(found) if isinstance(found, codes.Compact) else found
    return plain, codes.to_bytes(plain)


def _rewrite(
    inputs: list[str],
    suffix: str,
    out: Path | None,
    model: str | None,
    force: bool,
    skip: bool,
    json: bool,
    quiet: bool,
    change: Change,
) -> None:
    """Each codes file changed into another one."""
    from vqtok import files

    sources = files.expand(inputs, frozenset({".npz"}))
    jobs = [
        (source, files.output_path(source, suffix, out, len(sources) > 1)) for source in sources
    ]
    batch, jobs = start_batch(_without_results(jobs, quiet), force, skip, json, quiet)
    coders = EntropyCoders(model)
    for source, target in jobs:
        try:
            with output.memory_errors(source):
                result = _rewrite_one(source, target, force, coders, change)
        except VqtokError as error:
            batch.fail(error)
            continue
        if json:
            output.print_json(result)
        else:
            output.say(_summary(result, source, target), quiet)
    batch.finish()


def _without_results(jobs: list[Job], quiet: bool) -> list[Job]:
    """The jobs but for those whose input is another's result:
    a folder may be done twice, its files not twice over.
    """
    results = {target for source, target in jobs if target != source.path}
    left = [(source, target) for source, target in jobs if source.path not in results]
    if len(left) < len(jobs):
        output.say(
            f"{len(jobs) - len(left)} of {len(jobs)} are results of others and are left out", quiet
        )
    return left


def _rewrite_one(
    source: "Source", target: Path, force: bool, coders: EntropyCoders, change: Change
) -> dict[str, Any]:
    """Writes the changed codes of one file, and returns what there is to say of it."""
    from vqtok import codes, files

    begin = time.perf_counter()
    found = codes.read_any_codes(source.path or files.read_stdin(codes.FILE_LIMIT))
    try:
        coders.check_model(found)
        kept, data = change(coders, found, source)
    except ModelError as error:
        raise ModelError(f"{source}: {error}", error.fix) from None
    output.write(target, data, force)
    form = codes.read_codes_meta(data)["form"]
    return {
        "input": str(source.path or "-"),
        "output": str(target),
        "model": kept.model,
        "fingerprint": kept.fingerprint,
        "source_levels": found.levels,
        **rate.facts(kept, len(data), form),
        "seconds": round(time.perf_counter() - begin, 3),
    }


def _summary(result: dict[str, Any], source: "Source", target: Path) -> str:
    """img.npz -> img.truncated.npz  96x64x2, 2.1 kB, 0.12 bpp, 2 of 8 levels, coded, 0.01 s"""
    grid, size = "x".join(map(str, result["grid"])), rate.shown(result["bytes"], result["bpp"])
    part = (
        f"{result['levels']} of {result['source_levels']} levels, "
        if result["levels"] < result["source_levels"]
        else ""
    )
    form = "" if result["form"] == "plain" else f"{result['form']}, "
    return (
        f"{source} -> {output.display_name(target)}  {grid}, {size}, "
        f"{part}{form}{result['seconds']:.2f} s"
    )
