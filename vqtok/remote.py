"""Paths that are URLs: s3://, gs://, hf:// and others that fsspec knows, and http://.

A `RemotePath` does what the code asks of a `Path`: it is joined, listed, read and written. Files
are read by ranges, each a request of its own that is repeated while the server is away, and never
copied whole to the disk. What the server says comes as a RemoteError, an OSError whose `strerror`
is a plain sentence and whose `fix` says what to do.

http:// and https:// are read with the standard library alone; the others need fsspec, which comes
with torch, and its driver.
"""

import errno
import io
import os
import random
import re
import stat
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from vqtok.errors import UsageError, VqtokError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/*)(.*)", re.S)
_HTTP = ("http", "https")
_TIMEOUT = 60.0  # seconds without an answer
_PATIENCE = 120.0  # seconds that requests are repeated: a server that restarts takes less
_AHEAD = 1 << 20  # bytes of a request: of a tar, the headers of ten images of 100 kB
_BLOCKS = 4  # of so many bytes that `read_near` keeps
NEAR_MAX = (
    1 << 18
)  # bytes of a part that is read with its neighbors: larger ones come by themselves
_WHOLE_MAX = 1 << 26  # of a file on a server that gives no parts of it
_DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
_AGAIN = (408, 425, 429)  # answers below 500 that pass
T = TypeVar("T")


class RemoteError(OSError):
    """A file on a server could not be read or written."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(errno.EIO, what)
        self.fix = fix

    def __reduce__(self) -> tuple[type["RemoteError"], tuple[str, str]]:
        return type(self), (self.strerror or "", self.fix)


class RemoteMissingError(RemoteError, FileNotFoundError):
    """There is no such file or folder."""


class RemoteRefusedError(RemoteError, PermissionError):
    """The server asks for other credentials."""


class ServerError(VqtokError):
    """A server is away for longer than requests are repeated: the work stops, and nothing that
    could not be read counts as damaged.
    """


def is_url(name: object) -> bool:
    """Whether a name is a URL of a server: `s3://bucket/x`, and `s3:/bucket/x`, which Path makes
    of it, unless there is such a file.
    """
    if isinstance(name, RemotePath):
        return True
    text = os.fspath(name) if isinstance(name, str | os.PathLike) else ""
    found = _URL.match(text)
    return found is not None and found[1].lower() != "file" and not os.path.lexists(text)


def as_path(name: "str | os.PathLike[str]") -> Path:
    """Returns a RemotePath for a URL, else a Path."""
    if isinstance(name, Path) and (isinstance(name, RemotePath) or ":" not in str(name)):
        return name
    text = os.fspath(name)
    found = _URL.match(text)
    if found is None or os.path.lexists(text):
        return Path(name)
    if found[1].lower() == "file":
        return Path("/" + found[3])
    return RemotePath(f"{found[1].lower()}:/{found[3]}")


class RemotePath(type(Path())):
    """A file or folder on a server. Raises RemoteError where a Path raises OSError."""

    __slots__ = ()

    def __str__(self) -> str:
        scheme, colon, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}" if colon else scheme

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return as_path, (str(self),)

    @property
    def scheme(self) -> str:
        return self.parts[0].rstrip(":")

    @property
    def is_web(self) -> bool:
        """Whether it is read with http: nothing is listed, and nothing written."""
        return self.scheme in _HTTP

    @property
    def suffix(self) -> str:
        name = self.name.partition("?")[0] if self.is_web else self.name
        return PurePosixPath(name).suffix

    def absolute(self) -> "RemotePath":
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        return self

    def relative_to(self, *other: Any, **_: Any) -> Path:
        """Returns a Path, to be joined with any other."""
        return Path(*super().relative_to(*other).parts)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        kind, size = _info(self)
        mode = stat.S_IFDIR | 0o755 if kind == "directory" else stat.S_IFREG | 0o644
        return os.stat_result((mode, 0, 0, 1, 0, 0, size, *[int(time.time())] * 3))

    def exists(self, **_: Any) -> bool:
        return self._kind() is not None

    def is_dir(self, **_: Any) -> bool:
        return not self.is_web and self._kind() == "directory"

    def is_file(self, **_: Any) -> bool:
        return self._kind() == "file"

    def is_symlink(self) -> bool:
        return False

    def _kind(self) -> str | None:
        try:
            return _info(self)[0]
        except FileNotFoundError:
            return None

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        if mode not in ("r", "rt", "rb"):
            raise RemoteError("it is written whole or not at all", "report this")
        file = io.BufferedReader(_RemoteFile(self), _AHEAD)
        return file if mode == "rb" else io.TextIOWrapper(file, "utf-8")

    def read_bytes(self) -> bytes:
        return read(self, 0, self.stat().st_size)

    def read_text(self, *_: Any, **__: Any) -> str:
        return self.read_bytes().decode("utf-8")

    def write_bytes(self, data: Any) -> int:
        put(self, bytes(data))
        return len(data)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Does nothing: folders of a server are parts of names."""

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _ask(self, lambda: _filesystem(self).rm_file(_inner(self)))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def iterdir(self) -> Generator["RemotePath", None, None]:
        found = _ask(self, lambda: _filesystem(self).ls(_inner(self), detail=False))
        names = {PurePosixPath(name.rstrip("/")).name for name in found}
        yield from sorted(self / name for name in names - {""})


class _RemoteFile(io.RawIOBase):
    """A remote file, read by ranges."""

    def __init__(self, path: RemotePath) -> None:
        super().__init__()
        kind, self.size = _info(path)
        if kind == "directory":
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        self.path, self.at = path, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        self.at = max(0, base + offset)
        return self.at

    def readinto(self, buffer: Any) -> int:
        end = min(self.at + len(buffer), self.size)
        data = read(self.path, self.at, end) if end > self.at else b""
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def read(path: RemotePath, start: int, end: int) -> bytes:
    """Reads bytes `start` to `end` of a file. Raises RemoteError, also where it is shorter."""
    if end <= start:
        return b""

    return _read(path, start, end, end - start)


def read_near(path: RemotePath, start: int, end: int) -> bytes:
    """As `read`, of a small part: it comes in a block of 1 MiB, and the last blocks are kept, so
    that parts that follow one another cost one request in all.
    """
    first, last = start // _AHEAD, max(start, end - 1) // _AHEAD
    parts = []
    for number in range(first, last + 1):
        least = (end - 1) % _AHEAD + 1 if number == last else _AHEAD
        parts.append(_kept_block(path, number, least))
    at = start - first * _AHEAD
    return b"".join(parts)[at : at + end - start]


_kept: dict[tuple[str, int], "Future[bytes]"] = {}
_kept_lock = threading.Lock()


def _kept_block(path: RemotePath, number: int, least: int) -> bytes:
    """A block of a file of at least so many bytes; whoever asks for it meanwhile waits for it."""
    key = (str(path), number)
    with _kept_lock:
        future = _kept.get(key)
        is_mine = future is None
        if future is None:
            future = _kept[key] = Future()
            while len(_kept) > _BLOCKS:
                del _kept[next(iter(_kept))]
    if is_mine:
        try:
            future.set_result(_read(path, number * _AHEAD, (number + 1) * _AHEAD, least))
        except BaseException as error:
            with _kept_lock:
                _kept.pop(key, None)
            future.set_exception(error)
    return future.result()


def _read(path: RemotePath, start: int, end: int, least: int) -> bytes:
    """Bytes `start` to `end` of a file, or to its end where at least so many are there."""

    def once() -> bytes:
        if path.is_web:
            data = _http_range(path, start, end)
        else:
            data = _filesystem(path).cat_file(_inner(path), start=start, end=end)
        if len(data) < least:
            raise OSError(errno.EIO, f"it gave {len(data)} of {least} bytes")
        return data

    return _ask(path, once)


def put(path: RemotePath, data: bytes) -> None:
    """Writes a file whole: object stores show it when all of it is there. Raises RemoteError."""
    check_writable(path)
    _ask(path, lambda: _filesystem(path).pipe_file(_inner(path), data))


def upload(source: Path, path: RemotePath) -> None:
    """Writes as `put`, from a local file, a part at a time."""
    check_writable(path)

    def once() -> None:
        fs, inner = _filesystem(path), _inner(path)
        fs.put_file(str(source), inner)

    _ask(path, once)


def check_writable(path: RemotePath) -> None:
    """Raises RemoteError where nothing can be written by such a URL."""
    if path.is_web:
        raise RemoteError(
            f"{path.scheme} is only read", "write to a folder, or to a store like s3:// or gs://"
        )


def find(folder: RemotePath) -> list[RemotePath]:
    """Lists all visible files below a folder, sorted; [] for a file, or nothing."""
    if folder.is_web:
        return []
    inner = _inner(folder).rstrip("/")
    found = _ask(folder, lambda: _filesystem(folder).find(inner))
    below = [name[len(inner) :].strip("/") for name in found if name.startswith(inner + "/")]
    hidden = re.compile(r"(^|/)\.")
    return sorted(folder / name for name in below if name and not hidden.search(name))


def match(pattern: RemotePath) -> list[RemotePath]:
    """Lists the files that match a glob, sorted. Raises UsageError for http."""
    if pattern.is_web:
        raise UsageError(
            f"a server of {pattern.scheme} lists no files, so that {pattern} matches none",
            "name each file; {0000..1023} stands for 1,024 of them",
        )
    fs = _filesystem(pattern)
    found = _ask(pattern, lambda: cast(Any, fs.glob(_inner(pattern), detail=True)))
    root = f"{pattern.scheme}:/"
    return sorted(
        RemotePath(root + name.lstrip("/"))
        for name, info in found.items()
        if info["type"] == "file" and not PurePosixPath(name).name.startswith(".")
    )


def _info(path: RemotePath) -> tuple[str, int]:
    """Returns 'file' or 'directory', and the size in bytes."""
    if path.is_web:
        return "file", _ask(path, lambda: _http_size(path))
    found = _ask(path, lambda: _filesystem(path).info(_inner(path)))
    return ("directory" if found["type"] == "directory" else "file"), int(found.get("size") or 0)


def _inner(path: RemotePath) -> str:
    """Returns the name that fsspec's file system has for a path."""
    return _filesystem(path)._strip_protocol(str(path))


def _filesystem(path: RemotePath) -> Any:
    """Raises UsageError where no driver is installed, or there is none for such a URL."""
    try:
        return _open_filesystem(path.scheme, os.getpid())
    except ValueError:
        raise UsageError(
            f"vqtok knows no {path.scheme}:// ({path})",
            "give a path, or a URL like s3://BUCKET/DIR",
        ) from None
    except ImportError:
        package = _DRIVERS.get(path.scheme, "its fsspec driver")
        raise UsageError(
            f"{path.scheme}:// needs {package}, which is not installed",
            f"pip install 'vqtok[remote]', or {package} alone"
            if path.scheme in _DRIVERS
            else "install its fsspec driver",
        ) from None


@lru_cache(16)
def _open_filesystem(scheme: str, process: int) -> Any:
    """Opens the file system, once a process: its connections do not survive a fork."""
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False)


def _ask(path: RemotePath, action: Callable[[], T]) -> T:
    """Does it, and again while the server is away, slow or out of order: for two minutes, or
    VQTOK_RETRY_SECONDS. Raises RemoteError.
    """
    patience = float(os.environ.get("VQTOK_RETRY_SECONDS") or _PATIENCE)
    end, wait = time.monotonic() + patience, 0.25
    while True:
        try:
            return action()
        except (RemoteError, UsageError):
            raise
        except Exception as error:  # each driver has its own
            passing, explained = _explain(error)
            explained.filename = str(path)
            if not passing or time.monotonic() + wait > end:
                raise explained from None
        time.sleep(wait * random.uniform(0.75, 1.25))  # many workers do not come back at once
        wait = min(wait * 2, 15.0)


def _explain(error: Exception) -> tuple[bool, RemoteError]:
    """Whether an error may pass, and what it means."""
    status = _status(error)
    answered = f" (the server answers {status})" if status else ""
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        return False, RemoteMissingError(f"it does not exist{answered}", "check the name")
    names = {kind.__name__ for kind in type(error).__mro__}
    if (
        status in (401, 403)
        or isinstance(error, PermissionError)
        or {"NoCredentialsError", "DefaultCredentialsError"} & names
    ):
        return False, RemoteRefusedError(
            f"the server refuses it{answered}",
            "check the credentials: see docs/scale.md, Data on servers",
        )
    if isinstance(error, TimeoutError) or any("Timeout" in name for name in names):
        return True, RemoteError(
            "the server does not answer in time", "check the network, and start again: --resume"
        )
    if status and 400 <= status < 500 and status not in _AGAIN:
        return False, RemoteError(f"the server answers {status}", "check the URL")
    cause = getattr(error, "reason", None) or error
    reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
    reason = reason or type(error).__name__
    what = f"the server answers {status}" if status else " ".join(reason.split())[:200]
    return True, RemoteError(what, "the server may be out of order: try again later, --resume")


def _status(error: BaseException | None) -> int | None:
    """Returns the HTTP status in an error, or in what caused it."""
    for _ in range(8):
        if error is None:
            return None
        response = getattr(error, "response", None)
        meta = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        for value in (
            getattr(error, "status", None),
            getattr(error, "code", None),
            getattr(response, "status_code", None),
            meta.get("HTTPStatusCode"),
        ):
            if type(value) is int and 100 <= value < 600:
                return value
        reason = getattr(error, "reason", None)
        if isinstance(reason, TimeoutError):
            return None
        error = error.__cause__ or error.__context__
    return None


def _http(path: RemotePath, start: int, end: int) -> Any:
    # here: they bring HTTP, TLS and mail along, 1/40 of the import of torch
    from urllib.error import HTTPError, URLError
    from urllib.parse import quote, unquote
    from urllib.request import Request, urlopen

    url = quote(unquote(str(path)), safe="/:?&=+%,;@~!$'()*#[]") if "%" not in str(path) else path
    headers = {
        "Range": f"bytes={start}-{end - 1}",
        "User-Agent": "vqtok",
        "Accept-Encoding": "identity",
    }
    try:
        return urlopen(Request(str(url), headers=headers), timeout=_timeout())
    except HTTPError as error:
        error.close()
        raise
    except URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise TimeoutError from None
        raise


def _timeout() -> float:
    return float(os.environ.get("VQTOK_TIMEOUT_SECONDS") or _TIMEOUT)


def _http_size(path: RemotePath) -> int:
    """Asks for the first byte to learn the size: many servers refuse HEAD for signed URLs."""
    from urllib.error import HTTPError

    try:
        with _http(path, 0, 1) as answer:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            total = total if answer.status == 206 else answer.headers.get("Content-Length", "")
    except HTTPError as error:
        if error.code == 416:  # an empty file has no first byte
            return 0
        raise
    if not total.isdecimal():
        raise RemoteError("the server does not say how large it is", "download it, and give that")
    return int(total)


def _http_range(path: RemotePath, start: int, end: int) -> bytes:
    with _http(path, start, end) as answer:
        if answer.status == 206:
            return answer.read(end - start)
        # the server gives files whole: its answer begins at the first byte
        if start > 0 and int(answer.headers.get("Content-Length") or 0) > _WHOLE_MAX:
            raise RemoteError(
                "the server gives no parts of files (HTTP Range)",
                "use another server, or download the file",
            )
        for _ in range(start // _AHEAD):
            answer.read(_AHEAD)
        answer.read(start % _AHEAD)
        return answer.read(end - start)
