"""`mds`: shards of samples with an index.json, as MosaicML streaming reads them.

The format says nothing of byte order: little-endian, as its own writer gives on every machine that
it runs on.
"""

import json
import struct
from typing import Any

import numpy as np

from vqtok.tokens.formats.base import SHARD_BYTES, Job, Record, Writer
from vqtok.tokens.reader import Batch

_SIZES = {"int32": 4, "int64": 8}  # other encodings have a size for each sample


class MdsWriter(Writer):
    """shard.00000.mds and so on, of 64 MiB each: columns tokens, h, w, levels and name, and where
    there are some label and caption.
    """

    tells_grids = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        fields = self.sequences.fields
        columns = {
            "tokens": f"ndarray:{self.sequences.vocabulary.dtype.name}",
            "h": "int32",
            "w": "int32",
            "levels": "int32",
            "name": "str",
            **({"label": "int64"} if fields.labels else {}),
            **({"caption": "str"} if fields.captions else {}),
        }
        self.columns = dict(sorted(columns.items()))
        self.config = {
            "column_encodings": list(self.columns.values()),
            "column_names": list(self.columns),
            "column_sizes": [_SIZES.get(encoding) for encoding in self.columns.values()],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "size_limit": SHARD_BYTES,
            "version": 2,
        }
        self.shards, self.samples, self.bytes = list[dict[str, Any]](), list[bytes](), 0

    def add(self, batch: Batch) -> None:
        for record in self.records(batch):
            sample = self._sample(record)
            if self.bytes + len(sample) > SHARD_BYTES - (1 << 16) - 4 * len(self.samples):
                self._write()
            self.samples.append(sample)
            self.bytes += len(sample)

    def close(self) -> dict[str, Any]:
        if self.samples:
            self._write()
        index = {"shards": self.shards, "version": 2}
        (self.job.folder / "index.json").write_text(json.dumps(index, sort_keys=True))
        return {"columns": list(self.columns)}

    def _sample(self, record: Record) -> bytes:
        """Writes the size of each column that has no fixed one, and the columns, sorted by name."""
        values = {
            "tokens": self._array(record.tokens),
            "h": struct.pack("<i", record.grid[0]),
            "w": struct.pack("<i", record.grid[1]),
            "levels": struct.pack("<i", self.sequences.vocabulary.levels),
            "name": record.name.encode(errors="replace"),
            "label": struct.pack("<q", -1 if record.label is None else record.label),
            "caption": (record.caption or "").encode(errors="replace"),
        }
        parts = [values[name] for name in self.columns]
        sizes = [
            len(part)
            for part, encoding in zip(parts, self.columns.values(), strict=True)
            if encoding not in _SIZES
        ]
        return struct.pack(f"<{len(sizes)}I", *sizes) + b"".join(parts)

    def _array(self, tokens: np.ndarray) -> bytes:
        """Writes an array of one axis: a byte with the number of axes and the width of their
        lengths, the length, and the values.
        """
        count = len(tokens)
        code, width = (0, "B") if count < 1 << 8 else (1, "H") if count < 1 << 16 else (2, "I")
        return struct.pack(f"<B{width}", 1 << 2 | code, count) + tokens.astype(self.dtype).tobytes()

    def _write(self) -> None:
        text = json.dumps(self.config, sort_keys=True).encode()
        n = len(self.samples)
        start = 4 * (n + 2) + len(text)
        offsets = np.cumsum([start, *map(len, self.samples)]).astype("<u4")
        name = f"shard.{len(self.shards):05}.mds"
        with (self.job.folder / name).open("wb") as file:
            file.write(struct.pack("<I", n) + offsets.tobytes() + text)
            file.writelines(self.samples)
        raw = {"basename": name, "bytes": int(offsets[-1]), "hashes": {}}
        self.shards.append({**self.config, "raw_data": raw, "samples": n, "zip_data": None})
        self.samples, self.bytes = [], 0
