"""Finds input files, names outputs, and writes files whole or not at all."""

import errno
import io
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vqtok import remote
from vqtok.errors import InputError, OutputError, UsageError
from vqtok.remote import RemoteError, RemotePath, ServerError, as_path, is_url

STDIO = Path("-")
TAR_SUFFIXES = frozenset((".tar", ".tar.gz", ".tgz"))
_CHUNK = 1 << 20
_TEMPORARY = re.compile(r"\.vqtok-[0-9a-f]{12}(\..{1,15})?")
_BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
_BRACES_MAX = 1_000_000
_ELSEWHERE = "choose another place with -o"
_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another disk with -o"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another disk with -o"),
    errno.EACCES: ("permission denied", "choose a folder you may write to with -o"),
    errno.EPERM: ("permission denied", "choose a folder you may write to with -o"),
    errno.EROFS: ("the file system is read-only", _ELSEWHERE),
    errno.EISDIR: ("it is a folder", "give the name of a file"),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", _ELSEWHERE),
    errno.EEXIST: ("a part of its path is a file, not a folder", _ELSEWHERE),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name with -o"),
    errno.EFBIG: ("the file system takes no file this large", _ELSEWHERE),
}


@dataclass(frozen=True)
class Source:
    """One input: its path, and its path below the folder or glob that named it (which `-o DIR`
    mirrors).
    """

    path: Path | None  # None: standard input
    relative: Path

    def __str__(self) -> str:
        return "standard input" if self.path is None else str(self.path)


def expand(
    inputs: Sequence[str],
    suffixes: frozenset[str],
    is_other: Callable[[Path], bool] | None = None,
) -> list[Source]:
    """Lists the files that names, folders, globs and '-' stand for: in the order given, sorted
    within each, each file once.

    A named file counts whatever its suffix; in folders, and for globs that end in '*', only
    `suffixes` (lower case, with the dot), and what `is_other` says of the rest. Hidden files are
    skipped; linked folders are followed, each folder once. Where several folders are given,
    `relative` begins with the folder's name, so that equal names in two of them stay apart.

    Raises InputError when nothing is found.
    Beside inputs that are found, one that is not stays in the list as it is:
    reading it then reports it, and the rest of the batch goes on.
    """
    several = sum(is_folder(name) for name in inputs) > 1
    found, lost = [], []
    for name in inputs:
        sources = _expand_one(name, suffixes, several, is_other)
        lost += [] if sources else [name]
        found += sources or [Source(as_path(name), Path(Path(name).name or name))]
    if len(lost) == len(inputs):
        raise _nothing(lost)
    once: dict[str | None, Source] = {}
    for source in found:
        once.setdefault(os.path.abspath(source.path) if source.path else None, source)
    return list(once.values())


def _expand_one(
    name: str,
    suffixes: frozenset[str],
    several: bool,
    is_other: Callable[[Path], bool] | None = None,
) -> list[Source]:
    path = Path(name)
    if name == "-":
        return [Source(None, Path("stdin"))]
    if is_url(name):
        return _expand_url(name, suffixes, several)
    if os.path.isdir(name):
        base = Path(os.path.basename(os.path.abspath(name))) if several else Path()
        return [
            Source(p, base / p.relative_to(path))
            for p in _files(path)
            if _is_wanted(p, suffixes, is_other)
        ]
    if os.path.exists(name):
        return [Source(path, Path(path.name))]
    if (words := expand_braces(name)) != [name]:
        return [
            source for word in words for source in _expand_one(word, suffixes, several, is_other)
        ]
    magic = next((i for i, part in enumerate(path.parts) if _is_magic(part)), None)
    if magic is None:
        return []
    root, parts = Path(*path.parts[:magic]), path.parts[magic:]
    matches = sorted(set(_match(root, parts)))
    return [
        Source(p, p.relative_to(root))
        for p in matches
        if not name.endswith("*") or _is_wanted(p, suffixes, is_other)
    ]


