"""What the fuzzer and the reading of readers have found, each as a file made by code:
it must be refused, soon, and with little memory.
"""

import gzip
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_helpers import saved, smooth
from PIL import Image

from attacks import archives, image_files, mutate
from attacks.archives import header, image, member, tar
from attacks.codes_files import FINGERPRINT, _as_varints, npy, tiny_coder
from vqtok import codes, data, images
from vqtok.data import archives as data_archives
from vqtok.data import tar as data_tar
from vqtok.errors import FormatError, InputError
from vqtok.images import read as images_read
from vqtok.images.tiff import read_tags


def red(path: Path) -> list[int]:
    """Rows of each image: `image(i)` has 6 + i."""
    found = data.open_data(path)
    return sorted(found.image(i).shape[0] - 6 for i in range(len(found)))


def peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(call: Callable[[Any], object], value: object) -> None:
    with pytest.raises(FormatError):
        call(value)


# Codes


def test_a_type_that_numpy_does_not_understand() -> None:
    """`np.dtype("<U9999999999")` is a TypeError, which no guard caught."""
    file = mutate.zipped(
        [
            ("indices.npy", npy("|u1", "(1, 1, 1, 1)", b"\0")),
            ("meta.npy", npy("<U9999999999", "()", b"")),
        ]
    )
    # NumPy 1.26 understands it
    with pytest.raises(FormatError, match=r"damaged header|claims 1345294332 bytes"):
        codes.read_plain_codes(file)


@pytest.mark.slow
def test_a_hundred_thousand_members_are_not_listed() -> None:
    """Each took 500 bytes as an object: 46 bytes of central directory."""
    file = mutate.zipped([("x", b"")] * 100_000)
    with pytest.raises(FormatError, match="more members"):
        codes.read_plain_codes(file)
    assert peak(lambda: refused(codes.read_plain_codes, file)) < len(file) / 10


def test_a_short_stream_that_claims_a_vast_grid_is_refused_where_it_ends() -> None:
    """300 bytes took 355 MiB and 4 s: all of the grid was laid out before
    the first index was read.
    """
    coder = tiny_coder()
    side = 14_000
    numbers = _as_varints([16, 1, 1, 1, 1]) + b"m" + _as_varints([side, side])
    stream = (
        b"\1\5" + bytes.fromhex(FINGERPRINT) + bytes(4) + bytes.fromhex(coder.fingerprint) + numbers
    )
    stream += bytes(3) + b"\1" + bytes(19_996)
    found = codes.read_any_codes(
        mutate.zipped([("stream.npy", npy("|u1", f"({len(stream)},)", stream))])
    )
    assert isinstance(found, codes.Compact)
    assert found.shape == (1, 1, side, side)
    assert peak(lambda: refused(coder.unpack, found)) < side * side


def test_a_coded_stream_longer_than_its_indices_can_be() -> None:
    """16 MiB of zeros behind a stream of 30 bytes became a list of 64 MiB, and would have become
    280 MiB of other numbers.
    """
    numbers = _as_varints([16, 8, 1, 1, 1]) + b"m" + _as_varints([8, 16])
    stream = b"\1\5" + bytes.fromhex(FINGERPRINT) + bytes(8) + numbers
    for extra, message in ((2 * 2 + 6, None), (2 * 2 + 7, "at most 10")):
        file = mutate.zipped(
            [("stream.npy", npy("|u1", f"({len(stream) + extra},)", stream + bytes(extra)))]
        )
        if message is None:
            assert isinstance(codes.read_any_codes(file), codes.Compact)
        else:
            with pytest.raises(FormatError, match=message):
                codes.read_any_codes(file)


def test_a_image_larger_than_any_that_is_read() -> None:
    """A few kB of deflated zeros claimed 23 GB of pixels, which decoding took."""
    with pytest.raises(FormatError, match="larger than any"):
        codes.Codes(
            np.zeros((1, 1, 1000, 1000), np.uint8), "m", FINGERPRINT, 2, 16, 3, ((16_000, 16_000),)
        )


# Tars

