"""Lists the files in a tar and their offsets, from its headers alone: nothing is unpacked, no link
is followed, no name becomes a path.

Written here because Python's tarfile keeps a kilobyte for every header, reserves memory for what a
header claims, copies the global records for every member, and goes round in a circle where a size
is negative (CVE-2025-8194; Python 3.11.7 still does).
POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU tar's long names are understood;
sparse files, which no image is, are passed over.

The images in a tar, found one after another:
nothing is unpacked, and no list of them is kept.
"""

from collections.abc import Iterator
from io import BufferedIOBase, RawIOBase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vqtok.errors import InputError
from vqtok.gzipped import Gzipped, GzipStream, is_gzip, read_part
from vqtok.images import IMAGE_SUFFIXES, START, Recognizer

BLOCK = 512
_RECORDS_MAX = 1 << 20  # bytes of an extended header: names are at most a few kB
# ordinary files; all else are links, devices, pipes, folders, or headers
_FILES = (b"0", b"\0", b"7")
_NAMES = (b"L", b"K")  # GNU: the name, and the link's target, of the member that follows
_EXTENDED = (b"x", b"X")  # pax: records about the member that follows; g holds records about all

MEMBER_LIMIT = 2**29  # bytes of one encoded image in an archive


class TarMember(NamedTuple):
    """An ordinary file in a tar."""

    name: str
    offset: int  # of its bytes in the tar
    size: int


def index_tar(path: Path) -> Iterator[TarMember]:
    """Yields the ordinary files in a tar, in its order; the last one may reach past the end of a
    tar that is cut off.

    InputError, where a header is damaged or the file is no tar or cut off, comes after what stands
    before that. OSError: unreadable.
    """
    if is_gzip(path):
        yield from index_gzipped(Gzipped(path, marks=1))
        return
    with path.open("rb") as file:
        yield from index_tar_stream(file, path.stat().st_size, path)


def index_gzipped(source: Gzipped) -> Iterator[TarMember]:
    """Yields files as `index_tar`, of a tar that was packed whole: offsets are those in the
    unpacked tar.
    """
    last = None
    for last in index_tar_stream(GzipStream(source), 1 << 62, source.path):
        yield last
    end = 0 if last is None else last.offset + last.size
    source.check_rest()
    if end > source.reached:
        raise _damaged(source.path, "a member reaches past its end")


def index_tar_stream(
    file: BufferedIOBase | RawIOBase, length: int, path: Path
) -> Iterator[TarMember]:
    """Yields files as `index_tar`, from an open file of at most `length` bytes that is only ever
    read forwards; path is for errors.
    """
    at, records = 0, {}
    while (header := file.read(BLOCK)).strip(b"\0"):
        size = _checked(header, path)
        kind, data, at = header[156:157], at + BLOCK, at + BLOCK
        if kind in _NAMES or kind in _EXTENDED:
            records |= _records(file, kind, size, path)
        elif kind != b"g":
            size = _size(records, size, path)
            if kind in _FILES and not any(key.startswith("GNU.sparse") for key in records):
                yield TarMember(records.get("path", _name(header)), data, size)
            records = {}
            size = 0 if kind in b"123456" else size  # those have no bytes, whatever their size says
        at += -(-size // BLOCK) * BLOCK
        if at > length:
            raise _damaged(path, "a member reaches past its end")
        file.seek(at)
    if at == 0 and len(header) < BLOCK:  # zeros alone are an empty tar
        raise _damaged(path, "it has no header")
    if records:  # of a member that does not follow
        raise _damaged(path, "it is cut off")


def has_end(path: Path) -> bool:
    """Whether a tar ends in a block of zeros, its end mark: one that was cut off between two
    members has none; of one that gzip packed this is True, because its checksum tells. OSError:
    unreadable.
    """
    if is_gzip(path):
        return True
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - BLOCK))
        return not file.read(BLOCK).strip(b"\0")


def _checked(header: bytes, path: Path) -> int:
    """Returns the size in a header whose checksum is right."""
    if len(header) < BLOCK:
        raise _damaged(path, "it is cut off")
    total = sum(header) - sum(header[148:156]) + 8 * 32
    if _number(header[148:156]) != total:
        raise _damaged(path, "the checksum of a header is wrong")
    size = _number(header[124:136])
    if size is None or size < 0:
        raise _damaged(path, "a header holds no size")
    return size


def _number(field: bytes) -> int | None:
    """Parses octal digits, or, after a byte of 0x80, GNU's base 256; None where it is neither.

    A byte of 0xff is a negative one: None.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    return (
        int(digits or b"0", 8)
        if digits.isdigit() and b"8" not in digits and b"9" not in digits
        else 0
        if not digits
        else None
    )


def _name(header: bytes) -> str:
    name, prefix = (field.partition(b"\0")[0] for field in (header[:100], header[345:500]))
    joined = prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name
    return joined.decode("utf-8", "surrogateescape")


def _records(
    file: BufferedIOBase | RawIOBase, kind: bytes, size: int, path: Path
) -> dict[str, str]:
    """Parses what an extended header says of the member that follows."""
    if size > _RECORDS_MAX:
        raise _damaged(path, f"a header of {size} bytes")
    data = file.read(size)
    if len(data) < size:
        raise _damaged(path, "it is cut off")
    if kind in _NAMES:
        return (
            {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
            if kind == b"L"
            else {}
        )
    return dict(_pax(data, path))


def _pax(data: bytes, path: Path) -> Iterator[tuple[str, str]]:
    """Records "LENGTH KEY=VALUE\\n", of which the length counts itself too."""
    at = 0
    while at < len(data) and data[at]:
        digits = data[at : at + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1 : at + length].partition(b"=")
        if (
            length <= len(digits)
            or at + length > len(data)
            or not equals
            or not value.endswith(b"\n")
        ):
            raise _damaged(path, "an extended header")
        yield key.decode("utf-8", "surrogateescape"), value[:-1].decode("utf-8", "surrogateescape")
        at += length


def _size(records: dict[str, str], size: int, path: Path) -> int:
    """Returns the size of a member: that of its extended header, where there is one."""
    text = records.get("size")
    if text is None:
        return size
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _damaged(path, "an extended header")
    return int(text)


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is no whole tar: {why}", "copy or download it again")


def plain_name(name: str) -> str:
    """Returns a member's name without the ./ and ../ that it begins with, as tar unpacks it: of
    `tar.add("../images")` in Python all names begin so.
    """
    while name.startswith(("./", "../")):
        name = name.partition("/")[2].lstrip("/")
    return name


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not is_hidden(name)


def is_image_member(path: Path, member: TarMember, recognizer: Recognizer) -> bool:
    """Whether a member is an image, by its name or its first bytes; what is hidden is none."""

    def start() -> bytes:
        return read_part(path, member.offset, min(START, member.size))

    name = plain_name(member.name)
    return not is_hidden(name) and recognizer.is_image(name, start)
