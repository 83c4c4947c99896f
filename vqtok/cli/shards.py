"""Codes shards where a command takes codes files: recognizes a folder, describes it, decodes it to
images of the old names, or rewrites it to another folder.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqtok import files
from vqtok.cli import bulk, output
from vqtok.cli.batch import BatchOptions, Failures
from vqtok.cli.progress import bar
from vqtok.errors import InputError, UsageError, VqtokError

if TYPE_CHECKING:
    import numpy as np

    from vqtok.bulk import CodesDataset
    from vqtok.bulk.rewrite import Change
    from vqtok.bulk.shards import Manifest, Shard
    from vqtok.codec import FastModel, Model
    from vqtok.codes import Codes


def split(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separates the folders of codes shards among the inputs from all else."""
    folders = [word for word in inputs if is_shards(word)]
    return [files.as_path(word) for word in folders], [
        word for word in inputs if word not in folders
    ]


def is_shards(word: str | Path) -> bool:
    """Whether this is a folder of codes shards."""
    folder = files.as_path(word)
    try:
        if not (folder / "manifest.json").is_file():
            return False
    except files.RemoteError as error:
        raise files.unreadable(word, error) from None
    from vqtok.bulk import shards

    return shards.is_shards(folder)


def open_shards(folder: Path, model: str | None = None, quiet: bool = True) -> "CodesDataset":
    """Opens the images of a folder; of an unfinished one those that are there, and prints a line
    that says so.
    """
    from vqtok.bulk import CodesDataset, shards

    data = CodesDataset(folder, partial=True, model=model)
    missing = shards.count_missing(data.manifest, data.shards)
    if missing:
        output.say(
            f"{folder}: shards of {missing} of {len(data.manifest.inputs)} inputs are missing; "
            "vqtok encode --resume makes them",
            quiet,
        )
    return data


def out_folder(folder: Path, ending: str, out: Path | None, several: bool) -> Path:
    """Returns where the result of a folder goes: codes -> codes.compact beside it, or -o; of
    several folders each below -o by its name.
    """
    whole = Path(os.path.abspath(folder))
    if out is None:
        return (
            whole.with_name(whole.name + ending)
            if folder.is_absolute()
            else _beside(folder, whole.name + ending)
        )
    if str(out) == "-" or os.path.isfile(out):
        raise UsageError(
            f"the images of codes shards do not go into one file ({out})", "give a folder: -o DIR"
        )
    return out / whole.name if several else out


def _beside(folder: Path, name: str) -> Path:
    """Returns a name beside a folder, relative as the folder is."""
    return Path(os.path.normpath(os.path.join(folder, os.pardir, name)))


def facts(folder: Path) -> dict[str, Any]:
    """Returns what there is to say of codes shards, from their manifests."""
    from vqtok.bulk import shards

    data = open_shards(folder)
    m, pixels, grids = data.manifest, 0, dict[tuple[int, int], int]()
    for _, line in data.entries():
        pixels += line.size[0] * line.size[1]
        grids[line.grid] = grids.get(line.grid, 0) + 1
    size = sum(shard.head.bytes for shard in data.shards)
    indices = m.levels * sum(w * h * n for (w, h), n in grids.items())
    return {
        "kind": shards.KIND,
        "model": m.model,
        "fingerprint": m.fingerprint,
        "pictures": len(data),
        "failed": data.failed,
        "shards": len(data.shards),
        "inputs": len(m.inputs),
        "missing": shards.count_missing(m, data.shards),
        "codebook_size": m.codebook_size,
        "downsample": m.downsample,
        "channels": m.channels,
        "levels": m.levels,
        "grids": [list(grid) for grid in sorted(grids)],
        "form": "compact" if m.compact else "plain",
        **({"prior": _prior(data)} if m.compact else {}),
        "bytes": size,
        "bpp": round(8 * size / pixels, 4) if pixels else None,
        "raw_bpp": round(indices * math.log2(m.codebook_size) / pixels, 4) if pixels else None,
    }


def _prior(data: "CodesDataset") -> str | None:
    """Returns the first digits of the entropy prior of compact shards' first coded file; None where
    all are bit-packed.
    """
    from vqtok.codes import Codes

    stacks = ((shard, stack) for shard in data.shards for stack in shard.head.stacks)
    found = (data.stack(shard, stack) for shard, stack in stacks)
    return next((each.prior for each in found if not isinstance(each, Codes) and each.prior), None)


@dataclass(frozen=True)
class Decoding:
    """The settings for decoding a folder of shards."""

    options: BatchOptions
    levels: int | None
    model_of: "Callable[[Manifest], FastModel | Model]"
    write: "Callable[[Path, np.ndarray, bool], None]"
    suffix: str  # of the results, as in .decoded.png

    def run(self, folder: Path, several: bool, failures: Failures) -> None:
        """Writes each image under its old name: train-000.tar/a.jpg -> OUT/train-000.tar/a.png.

        An image that fails is reported, and the rest goes on.
        """
        quiet, begin = self.options.quiet, time.perf_counter()
        out = out_folder(folder, ".decoded", self.options.out, several)
        data = open_shards(folder, quiet=quiet)
        _check_levels(data, self.levels)
        model, targets, done = self.model_of(data.manifest), _Targets(out, self.suffix), 0
        data.use_coder(model.entropy_coder)
        failures.total += len(data)
        with bar(f"decode {folder}", quiet or self.options.json) as progress:
            for shard in data.shards:
                for name, one in _report_damage(data, shard, failures):
                    done += self._decode(model, folder, name, one, targets, failures)
                    if progress is not None:
                        progress(done + failures.failed, len(data))
        if data.failed:
            output.say(
                f"{folder}: {data.failed} images are missing: they could not be encoded", quiet
            )
        output.say(
            f"{folder} -> {out}  {output.total(done, 0, time.perf_counter() - begin)}",
            quiet or self.options.json,
        )

    def _decode(
        self,
        model: "FastModel | Model",
        folder: Path,
        name: str,
        one: "Codes",
        targets: "_Targets",
        failures: Failures,
    ) -> bool:
        target = targets.of(name)
        if self.options.skip_existing and os.path.lexists(target):
            return False
        try:
            output.check_target(target, self.options.force)
            image = model.decode(one, self.levels)
            self.write(target, image, self.options.force)
        except VqtokError as error:
            failures.add(error)
            return False
        if self.options.json:
            output.print_json(
                {
                    "input": str(folder),
                    "name": name,
                    "output": str(target),
                    "model": one.model,
                    "fingerprint": one.fingerprint,
                    "size": [image.shape[1], image.shape[0]],
                    "levels": self.levels or one.levels,
                    "model_levels": model.config.levels,
                }
            )
        return True


