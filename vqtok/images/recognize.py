"""Recognizes image files by their suffix, else by their first bytes; counts those of formats that
are not read.
"""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from vqtok.images.read import IMAGE_SUFFIXES, foreign_kind

START = 132  # bytes that tell: of DICOM, the last four of them
# images of other programs, or photos that a camera left undeveloped: Pillow would give a preview
_FOREIGN = """
    .heic .heif .hif .jxl .jxr .wdp .jls .dng .cr2 .cr3 .nef .nrw .arw .orf .rw2 .raf .pef .srw
    .psd .exr .hdr .tga .dcm .dicom .svg .nii .svs .ndpi .czi .nd2 .lif .fits .mrc
"""
# known to be none: not looked into, for a folder may hold one for each image
_NO_IMAGES = """
    .txt .json .jsonl .cls .csv .tsv .xml .yaml .yml .toml .md .html .htm .css .js .py .ipynb .sh
    .pt .pth .ckpt .npy .npz .safetensors .pkl .pickle .bin .mat .h5 .hdf5 .parquet .arrow .mds
    .mp4 .mov .avi .mkv .webm .mp3 .wav .flac .ogg .zip .tar .gz .tgz .bz2 .xz .zst .7z .rar .pdf
    .log .lock .db .ini .cfg .idx .caption .part .crdownload .tmp .bak .ico
"""
_ARCHIVES = frozenset((".tar", ".tgz", ".zip", ".7z", ".rar"))
_FOREIGN_SUFFIXES, _OTHER_SUFFIXES = frozenset(_FOREIGN.split()), frozenset(_NO_IMAGES.split())
# stricter than `read.may_be_image`, which looks at what is said to be an image
_CONTENT = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP|....ftyp(avi[fs]|mi[af]f|mif1....(....)*avif)"
    rb"|GIF8[79]a|II[*+]\0|MM\0[*+]|\0\0\0\x0cjP  |\xff\x4f\xff\x51|qoif"
    rb"|BM....\0\0\0\0...\0[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|P[1-6][ \t\r\n]+(#|[0-9]+\s)",
    re.DOTALL,
)


class Recognizer:
    """Tells images from other files, and counts those of formats that vqtok does not read."""

    def __init__(self) -> None:
        self.passed: dict[str, int] = {}
        self.archives = 0  # in the archive or beside the images

    def is_image(self, name: str, start: Callable[[], bytes]) -> bool:
        """Whether a file is an image that can be read; `start` gives its first START bytes, and
        is asked where the name does not say it.
        """
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            return True
        if suffix in _FOREIGN_SUFFIXES:
            self._count(suffix)
            return False
        if suffix in _OTHER_SUFFIXES:
            if suffix in _ARCHIVES or name.lower().endswith(".tar.gz"):
                self.archives += 1
            return False
        try:
            found = start()
        except (OSError, ValueError, RuntimeError, EOFError):
            return False
        if _CONTENT.match(found):
            return True
        kind = foreign_kind(found).removeprefix("a ").removesuffix(" image")
        if kind or found[128:132] == b"DICM":
            self._count(kind or "DICOM")
        return False

    def is_image_file(self, path: Path) -> bool:
        """Decides as `is_image`, for a file on disk."""

        def start() -> bytes:
            with path.open("rb") as file:
                return file.read(START)

        return self.is_image(path.name, start)

    def _count(self, kind: str) -> None:
        self.passed[kind] = self.passed.get(kind, 0) + 1

    def note(self) -> str:
        """Says in one line what was passed over; empty where nothing was."""
        packed = f"passed over {self.archives:,} archives: unpack them, and give the folder."
        packed = packed.replace("1 archives: unpack them", "1 archive: unpack it")
        if not self.passed:
            return packed if self.archives else ""
        counted = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.passed.items()))
        first = f"passed over {counted}: vqtok does not read these; convert them to PNG or JPEG."
        return f"{first} {packed}" if self.archives else first
