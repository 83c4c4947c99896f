"""A process that decodes images: requests on standard input, pixels on standard
output, until its input ends.

A request is a line of JSON: `path`, `offset`, `size` (see `Entry`). An answer is a line of JSON,
`shape` [H, W, C] and `notes`, or `error`; then H * W * C bytes. Not multiprocessing: that imports
the caller's script again, and pickles.
"""

import json
import os
import signal
import stat
import sys
from typing import Any, BinaryIO

import numpy as np

from vqtok import images
from vqtok.errors import InputError, VqtokError


def decode(
    path: str, offset: int, size: int | None, channels: int, background: images.Color
) -> images.DecodedImage:
    """The image in a file, or in that part of one.

    InputError says nothing of the path, so that it is the same on every machine.
    """
    try:
        return images.read_image(_bytes(path, offset, size), channels, background)
    except VqtokError as error:
        named = str(error).replace(path, "the image")
        raise InputError(named, error.fix, error.command_fix) from None


def _bytes(path: str, offset: int, size: int | None) -> bytes:
    if size is not None and size > images.MAX_BYTES:
        raise InputError(f"the image claims {size} bytes", "remove it")
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError("it is not an ordinary file", "name a file")
            file.seek(offset)
            data = file.read(
                images.MAX_BYTES + 1 if size is None else min(size, os.fstat(file.fileno()).st_size)
            )
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


def serve(requests: BinaryIO, answers: BinaryIO, channels: int, background: images.Color) -> None:
    """Answers requests until there are no more."""
    while line := requests.readline():
        pixels, answer = np.empty(0, np.uint8), dict[str, Any]()
        try:
            image = decode(**json.loads(line), channels=channels, background=background)
            pixels, answer = image.pixels, {"shape": image.pixels.shape, "notes": image.notes}
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
    try:
        serve(sys.stdin.buffer, answers, int(sys.argv[1]), (red, green, blue))
    except BrokenPipeError:
        os._exit(1)  # the parent is gone


if __name__ == "__main__":
    main()
