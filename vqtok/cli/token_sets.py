"""Token arrays of any tokenizer where `pack`, `unpack` and `train --stage entropy` take them."""

import os
import re
import shlex
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqtok import files
from vqtok.cli import output, progress
from vqtok.cli.batch import Batch, BatchOptions, Facts, Job, plan
from vqtok.errors import InputError, UsageError, VqtokError

if TYPE_CHECKING:
    from vqtok.files import Source
    from vqtok.token_sets.packed import TokenModel

PACKED = ".vqtok.npz"
ARRAYS = (".npy", ".npz")


def parse_grid(text: str | None) -> tuple[int, int] | None:
    """Parses 8x16 as (8, 16). Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,6})", text)
    if match is None:
        raise UsageError(f"--grid {text} is no height and width", "give both, like --grid 8x16")
    return int(match[1]), int(match[2])


def is_model(name: str | None) -> bool:
    """Whether --model names the model of a token set."""
    if name is None:
        return False
    return os.path.isfile(os.path.join(os.path.expanduser(name), "tokens.safetensors"))


def for_training(data: str | None, stage: str, out: Path) -> bool:
    """Whether `train` is to learn tokens, not images:
    an entropy prior alone, of an array, where there is no tokenizer.
    """
    is_array = data is not None and data.lower().endswith(ARRAYS)
    return stage == "entropy" and is_array and not os.path.isfile(out / "tokenizer.safetensors")


def arrays_of(words: Sequence[str], model: str | None, chosen: bool) -> bool:
    """Whether the inputs of `pack` are token arrays; `chosen` says that an option of theirs is
    given. A folder that holds codes files is one of these. Raises UsageError where a token array is
    named beside other files.
    """
    if chosen or is_model(model):
        return True
    kinds = _kinds(words, ARRAYS)
    named = [kind for word, kind in kinds if word]
    if "array" in named and len({kind for _, kind in kinds}) > 1:
        raise UsageError(
            "token arrays (.npy) and other files do not go together", "pack them one kind at a time"
        )
    found = {kind for _, kind in kinds}
    return bool(found & {"array", "packed"}) and "codes" not in found


def packed_of(words: Sequence[str]) -> bool:
    """Whether the inputs of `unpack` are packed token arrays, damaged files among them.

    UsageError for a mixture with codes files.
    """
    found = {kind for _, kind in _kinds(words, (".npz",))}
    if {"packed", "codes"} <= found:
        raise UsageError(
            "packed token arrays and codes files do not go together",
            "unpack them one kind at a time",
        )
    return "packed" in found


def _kinds(words: Sequence[str], suffixes: tuple[str, ...]) -> list[tuple[bool, str]]:
    """Returns for each input file whether it is named (not found in a folder or by a glob), and
    its kind (see `_kind`).
    """
    found = list[tuple[bool, str]]()
    for word in words:
        if word == "-":
            found.append((True, "other"))
            continue
        try:
            sources = files.expand([word], frozenset(suffixes))
        except InputError:  # said later, beside what is found
            sources = []
        named = len(sources) == 1 and str(sources[0].path) == word
        kinds = (_kind(source.path) for source in sources if source.path is not None)
        found += [(named, kind) for kind in kinds]
    return found


def _kind(path: Path) -> str:
    """Returns what a file holds: `array` (tokens), `packed` (tokens), `codes`, which is any other
    zip, or `other`. Files on a server are judged by their names.
    """
    name = path.name.lower()
    if name.endswith(".npy"):
        return "array"
    if isinstance(path, files.RemotePath):
        return "packed" if name.endswith(PACKED) else "codes"
    from vqtok.codes.io import TOKENS_MEMBER

    members = _members(path)
    if f"{TOKENS_MEMBER}.npy" in members:
        return "packed"
    if not members:
        return "other"
    lone = len(members) == 1 and name.endswith(".npz") and all(m.endswith(".npy") for m in members)
    return "array" if lone else "codes"


def _members(path: Path) -> set[str]:
    """The names in an .npz, none of any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.NameToInfo)
    except Exception:  # any other file is described by the error of its reader
        return set()


def train(
    data: str, out: Path, frames: bool, grid: tuple[int, int] | None, force: bool, quiet: bool
) -> dict[str, Any]:
    """Counts a token array into a model; returns its facts."""
    from vqtok.token_sets import arrays, packed

    output.check_target(out / packed.FILE, force)
    begin = time.perf_counter()
    tokens = arrays.to_tokens(arrays.read_array(Path(data)), data, grid)
    n, levels, h, w = tokens.grids.shape
    kind = "frames" if frames else "grids"
    output.say(f"{n:,} {kind} of {h}x{w}x{levels}, ids below {1 << tokens.bits} -> {out}", quiet)
    if tokens.array.ndim == 2 and grid is None:
        output.say(f"Rows are taken as 1x{w}; where they are images, say so: --grid HxW", quiet)
    with progress.jobs("train", 1, quiet):
        model = packed.train(tokens, frames)
    fingerprint = packed.save(model, out, Path(data).stem, force)
    name = str(out) if os.sep in str(out) else os.path.join(os.curdir, out)
    output.say(
        f"The model is in {out}. Use it: vqtok pack --model {shlex.quote(name)} TOKENS", quiet
    )
    return {
        "stage": "finished",
        "output": str(out),
        "fingerprints": {"tokens": fingerprint},
        "grids": [n, levels, h, w],
        "seconds": round(time.perf_counter() - begin, 3),
    }