def _expand_url(name: str, suffixes: frozenset[str], several: bool) -> list[Source]:
    """Expands as `_expand_one`. A file is not looked up: reading it shows whether it is there."""
    if (words := expand_braces(name)) != [name]:
        return [source for word in words for source in _expand_url(word, suffixes, several)]
    path = as_path(name)
    assert isinstance(path, RemotePath)
    try:
        if path.is_web and "*" not in without_query(name):
            return [Source(path, Path(Path(without_query(name)).name))]
        if path.is_web or _is_magic(name) or not path.is_file():
            root = path
            while _is_magic(str(root)):
                root = root.parent
            found = remote.match(path) if _is_magic(name) else remote.find(path)
            base = Path(path.name) if several and root == path else Path()
            every = _is_magic(name) and not name.endswith("*")
            return [
                Source(p, base / p.relative_to(root))
                for p in found
                if every or has_suffix(p.name, suffixes)
            ]
    except RemoteError as error:
        raise unreadable(name, error) from None
    return [Source(path, Path(path.name))]


def without_query(name: str) -> str:
    """Returns a web address without what follows `?`, often a signature; any other name as it
    is.
    """
    return name.partition("?")[0] if name.lower().startswith(("http:", "https:")) else name


def has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    """Whether a name ends in one of these, of one part or of two, like .tar.gz."""
    ends = [end.lower() for end in PurePosixPath(without_query(name)).suffixes[-2:]]
    return "".join(ends[-1:]) in suffixes or "".join(ends) in suffixes


def is_tar(name: object) -> bool:
    """Whether a path or URL is called like a tar, packed by gzip or not."""
    return has_suffix(str(name), TAR_SUFFIXES)


def is_pattern(name: str) -> bool:
    """Whether a name has what a glob or braces have; `?` begins the query of a web address."""
    return any(c in without_query(name) for c in "*?[{")


def is_folder(name: str | Path) -> bool:
    """Whether a name is that of a folder, on a server too. Raises InputError of a server."""
    if not is_url(name):
        return os.path.isdir(name)
    try:
        return as_path(name).is_dir()
    except RemoteError as error:
        raise unreadable(name, error) from None


def unreadable(name: object, error: RemoteError) -> InputError:
    """Makes the error of two lines for what a server says."""
    return InputError(f"cannot read {name}: {error.strerror}", error.fix)


def server_error(name: object, error: RemoteError) -> ServerError:
    """Makes the error as `unreadable`, where the work cannot go on."""
    return ServerError(f"cannot read {name}: {error.strerror}", error.fix)


def expand_braces(name: str) -> list[str]:
    """Writes out `{000..002}` and `{a,b}`, as a shell does it and webdataset's users write it.

    A range keeps its zeros in front; the name itself where it has none, or stands for more than
    a million.
    """
    found = _BRACES.search(name)
    if found is None:
        return [name]
    low, high, words = found.groups()
    if low is None:
        inner = words.split(",")
    else:
        first, last = int(low), int(high)
        if abs(last - first) >= _BRACES_MAX:
            return [name]
        width = max(len(low), len(high)) if low[0] == "0" or high[0] == "0" else 0
        step = 1 if last >= first else -1
        inner = [f"{n:0{width}}" for n in range(first, last + step, step)]
    start, end = name[: found.start()], expand_braces(name[found.end() :])
    if len(inner) * len(end) > _BRACES_MAX:
        return [name]
    return [start + word + rest for word in inner for rest in end]


def _nothing(lost: Sequence[str]) -> InputError:
    if not lost:
        return InputError(
            "no input is given", "name files, folders or globs, or - for standard input"
        )
    first, more = lost[0], f" (nor in {len(lost) - 1} more)" if len(lost) > 1 else ""
    if os.path.isdir(first):
        return InputError(
            f"no usable file is in the folder {first}{more}",
            "name a folder that holds some, or name the files",
        )
    if _is_magic(first):
        return InputError(f"no file matches {first}{more}", "check the pattern")
    return InputError(f"{first} does not exist{more}", "check the name")


def _is_magic(text: str) -> bool:
    return any(c in text for c in "*?[")


