"""`parquet`: a row an image, by pyarrow."""

from importlib import import_module
from typing import Any

import numpy as np

from vqtok.errors import UsageError
from vqtok.tokens.formats.base import Job, Writer
from vqtok.tokens.reader import Batch


class ParquetWriter(Writer):
    """NAME.parquet: tokens (a list of uint16, or uint32), h, w, levels, label, caption, name and
    split.
    """

    suffixes = (".parquet",)
    single = True
    tells_grids = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        try:
            pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        except ImportError:
            raise UsageError(
                "Parquet is written by pyarrow, which is not installed",
                "pip install 'vqtok[parquet]', or choose another format",
            ) from None
        self.pa: Any = pa
        self.ids = pa.uint16() if self.sequences.vocabulary.dtype.itemsize == 2 else pa.uint32()
        self.schema = pa.schema(
            [
                ("tokens", pa.list_(self.ids)),
                ("h", pa.int32()),
                ("w", pa.int32()),
                ("levels", pa.int32()),
                ("label", pa.int64()),
                ("caption", pa.string()),
                ("name", pa.string()),
                ("split", pa.string()),
            ]
        )
        self.writer: Any = parquet.ParquetWriter(job.folder / f"{job.name}.parquet", self.schema)

    def add(self, batch: Batch) -> None:
        pa, records = self.pa, list(self.records(batch))
        starts = np.concatenate([[0], np.cumsum(batch.lengths)]).astype(np.int32)
        values = pa.array(batch.tokens, self.ids)
        columns = [
            pa.ListArray.from_arrays(pa.array(starts), values),
            pa.array(batch.grids[:, 0].astype(np.int32)),
            pa.array(batch.grids[:, 1].astype(np.int32)),
            pa.array([self.sequences.vocabulary.levels] * len(records), pa.int32()),
            pa.array([record.label for record in records], pa.int64()),
            pa.array([record.caption for record in records], pa.string()),
            pa.array([_utf8(record.name) for record in records], pa.string()),
            pa.array([record.split for record in records], pa.string()),
        ]
        self.writer.write_table(pa.table(columns, self.schema))

    def close(self) -> dict[str, Any]:
        self.writer.close()
        return {}

    def abort(self) -> None:
        self.writer.close()


def _utf8(name: str) -> str:
    """Replaces what is no text: a file's name may hold any bytes."""
    return name.encode(errors="replace").decode()
