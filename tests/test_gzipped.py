"""Tars that gzip packed are read where they lie: each byte, in any order, in bounded memory."""

import gzip
import io
import random
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bulk_helpers import image_files, make_tar
from cli_helpers import run
from conftest import image

from vqtok import gzipped
from vqtok.bulk.inputs import Inputs
from vqtok.bulk.worker import decode
from vqtok.cli.bulk import is_bulk
from vqtok.data import Split, open_data
from vqtok.errors import InputError
from vqtok.gzipped import Gzipped, read_part


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def pack_tar(path: str, members: dict[str, bytes]) -> bytes:
    """Writes the tar as gzip packs it; returns the plain one."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(gzip.compress(file.getvalue(), mtime=0))
    return file.getvalue()


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Two gzip members and padding in noise.gz: 400 kB, with a mark each 20 kB or so."""
    monkeypatch.setattr(gzipped, "_SPACING", 20_000)
    monkeypatch.setattr(gzipped, "_PIECE", 5_000)
    monkeypatch.setattr(gzipped, "_STEP", 3_000)
    data = random.Random(0).randbytes(300_000) + bytes(100_000)
    packed = gzip.compress(data[:123_456], 1) + gzip.compress(data[123_456:], 1)
    Path("noise.gz").write_bytes(packed + bytes(9_000))
    return data


def test_any_part_equals_that_of_the_unpacked_file(noise: bytes):
    source = Gzipped(Path("noise.gz"))
    draw = random.Random(1)
    for _ in range(100):
        start, size = draw.randrange(410_000), draw.randrange(20_000)
        assert source.read(start, size) == noise[start : start + size]
    source.check_rest()
    assert source.reached == len(noise)
    assert 10 <= len(source._marks) <= 22


def test_marks_stay_within_their_number(noise: bytes):
    source = Gzipped(Path("noise.gz"), marks=4)
    source.check_rest()
    assert len(source._marks) <= 4
    assert [source.read(at, 9) for at in (350_000, 5, 250_000)] == [
        noise[at : at + 9] for at in (350_000, 5, 250_000)
    ]


def test_threads_do_not_disturb_each_other(noise: bytes):
    source = Gzipped(Path("noise.gz"))
    places = [random.Random(i).randrange(390_000) for i in range(64)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda at: source.read(at, 5_000), places))
    assert found == [noise[at : at + 5_000] for at in places]


def test_a_wrong_checksum_and_a_cut_are_told(noise: bytes):
    whole = Path("noise.gz").read_bytes().rstrip(b"\0")
    Path("cut.gz").write_bytes(whole[:-9])
    with pytest.raises(InputError, match="cut off"):
        Gzipped(Path("cut.gz")).check_rest()
    changed = bytearray(gzip.compress(noise))
    changed[-6] ^= 1
    Path("sum.gz").write_bytes(changed)
    with pytest.raises(InputError, match="incorrect data check"):
        Gzipped(Path("sum.gz")).check_rest()


def test_a_bomb_ends_early(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gzipped, "_FREE", 1 << 20)
    Path("bomb.tar.gz").write_bytes(gzip.compress(bytes(1 << 25)))
    with pytest.raises(InputError, match="more than 200 times its size"):
        Gzipped(Path("bomb.tar.gz")).check_rest()