def _is_wanted(
    path: Path, suffixes: frozenset[str], is_other: Callable[[Path], bool] | None
) -> bool:
    """Whether a file found in a folder is wanted.

    A folder in place of a file could not be listed: reading it says so.
    """
    if has_suffix(path.name, suffixes) or os.path.isdir(path):
        return True
    return is_other is not None and os.path.isfile(path) and is_other(path)


def _entries(folder: Path) -> list[os.DirEntry[str]] | None:
    """Lists the visible entries of a folder, sorted; None when it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError:
        return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry raises on a link to itself
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _folders(root: Path) -> Iterator[tuple[Path, list[os.DirEntry[str]] | None]]:
    """Yields a folder and all below it with their entries, each real folder once: a loop of links
    ends.
    """
    seen, waiting = set(), [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        entries = _entries(folder)
        yield folder, entries
        waiting += [folder / e.name for e in reversed(entries or []) if _is_folder(e)]


def _files(root: Path) -> list[Path]:
    """Lists all visible files below a folder, sorted; broken links and folders that cannot be
    listed stay in the list as they are.
    """
    found = []
    for folder, entries in _folders(root):
        if entries is None:
            found.append(folder)
        for entry in entries or []:
            broken = entry.is_symlink() and not os.path.exists(entry)
            # no pipes or devices: reading one could wait for ever
            if broken or os.path.isfile(entry):
                found.append(folder / entry.name)
    return sorted(found)


def _match(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Yields the files below a folder that match the parts of a glob.

    Written here because `glob` follows loops of links.
    """
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below, _ in _folders(folder):
            yield from _match(below, rest or ("*",))
        return
    for name in _names(folder, part) if _is_magic(part) else [part]:
        path = folder / name
        if rest and os.path.isdir(path):
            yield from _match(path, rest)
        elif not rest and os.path.isfile(path):
            yield path


