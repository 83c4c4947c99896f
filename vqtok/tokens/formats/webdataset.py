"""`webdataset`: tar shards of KEY.npy, KEY.json, and where there are some KEY.cls and KEY.txt.

Loaders take the fields of the first samples for those of all, and end a key at the first dot of the
base name: so every sample has every field, and keys are numbers.
"""

import io
import json
import tarfile
from typing import Any

import numpy as np

from vqtok.tokens.formats.base import SHARD_BYTES, Job, Record, Writer
from vqtok.tokens.reader import Batch


class WebDatasetWriter(Writer):
    """NAME-000000.tar and so on, of 64 MiB each."""

    tells_grids = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.archive: tarfile.TarFile | None = None
        self.shards = self.samples = 0
        self.of_shard = list[int]()

    def add(self, batch: Batch) -> None:
        for record in self.records(batch):
            if self.archive is None or self.archive.offset >= SHARD_BYTES:
                self._next_shard()
            for suffix, content in self._members(record):
                self._write(f"{self.samples:09}.{suffix}", content)
            self.samples += 1
            self.of_shard[-1] += 1

    def close(self) -> dict[str, Any]:
        if self.archive is not None:
            self.archive.close()
        return {"shards": self.of_shard, "fields": self._fields()}

    def abort(self) -> None:
        if self.archive is not None and self.archive.fileobj is not None:
            self.archive.fileobj.close()

    def _fields(self) -> list[str]:
        fields = self.sequences.fields
        return [
            "npy",
            *(["cls"] if fields.labels else []),
            *(["txt"] if fields.captions else []),
            "json",
        ]

    def _members(self, record: Record) -> list[tuple[str, bytes]]:
        array, (h, w) = io.BytesIO(), record.grid
        np.lib.format.write_array(
            array, record.tokens.astype(self.dtype), version=(1, 0), allow_pickle=False
        )
        label, names = record.label, self.sequences.fields.labels
        facts = {
            "name": record.name,
            "h": h,
            "w": w,
            "levels": self.sequences.vocabulary.levels,
            "height": record.size[0],
            "width": record.size[1],
            "label": label,
            "label_name": None if label is None else names[label],
            "caption": record.caption,
            "split": record.split,
        }
        contents = {
            "npy": array.getvalue(),
            "cls": str(-1 if label is None else label).encode(),
            "txt": (record.caption or "").encode(errors="replace"),
            "json": json.dumps(facts).encode(),
        }
        return [(suffix, contents[suffix]) for suffix in self._fields()]

    def _next_shard(self) -> None:
        if self.archive is not None:
            self.archive.close()
        path = self.job.folder / f"{self.job.name}-{self.shards:06}.tar"
        self.archive = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        # each member would stay in a list
        self.archive.members = _Nothing()  # type: ignore[attr-defined]
        self.shards += 1
        self.of_shard.append(0)

    def _write(self, name: str, content: bytes) -> None:
        assert self.archive is not None
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self.archive.addfile(info, io.BytesIO(content))


class _Nothing(list[tarfile.TarInfo]):
    """A list that keeps nothing."""

    def append(self, _: tarfile.TarInfo) -> None:
        pass