def test_a_changed_file_is_read_anew():
    for text in (b"one", b"three"):
        Path("a.gz").write_bytes(gzip.compress(text))
        assert read_part(Path("a.gz"), 0, 9) == text
        Path("a.gz").unlink()


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar"])
def test_a_folder_of_packed_tars_gives_what_plain_ones_give(suffix: str):
    names = ("train-0", "train-1", "val-0")
    Path("plain").mkdir()
    for i, name in enumerate(names):
        members = dict[str, bytes]()
        for key, content in image_files(3, first=3 * i).items():
            members |= {key: content, key.replace(".png", ".cls"): b"%d" % (i + 1)}
            members[key.replace(".png", ".txt")] = b"caption of %d" % i
        make_tar(f"plain/{name}.tar", members)
        pack_tar(f"packed/{name}{suffix}", members)
    counts: tuple[tuple[Split, int], ...] = (("train", 6), ("test", 3))
    for split, count in counts:
        plain, packed = open_data(Path("plain"), split), open_data(Path("packed"), split)
        assert packed.split == split
        assert (packed.digest(), packed.labels) == (plain.digest(), plain.labels)
        assert len(packed) == count
        for i in reversed(range(count)):
            assert np.array_equal(packed.image(i), plain.image(i))
            assert packed.label(i) == plain.label(i)
            assert packed.caption(i) == plain.caption(i)
    assert is_bulk(["packed"])
    inputs, beside = Inputs(["packed"]), Inputs(["plain"])
    for source, other in zip(inputs.all, beside.all, strict=True):
        (chunk,), (expected,) = inputs.chunks(source, 9), beside.chunks(other, 9)
        assert chunk.checksum == expected.checksum
        for entry, wanted in zip(chunk.entries, expected.entries, strict=True):
            a = decode(entry.path, entry.offset, entry.size, 3, (255, 255, 255))
            b = decode(wanted.path, wanted.offset, wanted.size, 3, (255, 255, 255))
            assert np.array_equal(a.pixels, b.pixels)
            assert inputs.facts(entry) == beside.facts(wanted)


def test_a_packed_tar_is_named_by_itself_by_globs_and_by_braces():
    for n in range(3):
        pack_tar(f"s-{n:03}.tar.gz", image_files(1, first=n))
    for word in ("s-001.tar.gz", "s-{000..001}.tar.gz", "s-*.tar.gz"):
        assert is_bulk([word])
    assert len(Inputs(["s-{000..001}.tar.gz"]).all) == 2
    assert len(Inputs(["s-*"]).all) == 3
    assert len(open_data("s-*.tar.gz")) == 3
    assert len(open_data("s-{000..001}.tar.gz")) == 2
    assert np.array_equal(open_data(Path("s-002.tar.gz")).image(0), image(16, 16, seed=2))


def test_the_rest_of_a_cut_tar_is_named_once_and_is_no_image(toy: Path):
    pack_tar("a.tar.gz", image_files(9))
    data = Path("a.tar.gz").read_bytes()
    Path("a.tar.gz").write_bytes(data[: len(data) * 2 // 3])
    for again in ([], ["--resume"]):
        done = run("encode", "a.tar.gz", "-o", "out", *again)
        last = done.stderr.splitlines()[-1]
        found = re.fullmatch(r"(\d) of (\d) failed; the rest of 1 tar cannot be read", last)
        assert (done.exit_code, found is not None) == (1, True), done.stderr
        assert found is not None
        assert (found[1], int(found[2]) < 9) == ("1", True)  # the image that the cut goes through
        if not again:
            assert "\nvqtok: error: a.tar.gz: the rest of the tar cannot be read" in done.stderr


def test_a_packed_tar_that_is_cut_gives_what_stands_before():
    members = {f"{i}.jpg": content for i, content in enumerate(image_files(9).values())}
    pack_tar("z/a.tar.gz", members)
    data = Path("z/a.tar.gz").read_bytes()
    Path("z/a.tar.gz").write_bytes(data[: len(data) * 2 // 3])
    found = open_data(Path("z"))
    assert 3 <= len(found) <= 7
    assert any("a.tar.gz is no whole gzip file: it is cut off" in note for note in found.notes)
    for i in range(len(found)):
        assert found.image(i).shape == (16, 16, 3)
    inputs = Inputs(["z"])
    (chunk,) = inputs.chunks(inputs.all[0], 20)
    assert chunk.entries[-1].error is not None
    entry = chunk.entries[-2]
    with pytest.raises(InputError, match="cut off by the end of the tar"):
        decode(entry.path, entry.offset, entry.size, 3, (255, 255, 255))


def test_images_in_an_archive_that_is_called_like_cifar():
    """fast.ai's cifar10.tgz holds PNG files in folders."""
    members = {f"cifar10/train/{k}/{i}.png": image_files(1)["000.png"] for k in "ab" for i in "12"}
    pack_tar("cifar10.tgz", members)
    data = open_data(Path("cifar10.tgz"))
    assert (len(data), data.labels) == (4, ("a", "b"))
    assert len(Inputs(["cifar10.tgz"]).all) == 1