def _names(folder: Path, part: str) -> list[str]:
    """Returns the names in a folder that match one part of a glob; hidden ones only where the part
    itself begins with a dot.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(
        n for n in names if fnmatchcase(n, part) and (part.startswith(".") or not n.startswith("."))
    )


def output_path(source: Source, suffix: str, out: Path | None, many: bool) -> Path:
    """Returns where the result of `source` goes: img.png -> img.npz beside it; below `out` when
    that is a folder; else `out` itself.

    `out` is a file when there is one input and `out` ends in a file suffix (and is no folder).
    `Path("-")` is standard output: for `-o -`, and for standard input without -o. Raises UsageError
    when many results would go to one file.
    """
    if out is None:
        return STDIO if source.path is None else source.path.with_suffix(suffix)
    out = as_path(out)
    if out == STDIO or (
        not os.path.isdir(out)
        and (os.path.exists(out) or re.fullmatch(r"\.[A-Za-z]\w*", out.suffix))
    ):
        if not many:
            return out
        if out == STDIO or os.path.exists(out) or out.suffix.lower() == Path("x" + suffix).suffix:
            raise UsageError(
                f"several results do not go into one file ({out})", "give a folder: -o DIR"
            )
    return out / inside(source.relative.with_suffix(suffix))


def inside(path: Path) -> Path:
    """Drops from a path what leads up or away, as in `*/../../x.png`: results stay below -o."""
    return Path(*(part for part in path.parts if part not in ("..", path.anchor)))


def check_free(path: Path, force: bool) -> None:
    """Raises OutputError when `path` exists and may not be replaced:
    before the work, not after it.
    """
    if isinstance(path, RemotePath):
        return _check_remote_free(path, force)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = None
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {path}: it is a folder", "give the name of a file")
    if mode is not None and not stat.S_ISREG(mode):
        # Renaming over /dev/null as root would take it away from the whole machine.
        raise OutputError(
            f"cannot write {path}: it is not an ordinary file",
            "give a file name, or - for standard output",
        )
    if not force and os.path.lexists(path):
        raise _taken(path)


def check_writable(path: Path) -> None:
    """Raises OutputError for a URL that is only read: before the work, not after it."""
    if isinstance(path, RemotePath):
        try:
            remote.check_writable(path)
        except RemoteError as error:
            raise _unwritable(path, error) from None


def _check_remote_free(path: RemotePath, force: bool) -> None:
    check_writable(path)
    try:
        if not force and path.exists():
            raise _taken(path)
    except RemoteError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> OutputError:
    if isinstance(error, RemoteError):
        return OutputError(f"cannot write {path}: {error.strerror}", error.fix)
    what, fix = _REASONS.get(error.errno or 0, (error.strerror or str(error), _ELSEWHERE))
    return OutputError(f"cannot write {path}: {what}", fix)


def _taken(path: Path) -> OutputError:
    return OutputError(
        f"{path} exists",
        "give force=True to replace it, or choose another name",
        "use -f/--force to replace it, or choose another name",
    )


@contextmanager
def atomic(path: Path, force: bool = False) -> Iterator[Path]:
    """Gives a temporary name beside `path`; when the block ends well, its content
    becomes `path` in one step.

    The temporary file exists (empty), is hidden and has the suffix of `path`. It is removed when
    the block fails, and `path` is then as it was. Missing folders are made. Every OSError, of the
    block too, becomes an OutputError; so does an existing `path` without `force`, even one that
    appeared meanwhile. A link is written through, not replaced.
    """
    check_free(path, force)
    if isinstance(path, RemotePath):
        with _uploaded(path) as temporary:
            yield temporary
        return
    target = Path(os.path.realpath(path)) if os.path.islink(path) else path
    temporary = target.with_name(f".vqtok-{os.urandom(6).hex()}{target.suffix[:16]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # around the first call, too: a signal's exception comes when it returns,
        # and the file is then there
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            _sync(temporary, os.O_RDWR)
            _publish(temporary, target, force)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        with suppress(OSError):  # not every system can sync a folder, and the file is already whole
            _sync(target.parent, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(path, error) from None


@contextmanager
def _uploaded(path: RemotePath) -> Iterator[Path]:
    """Gives the name of a local file, which goes to the server when the block ends well."""
    try:
        with tempfile.TemporaryDirectory(prefix="vqtok-") as folder:
            temporary = Path(folder) / f"file{path.suffix[:16]}"
            temporary.touch()
            yield temporary
            remote.upload(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from None


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Gives a new hidden folder inside `folder`, for files that are moved into place when all are
    whole; what is left in it when the block ends is removed.

    Every OSError becomes an OutputError. Those that killed writers left an hour ago are removed.
    """
    if isinstance(folder, RemotePath):
        with tempfile.TemporaryDirectory(prefix="vqtok-") as local:
            yield Path(local)
        return
    stage = folder / f".vqtok-{os.urandom(6).hex()}"
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if is_temporary(path.name) and path.is_dir() and _age(path) > 3600:
                shutil.rmtree(path, ignore_errors=True)
        try:
            stage.mkdir()
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            with suppress(OSError):  # one holds the result
                for path in new:
                    path.rmdir()
    except OSError as error:
        raise _unwritable(folder, error) from None


