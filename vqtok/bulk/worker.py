"""Decodes images in a process: requests on standard input, pixels on standard output, until its
input ends.

A request is a line of JSON: `path`, `offset`, `size` (see `Entry`), and where images are cropped
`name` and `crops`. Where the image was read already, `sent` is how many bytes of it follow. An
answer is a line of JSON, `shape` [H, W, C], or [n, H, W, C] of crops, and `notes`, or `error`, with
`fix` where all must stop; then the bytes of the pixels. Not multiprocessing: that imports the
caller's script again, and pickles.
"""

import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vqtok import files, gzipped, images, remote
from vqtok.bulk.crops import Crops
from vqtok.errors import InputError, VqtokError


def decode(
    path: str,
    offset: int,
    size: int | None,
    channels: int,
    background: images.Color,
    value_range: images.Range | None = None,
    name: str = "",
    crops: dict[str, Any] | None = None,
    data: bytes | None = None,
) -> images.DecodedImage:
    """Decodes the image in a file, or in that part of one; with the settings of `crops`, makes the
    copies of it: pixels (n, H, W, C). `data` are its bytes, where they were read already.

    InputError says nothing of the path, so that it is the same on every machine.
    """
    try:
        data = _bytes(path, offset, size) if data is None else data
        image = images.read_image(data, channels, background, value_range=value_range)
        return image if crops is None else Crops(**crops).cut(image, name)
    except files.ServerError:
        raise
    except VqtokError as error:
        named = str(error).replace(path, "the image")
        raise InputError(named, error.fix, error.command_fix) from None


def _bytes(path: str, offset: int, size: int | None) -> bytes:
    if size is not None and size > images.MAX_BYTES:
        raise InputError(f"the image claims {size} bytes", "remove it")
    try:
        if files.is_url(path):
            return _remote_bytes(files.as_path(path), offset, size)
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError("it is not an ordinary file", "name a file")
            if size is None:
                data = file.read(images.MAX_BYTES + 1)
            else:
                data = _part(Path(path), offset, size)
    except OSError as error:
        raise InputError(
            f"it cannot be read: {error.strerror}", "check the file and the disk"
        ) from None
    if len(data) > images.MAX_BYTES or (size is not None and len(data) < size):
        raise InputError(
            "it is cut off by the end of the tar" if size is not None else "it is too large",
            "get the file again",
        )
    return data


def _part(path: Path, offset: int, size: int) -> bytes:
    """Those bytes of a tar, fewer at its end. Raises OSError."""
    try:
        return gzipped.read_part(path, offset, size)
    except files.RemoteError:
        raise
    except InputError:  # a gzip file that is cut off
        return b""


def _remote_bytes(path: Path, offset: int, size: int | None) -> bytes:
    """Reads bytes of a file on a server: a part in one request, a whole file in two."""
    assert isinstance(path, files.RemotePath)
    try:
        if size is not None and path.suffix.lower() in (".gz", ".tgz"):
            return _part(path, offset, size)
        whole = path.stat().st_size if size is None else size
        if whole > images.MAX_BYTES:
            raise InputError("it is too large", "remove it")
        return remote.read(path, offset, offset + whole)
    except FileNotFoundError:
        raise InputError("it does not exist", "check the name") from None
    except files.RemoteError as error:
        raise files.server_error(path, error) from None


def serve(
    requests: BinaryIO,
    answers: BinaryIO,
    channels: int,
    background: images.Color,
    value_range: images.Range | None = None,
) -> None:
    """Answers requests until there are no more."""
    while line := requests.readline():
        pixels, answer = np.empty(0, np.uint8), dict[str, Any]()
        try:
            request = json.loads(line)
            sent = request.pop("sent", None)
            image = decode(
                **request,
                data=None if sent is None else requests.read(sent),
                channels=channels,
                background=background,
                value_range=value_range,
            )
            pixels, answer = (
                image.pixels,
                {
                    "shape": image.pixels.shape,
                    "notes": image.notes,
                    "range": image.range,
                    "narrow": image.narrow,
                    "nan": image.nan,
                },
            )
        except files.ServerError as error:
            answer = {"error": str(error), "fix": error.fix}
        except VqtokError as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": "the image does not fit into memory"}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(pixels.data)
        answers.flush()


def main() -> None:
    # ctrl-C reaches all processes of a terminal: the parent ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not print into the pixels
    red, green, blue = map(int, sys.argv[2:5])
    given = (float(sys.argv[5]), float(sys.argv[6])) if len(sys.argv) > 6 else None
    try:
        serve(sys.stdin.buffer, answers, int(sys.argv[1]), (red, green, blue), given)
    except BrokenPipeError:
        os._exit(1)  # the parent is gone


if __name__ == "__main__":
    main()
