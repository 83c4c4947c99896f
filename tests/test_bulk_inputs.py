"""What bulk encoding takes up, in which order and in which shares."""

import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from bulk_helpers import image_files, make_tar, png
from cli_helpers import ok, run, save
from conftest import image

from vqtok import images
from vqtok.bulk import inputs as bulk_inputs
from vqtok.bulk.inputs import Chunk, Entry, Inputs, WorkSlice
from vqtok.errors import InputError, UsageError


def chunks(inputs: Inputs, size: int) -> list[Chunk]:
    return [chunk for source in inputs.all for chunk in inputs.chunks(source, size)]


def names(words: list[str]) -> list[str]:
    return [entry.name for chunk in chunks(Inputs(words), 3) for entry in chunk.entries]


def test_tars_come_first_and_loose_images_last():
    make_tar("a.tar", image_files(2))
    make_tar("deep.tar", image_files(1, first=7))
    for name in ("in/z.png", "in/b/a.png", "in/b/.hidden.png", "in/a.jpg"):
        save(name)
    Path("in/notes.txt").write_text("no image")
    os.rename("deep.tar", "in/b/deep.tar")
    found = Inputs(["in", "a.tar"])
    assert [(source.name, source.bytes is None) for source in found.all] == [
        ("b/deep.tar", False),
        ("a.tar", False),
        ("pictures", True),
    ]
    assert names(["in", "a.tar"]) == ["007.png", "000.png", "001.png", "a.jpg", "z.png", "b/a.png"]
    save("more/x.png")
    assert names(["in", "more"])[1:] == ["in/a.jpg", "in/z.png", "in/b/a.png", "more/x.png"]
    assert names(["in/*.png", "in/a.jpg"]) == ["z.png", "a.jpg"]


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(0, 3, [0]), (1, 3, [1]), (3, 3, [3]), (4, 3, [3, 1]), (6, 3, [3, 3]), (2, 1, [1, 1])],
)
def test_chunks_are_full_but_the_last(count: int, size: int, lengths: list[int]):
    make_tar("a.tar", {"notes.txt": b"x", **image_files(count)})
    found = chunks(Inputs(["a.tar"]), size)
    assert [len(chunk.entries) for chunk in found] == lengths
    assert [chunk.last for chunk in found] == [False] * (len(lengths) - 1) + [True]
    assert [chunk.stem for chunk in found] == [f"00000-{i:05}" for i in range(len(lengths))]


def test_entries_say_where_the_bytes_lie():
    members = image_files(3)
    path = make_tar("a.tar", {"notes.txt": b"x", **members, "__MACOSX/x.png": b"x"})
    (chunk,) = chunks(Inputs(["a.tar"]), 10)
    for entry, (name, content) in zip(chunk.entries, members.items(), strict=True):
        assert entry.size is not None
        assert (entry.name, path.read_bytes()[entry.offset : entry.offset + entry.size]) == (
            name,
            content,
        )


def test_the_checksum_tells_other_images():
    make_tar("a.tar", image_files(2))
    make_tar("b.tar", {"x.png": png(image(9, 9)), "001.png": png(image(16, 16, seed=1))})
    (one,), (two,) = (chunks(Inputs([name]), 5) for name in ("a.tar", "b.tar"))
    assert one.checksum == chunks(Inputs(["a.tar"]), 5)[0].checksum != two.checksum


def test_damage_is_an_entry_after_what_can_be_read():
    whole = make_tar("a.tar", image_files(3)).read_bytes()
    Path("a.tar").write_bytes(whole[: 512 + 200])
    (chunk,) = chunks(Inputs(["a.tar"]), 5)
    assert [entry.error is None for entry in chunk.entries] == [True, False]
    Path("b.tar").write_bytes(b"no tar" * 200)
    (chunk,) = chunks(Inputs(["b.tar"]), 5)
    assert "the rest of the tar cannot be read" in (chunk.entries[0].error or "")


def test_folders_and_links_that_cannot_be_read_are_entries(monkeypatch: pytest.MonkeyPatch):
    save("in/a.png")
    save("in/closed/b.png")
    os.symlink("gone", "in/broken.png")
    os.symlink(".", "in/loop")
    os.mkfifo("in/pipe.png")
    scandir = os.scandir

    def refuse(folder: str):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    (chunk,) = chunks(Inputs(["in"]), 9)
    assert chunk.entries == (
        Entry("a.png", "in/a.png"),
        Entry("broken.png", "in/broken.png"),
        Entry("closed/", "in/closed", error="the folder cannot be listed"),
    )


def test_inputs_that_make_no_sense():
    Path("empty").mkdir()
    Path("a.tar.bz2").write_bytes(b"BZh")
    with pytest.raises(UsageError, match="standard input"):
        Inputs(["-"])
    with pytest.raises(InputError, match="is compressed"):
        Inputs(["a.tar.bz2"])
    with pytest.raises(InputError, match="no images and no tars"):
        Inputs(["empty"])
    with pytest.raises(InputError, match=r"missing\.tar does not exist"):
        Inputs(["missing.tar"])


