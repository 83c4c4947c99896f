"""Zips and tar shards as files that are read one by one, where they lie."""

import os
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path

from vqtok import files, images
from vqtok.data import arrays, foreign
from vqtok.data.dataset import DataOptions, ImageFiles
from vqtok.data.listing import Files, images_of, is_text
from vqtok.data.place import Place
from vqtok.data.splits import Split
from vqtok.data.tar import (
    MEMBER_LIMIT,
    TarMember,
    index_gzipped,
    index_tar,
    is_hidden,
    is_image,
    is_image_member,
    plain_name,
)
from vqtok.errors import InputError
from vqtok.gzipped import MARKS, Gzipped, is_gzip

_MARKS_MAX = 4096  # copies of decompressors, 36 KB each, of all tars that gzip packed
_START = 64  # first bytes, by which images are recognized


def zip_source(place: Place, split: Split, options: DataOptions) -> ImageFiles | None:
    """Opens a zip of image files; of arrays it is an .npz, which is asked for before."""
    if not place.head.startswith(b"PK"):
        return None
    if refused := foreign.refuse_file(place.path):  # torch.save writes zips
        raise refused
    return images_of(zip_files(place.path), split, options)


def zip_files(path: Path) -> Files:
    """Lists the images in a zip, and the texts beside them. Raises InputError."""
    try:
        archive = zipfile.ZipFile(path)
    except arrays.BROKEN as error:
        raise InputError(f"{path} is a damaged zip: {error}", "copy or download it again") from None
    recognizer = images.Recognizer()

    def is_wanted(member: zipfile.ZipInfo) -> bool:
        def start() -> bytes:
            try:
                with archive.open(member) as file:
                    return file.read(images.START)
            except arrays.BROKEN as error:
                raise ValueError(str(error)) from None

        name = plain_name(member.filename)
        if name.endswith("/") or is_hidden(name):
            return False
        return is_text(name) or recognizer.is_image(name, start)

    members = [m for m in archive.infolist() if is_wanted(m)]
    members.sort(key=lambda m: m.filename)
    lock = threading.Lock()  # one file handle, so one seek at a time; decoding is outside of it

    def fetch(index: int) -> bytes:
        member = members[index]
        if member.file_size > MEMBER_LIMIT:
            raise InputError(
                f"{member.filename} claims {member.file_size} bytes", "remove it from the zip"
            )
        try:
            with lock:
                return _read_member(archive, member)
        except (*arrays.BROKEN, OSError) as error:
            raise InputError(
                f"{member.filename} in {path} is damaged: {error}", "pack the zip again"
            ) from None

    names = [plain_name(member.filename) for member in members]
    notes = tuple(filter(None, [recognizer.note()]))
    return Files(path.name, names, fetch, lambda i: members[i].file_size, notes=notes)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Reads a member's bytes. Raises ValueError where they are no image's, before more than the
    first of them are unpacked.
    """
    with archive.open(member) as file:
        start = file.read(_START)
        if is_image(member.filename) and not images.may_be_image(start):
            raise ValueError("it is not an image")
        data = bytearray(start)
        while piece := file.read(1 << 20):  # all at once, zipfile would hold them twice
            data += piece
    return bytes(data)


def tar_files(paths: Sequence[Path], name: str, root: Path | None = None) -> Files:
    """Lists the images in tars, and the texts beside them; each is then one read at a known offset.

    Of a tar that gzip packed, what stands before an image is unpacked again for it, a few MiB.
    An empty tar holds none; of one that is cut off, those before the cut are used, with a line
    that says so. Raises InputError where no tar can be read. `root`: shards are named from there.
    """
    members = list[tuple[Path, TarMember]]()
    broken, notes, recognizer = list[InputError](), list[str](), images.Recognizer()
    packed = [path for path in paths if is_gzip(path)]
    marks = min(MARKS, _MARKS_MAX // max(1, len(packed)))
    gzipped = {path: Gzipped(path, marks) for path in packed}
    for path in paths:
        found, error = _index(path, gzipped.get(path), recognizer)
        members += [(path, member) for member in found]
        if error is not None:
            broken.append(error)
            used = files.human_count(len(found), "file")
            notes.append(f"{error}; used before that: {used}.")
    if broken and not members:
        raise broken[0]
    notes += filter(None, [recognizer.note()])

    def fetch(index: int) -> bytes:
        path, member = members[index]
        try:
            if path in gzipped:
                return gzipped[path].read(member.offset, member.size)
            # each time anew, 10 µs: no handle is shared by threads or left open
            with path.open("rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise InputError(
                f"{member.name} in {path}: {error.strerror}", "check the disk"
            ) from None

    shown = {
        path: path.relative_to(root).as_posix() if root else os.path.basename(path)
        for path in paths
    }
    return Files(
        name if len(paths) == 1 else f"{len(paths)} shards of {name}",
        [member.name for _, member in members],
        fetch,
        lambda i: members[i][1].size,
        [shown[path] for path, _ in members],
        is_tar=True,
        notes=tuple(notes),
    )


def _index(
    path: Path, gzipped: Gzipped | None, recognizer: images.Recognizer
) -> tuple[list[TarMember], InputError | None]:
    """Lists the files wanted in a tar, and what is wrong with what comes after them."""
    length, found = path.stat().st_size if gzipped is None else 1 << 62, list[TarMember]()
    try:
        for member in index_tar(path) if gzipped is None else index_gzipped(gzipped):
            name = plain_name(member.name)
            fits = member.size <= MEMBER_LIMIT and member.offset + member.size <= length
            wanted = is_text(name) and not is_hidden(name)
            if fits and (wanted or is_image_member(path, member, recognizer)):
                found.append(member._replace(name=name))
    except InputError as error:
        if gzipped is not None and found and found[-1].offset + found[-1].size > gzipped.reached:
            found.pop()
        return found, error
    return found, None