def pack(
    words: Sequence[str],
    options: BatchOptions,
    model: str | None,
    frames: bool,
    grid: tuple[int, int] | None,
) -> None:
    """Packs token arrays, by a model or by what they teach themselves."""
    from vqtok.token_sets import arrays, packed

    known = packed.load(Path(os.path.expanduser(model))) if model else None
    if known and frames and not known.frames:
        raise UsageError(
            "--frames does not go with a model that was trained without it",
            "train one with it: vqtok train --frames --stage entropy",
        )

    def change(source: "Source") -> tuple[bytes, Facts]:
        array = arrays.read_array(_path_of(source))
        tokens = arrays.to_tokens(array, source, grid or _grid_for(known, array))
        used = known or packed.empty(tokens, frames)
        data = packed.pack(tokens, used, source)
        plain = tokens.grids.size * used.bits / 8
        return data, {"tokens": tokens.grids.size, "packed_ratio": round(plain / len(data), 3)}

    _run("pack", _plan(words, ARRAYS, PACKED, options, "packed"), options, change)


def _grid_for(model: "TokenModel | None", array: Any) -> tuple[int, int] | None:
    """Returns the grid that rows as long as the model's grids stand for."""
    if model and array.ndim == 2 and model.grid[0] * model.grid[1] == array.shape[1]:
        return model.grid
    return None


def unpack(words: Sequence[str], options: BatchOptions, model: str | None, lone: bool) -> None:
    """Writes the arrays that were packed, as .npy; or as .npz of the member `indices`, where that
    is to be there `lone`.
    """
    import io

    import numpy as np

    from vqtok.codes import npz
    from vqtok.token_sets import arrays, packed

    known = packed.load(Path(os.path.expanduser(model))) if model else None
    found = dict[str, "TokenModel | None"]()  # by fingerprint

    def change(source: "Source") -> tuple[bytes, Facts]:
        small = packed.Packed.of(files.read_bytes(_path_of(source), arrays.FILE_LIMIT))
        prior = small.header["prior"]
        if known is None and prior is not None and prior not in found:
            found[prior] = _find(prior)
        array = small.unpack(known or found.get(str(prior)))
        data = io.BytesIO()
        if lone:
            with zipfile.ZipFile(data, "w") as archive:
                npz.write_member(archive, "indices", array)
        else:
            np.save(data, array, allow_pickle=False)
        return data.getvalue(), {"tokens": array.size, "shape": list(array.shape)}

    ending = ".indices.npz" if lone else ".npy"
    _run("unpack", _plan(words, (".npz",), ending, options, "array"), options, change)


def _find(fingerprint: str) -> "TokenModel | None":
    """The model of that fingerprint in the search path (VQTOK_MODELS), whatever its name."""
    from vqtok import model_registry
    from vqtok.token_sets import packed

    for entry in model_registry.search_path():
        inner = sorted(entry.iterdir()) if os.path.isdir(entry) else []
        for folder in (entry, *inner):
            if is_model(str(folder)):
                with suppress(VqtokError):  # one damaged model must not hide the others
                    model = packed.load(folder)
                    if model.fingerprint == fingerprint:
                        return model
    return None


def _path_of(source: "Source") -> Path:
    if source.path is None:
        raise InputError("token arrays are not read from standard input", "name a file")
    return source.path


def _plan(
    words: Sequence[str], suffixes: tuple[str, ...], ending: str, options: BatchOptions, done: str
) -> list[Job]:
    """Names the result of each input: tokens.vqtok.npz becomes tokens.npy. Files of the kind
    `done`, mostly the other command's, are left out where there are others.
    """
    jobs = [
        _shortened(job, ending, options.out)
        for job in plan(words, frozenset(suffixes), ending, options.out)
    ]
    left = [job for job in jobs if job.source.path is None or _kind(job.source.path) != done]
    if left and len(left) < len(jobs):
        what = "packed already" if done == "packed" else "not packed"
        count = len(jobs) - len(left)
        output.say(f"{count} of {len(jobs)} left out: {what}", options.quiet or options.json)
    if not left and done == "packed":
        raise InputError(
            f"{jobs[0].source} is packed already", "give tokens, or leave it: vqtok unpack"
        )
    return left or jobs


def _shortened(job: Job, ending: str, out: Path | None) -> Job:
    packed = PACKED.removesuffix(".npz") + ending
    if job.target == out or not job.target.name.endswith(packed):
        return job
    short = job.target.with_name(job.target.name.removesuffix(packed) + ending)
    return Job(job.source, short, job.notes)


def _run(
    verb: str,
    jobs: list[Job],
    options: BatchOptions,
    change: Callable[["Source"], tuple[bytes, Facts]],
) -> None:
    """Changes each file and writes the result; of several, those that fail are reported, and the
    others go on.
    """

    def work(job: Job) -> list[Facts]:
        begin = time.perf_counter()
        try:
            data, facts = change(job.source)
        except VqtokError as error:
            raise (error if str(job.source) in str(error) else error.about(job.source)) from None
        output.write(job.target, data, options.force)
        seconds = round(time.perf_counter() - begin, 3)
        named = {"input": str(job.source), "output": str(job.target), "bytes": len(data)}
        return [{**named, **facts, "seconds": seconds}]

    batch = Batch(jobs, options)
    batch.run(verb, work, _describe)
    batch.finish()


def _describe(job: Job, facts: Facts) -> list[str]:
    ratio = ""
    if facts.get("packed_ratio"):  # rounded to 0 where a file of few tokens is all header
        ratio = f", {1 / facts['packed_ratio']:.0%} of bit-packed"
    return [
        f"{job.source} -> {output.display_name(job.target)}  {facts['tokens']:,} tokens, "
        f"{files.human_bytes(facts['bytes'])}{ratio}, {facts['seconds']:.2f} s"
    ]
