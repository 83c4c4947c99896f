"""`llamagen`: a file of codes and a file with the label for each image."""

from typing import Any

import numpy as np

from vqtok.errors import UsageError
from vqtok.tokens.formats.base import Job, Record, Writer
from vqtok.tokens.reader import Batch


class LlamaGenWriter(Writer):
    """imagenetS_codes/N.npy: int64 (1, copies, T), and imagenetS_labels/N.npy: int64 (1,).

    S is the side of the images, 256 where they have no one side. Images of one name that follow
    each other, crops and mirrored ones, are the copies of one. int64 is what the reader trains on:
    it converts nothing.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        sequences = self.sequences
        if sequences.only_grid is None:
            raise UsageError(
                "LlamaGen reads sequences of one length, and these grids differ",
                "encode images of one size",
            )
        height, width = sequences.first.size
        side = height if height == width else 256
        self.codes = job.folder / f"imagenet{side}_codes"
        self.labels = job.folder / f"imagenet{side}_labels"
        for folder in (self.codes, self.labels):
            folder.mkdir()
        self.pending, self.files = list[Record](), 0

    def add(self, batch: Batch) -> None:
        for record in self.records(batch):
            if self.pending and record.name != self.pending[0].name:
                self._write()
            self.pending.append(record)

    def close(self) -> dict[str, Any]:
        if self.pending:
            self._write()
        return {"folders": [self.codes.name, self.labels.name], "images": self.files}

    def _write(self) -> None:
        copies = np.stack([record.tokens for record in self.pending]).astype("<i8")
        label = self.pending[0].label
        np.save(self.codes / f"{self.files}.npy", copies[None], allow_pickle=False)
        np.save(
            self.labels / f"{self.files}.npy",
            np.array([-1 if label is None else label], "<i8"),
            allow_pickle=False,
        )
        self.files += 1
        self.pending.clear()
