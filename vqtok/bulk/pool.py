"""Decodes images in processes, a bounded number ahead of who takes them, in the order in which they
were asked for.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from vqtok import files, gzipped, images, remote
from vqtok.bulk import worker
from vqtok.bulk.crops import AS_THEY_ARE, Crops
from vqtok.bulk.datasets import Reader
from vqtok.bulk.inputs import Entry
from vqtok.errors import InputError, VqtokError

T = TypeVar("T")
# images asked for at a time, for each worker: enough that none idles while a batch is encoded
AHEAD = 4
HELD = 2**28  # bytes of pixels that wait at the most, and those of one image for each worker
Decoded = images.DecodedImage | InputError


class Pool:
    """Decodes with so many processes, or in this one where there are none.

    Close it, or use it as a context.
    """

    def __init__(
        self,
        workers: int,
        channels: int,
        background: images.Color,
        value_range: images.Range | None = None,
        crops: Crops = AS_THEY_ARE,
        processes: bool = True,
    ) -> None:
        """Starts processes if `processes` says that there are files for them. Data sets are read by
        threads.
        """
        self._channels, self._background, self._range = channels, background, value_range
        self._crops = crops
        self._is_quick = crops.size is None and crops.max_size is None
        count = workers if processes else 0
        self._workers = [_start(channels, background, value_range) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for each in self._workers:
            self._idle.put(each)
        self._threads = ThreadPoolExecutor(max(1, workers), thread_name_prefix="vqtok-bulk")
        self.ahead = AHEAD * max(1, workers)
        self._gate, self._asked = _Gate(), 0

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; what they are at is lost."""
        for each in self._workers:
            # first: a thread that waits for an answer goes on when the process is gone
            each.process.kill()
        self._gate.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for each in self._workers:
            each.close()

    def map(self, items: Iterable[tuple[T, Entry | None]]) -> Iterator[tuple[T, Decoded | None]]:
        """Yields each item with its image, or the InputError of one that cannot be read; None stays
        None. In order.

        VqtokError where a process has died: that says nothing of the image, the system may have
        ended it for want of memory.
        """
        waiting: deque[tuple[T, Future[Decoded] | Entry | None]] = deque()
        for item, entry in items:
            waiting.append((item, None if entry is None else self._submit(entry)))
            if len(waiting) > self.ahead:
                yield self._pop(*waiting.popleft())
        while waiting:
            yield self._pop(*waiting.popleft())

    def _submit(self, entry: Entry) -> "Future[Decoded] | Entry":
        """Begins to decode an image. An entry whose pixels are in memory is returned as it is: a
        thread takes longer than the copy.
        """
        if self._is_quick and entry.input and entry.input.reader and entry.input.reader.is_array:
            return entry
        self._asked += 1
        return self._threads.submit(self._enter, entry, self._asked - 1)

    def _pop(self, item: T, future: "Future[Decoded] | Entry | None") -> tuple[T, Decoded | None]:
        if future is None:
            return item, None
        if isinstance(future, Entry):
            return item, self._decode(future)
        found = future.result()
        self._gate.taken(_size(found))
        return item, found

    def _enter(self, entry: Entry, number: int) -> Decoded:
        self._gate.enter(number)
        found = self._decode(entry)
        self._gate.decoded(_size(found))
        return found

    def _decode(self, entry: Entry) -> Decoded:
        if entry.error is not None:
            return InputError(entry.error, "get the file again")
        if entry.input is not None and entry.input.reader is not None:
            return self._read(entry, entry.input.reader)
        try:
            data = _read_near(entry)
            if not self._workers:
                image = worker.decode(
                    entry.path,
                    entry.offset,
                    entry.size,
                    self._channels,
                    self._background,
                    self._range,
                    data=data,
                )
                return self._crops.cut(image, entry.full_name)
        except InputError as error:
            return error
        mine = self._idle.get()
        try:
            return mine.ask(entry, self._crops, data)
        finally:
            self._idle.put(mine)

    def _read(self, entry: Entry, reader: Reader) -> Decoded:
        """Reads an image of a data set, in this process."""
        try:
            image = reader.read(entry.offset, self._channels, self._background)
            return self._crops.cut(image, entry.full_name)
        except InputError as error:
            return error