SIZES = {
    "-512": (-512, "no size"),
    "-1024": (-1024, "no size"),
    "tebibyte": (1 << 40, "past its end"),
    "2^94": (1 << 86, "past its end"),
}


@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"5x", b"S"])
@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_a_tar_that_lie(name: str, kind: bytes, tmp_path: Path) -> None:
    """tarfile goes round in a circle where one is negative (CVE-2025-8194), and reserves what
    an extended header claims.
    """
    size, message = SIZES[name]
    if kind in (b"x", b"L") and size > 0:
        message = "header of"
    field = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    path = tmp_path / "x.tar"
    path.write_bytes(
        tar(
            member("a.png", image()),
            header(b"b.png", 0, kind[:1], field=field),
            member("c.png", image()),
        )
    )
    if kind == b"5x" and size > 0:  # a folder has no bytes, whatever it says
        assert red(path) == [0, 0]
        return
    found = data.open_data(path)  # the image before the damage is used, and that is said
    assert len(found) == 1
    assert any(message in note for note in found.notes), found.notes


@pytest.mark.slow
def test_global_records_of_a_tar_are_not_copied_for_each_member(tmp_path: Path) -> None:
    """With tarfile 2,000 records and 10,000 members took 20 million copies,
    and 1 kB for each member.
    """
    records = member("g", b"".join(b"17 key%06d=x\n" % i for i in range(2000)), b"g")
    path = tmp_path / "x.tar"
    path.write_bytes(
        tar(records, *(header(b"%d.txt" % i) for i in range(5000)), member("a.png", image()))
    )
    assert peak(lambda: list(data_tar.index_tar(path))) < 2 << 20
    assert red(path) == [0]


def test_a_tar_is_indexed_as_tarfile_does(tmp_path: Path) -> None:
    """Names of 1 to 300 letters, in each format that tarfile writes."""
    import tarfile

    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = ["é.png", "a" * 96 + ".x", "d/" * 60 + "b.png"] + (
            [] if form == tarfile.USTAR_FORMAT else ["n" * 300, "ü" * 120]
        )
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w", format=form) as archive:
            for i, name in enumerate(names):
                info = tarfile.TarInfo(name)
                info.size = 700 * i
                archive.addfile(info, io.BytesIO(bytes([i]) * info.size))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        found = list(data_tar.index_tar(path))
        assert [name for name, _, _ in found] == names
        whole = path.read_bytes()
        assert [whole[offset : offset + size] for _, offset, size in found] == [
            bytes([i]) * 700 * i for i in range(len(names))
        ]


@pytest.mark.parametrize("size", ["-1", "1e9", "٣", "9" * 30])
def test_a_size_in_an_extended_header_that_is_none(size: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar(archives.pax(size=size), member("a.png", image())))
    with pytest.raises(InputError, match="no whole tar"):
        data.open_data(path)


# Zips and CIFAR


@pytest.mark.slow
def test_a_zip_member_that_is_no_image_is_not_unpacked(tmp_path: Path) -> None:
    """A kB of deflated zeros became 512 MB, twice."""
    path = tmp_path / "x.zip"
    path.write_bytes(mutate.zipped([("a.png", bytes(32 << 20)), ("b.png", image(1))]))
    assert peak(lambda: data.open_data(path)) < 4 << 20
    found = data.open_data(path)
    with pytest.raises(InputError, match="not an image"):
        found.image(0)
    assert found.image(1).shape[0] == 7


def test_a_zip_packed_with_damaged_lzma(tmp_path: Path) -> None:
    """lzma.LZMAError is none of the errors that zipfile promises."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", image() * 9)
        archive.writestr("b.png", image(1))
    content = bytearray(buffer.getvalue())
    content[60:100] = b"\xff" * 40
    path = tmp_path / "x.zip"
    path.write_bytes(bytes(content))
    with pytest.raises(InputError):
        data.open_data(path).image(0)


def test_batches_of_cifar_that_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty of 30 MB each took 1.8 GiB, from 600 kB."""
    monkeypatch.setattr("vqtok.data.cifar._LIMIT", 1 << 20)
    path = tmp_path / "cifar.tar.gz"
    names = [f"{i}/data_batch_{i % 10}.bin" for i in range(20)]
    path.write_bytes(gzip.compress(tar(*(member(name, bytes(3073 * 30)) for name in names)), 1))
    with pytest.raises(InputError, match="past its end"):
        data.open_data(path)


