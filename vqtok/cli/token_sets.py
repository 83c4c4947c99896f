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
from vqtok.cli.batch import BatchOptions, Failures
from vqtok.errors import InputError, UsageError, VqtokError

if TYPE_CHECKING:
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
    given. Raises UsageError for a mixture of both kinds.
    """
    if chosen or is_model(model):
        return True
    found = [word.lower().endswith(".npy") for word in words]
    if any(found) and not all(found):
        raise UsageError(
            "token arrays (.npy) and other files do not go together", "pack them one kind at a time"
        )
    return all(found)


def packed_of(words: Sequence[str]) -> bool:
    """Whether the inputs of `unpack` are packed token arrays, damaged files among them.

    UsageError for a mixture with codes files.
    """
    found = [_members(word) for word in words]
    packed = any("vqtok_tokens.npy" in names for names in found)
    if packed and any("meta.npy" in names for names in found):
        raise UsageError(
            "packed token arrays and codes files do not go together",
            "unpack them one kind at a time",
        )
    return packed


def _members(word: str) -> set[str]:
    """The names in an .npz, none of any other file."""
    try:
        with zipfile.ZipFile(word) as archive:
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

    def change(path: Path) -> tuple[bytes, dict[str, Any]]:
        array = arrays.read_array(path)
        tokens = arrays.to_tokens(array, path, grid or _grid_for(known, array))
        used = known or packed.empty(tokens, frames)
        data = packed.pack(tokens, used, path)
        plain = tokens.grids.size * used.bits / 8
        return data, {"tokens": tokens.grids.size, "packed_ratio": round(plain / len(data), 3)}

    _run("pack", words, options, PACKED, change)


def _grid_for(model: "TokenModel | None", array: Any) -> tuple[int, int] | None:
    """Returns the grid that rows as long as the model's grids stand for."""
    if model and array.ndim == 2 and model.grid[0] * model.grid[1] == array.shape[1]:
        return model.grid
    return None


def unpack(words: Sequence[str], options: BatchOptions, model: str | None) -> None:
    """Writes the arrays that were packed, as .npy."""
    import io

    import numpy as np

    from vqtok.token_sets import arrays, packed

    known = packed.load(Path(os.path.expanduser(model))) if model else None
    found = dict[str, "TokenModel | None"]()  # by fingerprint

    def change(path: Path) -> tuple[bytes, dict[str, Any]]:
        small = packed.Packed.of(files.read_bytes(path, arrays.FILE_LIMIT))
        prior = small.header["prior"]
        if known is None and prior is not None and prior not in found:
            found[prior] = _find(prior)
        array = small.unpack(known or found.get(str(prior)))
        data = io.BytesIO()
        np.save(data, array, allow_pickle=False)
        return data.getvalue(), {"tokens": array.size, "shape": list(array.shape)}

    _run("unpack", words, options, ".npy", change)


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


def _run(
    verb: str,
    words: Sequence[str],
    options: BatchOptions,
    ending: str,
    change: Callable[[Path], tuple[bytes, dict[str, Any]]],
) -> None:
    """Changes each file and writes the result; of several, those that fail are reported, and the
    others go on.
    """
    sources = files.expand(words, frozenset(ARRAYS))
    jobs: list[tuple[Path, Path]] = []
    failures = Failures(len(sources))
    for source in sources:
        if source.path is None:
            raise InputError("token arrays are not read from standard input", "name a file")
        target = files.output_path(source, ending, options.out, len(sources) > 1)
        if target.name.endswith(PACKED[:-4] + ending):  # tokens.vqtok.npz -> tokens.npy
            target = target.with_name(target.name.removesuffix(PACKED[:-4] + ending) + ending)
        if options.skip_existing and target.exists():
            continue
        try:
            output.check_target(target, options.force)
        except VqtokError as error:
            failures.add(error)
            continue
        jobs.append((source.path, target))
    with progress.jobs(verb, len(jobs), options.quiet) as advance:
        for number, (path, target) in enumerate(jobs, 1):
            begin = time.perf_counter()
            try:
                data, facts = change(path)
                output.write(target, data, options.force)
            except VqtokError as error:
                named = str(path) in str(error) or str(target) in str(error)
                failures.add(error if named else error.about(path))
                advance(number)
                continue
            seconds = time.perf_counter() - begin
            facts = {"input": str(path), "output": str(target), "bytes": len(data), **facts}
            if options.json:
                output.print_json({**facts, "seconds": round(seconds, 3)})
            ratio = f", {facts['packed_ratio']:.2f} times packed" if "packed_ratio" in facts else ""
            output.say(
                f"{path} -> {output.display_name(target)}  {facts['tokens']:,} tokens, "
                f"{files.human_bytes(len(data))}{ratio}, {seconds:.2f} s",
                options.quiet or options.json,
            )
            advance(number)
    failures.finish()