def _age(path: Path) -> float:
    """Returns the seconds since a file or folder was changed; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def move(made: Path, target: Path) -> None:
    """Gives what was made in a `staging` folder its place; a file or a folder, which must be free
    or, a file, may be replaced. Raises OSError; OutputError where a server does not take it.
    """
    if not isinstance(target, RemotePath):
        os.replace(made, target)
        return
    try:
        for path in sorted(made.rglob("*")) if made.is_dir() else [made]:
            if path.is_file():
                remote.upload(path, target / path.relative_to(made) if path != made else target)
    except RemoteError as error:
        raise _unwritable(target, error) from None


def remove_tree(folder: Path) -> None:
    """Removes a folder with all that is in it."""
    if isinstance(folder, RemotePath):
        for path in remote.find(folder):
            path.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder)


def sync(path: Path) -> None:
    """Waits until a file is on the disk."""
    _sync(path, os.O_RDWR)


def is_temporary(name: str) -> bool:
    """Whether a file has a name that writers give to what is not whole yet."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_stale(folder: Path) -> None:
    """Removes the temporary files that writers have left in a folder where they were killed.

    Only for a folder with one writer.
    """
    with suppress(OSError):  # a folder that is not there, or not ours: the first write fails
        for path in folder.iterdir():
            if is_temporary(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(temporary: Path, target: Path, force: bool) -> None:
    """Gives the finished file its name.

    Without `force` a link takes the name: unlike a rename it never replaces a file.
    """
    if not force:
        try:
            os.link(temporary, target)
            return
        except OSError:
            # taken, or a disk without links (FAT):
            # try to reserve the name, then rename over our own file
            try:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            except FileExistsError:
                raise _taken(target) from None
    os.replace(temporary, target)


def write_bytes(path: Path, data: bytes, force: bool = False) -> None:
    """Writes the file whole or not at all; errors as `atomic`."""
    if isinstance(path, RemotePath):
        check_free(path, force)
        try:
            remote.put(path, data)
        except RemoteError as error:
            raise _unwritable(path, error) from None
        return
    with atomic(path, force) as temporary:
        temporary.write_bytes(data)


def write_all(folder: Path, contents: Mapping[str, bytes], force: bool = False) -> None:
    """Writes files by their names into a folder, made if missing.

    Unless `force`, OutputError where one exists, before any is written.
    """
    for name in contents:
        check_free(folder / name, force)
    for name, data in contents.items():
        write_bytes(folder / name, data, force)


def read_bytes(path: Path, limit: int) -> bytes:
    """Reads the whole file.

    Raises InputError when it is missing, refused, a folder, or larger than `limit` bytes.
    """
    with open_input(path) as file:
        return _read(file, limit, str(path))


@contextmanager
def open_input(path: Path) -> Iterator[io.BufferedReader]:
    """Opens the file for reading.

    Raises InputError when it is missing, refused or a folder, or fails while it is read.
    """
    try:
        with path.open("rb") if isinstance(path, RemotePath) else open(path, "rb") as file:
            yield file
    except RemoteError as error:
        raise unreadable(path, error) from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", "check the name") from None
    except IsADirectoryError:
        if not os.access(path, os.R_OK):
            raise InputError(
                f"cannot read the folder {path}: permission denied", "allow reading it: chmod u+rx"
            ) from None
        raise InputError(f"{path} is a folder, and a file is needed", "name a file in it") from None
    except PermissionError:
        raise InputError(
            f"cannot read {path}: permission denied", "allow reading it: chmod u+r"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"cannot read {path}: {reason}", "check the name and the disk") from None


def read_stdin(limit: int) -> bytes:
    """Reads all of standard input.

    Raises InputError when it is a terminal, cannot be read, or exceeds `limit` bytes.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(
            "standard input is a terminal",
            "pipe a file into the command, or name a file in place of -",
        )
    try:
        return _read(sys.stdin.buffer, limit, "standard input")
    except OSError as error:
        raise InputError(
            f"cannot read standard input: {error.strerror or error}", "name a file in place of -"
        ) from None


def _read(stream: BinaryIO, limit: int, name: str) -> bytes:
    """Reads in pieces: pipes do not know their size, and read(limit) would
    reserve all of `limit` at once.
    """
    data = io.BytesIO()
    while piece := stream.read(min(_CHUNK, limit + 1 - data.tell())):
        data.write(piece)
        if data.tell() > limit:
            raise InputError(f"{name} is larger than {human_bytes(limit)}", "give a smaller file")
    return data.getvalue()


def human_bytes(n: int) -> str:
    """Formats bytes like '812 B', '3.4 kB', '56 MB': powers of 1000, two digits where there is a
    fraction.
    """
    size, units = float(n), ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.1f} {units[0]}" if units[0] != "B" and size < 9.95 else f"{size:.0f} {units[0]}"


def human_duration(seconds: float) -> str:
    """Formats seconds like '42 s', '12 min', '3.1 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def human_count(n: int, noun: str) -> str:
    """Formats a count like '1 image', '1,234 images'."""
    return f"1 {noun}" if n == 1 else f"{n:,} {noun}s"
