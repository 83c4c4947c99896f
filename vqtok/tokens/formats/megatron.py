"""`megatron`: ids in one file, and an index of the sequences beside it."""

import struct
from array import array
from typing import Any

import numpy as np

from vqtok.tokens.formats.base import Job, Writer
from vqtok.tokens.reader import Batch

MAGIC = b"MMIDIDX\x00\x00"
DTYPES = {8: np.dtype("<u2"), 4: np.dtype("<i4")}  # by code; there is none for uint32


class MegatronWriter(Writer):
    """NAME.bin: uint16, or int32 where the vocabulary is larger. NAME.idx: magic, version 1, the
    code of the dtype, how many sequences and documents, then the length of each sequence (int32),
    where it begins in bytes (int64), and the document borders. Each image is a document.
    """

    suffixes = (".bin", ".idx")
    single = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.file = (job.folder / f"{job.name}.bin").open("wb")
        self.lengths = array("i")  # 4 bytes an image

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[8 if self.sequences.vocabulary.size <= 1 << 16 else 4]

    def add(self, batch: Batch) -> None:
        self.lengths.extend(batch.lengths.tolist())
        self.file.write(np.ascontiguousarray(batch.tokens, self.dtype).data)

    def close(self) -> dict[str, Any]:
        self.file.close()
        lengths = np.frombuffer(self.lengths, np.intc).astype("<i4")
        n, code = len(lengths), 8 if self.dtype.itemsize == 2 else 4
        ends = np.cumsum(lengths, dtype="<i8") * self.dtype.itemsize
        with (self.job.folder / f"{self.job.name}.idx").open("wb") as file:
            file.write(MAGIC + struct.pack("<QBQQ", 1, code, n, n + 1))
            file.write(lengths.data)
            file.write((ends - lengths * np.int64(self.dtype.itemsize)).astype("<i8").data)
            file.write(np.arange(n + 1, dtype="<i8").data)
        return {}

    def abort(self) -> None:
        self.file.close()
