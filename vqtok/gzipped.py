"""Gzip files, read at any place where they lie: for tars that were packed whole (train-0.tar.gz).

Deflate is unpacked from its beginning only. So copies of the decompressor, 36 KB each, are kept on
the way, and a read goes on from the nearest one before it. Nothing is unpacked to disk, and memory
does not grow with the file.
"""

import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

from vqtok.errors import InputError
from vqtok.remote import RemotePath

MAGIC = b"\x1f\x8b"
MARKS = 256  # copies of the decompressor that a file keeps: 9 MB
_SPACING = 1 << 22  # bytes between them at first: 10 ms of unpacking on one core
_PIECE, _REMOTE_PIECE = 1 << 16, 1 << 20  # bytes of the file read at a time
_STEP = 1 << 18  # bytes unpacked at a time
# of a file that grows more, no image is made: tars of black masks grow to the 90-fold
_GROWTH, _FREE = 200, 1 << 30
_AUTOMATIC = 31  # zlib's name for a gzip header and a checksum


def _inflater() -> "zlib._Decompress":
    return zlib.decompressobj(_AUTOMATIC)


@dataclass
class _State:
    """A place in the unpacked bytes, and what it takes to go on from there."""

    out: int = 0  # bytes unpacked
    at: int = 0  # where the next piece of the file is
    rest: bytes = b""  # of the last piece
    inflate: "zlib._Decompress" = field(default_factory=_inflater)
    fresh: bool = True  # no byte of this gzip member was given to it

    def copy(self) -> "_State":
        return replace(self, inflate=self.inflate.copy())

    def step(self, file: BinaryIO, most: int, piece: int) -> bytes:
        """The next bytes, up to `most`; none at the end. Raises EOFError, zlib.error, OSError."""
        while True:
            if self.inflate.eof:  # gzip members stand one after another, as pigz and cat leave them
                self.rest = (self.inflate.unused_data or self.rest).lstrip(b"\0")
                self.inflate, self.fresh = _inflater(), True
            if not self.rest:
                file.seek(self.at)
                self.rest = file.read(piece)
                self.at += len(self.rest)
                if self.fresh:
                    self.rest = self.rest.lstrip(b"\0")
                if not self.rest and self.fresh:
                    return b""
            ended = not self.rest
            data = self.inflate.decompress(self.rest, most)
            self.rest, self.fresh = self.inflate.unconsumed_tail, False
            if data:
                self.out += len(data)
                return data
            if ended and not self.inflate.eof:
                raise EOFError


class Gzipped:
    """A gzip file as its unpacked bytes. Safe to use from several threads.

    `marks`: how many copies of the decompressor are kept. Reads raise InputError where the file is
    damaged or cut off, OSError where it cannot be read.
    """

    def __init__(self, path: Path, marks: int = MARKS) -> None:
        self.path, self._most = path, max(1, marks)
        self._piece = _REMOTE_PIECE if isinstance(path, RemotePath) else _PIECE
        self._size = path.stat().st_size
        self._marks, self._spacing = [_State()], _SPACING
        self._last: _State | None = None  # where the last read ended
        self._lock = threading.Lock()
        self.reached = 0  # bytes that could be unpacked so far

    def read(self, offset: int, size: int) -> bytes:
        """The unpacked bytes from `offset` on; fewer at the end."""
        data = bytearray()
        for piece in self._pieces(offset, size):
            data += piece
        return bytes(data)

    def check_rest(self) -> None:
        """Unpacks what has not been, which compares the checksum."""
        for _ in self._pieces(1 << 62, 0):
            pass

    def _pieces(self, offset: int, size: int) -> Iterator[bytes]:
        state = self._nearest(offset)
        try:
            with self.path.open("rb") as file:
                while state.out < offset + size:
                    skipped = max(0, offset - state.out)
                    most = min(_STEP, skipped or offset + size - state.out)
                    data = state.step(file, most, self._piece)
                    if not data:
                        break
                    self._pass(state)
                    if not skipped:
                        yield data
        except EOFError:
            raise self._damaged("it is cut off") from None
        except zlib.error as error:
            raise self._damaged(str(error).partition(": ")[2] or str(error)) from None
        with self._lock:
            self._last = state

    def _nearest(self, offset: int) -> _State:
        """The nearest state before `offset`; who takes the one where the last read ended has it for
        himself.
        """
        with self._lock:
            mark = max((m for m in self._marks if m.out <= offset), key=lambda m: m.out)
            last = self._last
            if last is not None and mark.out <= last.out <= offset:
                self._last = None
                return last
            return mark.copy()

    def _pass(self, state: _State) -> None:
        """Keeps a copy of a state now and then."""
        if state.out > _FREE and state.out > _GROWTH * self._size:
            raise self._damaged(f"it unpacks to more than {_GROWTH} times its size")
        with self._lock:
            self.reached = max(self.reached, state.out)
            # a rest would be kept with it
            if state.rest or state.out < self._marks[-1].out + self._spacing:
                return
            self._marks.append(state.copy())
            if len(self._marks) > self._most:
                self._spacing *= 2
                self._marks = self._marks[:1] + self._marks[2::2]

    def _damaged(self, why: str) -> InputError:
        return InputError(f"{self.path} is no whole gzip file: {why}", "copy or download it again")


class GzipStream(RawIOBase):
    """A `Gzipped` as a file that is read forwards."""

    def __init__(self, source: Gzipped) -> None:
        super().__init__()
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        assert size >= 0
        data = self._source.read(self._at, size)
        self._at += len(data)
        return data


def is_gzip(path: Path) -> bool:
    """Whether a file begins as a gzip file does; of a remote one its name tells, as to look into
    it would be a request each time. Raises OSError.
    """
    if isinstance(path, RemotePath):
        return is_packed(path)
    with path.open("rb") as file:
        return file.read(2) == MAGIC


def is_packed(path: Path) -> bool:
    """Whether a file's name says that gzip packed it."""
    return path.suffix.lower() in (".gz", ".tgz")


def read_part(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file, or of what it unpacks to where it is a gzip file; fewer at its end.

    Raises InputError where a gzip file is damaged, OSError where it cannot be read.
    """
    source = _opened(path)
    if source is not None:
        return source.read(offset, size)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size if isinstance(path, RemotePath) else min(size, path.stat().st_size))


def _opened(path: Path) -> Gzipped | None:
    if isinstance(path, RemotePath):
        return _cached(path, 0, 0)
    found = path.stat()
    return _cached(path, found.st_size, found.st_mtime_ns)


@lru_cache(4)  # tars are read one after another
def _cached(path: Path, _size: int, _changed: int) -> Gzipped | None:
    return Gzipped(path) if is_gzip(path) else None
