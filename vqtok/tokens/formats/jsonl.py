"""`jsonl`: an object with class and tokens on each line."""

import json
from typing import Any

from vqtok.tokens.formats.base import Job, Writer
from vqtok.tokens.reader import Batch


class JsonLinesWriter(Writer):
    """NAME.jsonl: {"class_id": 7, "tokens": [...]}, class -1 for none; with "h" and "w" where the
    grids differ.
    """

    suffixes = (".jsonl",)
    single = True
    tells_grids = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.file = (job.folder / f"{job.name}.jsonl").open("w", encoding="ascii", newline="\n")

    def add(self, batch: Batch) -> None:
        mixed = self.sequences.only_grid is None
        for record in self.records(batch):
            line: dict[str, Any] = {
                "class_id": -1 if record.label is None else record.label,
                "tokens": record.tokens.tolist(),
            }
            if mixed:
                line["h"], line["w"] = record.grid
            self.file.write(json.dumps(line) + "\n")

    def close(self) -> dict[str, Any]:
        self.file.close()
        return {}

    def abort(self) -> None:
        self.file.close()