class _Gate:
    """Lets an image be decoded while few bytes wait to be taken, or when it is the next to be
    taken: then nothing else can go on.
    """

    def __init__(self) -> None:
        self._changed, self._held, self._next, self._closed = threading.Condition(), 0, 0, False

    def enter(self, number: int) -> None:
        """Waits for the turn of an image: that of number 0 comes first."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._held <= HELD or number == self._next or self._closed
            )

    def decoded(self, size: int) -> None:
        with self._changed:
            self._held += size

    def taken(self, size: int) -> None:
        with self._changed:
            self._held, self._next = self._held - size, self._next + 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _read_near(entry: Entry) -> bytes | None:
    """The bytes of a small image in a remote tar, read with its neighbors; None of any other.

    Raises InputError for one that reaches past the end of its tar, which no server could give.
    """
    if entry.size is None or not files.is_url(entry.path):
        return None
    end, source = entry.offset + entry.size, entry.input
    packed = gzipped.is_packed(files.as_path(entry.path))
    if not packed and source is not None and source.bytes is not None and end > source.bytes:
        raise InputError("it is cut off by the end of the tar", "get the file again")
    if packed or entry.size > remote.NEAR_MAX:
        return None
    path = files.as_path(entry.path)
    assert isinstance(path, files.RemotePath)
    try:
        return remote.read_near(path, entry.offset, end)
    except FileNotFoundError:
        raise InputError("it does not exist", "check the name") from None
    except files.RemoteError as error:
        raise files.server_error(path, error) from None


def _size(found: Decoded) -> int:
    return found.pixels.nbytes if isinstance(found, images.DecodedImage) else 0


class _Worker:
    """Runs one process (see `worker`)."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self._requests, self._answers = process, process.stdin, process.stdout

    def ask(self, entry: Entry, crops: Crops, data: bytes | None = None) -> Decoded:
        request: dict[str, Any] = {
            "path": entry.path,
            "offset": entry.offset,
            "size": entry.size,
        }
        if not crops.is_none:
            request |= {"name": entry.full_name, "crops": asdict(crops)}
        if data is not None:
            request["sent"] = len(data)
        try:
            self._requests.write(json.dumps(request).encode() + b"\n" + (data or b""))
            self._requests.flush()
            line = self._answers.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            answer = json.loads(line)
            if "fix" in answer:
                raise files.ServerError(answer["error"], answer["fix"])
            if "error" in answer:
                return InputError(answer["error"], "get the file again")
            return images.DecodedImage(
                _pixels(self._answers, tuple(answer["shape"])),
                tuple(answer["notes"]),
                range=_pair(answer["range"]),
                narrow=_pair(answer["narrow"]),
                nan=answer["nan"],
            )
        except (OSError, EOFError, ValueError):  # ValueError: the pipe was closed here
            raise self._died(entry) from None

    def _died(self, entry: Entry) -> VqtokError:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        code = self.process.returncode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        return VqtokError(
            f"a process that decodes images was ended {how} while it read {entry.name}",
            "if memory ran out, give --workers 1; what is finished stays: go on with --resume",
        )

    def close(self) -> None:
        self.process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError, ValueError):
                pipe.close()


def _pixels(answers: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
    pixels = np.empty(shape, np.uint8)
    view, done = pixels.data.cast("B"), 0
    while done < len(view):
        got = answers.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        done += got
    return pixels


def _pair(value: list[float] | None) -> images.Range | None:
    return None if value is None else (value[0], value[1])


def _start(channels: int, background: images.Color, value_range: images.Range | None) -> _Worker:
    root = str(Path(worker.__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [
        sys.executable,
        "-m",
        "vqtok.bulk.worker",
        *map(str, (channels, *background, *(value_range or ()))),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return _Worker(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    )
