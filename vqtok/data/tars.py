"""The pictures in a tar, found one after another:
nothing is unpacked, and no list of them is kept.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vqtok.data import tar_index
from vqtok.data.tar_index import TarMember
from vqtok.images import IMAGE_SUFFIXES

MEMBER_LIMIT = 2**29  # bytes of one encoded picture in an archive


def is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES


def tar_pictures(path: Path) -> Iterator[TarMember]:
    """The pictures in a tar, in its order; names are a stranger's: never open them as paths.

    InputError where the file is no tar or is damaged comes after what stands before that; OSError
    where it cannot be read. The last picture may reach past the end of a tar that is cut off.
    """
    for member in tar_index.index(path):
        name = member.name.removeprefix("./")
        if is_picture(name):
            yield member._replace(name=name)