@pytest.mark.parametrize("tars", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shares_are_disjoint_and_complete(tars: int, parts: int):
    for i in range(tars):
        make_tar(f"{i}.tar", {"notes.txt": b"x", **image_files(i)})
    save("in/a.png")
    save("in/b.png")
    inputs = Inputs(["in", *(f"{i}.tar" for i in range(tars))])
    taken = []
    for share in (WorkSlice(index, parts) for index in range(parts)):
        for source in inputs.all:
            whole = share.takes_input(source, inputs.tars)
            if whole is not False:
                taken += [
                    chunk.stem
                    for chunk in inputs.chunks(source, 1)
                    if whole or share.takes(source, chunk.number)
                ]
    assert sorted(taken) == [chunk.stem for chunk in chunks(inputs, 1)]
    if tars >= parts:  # then nobody needs to look into another's
        assert all(
            WorkSlice(0, parts).takes_input(source, tars) in (True, False)
            for source in inputs.all[:-1]
        )


def test_a_share_is_given_or_torchruns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert WorkSlice.parse(None) == WorkSlice(0, 1)
    assert WorkSlice.parse("2/5") == WorkSlice(2, 5)
    monkeypatch.setenv("RANK", "1")
    assert WorkSlice.parse(None) == WorkSlice(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert WorkSlice.parse(None) == WorkSlice(1, 4)
    assert WorkSlice.parse("0/1") == WorkSlice(0, 1)
    for bad in ("4/4", "1", "a/b", "-1/2", "1/0", "1/2/3", "²/3", ""):
        with pytest.raises(UsageError, match="--shard is"):
            WorkSlice.parse(bad)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(UsageError, match="RANK/WORLD_SIZE is '4/4'"):
        WorkSlice.parse(None)


@pytest.mark.slow
def test_listing_a_tar_holds_no_list():
    make_tar("a.tar", dict.fromkeys((f"{i:05}.png" for i in range(5000)), b"x"))
    tracemalloc.start()
    count = sum(1 for _ in bulk_inputs._wanted(Path("a.tar"), images.Recognizer()))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 5000
    assert most < 300_000  # tarfile took 5 MB


def test_a_size_below_zero_is_damage():
    """Python's tarfile goes round in a circle with it (CVE-2025-8194)."""
    header = bytearray(make_tar("a.tar", {"a.png": b"x"}).read_bytes())
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    Path("a.tar").write_bytes(header)
    (chunk,) = chunks(Inputs(["a.tar"]), 5)
    assert "the rest of the tar cannot be read" in (chunk.entries[0].error or "")


def samples_of(count: int) -> dict[str, bytes]:
    """Six members a sample of webdataset, of which three are images."""
    return {
        f"s{i}.{field}": b"x"
        for i in range(count)
        for field in ("cls", "depth.png", "jpg", "json", "seg.png", "txt")
    }


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_one_image_a_sample(kind: str):
    if kind == "tar":
        make_tar("s.tar", samples_of(6))
    else:
        Path("s").mkdir()
        for name, data in samples_of(6).items():
            (Path("s") / name).write_bytes(data)
    for member, field in (("", "jpg"), ("seg.png", "seg.png"), ("depth", "depth.png")):
        inputs = Inputs(["s.tar" if kind == "tar" else "s"], member)
        found = [e.name for c in inputs.chunks(inputs.all[0], 4) for e in c.entries]
        assert found == [f"s{i}.{field}" for i in range(6)]
        assert sum(inputs.left_out.values()) == 12
        assert "left out 6" in inputs.note()


def test_damage_is_told_beside_a_member_of_the_same_key():
    data = make_tar("s.tar", {"s.jpg": b"x", "t.jpg": b"y"}).read_bytes()
    Path("s.tar").write_bytes(data[: 1024 + 100])
    inputs = Inputs(["s.tar"])
    (chunk,) = inputs.chunks(inputs.all[0], 10)
    assert [entry.error is None for entry in chunk.entries] == [True, False]


def test_folders_of_tars_are_bulk_without_the_option():
    from vqtok.cli.bulk import is_bulk

    Path("shards/train").mkdir(parents=True)
    make_tar("shards/train/0.tar", image_files(1))
    assert is_bulk(["shards"])
    Path("shards/x.png").write_bytes(b"x")
    assert not is_bulk(["shards"])
    for n in range(3):
        make_tar(f"p-{n:03}.tar", image_files(1))
    assert is_bulk(["p-{000..001}.tar"])
    assert [source.name for source in Inputs(["p-{000..001}.tar"]).all] == [
        "p-000.tar",
        "p-001.tar",
    ]


def test_a_folder_of_compressed_tars_is_refused_by_name():
    from vqtok.cli.bulk import is_bulk

    Path("z").mkdir()
    Path("z/a.tar.xz").write_bytes(b"\xfd7x")
    for look in (is_bulk, Inputs):
        with pytest.raises(InputError, match=r"1 compressed tars, such as a\.tar\.xz"):
            look(["z"])


def test_an_empty_tar_has_no_images_and_no_damage():
    Path("000.tar").write_bytes(bytes(10240))
    inputs = Inputs(["000.tar"])
    (chunk,) = inputs.chunks(inputs.all[0], 10)
    assert chunk.entries == ()


@pytest.mark.slow
@pytest.mark.parametrize("extended", [False, True])
def test_a_tar_cut_between_members_says_so(extended: bool):
    """Where a name waits for its member, it is cut; else it has no end mark, which some writers
    leave out: all images are encoded, and a note says so.
    """
    names = [("ä" * 60 + f"{i}.png" if extended else f"{i}.png") for i in range(4)]
    path = make_tar("t.tar", {name: png(image(16, 16, seed=i)) for i, name in enumerate(names)})
    whole = ok("encode", path, "-o", "whole", "--workers", 0)
    assert "no end mark" not in whole.stderr
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    # the last header stands before its bytes; without it, its extended header is left
    cut = last.offset_data - 512 if extended else last.offset
    path.write_bytes(path.read_bytes()[:cut])
    found = run("encode", path, "-o", "codes", "--workers", 0)
    assert "3 images" in found.stderr
    if extended:
        assert found.exit_code == 1
        assert "it is cut off" in found.stderr
    else:
        assert found.exit_code == 0
        assert "t.tar: no end mark. If it was cut off, images are missing" in found.stderr