def _check_levels(data: "CodesDataset", levels: int | None) -> None:
    """Raises InputError where more levels are asked for than the shards hold."""
    from vqtok.codes import count_levels, levels_fix

    held = data.manifest.levels
    if levels is not None and levels > held:
        raise InputError(
            f"{data.folder} holds {count_levels(held)}, not {levels}", levels_fix(held)
        )


class _Targets:
    """Names results by the images' names. Where two differ in their suffix alone, the second keeps
    its suffix.
    """

    def __init__(self, out: Path, suffix: str) -> None:
        self.out, self.suffix, self.taken = out, suffix, set[Path]()

    def of(self, name: str) -> Path:
        from vqtok.files import inside

        # a name in a manifest may lead up or away
        path = inside(Path(name.replace("\0", "?")))
        plain = path if path.name else Path("image")
        target = self.out / plain.with_suffix(self.suffix)
        if target in self.taken:
            target = self.out / plain.with_name(plain.name + self.suffix)
        number = 2
        while target in self.taken:  # one name twice in a tar
            target = self.out / plain.with_name(f"{plain.name}-{number}{self.suffix}")
            number += 1
        self.taken.add(target)
        return target


def _report_damage(
    data: "CodesDataset", shard: "Shard", failures: Failures
) -> Iterator[tuple[str, "Codes"]]:
    """Yields the images of a shard; none where it is damaged, which is reported."""
    found: Iterable[tuple[str, Codes]] = ()
    try:
        found = data.images(shard)
    except VqtokError as error:
        if len(data.shards) == 1:
            raise
        failures.add(error)
        failures.failed += shard.head.pictures - 1
    yield from found


@dataclass(frozen=True)
class Rewriting:
    """The settings for rewriting shards: see `bulk.rewrite`."""

    verb: str
    options: BatchOptions
    ending: str  # of the new folder's name
    change: "Change"
    check: "Callable[[Manifest], None]"
    levels: int | None = None
    compact: bool | None = None

    def run(self, folder: Path, several: bool, failures: Failures) -> None:
        """Writes the shards of one folder to another, and reports on each."""
        from vqtok.bulk.rewrite import rewrite

        options = self.options
        out = out_folder(folder, self.ending, options.out, several)
        data = open_shards(folder, quiet=options.quiet)
        self.check(data.manifest)
        _check_levels(data, self.levels)

        failures.total += len(data.shards)
        reporter, begin = bulk.Reporter(options.json, options.quiet), time.perf_counter()
        reports = rewrite(
            data,
            out,
            self.change,
            failures.add if len(data.shards) > 1 else None,
            levels=self.levels,
            compact=self.compact,
            resume=options.skip_existing,
            force=options.force,
        )
        with bar(self.verb, options.quiet or options.json) as progress:
            for report in reports:
                reporter.add(report, str(folder))
                if progress is not None:
                    progress(reporter.images + reporter.failed, len(data) + data.failed)
        reporter.say_total(out, time.perf_counter() - begin)


def run_folders(
    folders: Sequence[Path],
    others: int,
    options: BatchOptions,
    work: Callable[[Path, bool, Failures], None],
) -> Failures:
    """Does the work for each folder: the error of one is reported, and the rest goes on."""
    if options.force and options.skip_existing and folders:
        raise UsageError(
            "--force and --skip-existing contradict each other", "leave one of them out"
        )
    failures = Failures(0, keep_going=True)
    for folder in folders:
        several = len(folders) + others > 1
        try:
            with output.memory_errors(folder):
                work(folder, several, failures)
        except VqtokError as error:
            if not several:
                raise
            failures.total += 1
            failures.add(error)
    return failures


def first_images(data: "CodesDataset", most: int) -> "Codes":
    """Returns the first images of the first image's grid, at most so many of one shard, as one
    Codes.
    """
    import numpy as np

    from vqtok.codes import Codes

    for shard in data.shards:
        found: list[Codes] = []
        for _, one in data.images(shard):
            if len(found) < most and (not found or one.shape == found[0].shape):
                found.append(one)
        if found:
            first = found[0]
            return Codes(
                np.concatenate([one.indices for one in found]),
                first.model,
                first.fingerprint,
                first.codebook_size,
                first.downsample,
                first.channels,
                tuple(one.sizes[0] for one in found),
            )
    raise InputError(f"{data.folder} holds no encoded image", "its .jsonl files say why")


def refuse_rates(target: Any, folders: Sequence[Path]) -> None:
    """Raises UsageError where a size is asked for of codes shards, whose images have equal
    levels.
    """
    if folders and (target.bpp is not None or target.max_bytes is not None):
        raise UsageError(
            f"{folders[0]} holds codes shards: all their images have as many levels",
            "give --levels N",
        )
