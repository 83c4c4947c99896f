"""Writes sequences in a format of `formats`, and meta.json beside them.

All is written into a hidden folder first, and moved into place when it is whole; meta.json goes
last. Formats of one file an export add to what a folder has: train.bin, val.bin and val.jsonl share
a meta.json, which must tell of one vocabulary.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vqtok import codes, files
from vqtok.codes.checks import FORMAT, require
from vqtok.config import TOKEN_FORMATS
from vqtok.errors import FormatError, OutputError, UsageError
from vqtok.tokens.formats.base import Job, Writer
from vqtok.tokens.layout import Layout
from vqtok.tokens.sequences import Sequences
from vqtok.tokens.sources import Origin

META = "meta.json"
KIND = "token sequences"
META_LIMIT = 1 << 28
_SYNCED = 64  # files; more are left to the system


@dataclass(frozen=True)
class ExportRequest:
    """The settings of an export."""

    to: str  # of TOKEN_FORMATS
    shuffle: int | None = None  # seed; None: the order of the source
    header: int | None = None
    block: int | None = None
    force: bool = False


@dataclass(frozen=True)
class ExportReport:
    """The files of an export, and counts."""

    folder: Path
    meta: Path
    files: tuple[str, ...]  # names in the folder; a folder's ends in a slash
    sequences: int
    tokens: int
    bytes: int


def export_tokens(
    sequences: Sequences,
    out: Path,
    request: ExportRequest,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Writes all sequences in a format.

    `out` is a folder, or for formats of one file that file. `progress` gets how many
    sequences are done, and of how many, after each batch. UsageError where the format cannot hold
    them, OutputError where files exist (unless `force`) or cannot be written; FormatError and
    InputError of the source.
    """
    kind = _writer(request)
    folder, name = _place(out, kind, sequences.split)
    old = _read_old(folder, name, sequences, request, kind)
    for suffix in kind.suffixes if kind.single else ():
        files.check_free(folder / f"{name}{suffix}", request.force)
    with files.staging(folder) as stage:
        writer: Writer = kind(Job(stage, name, sequences, request.header, request.block))
        try:
            count = tokens = 0
            for batch in sequences.batches(request.shuffle is not None, request.shuffle or 0):
                writer.add(batch)
                count, tokens = count + len(batch.lengths), tokens + len(batch.tokens)
                if progress is not None:
                    progress(count, len(sequences))
            facts = writer.close()
        except BaseException:
            writer.abort()
            raise
        made = sorted(stage.iterdir())
        size = _sync(stage)
        new = _entry(writer, request, count, tokens) | facts
        new["files"] = [path.name + ("/" if path.is_dir() else "") for path in made]
        _move(made, folder, request.force, old, new["files"])
    meta = _meta(sequences, request, old, name, new)
    text = json.dumps(meta, indent=1) + "\n"
    files.write_bytes(folder / META, text.encode(), force=True)
    return ExportReport(folder, folder / META, tuple(new["files"]), count, tokens, size)


def _writer(request: ExportRequest) -> type[Writer]:
    """Returns the class of the format. Raises UsageError where there is none, or where an option
    does not belong to it.
    """
    if request.to not in TOKEN_FORMATS:
        raise UsageError(
            f"vqtok cannot export to {request.to!r}", f"choose {' or '.join(TOKEN_FORMATS)}"
        )
    entry = TOKEN_FORMATS[request.to]
    for option in ("header", "block"):
        if getattr(request, option) is not None and option not in entry.settings:
            owner = next(name for name, e in TOKEN_FORMATS.items() if option in e.settings)
            raise UsageError(
                f"--{option} does not go with --to {request.to}",
                f"leave it out, or give --to {owner}",
            )
    return entry.load()


def _place(out: Path, kind: type[Writer], split: str | None) -> tuple[Path, str]:
    """Returns the folder, and what files of one export are called."""
    files.check_writable(out)
    if str(out) == "-":
        raise UsageError("several files do not go to standard output", "give a folder: -o DIR")
    if kind.single and out.suffix in kind.suffixes and not out.is_dir():
        return out.parent, out.stem
    if out.exists() and not out.is_dir():
        raise OutputError(f"cannot write into {out}: it is a file", "give a folder: -o DIR")
    return out, split or "tokens"


def _read_old(
    folder: Path, name: str, sequences: Sequences, request: ExportRequest, kind: type[Writer]
) -> dict[str, Any]:
    """Reads the meta.json of earlier exports into a folder, {} for none.

    OutputError where it is not ours, or is of other sequences, unless `force`; with it, too, where
    it is of further files that would stay.
    """
    path = folder / META
    if not _exists(path):
        return {}
    try:
        old = read_meta_file(path)
    except FormatError:
        if request.force:
            return {}
        raise OutputError(
            f"{path} exists, and is not of an export", "use -f/--force, or another folder with -o"
        ) from None
    alone = all(_is_single(container_of(old, each)) for each in old["exports"].values())
    same = all(old[key] == value for key, value in _common(sequences).items())
    if kind.single and alone and same:
        names = {f"{name}{suffix}" for suffix in kind.suffixes}
        gone = {key: each for key, each in old["exports"].items() if names & set(each["files"])}
        rest = {key: each for key, each in old["exports"].items() if key not in gone}
        return old | {"exports": rest, "old": gone}
    replaced = _key(old["exports"], old, name, request.to)
    staying = [
        file for key, each in old["exports"].items() if key != replaced for file in each["files"]
    ]
    if request.force and not (kind.single and staying):
        return old | {"exports": {}, "old": old["exports"]}
    if request.force:
        raise OutputError(
            f"{path} is also of {staying[0]}, whose sequences are others",
            "remove it, or choose another folder with -o",
        )
    what = "is of an earlier export"
    if kind.single and alone:
        what = "is of other sequences: of another model, or with other options"
    raise OutputError(
        f"{path} exists, and {what}", "use -f/--force to replace it, or another folder with -o"
    )


