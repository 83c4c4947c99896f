"""`vqtok pack`, `vqtok unpack` and `vqtok truncate`: codes files to codes files.

They need no image and no network of an image.
"""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated

import typer

from vqtok.cli import options as o
from vqtok.cli import output, rate, shards, token_sets
from vqtok.cli.batch import (
    Batch,
    BatchOptions,
    Facts,
    Job,
    check_codes_targets,
    plan,
    read_codes,
)
from vqtok.errors import ModelError, UsageError

if TYPE_CHECKING:
    from vqtok.bulk.shards import Manifest
    from vqtok.codec import EntropyCoder
    from vqtok.codes import Codes, Compact, Encoded, RateTarget
    from vqtok.model_registry import ModelFolder


@output.handle_errors
def pack(
    inputs: o.CodesFiles,
    out: o.Output = None,
    model: o.FileModel = None,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    frames: o.Frames = False,
    grid: o.Grid = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Make codes files small: img.npz -> img.compact.npz.

    Or token arrays of other tokenizers:
    tokens.npy -> tokens.vqtok.npz.
    """
    options = BatchOptions(out, force, skip_existing, json, quiet)
    shape = token_sets.parse_grid(grid)
    if token_sets.arrays_of(inputs, model, frames or shape is not None):
        return token_sets.pack(inputs, options, model, frames, shape)
    _rewrite(inputs, options, model, _Command("pack", ".compact", _packed, compact=True))


@output.handle_errors
def unpack(
    inputs: o.CodesFiles,
    out: o.Output = None,
    model: o.FileModel = None,
    force: o.Force = False,
    skip_existing: o.SkipExisting = False,
    indices_only: Annotated[
        bool,
        typer.Option(
            "--indices-only",
            help="Write the member indices alone, for readers that fail at a string (MLX); "
            "vqtok cannot decode such a file.",
        ),
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Make compact codes files plain again.

    img.npz -> img.plain.npz; and packed token arrays:
    tokens.vqtok.npz -> tokens.npy.
    """
    options = BatchOptions(out, force, skip_existing, json, quiet)
    if token_sets.packed_of(inputs):
        return token_sets.unpack(inputs, options, model, indices_only)
    if indices_only:
        folders, _ = shards.split(inputs)
        if folders:
            raise UsageError(
                f"--indices-only does not go with codes shards ({folders[0]})",
                "read them with vqtok.CodesDataset, or give codes files",
            )
        command = _Command("unpack", ".indices", _indices_alone, compact=False)
        return _rewrite(inputs, options, model, command)
    _rewrite(inputs, options, model, _Command("unpack", ".plain", _unpacked, compact=False))


@output.handle_errors
def truncate(
    inputs: o.CodesFiles,
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
    target = rate.parse(levels, bpp, max_bytes)
    if not target.is_set:
        raise UsageError(
            "nothing says how much to keep", "give --levels N, --bpp X or --max-bytes SIZE"
        )
    options = BatchOptions(out, force, skip_existing, json, quiet)
    shards.refuse_rates(target, shards.split(inputs)[0])
    change = partial(_truncated, target)
    _rewrite(inputs, options, model, _Command("truncate", ".truncated", change, levels=levels))


class EntropyCoders:
    """The entropy coders of a batch, each loaded once."""

    def __init__(self, model: str | None, quiet: bool = True) -> None:
        self.model, self.quiet = model, quiet
        self.loaded: dict[str, EntropyCoder | None] = {}  # by the tokenizer's fingerprint
        self._only_packed: list[
            str
        ] = []  # models that have none, of which that is still to be said

    @cached_property
    def _named(self) -> "tuple[ModelFolder, str]":
        """Returns the model that --model names, and its fingerprint."""
        from vqtok import model_registry, weights

        folder = model_registry.find_model(self.model)
        return folder, weights.tokenizer_fingerprint(folder.tokenizer)

    def check_model(self, found: "Codes | Compact | Manifest") -> None:
        """Raises ModelError where --model names another model than the one of these codes."""
        if self.model is None:
            return
        folder, mine = self._named
        if mine != found.fingerprint:
            raise ModelError(
                f"written with model {found.model} ({found.fingerprint}), "
                f"but --model is {folder.name} ({mine})",
                f"leave --model out, or give --model {shlex.quote(found.model)}",
            )

    def find(self, codes: "Codes | Compact") -> "EntropyCoder | None":
        """Gives the coder for these codes; None where their model has no entropy prior."""
        if codes.fingerprint not in self.loaded:
            self.loaded[codes.fingerprint] = self._load(codes)
        return self.loaded[codes.fingerprint]

    def _find_or_say(self, plain: "Codes") -> "EntropyCoder | None":
        """Finds the coder as `find`; where there is none, `tell` says of the model that its codes
        can only be bit-packed.
        """
        first = plain.fingerprint not in self.loaded
        coder = self.find(plain)
        if first and coder is None:
            self._only_packed.append(plain.model)
        return coder

    def tell(self) -> None:
        """Says once of each model without an entropy prior that its codes are only bit-packed."""
        while self._only_packed:
            output.say(rate.only_packed(self._only_packed.pop()), self.quiet)

    def _load(self, codes: "Codes | Compact") -> "EntropyCoder | None":
        from vqtok import model_registry

        if self.model:
            folder, _ = self._named
        else:
            folder = model_registry.find_by_fingerprint(codes.model, codes.fingerprint)
        if folder.entropy is None:
            return None
        from vqtok.codec import EntropyCoder

        # `check_model` and the search have seen that this is the tokenizer's fingerprint
        return EntropyCoder(folder, codes.fingerprint)

    def pack(self, plain: "Codes") -> "Compact":
        """Gives the compact form, bit-packed where the model has no entropy prior."""
        from vqtok import codes

        coder = self._find_or_say(plain)
        return codes.to_compact(plain) if coder is None else coder.pack(plain)

    def pack_levels(self, plain: "Codes") -> "Callable[[int], Compact]":
        """Codes the levels once; the result gives the compact form of any number of the first
        levels.
        """
        from vqtok import codes

        coder = self._find_or_say(plain)
        if coder is None:
            return lambda count: codes.to_compact(plain.first_levels(count))
        return coder.pack_levels(plain)

    def unpack(self, found: "Codes | Compact") -> "Codes":
        """Gives the plain form. Raises ModelError, FormatError."""
        from vqtok import codes

        return codes.unpack(found, self.find)


Change = Callable[[EntropyCoders, "Codes | Compact", object], "Encoded"]


@dataclass(frozen=True)
class _Command:
    """What sets one of the three commands apart: the change to a codes file, and to the shards of a
    folder.
    """

    verb: str
    ending: str  # of the new name: .compact for img.compact.npz
    change: Change
    levels: int | None = None  # of shards; None: as they are
    compact: bool | None = None

    def change_stack(self, coders: EntropyCoders, found: "Codes | Compact") -> "Codes | Compact":
        """Gives the codes of one grid of a shard in the form that the new manifest states."""
        from vqtok.codes import Codes

        plain = coders.unpack(found)
        if self.levels is not None:
            plain = plain.first_levels(self.levels)
        compact = not isinstance(found, Codes) if self.compact is None else self.compact
        return coders.pack(plain) if compact else plain


def _packed(coders: EntropyCoders, found: "Codes | Compact", name: object) -> "Encoded":
    from vqtok.codes import Encoded

    plain = coders.unpack(found)
    return Encoded.of(plain, coders.pack(plain))


def _unpacked(coders: EntropyCoders, found: "Codes | Compact", name: object) -> "Encoded":
    from vqtok.codes import Encoded

    return Encoded.of(coders.unpack(found))


def _indices_alone(coders: EntropyCoders, found: "Codes | Compact", name: object) -> "Encoded":
    from vqtok.codes import Encoded, indices_to_bytes

    plain = coders.unpack(found)
    return Encoded(plain, "indices", indices_to_bytes(plain))


def _truncated(
    target: "RateTarget", coders: EntropyCoders, found: "Codes | Compact", name: object
) -> "Encoded":
    from vqtok.codes import Codes

    packer = None if isinstance(found, Codes) else coders  # the file keeps its form
    return rate.encode(coders.unpack(found), target, name, packer)


def _rewrite(
    inputs: list[str], options: BatchOptions, model: str | None, command: _Command
) -> None:
    """Changes each codes file into another one, and each folder of codes shards."""
    folders, words = shards.split(inputs)
    found = (
        plan(words, frozenset({".npz"}), f"{command.ending}.npz", options.out)
        if words or not folders
        else []
    )
    jobs = _without_results(found, options.quiet)
    check_codes_targets(jobs, options.out)
    batch, coders = Batch(jobs, options), EntropyCoders(model, options.quiet)
    rewriting = shards.Rewriting(
        command.verb,
        options,
        command.ending,
        partial(command.change_stack, coders),
        coders.check_model,
        command.levels,
        command.compact,
    )
    batch.failures.merge(shards.run_folders(folders, len(words), options, rewriting.run))
    coders.tell()  # of shards
    batch.run(command.verb, partial(_rewrite_one, coders, command.change, options.force), _describe)
    batch.finish()


def _without_results(jobs: list[Job], quiet: bool) -> list[Job]:
    """Leaves out jobs whose input is another's result, so that a folder may be done twice."""
    results = {job.target for job in jobs if job.target != job.source.path}
    left = [job for job in jobs if job.source.path not in results]
    if len(left) < len(jobs):
        output.say(
            f"{len(jobs) - len(left)} of {len(jobs)} are results of others and are left out", quiet
        )
    return left


def _rewrite_one(coders: EntropyCoders, change: Change, force: bool, job: Job) -> list[Facts]:
    """Writes the changed codes of one file, and returns the facts of the new one."""
    begin, found = time.perf_counter(), read_codes(job.source)
    try:
        coders.check_model(found)
        encoded = change(coders, found, job.source)
    except ModelError as error:
        raise error.about(job.source) from None
    output.write(job.target, encoded.data, force)
    coders.tell()
    return [
        {
            "input": str(job.source.path or "-"),
            "output": str(job.target),
            "model": found.model,
            "fingerprint": found.fingerprint,
            "source_levels": found.levels,
            **rate.facts(encoded.codes, encoded.form, len(encoded.data)),
            "seconds": round(time.perf_counter() - begin, 3),
        }
    ]


def _describe(job: Job, facts: Facts) -> list[str]:
    """Returns lines like "img.npz -> img.truncated.npz  96x64x2, 2.1 kB, 0.12 bpp, 2 of 8 levels,
    coded, 0.01 s".
    """
    grid, size = "x".join(map(str, facts["grid"])), rate.shown(facts["bytes"], facts["bpp"])
    part = (
        f"{facts['levels']} of {facts['source_levels']} levels, "
        if facts["levels"] < facts["source_levels"]
        else ""
    )
    form = "" if facts["form"] == "plain" else f"{facts['form']}, "
    return [
        f"{job.source} -> {output.display_name(job.target)}  {grid}, {size}, "
        f"{part}{form}{facts['seconds']:.2f} s"
    ]
