"""The pictures in a tar, found one after another without unpacking anything and without a list of them."""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vqtok.data.arrays import BROKEN
from vqtok.errors import InputError
from vqtok.images import IMAGE_SUFFIXES

MEMBER_LIMIT = 2**29     # bytes of one encoded picture in an archive


def is_picture(name: str) -> bool:
    """Whether a name in an archive is that of a picture, by its suffix; hidden ones and those that macOS adds are not."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES


def tar_pictures(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, bytes) of each picture in a tar, in its order. Names are a stranger's: never open them as paths.

    InputError where the file is no tar, or from where on it is damaged: what comes before has been given by then. The last one
    may reach past the end of a tar that is cut off.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []        # type: ignore[attr-defined] # tarfile keeps all that it has seen: 1 kB each
                if member.isreg() and not member.issparse() and is_picture(member.name.removeprefix("./")):
                    yield member.name.removeprefix("./"), member.offset_data, member.size
    except BROKEN as error:
        raise InputError(f"{path} is no whole tar: {error}", "copy or download it again") from None
