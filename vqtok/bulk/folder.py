"""Prepares a folder for codes shards: begins it, resumes it, or empties it."""

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

from vqtok import files
from vqtok.bulk import shards
from vqtok.bulk.inputs import WorkSlice
from vqtok.bulk.shards import MANIFEST, Manifest, Shard, ShardRecord
from vqtok.errors import OutputError
from vqtok.images import Range


@dataclass(frozen=True)
class ShardReport:
    """A shard that is finished."""

    shard: Shard
    seconds: float  # 0: it was before
    failed: tuple[ShardRecord, ...] = ()  # images, where they were found to be bad just now
    narrow: Range | None = None  # values in use of images that use little of their range
    narrow_images: int = 0  # how many those are
    nan_images: int = 0  # how many have NaN, which became black

    @property
    def new(self) -> bool:
        return self.seconds > 0


def prepare_folder(
    out: Path,
    manifest: Manifest,
    work_slice: WorkSlice,
    resume: bool,
    force: bool,
    option: str = "--resume",
) -> Manifest:
    """Writes the manifest, or checks that the one that is there is the same, and returns it.

    One of before, without names of classes, stays so. Errors as `encode`; `option` is what the
    command calls `resume`.
    """
    files.check_writable(out)
    path = out / MANIFEST
    if force and path.exists():
        _remove(out, list(shards.stale_files(out)))
    if not path.exists():
        try:
            files.write_bytes(path, manifest.to_bytes())
        except OutputError:
            if work_slice.count == 1 or not path.exists():
                raise  # else another part was faster
    elif work_slice.count == 1 and not resume:
        raise OutputError(
            f"{out} holds codes shards already",
            f"go on with {option}, start anew with -f, or choose another -o",
        )
    before = shards.read_manifest(out)
    _check_same(before, manifest if before.labels else replace(manifest, labels=()), out)
    _remove(
        out,
        [
            p
            for p in shards.stale_files(out)
            if p.name.startswith(".") and (work_slice.count == 1 or _is_old(p))
        ],
    )
    return before


def _is_old(path: Path) -> bool:
    """Whether a temporary file is of a run that was killed:
    other parts may be writing theirs, which takes seconds.
    """
    try:
        return time.time() - path.stat().st_mtime > 3600
    except OSError:  # it is gone
        return False


def _check_same(before: Manifest, now: Manifest, out: Path) -> None:
    changed = [f.name for f in fields(Manifest) if getattr(before, f.name) != getattr(now, f.name)]
    if changed:
        names = ", ".join(name.replace("_", " ") for name in changed)
        raise OutputError(
            f"the shards in {out} were made with another {names}",
            "give the same, start anew with -f, or choose another -o",
        )


def _remove(out: Path, paths: list[Path]) -> None:
    try:
        # it goes last: it says whose files these are
        for path in sorted(paths, key=lambda p: p.name == MANIFEST):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot empty {out}: {error.strerror}", "choose another folder with -o"
        ) from None
