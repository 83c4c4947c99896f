"""Rewrites codes shards as codes shards: packed, unpacked, or cut to fewer levels, a shard at a
time.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from vqtok.bulk import shards
from vqtok.bulk.dataset import CodesDataset
from vqtok.bulk.folder import ShardReport, prepare_folder
from vqtok.bulk.inputs import Input, WorkSlice
from vqtok.bulk.shards import Shard
from vqtok.codes import Codes, Compact
from vqtok.errors import FormatError, InputError, UsageError, VqtokError

Change = Callable[[Codes | Compact], Codes | Compact]


def rewrite(
    data: CodesDataset,
    out: Path,
    change: Change,
    skip: Callable[[VqtokError], None] | None = None,
    *,
    levels: int | None = None,
    compact: bool | None = None,
    resume: bool = False,
    force: bool = False,
) -> Iterator[ShardReport]:
    """Writes the shards of a folder to another one, each stack as `change` makes it, and yields
    each when it is whole on the disk.

    `levels` and `compact` are what the new manifest says; None: as before. Names, sizes and images
    that failed stay. `skip` gets the error of a shard that is damaged, and the rest goes on; None:
    it is raised. With `resume` what is finished stays. Errors as `prepare_folder`; UsageError
    where the folder would be written over itself.
    """
    if out.resolve() == data.folder.resolve():
        raise UsageError(
            f"the shards in {data.folder} cannot be written over themselves",
            "give another folder: -o DIR",
        )
    before = data.manifest
    manifest = replace(
        before,
        levels=levels or before.levels,
        compact=before.compact if compact is None else compact,
    )
    prepare_folder(out, manifest, WorkSlice(), resume, force, "--skip-existing")
    for shard in data.shards:
        done = shards.find_shard(out, shard.number, shard.chunk)
        if done is not None and done.is_complete():
            yield ShardReport(done, 0.0)
            continue
        begin = time.perf_counter()
        try:
            found = _rewrite_one(data, shard, out, change)
        except (FormatError, InputError) as error:
            if skip is None:
                raise
            skip(error)
            continue
        yield ShardReport(found, time.perf_counter() - begin)


def _rewrite_one(data: CodesDataset, shard: Shard, out: Path, change: Change) -> Shard:
    head = shard.head
    stacks = [change(data.stack(shard, stack)) for stack in head.stacks]
    source = Input(shard.number, head.input, None, None)
    return shards.write_shard(
        out, shard.chunk, source, head.last, head.names, shard.records(), stacks
    )
