"""Writes a run's log.jsonl: a line for each validation, whole or not at all."""

import errno
import json
import os
from pathlib import Path

from vqtok import files
from vqtok.errors import OutputError


def append_line(path: Path, text: str) -> None:
    """Adds a line, all or nothing: what a full disk took of it is taken back."""
    try:
        with path.open("ab", buffering=0) as file:
            size, data = file.tell(), text.encode()
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}", "make room for it, then go on with --resume"
        ) from None


def cut_log(path: Path, stage: str, step: int) -> None:
    """Drops the lines of steps that will be done again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _keeps(line, stage, step)]
        files.write_bytes(path, "".join(line + "\n" for line in kept).encode(), force=True)


def _keeps(line: str, stage: str, step: int) -> bool:
    try:
        entry = json.loads(line)
        return entry["stage"] != stage or entry["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False  # a line cut short by kill -9