def _is_single(container: str) -> bool:
    """Whether a format writes one file an export, so that a folder holds several exports."""
    return container in TOKEN_FORMATS and TOKEN_FORMATS[container].load().single


def container_of(meta: dict[str, Any], export: dict[str, Any]) -> str:
    """Returns the format of an export; older files tell one for all."""
    return export.get("container", meta["container"])


def _key(exports: dict[str, Any], meta: dict[str, Any], name: str, to: str) -> str:
    """Returns the key of an export in meta.json: its name, or name and format where the name is
    that of an export in another format.
    """
    taken = name in exports and container_of(meta, exports[name]) != to
    return f"{name}.{to}" if taken else name


def _common(sequences: Sequences) -> dict[str, Any]:
    """Returns what all exports in a folder share."""
    origin = sequences.source.origin
    return {
        "model": origin.model,
        "fingerprint": origin.fingerprint,
        "downsample": origin.downsample,
        "channels": origin.channels,
        **sequences.layout.to_json(),
    }


def _entry(writer: Writer, request: ExportRequest, count: int, tokens: int) -> dict[str, Any]:
    sequences = writer.sequences
    grid = sequences.only_grid
    return {
        "container": request.to,
        "sequences": count,
        "tokens": tokens,
        "length": None if grid is None else sequences.layout.length(*grid),
        "grid": None if grid is None else list(grid),
        "size": None if writer.size is None or sequences.window else list(writer.size),
        "dtype": writer.dtype.name,
        "split": sequences.split,
        "shuffle": request.shuffle,
    }


def _meta(
    sequences: Sequences,
    request: ExportRequest,
    old: dict[str, Any],
    name: str,
    new: dict[str, Any],
) -> dict[str, Any]:
    exports = dict(old.get("exports", {}))  # empty where they are replaced
    exports[_key(exports, old, name, request.to)] = new
    classes = sequences.fields.labels if "fields" in sequences.__dict__ else ()
    return {
        "format": FORMAT,
        "kind": KIND,
        "container": request.to,
        **_common(sequences),
        "class_names": list(classes) or old.get("class_names", []),
        "byte_order": "little",
        "exports": exports,
    }


def _sync(stage: Path) -> int:
    """Waits until the files are on the disk, where they are not too many; their bytes."""
    found = [path for path in stage.rglob("*") if path.is_file()]
    if len(found) <= _SYNCED:
        for path in found:
            files.sync(path)
    return sum(path.stat().st_size for path in found)


def _move(
    made: list[Path], folder: Path, force: bool, old: dict[str, Any], names: list[str]
) -> None:
    """Moves what was made into the folder, in place of what an earlier export left there."""
    for path in made:
        if _exists(folder / path.name) and not force:
            raise OutputError(
                f"{folder / path.name} exists",
                "use -f/--force to replace it, or choose another folder with -o",
            )
    stale = {name for export in old.get("old", {}).values() for name in export["files"]}
    for name in stale - set(names):
        _remove(folder / name)
    for path in made:
        if path.is_dir():
            _remove(folder / path.name)
        files.move(path, folder / path.name)


def _exists(path: Path) -> bool:
    return path.exists() if files.is_url(path) else os.path.lexists(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        files.remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def read_meta_file(path: Path) -> dict[str, Any]:
    """Reads the meta.json of exports. Raises InputError; FormatError where it is damaged or not
    ours.
    """
    data = files.read_bytes(path, META_LIMIT)
    with codes.name_in_errors(path):
        try:
            meta = codes.parse_meta(data.decode("ascii"))
        except UnicodeDecodeError:
            raise FormatError("damaged", "export again") from None
        require(
            meta.get("kind") == KIND,
            "not the meta.json of an export",
            "give the one that vqtok export wrote",
        )
        Layout.from_json(meta)
        require(
            isinstance(meta.get("exports"), dict) and isinstance(meta.get("container"), str),
            "meta.json is damaged",
        )
        for export in meta["exports"].values():
            names = export.get("files") if isinstance(export, dict) else None
            require(isinstance(names, list) and all(map(_is_inside, names)), "meta.json is damaged")
            require(isinstance(container_of(meta, export), str), "meta.json is damaged")
        origin_of(meta)
        return meta


def _is_inside(name: object) -> bool:
    """Whether a name is that of a file right in the folder."""
    return isinstance(name, str) and len(PurePosixPath(name).parts) == 1 and name[:1] not in "./"


def origin_of(meta: dict[str, Any]) -> Origin:
    """Returns the model that made the codes of an export."""
    texts = all(isinstance(meta.get(key), str) for key in ("model", "fingerprint"))
    numbers = all(
        type(meta.get(key)) is int and meta[key] > 0
        for key in ("codebook_size", "downsample", "channels", "levels")
    )
    require(texts and numbers, "meta.json is damaged")
    return Origin(*(meta[name] for name in Origin.__dataclass_fields__))