# Images

BUSY: dict[str, Callable[[], bytes]] = {
    "scans of a JPEG": lambda: image_files.jpeg_scans(16, 200),
    "scans of a large one": lambda: image_files.jpeg_scans(8000, 70),
    "packed BMP": lambda: image_files.bmp_rle(190_000_000, 1, b"\1\1\0\0"),
    "comments": lambda: b"P3 1000 1000 255\n" + b"#a\n" * 500_000,
    "comments in gray": lambda: b"P2 1 9 255\n" + b"#\n" * 2000,
}


@pytest.mark.parametrize("name", BUSY)
def test_small_files_that_keep_a_decoder_busy(name: str) -> None:
    """15 s for 190 kB of JPEG, 19 s for 60 bytes of BMP, 7 s for 1.5 MB of PPM."""
    with pytest.raises(InputError, match="would take minutes"):
        images.read_image(BUSY[name]())


def test_honest_files_of_those_kinds_are_read() -> None:
    assert images.read_image(image_files.jpeg_scans(16, 3)).pixels.shape == (16, 16, 3)
    assert images.read_image(image_files.bmp_rle(30, 2, b"\x1e\1\0\0\x1e\2\0\1")).pixels.shape == (
        2,
        30,
        3,
    )
    assert images.read_image(b"P3 2 1 255\n" + b"#a\n" * 900 + b"1 2 3 4 5 6 ").pixels.shape == (
        1,
        2,
        3,
    )
    photo = saved(Image.fromarray(smooth(64, 64)), "JPEG", progressive=True)
    # a phone's video behind its image
    assert images.read_image(photo + b"\xff\xda" * 1000).pixels.shape == (64, 64, 3)


@pytest.mark.slow
def test_pages_of_a_tiff_are_not_counted_for_ever() -> None:
    """40,000 pages took 8 s, and the time grows with their square."""
    assert images.read_image(image_files.tiff_pages(3)).notes == ("first of 3 pages",)
    assert images.read_image(image_files.tiff_pages(3000)).notes == ("first of many pages",)


def test_frames_of_a_large_animation_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert images.read_image(image_files.gif(1000)).notes == ("first of 1000 frames",)
    monkeypatch.setattr(images_read, "_COUNTED_BYTES", 1000)
    assert images.read_image(image_files.gif(1000)).notes == ("first of many frames",)


def test_all_that_is_read_may_be_a_image() -> None:
    """What an archive's member is told by, before it is unpacked."""
    for kind, content in image_files.wholes().items():
        assert images.may_be_image(content[: data_archives._START]), kind
    assert images.may_be_image(saved(Image.new("RGB", (2, 2)), "DIB")[: data_archives._START])
    assert not images.may_be_image(bytes(64))
    assert not images.may_be_image(struct.pack("<I", 0x04034B50) + bytes(60))


def test_many_tags_of_a_tiff_are_not_held_twice() -> None:
    """60,000 tags: Pillow's own parse takes 14 MB, and the reason was sought in a second one."""
    count = 60_000
    tags = b"".join(struct.pack("<HHI", 1000 + i, 3, 1) + b"\1\0\0\0" for i in range(count))
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + tags + bytes(4)
    assert read_tags(data) is None
    assert read_tags(data.replace(struct.pack("<H", count), struct.pack("<H", 9), 1)) is not None


@pytest.mark.parametrize("shape", [(0, 2**32 - 1, 2**31, 7), (2**30, 2**32 - 1, 7, 0)])
def test_idx_axes_of_which_one_is_empty(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """NumPy cannot reshape nothing to what overflows."""
    path = tmp_path / "x-images-idx3-ubyte"
    path.write_bytes(b"\0\0\x08\x04" + struct.pack(">4I", *shape))
    with pytest.raises(InputError, match="holds no images"):
        data.open_data(path)
