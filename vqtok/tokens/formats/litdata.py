"""`litdata`: chunks of blocks of one length, and index.json.

The reader takes each chunk's tokens in blocks, and never reads an end that is no whole block: so
every chunk holds whole blocks. It takes the dtype of all from index.json: all have one here.
"""

import json
import struct
from typing import Any

import numpy as np

from vqtok.errors import UsageError
from vqtok.tokens.formats.base import SHARD_BYTES, Job, Writer
from vqtok.tokens.reader import Batch

_CODES = {2: 5, 4: 2}  # litdata's numbers of NumPy's uint16 and int32
# a sample is one array, in the words of torch's pytrees
_SPEC = '[1, {"type": null, "context": null, "children_spec": []}]'


class LitDataWriter(Writer):
    """chunk-0-N.bin: how many blocks, where each begins and the last ends (uint32), and the blocks:
    uint16, or int32 where the vocabulary is larger.

    A block is an image's sequence, or `block` tokens of all sequences in a row: then the last is
    filled up with EOS.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        grid, v = self.sequences.only_grid, self.sequences.vocabulary
        if job.block is None and grid is None:
            raise UsageError(
                "litdata reads blocks of one length, and these sequences differ",
                "give --block N and --eos: N is the reader's block_size",
            )
        if job.block is not None and v.eos is None:
            raise UsageError(
                "the last block is filled up with EOS tokens, and there are none", "add --eos"
            )
        self.block = job.block or self.sequences.layout.length(*(grid or (1, 1)))
        self.per_chunk = max(1, SHARD_BYTES // (self.block * self.dtype.itemsize))
        self.chunks = list[dict[str, Any]]()
        self.waiting, self.count = list[np.ndarray](), 0

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if self.sequences.vocabulary.size <= 1 << 16 else "<i4")

    def add(self, batch: Batch) -> None:
        self.waiting.append(batch.tokens.astype(self.dtype, copy=False))
        self.count += len(batch.tokens)
        size = self.per_chunk * self.block
        while self.count >= size:
            tokens = np.concatenate(self.waiting)
            self._write(tokens[:size])
            self.waiting, self.count = [tokens[size:]], len(tokens) - size

    def close(self) -> dict[str, Any]:
        tail = np.concatenate([*self.waiting, np.empty(0, self.dtype)])
        filled = -len(tail) % self.block
        if filled:
            fill = np.full(filled, self.sequences.vocabulary.eos, self.dtype)
            tail = np.concatenate([tail, fill])
        if len(tail):
            self._write(tail)
        config = {
            "chunk_bytes": SHARD_BYTES,
            "chunk_size": None,
            "compression": None,
            "data_format": [f"no_header_numpy:{_CODES[self.dtype.itemsize]}"],
            "data_spec": _SPEC,
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        index = {"chunks": self.chunks, "config": config, "updated_at": "0"}
        (self.job.folder / "index.json").write_text(json.dumps(index, sort_keys=True))
        return {"block": self.block, "filled": filled}

    def _write(self, tokens: np.ndarray) -> None:
        count = len(tokens) // self.block
        step = self.block * self.dtype.itemsize
        start = 4 * (count + 2)
        offsets = np.arange(start, start + (count + 1) * step, step, dtype="<u4")
        name = f"chunk-0-{len(self.chunks)}.bin"
        with (self.job.folder / name).open("wb") as file:
            file.write(struct.pack("<I", count))
            file.write(offsets.data)
            file.write(tokens.data)
        self.chunks.append(
            {
                "chunk_bytes": count * step,
                "chunk_size": count,
                "dim": len(tokens),
                "filename": name,
            }
        )
