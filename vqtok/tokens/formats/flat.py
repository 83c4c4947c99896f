"""`bin`: ids one after another, without a header or with llm.c's."""

from typing import Any

import numpy as np

from vqtok.errors import UsageError
from vqtok.tokens.formats.base import Job, Writer
from vqtok.tokens.reader import Batch

HEADER_WORDS = 256
# llm.c's first words: (magic, version) of uint16 and of uint32 tokens
_MAGIC = {2: (20240520, 1), 4: (20240801, 7)}
_COUNT_MAX = 2**31 - 1


class FlatWriter(Writer):
    """NAME.bin: uint16, or uint32 where the vocabulary is larger, little-endian."""

    suffixes = (".bin",)
    single = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if job.header not in (None, HEADER_WORDS):
            raise UsageError(
                f"there is no header of {job.header} words", "give --header 256, or leave it out"
            )
        self.count = 0
        self.file = (job.folder / f"{job.name}.bin").open("wb")
        if job.header:
            self.file.write(bytes(4 * HEADER_WORDS))

    def add(self, batch: Batch) -> None:
        self.count += len(batch.tokens)
        if self.job.header and self.count > _COUNT_MAX:
            raise UsageError(
                f"a header counts up to {_COUNT_MAX:,} tokens, and here are more",
                "leave --header out, or export a part at a time",
            )
        self.file.write(np.ascontiguousarray(batch.tokens, self.dtype).data)

    def close(self) -> dict[str, Any]:
        if self.job.header:
            words = np.zeros(HEADER_WORDS, "<i4")
            words[:3] = *_MAGIC[self.dtype.itemsize], self.count
            self.file.seek(0)
            self.file.write(words.data)
        self.file.close()
        return {"header": self.job.header}

    def abort(self) -> None:
        self.file.close()
