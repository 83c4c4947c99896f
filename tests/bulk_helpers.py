"""What the tests of bulk encoding share: tars of images, and the bytes of a folder."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from conftest import image
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def image_files(
    count: int, sizes: tuple[tuple[int, int], ...] = ((16, 16),), first: int = 0
) -> dict[str, bytes]:
    """Names and contents of images, whose sizes (H, W) take turns."""
    return {
        f"{i:03}.png": png(image(*sizes[i % len(sizes)], seed=i))
        for i in range(first, first + count)
    }


def make_tar(path: str, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return Path(path)


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones, too."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
