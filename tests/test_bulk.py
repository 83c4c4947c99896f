"""`vqtok encode` over tar shards and folders: what is written, resumed, shared out and refused."""

import json
import os
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bulk_helpers import contents, image_files, make_tar, png
from cli_helpers import fails, ok, run, save
from conftest import image, make_model
from test_cli_pack import add_entropy

import vqtok
from vqtok import codec, codes, files, images
from vqtok.bulk import CodesDataset, pool
from vqtok.bulk import encode as bulk_run
from vqtok.bulk.encode import default_workers
from vqtok.bulk.inputs import Entry
from vqtok.cli.bulk import ShardOptions, is_bulk
from vqtok.codec import model as codec_model
from vqtok.errors import VqtokError

pytestmark = pytest.mark.usefixtures("toy")
SIZES = ((16, 16), (16, 20), (13, 15))  # two of them fill the same grid


def encode(*words: object, workers: int = 0) -> None:
    ok("encode", *words, "--workers", workers)


@pytest.mark.slow
def test_shards_hold_what_single_images_give():
    members = image_files(7, SIZES)
    make_tar("a.tar", members)
    encode("a.tar", "-o", "out", "--shard-size", 4)
    assert sorted(contents("out")) == [
        "00000-00000.jsonl",
        "00000-00000.tar",
        "00000-00001.jsonl",
        "00000-00001.tar",
        "manifest.json",
    ]
    data, model = CodesDataset("out"), codec.load("toy")
    assert len(data) == 7
    for i, (name, content) in enumerate(members.items()):
        alone = model.encode(content)
        assert data[i][1] == f"a.tar/{name}"
        assert data[i][0].dtype == np.int64
        assert (data[i][0] == alone.indices[0]).all()
        assert data.codes(i) == alone
    assert data.grids.tolist() == [list(data[i][0].shape) for i in range(7)]
    with tarfile.open("out/00000-00000.tar") as archive:  # codes files of an ordinary kind
        assert archive.getnames() == ["4x4.npz", "5x4.npz"]
        archive.extractall("unpacked", filter="data")
    assert codes.read_plain_codes("unpacked/4x4.npz").sizes == ((16, 16), (13, 15), (16, 16))


def test_one_size_gives_an_ordinary_codes_file():
    make_tar("a.tar", image_files(3))
    encode("a.tar", "-o", "out")
    stack = codes.read_plain_codes("out/00000-00000.npz")
    assert stack == codec.load("toy").encode_batch([image(16, 16, seed=i) for i in range(3)])
    with np.load("out/00000-00000.npz", allow_pickle=False) as plain:
        assert (plain["indices"] == stack.indices).all()
    ok("decode", "out/00000-00000.npz", "-o", "back", "-q")
    assert len(list(Path("back").iterdir())) == 3


@pytest.mark.slow
def test_the_bytes_depend_on_neither_workers_nor_parts(monkeypatch: pytest.MonkeyPatch):
    make_tar("a.tar", image_files(9, SIZES))
    make_tar("b.tar", image_files(4, first=20))
    for name, content in image_files(5, SIZES, first=30).items():
        Path("in").mkdir(exist_ok=True)
        Path("in", name).write_bytes(content)
    words = ["a.tar", "in", "b.tar", "--shard-size", 2, "-q"]
    encode(*words, "-o", "whole")
    encode(*words, "-o", "two", workers=2)
    for part in range(3):
        encode(*words, "-o", "parts", "--shard", f"{part}/3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        encode(*words, "-o", "ranks")
    assert contents("whole") == contents("two") == contents("parts") == contents("ranks")
    assert len(CodesDataset("whole")) == 18


def test_workers_are_the_processors_divided_among_the_ranks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert default_workers() == 12
    for name, value in {"WORLD_SIZE": "5", "LOCAL_WORLD_SIZE": "5", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert default_workers() == 2
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_workers() == 1
    # what a command asks for that does not say how many
    asked: list[int] = []
    start = bulk_run.Pool.__init__
    monkeypatch.setattr(
        bulk_run.Pool,
        "__init__",
        lambda pool, workers, *more: asked.append(workers) or start(pool, 0, *more),
    )
    monkeypatch.setattr(bulk_run, "default_workers", default_workers)
    make_tar("a.tar", image_files(1))
    ok("encode", "a.tar", "-o", "out")
    assert asked == [1]


@pytest.mark.slow
def test_batches_are_bounded_and_change_nothing(monkeypatch: pytest.MonkeyPatch):
    make_tar("a.tar", image_files(12, SIZES))
    encode("a.tar", "-o", "out")
    sizes = []
    encode_batch = codec.Model.encode_batch

    def counted(
        model: codec.Model, pixels: list[np.ndarray], levels: int | None = None
    ) -> codes.Codes:
        sizes.append(len(pixels))
        return encode_batch(model, pixels, levels)

    monkeypatch.setattr(codec.Model, "encode_batch", counted)
    monkeypatch.setattr(codec_model, "PIXELS_AT_ONCE", 3 * 16 * 16)
    encode("a.tar", "-o", "small")
    assert max(sizes) == 3
    sizes.clear()
    monkeypatch.setattr(codec_model, "PIXELS_AT_ONCE", 1 << 30)
    monkeypatch.setattr(bulk_run, "PENDING_PIXELS", 5 * 16 * 16)
    encode("a.tar", "-o", "pending")
    assert len(sizes) > 2
    assert contents("out") == contents("small") == contents("pending")


def test_images_outside_of_tars_have_no_input_to_name():
    save("in/a.png")
    Path("in/b.png").write_bytes(b"no image")
    told = run("encode", "in", "--bulk", "-o", "out", "--workers", 0).stderr
    assert told.startswith("vqtok: error: b.png: ")
    assert "\nimages -> out/00000-00000.npz  1 image, 1 failed" in told


@pytest.mark.slow
def test_bad_images_are_recorded_and_counted():
    members = image_files(4)
    members["001.png"] = b"no image"
    members["002.png"] = members["002.png"][:60]
    make_tar("a.tar", members)
    done = run("encode", "a.tar", "-o", "out", "--workers", 1)
    assert done.exit_code == 1
    assert done.stderr.count("vqtok: error: a.tar: 00") == 2
    assert done.stderr.endswith("\n2 of 4 failed\n")
    lines = [json.loads(line) for line in Path("out/00000-00000.jsonl").read_text().splitlines()]
    assert (lines[0]["pictures"], lines[0]["failed"]) == (2, 2)
    assert [line["name"] for line in lines[1:]] == list(members)
    assert lines[2] == {"name": "001.png", "error": "the image is not an image"}
    assert "cut off" in lines[3]["error"]
    assert [name for _, name in CodesDataset("out")] == ["a.tar/000.png", "a.tar/003.png"]
    assert CodesDataset("out").failed == 2
    again = run("encode", "a.tar", "-o", "out", "--resume")
    assert again.exit_code == 1
    assert again.stderr == "2 images in 1 shard, 1 of them before -> out\n2 of 4 failed\n"


def test_a_shard_of_bad_images_alone_has_no_file():
    make_tar("a.tar", {"0.png": b"x", "1.png": b"", **image_files(1)})
    make_tar("none.tar", {"notes.txt": b"no image"})
    assert run(
        "encode", "a.tar", "none.tar", "-o", "out", "--shard-size", 2, "--workers", 0
    ).stderr.endswith("\n2 of 3 failed\n")
    assert sorted(contents("out")) == [
        "00000-00000.jsonl",
        "00000-00001.jsonl",
        "00000-00001.npz",
        "00001-00000.jsonl",
        "manifest.json",
    ]
    assert len(CodesDataset("out")) == 1


def test_hostile_names_go_nowhere():
    names = [
        "../../up.png",
        "/etc/passwd.png",
        "a\nb\x1b[31m.png",
        "\udcff.png",
        "x" * 300 + ".png",
        "C:\\x.png",
        ":smile:[red].png",
    ]
    make_tar(
        "a.tar",
        {name: png(image(16, 16, seed=i)) for i, name in enumerate(names)}
        | {"\x1b]0;bad\x07.png": b"x"},
    )
    before = set(os.listdir())
    done = run("encode", "a.tar", "-o", "out", "--workers", 0)
    assert set(os.listdir()) == before | {"out"}
    assert sorted(contents("out")) == ["00000-00000.jsonl", "00000-00000.npz", "manifest.json"]
    names[:2] = "up.png", "/etc/passwd.png"
    assert [name for _, name in CodesDataset("out")] == [f"a.tar/{name}" for name in names]
    assert Path("out/00000-00000.jsonl").read_bytes().isascii()
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr


@pytest.mark.slow
def test_resume_skips_what_is_finished_and_mends_the_rest(monkeypatch: pytest.MonkeyPatch):
    make_tar("a.tar", image_files(5, SIZES))
    make_tar("b.tar", image_files(3))
    words = ["a.tar", "b.tar", "-o", "out", "--shard-size", 2, "--workers", 0]
    ok("encode", *words)
    whole = contents("out")
    assert "holds codes shards already" in fails("encode", *words)
    Path("out/00000-00001.jsonl").unlink()  # killed between the shard and its manifest
    Path("out/00001-00000.npz").write_bytes(b"")  # and one that lost its end
    Path("out/.vqtok-0123456789ab.npz").write_bytes(b"half")
    Path("out/mine.txt").write_text("mine")
    done = ok("encode", *words, "--resume", "--json")
    assert [json.loads(line)["manifest"] for line in done.stdout.splitlines()] == [
        "out/00000-00001.jsonl",
        "out/00001-00000.jsonl",
    ]
    assert contents("out") == whole | {"mine.txt": b"mine"}
    monkeypatch.setattr(codec.Model, "encode_batch", lambda *_: pytest.fail("encoded"))
    assert ok("encode", *words, "--resume", "-q").output == ""


@pytest.mark.slow
def test_resume_may_come_first_and_be_shared_otherwise():
    make_tar("a.tar", image_files(8))
    words = ["a.tar", "--shard-size", 2, "--resume", "-q"]
    encode(*words, "-o", "whole")
    encode(*words, "-o", "out", "--shard", "1/3")
    with pytest.raises(VqtokError, match="is not finished: shards of 1 of 1 inputs are missing"):
        CodesDataset("out")
    assert len(CodesDataset("out", partial=True)) == 2
    encode(*words, "-o", "out")
    assert contents("out") == contents("whole")


@pytest.mark.slow
def test_resume_refuses_other_inputs_and_settings():
    for name, content in image_files(3).items():
        Path("in").mkdir(exist_ok=True)
        Path("in", name).write_bytes(content)
    make_tar("a.tar", image_files(2))
    words = ["in", "a.tar", "-o", "out", "--shard-size", 2, "--workers", 0]
    ok("encode", *words)
    for change, name in (
        (["--shard-size", 3], "shard size"),
        (["--compact"], "compact"),
        (["--background", "black"], "background"),
    ):
        assert f"were made with another {name}" in fails("encode", *words, *change, "--resume")
    make_model(Path("other"), seed=5)
    assert "another model, fingerprint" in fails("encode", *words, "--resume", "--model", "./other")
    save("in/000a.png", image(16, 16))
    assert "pictures has changed" in run("encode", *words, "--resume").stderr
    os.remove("in/000a.png")
    make_tar("a.tar", image_files(30))
    assert "another inputs" in run("encode", *words, "--resume").stderr


@pytest.mark.slow
def test_force_starts_anew():
    make_tar("a.tar", image_files(5, SIZES))
    encode("a.tar", "-o", "out", "--shard-size", 2)
    Path("out/mine.txt").write_text("mine")
    encode("a.tar", "-o", "out", "--shard-size", 3, "-f")
    encode("a.tar", "-o", "fresh", "--shard-size", 3)
    assert contents("out") == contents("fresh") | {"mine.txt": b"mine"}
    assert "does not go with --resume" in fails(
        "encode", "a.tar", "-o", "out", "-f", "--resume", code=2
    )
    assert "other parts" in fails("encode", "a.tar", "-o", "out", "-f", "--shard", "0/2")


def test_parts_do_not_replace_what_is_there():
    make_tar("a.tar", image_files(4))
    words = ["a.tar", "-o", "out", "--shard-size", 1, "--shard", "0/2", "--workers", 0]
    ok("encode", *words)
    assert "00000-00000.jsonl exists" in fails("encode", *words)
    assert (
        ok("encode", *words, "--resume").stderr == "2 images in 2 shards, 2 of them before -> out\n"
    )


def test_folders_stay_as_they_were_without_a_bulk_option():
    for name in ("in/a.png", "in/b/c.png"):
        save(name)
    make_tar("in/x.tar", image_files(1))
    ok("encode", "in", "-o", "plain")
    assert sorted(str(p) for p in Path("plain").rglob("*.npz")) == ["plain/a.npz", "plain/b/c.npz"]
    encode("in", "-o", "out")  # --workers is such an option, even 0
    assert [name for _, name in CodesDataset("out")] == ["x.tar/000.png", "a.png", "b/c.png"]


def test_codes_shards_are_made_of_tars_or_when_asked_for():
    Path("folder.tar").mkdir()
    assert is_bulk(["a.png", "X.TAR"])
    assert is_bulk(["shards/*.tar"])
    assert not is_bulk(["in", "a.png", "folder.tar", "-"])
    none = ShardOptions()
    for name, value in {
        "shards": True,
        "shard_size": 9,
        "resume": True,
        "shard": "0/1",
        "workers": 0,
    }.items():
        assert is_bulk(["in"], replace(none, **{name: value}))


@pytest.mark.slow
def test_levels_compact_and_background(toy: Path):
    add_entropy(toy, bias=100_000)
    make_tar("a.tar", image_files(3, SIZES) | {"alpha.png": png(image(16, 16, 4))})
    encode("a.tar", "-o", "plain", "--levels", 1)
    encode("a.tar", "-o", "compact", "--compact", "--levels", 1)
    encode("a.tar", "-o", "black", "--background", "black")
    plain, compact = CodesDataset("plain"), CodesDataset("compact")
    assert all(
        (plain[i][0] == compact[i][0]).all() and plain.codes(i) == compact.codes(i)
        for i in range(4)
    )
    assert (
        Path("plain/00000-00000.tar").read_bytes() != Path("compact/00000-00000.tar").read_bytes()
    )
    assert CodesDataset("black").codes(3) == codec.load("toy").encode(
        png(image(16, 16, 4)), (0, 0, 0)
    )
    (line,) = [
        line for line in Path("black/00000-00000.jsonl").read_text().splitlines() if "alpha" in line
    ]
    assert json.loads(line)["notes"] == ["transparency laid over black"]
    os.remove(toy / "entropy.safetensors")
    encode("a.tar", "-o", "packed", "--compact")
    assert (CodesDataset("packed")[2][0] == plain[2][0]).all()


def test_what_is_refused():
    make_tar("a.tar", image_files(1))
    Path("file").write_text("x")
    for words, message in (
        ([], "need a folder"),
        (["-o", "-"], "not go into one file"),
        (["-o", "file"], "not go into one file"),
        (["-o", "o", "--bpp", "1"], "--bpp does not go"),
        (["-o", "o", "--max-bytes", "1k"], "--max-bytes does not go"),
        (["-o", "o", "--verify"], "--verify does not go"),
        (["-o", "o", "--skip-existing"], "--skip-existing does not go"),
        (["-o", "o", "--shard", "2/2"], "--shard is '2/2'"),
        (["-o", "o", "--levels", "2"], "has 1 level, not 2"),
        (["-o", "o", "--background", "no"], "is no color"),
    ):
        assert message in fails("encode", "a.tar", *words, code=2)
    assert "does not exist" in fails("encode", "gone.tar", "-o", "o")
    assert "standard input" in fails("encode", "-", "--bulk", "-o", "o", code=2)


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_and_what_is_finished_stays(monkeypatch: pytest.MonkeyPatch):
    make_tar("a.tar", image_files(6))
    words = ["a.tar", "-o", "out", "--shard-size", 2, "--workers", 1]
    pools = []
    start = bulk_run.Pool.__init__

    def remember(pool: bulk_run.Pool, *more: object) -> None:
        start(pool, *more)  # type: ignore[arg-type]
        pool.ahead = 0
        pools.append(pool)

    def killing(self: object, report: bulk_run.ShardReport) -> None:
        for worker in pools[0]._workers:
            worker.process.kill()

    monkeypatch.setattr(bulk_run.Pool, "__init__", remember)
    with monkeypatch.context() as patch:
        patch.setattr("vqtok.cli.bulk.Reporter.add", killing)
        done = run("encode", *words)
    assert done.exit_code == 1
    assert (
        "a process that decodes images was ended by signal 9 while it read 002.png" in done.stderr
    )
    assert "--resume" in done.stderr
    assert sorted(contents("out")) == ["00000-00000.jsonl", "00000-00000.npz", "manifest.json"]
    ok("encode", *words, "--resume")
    encode("a.tar", "-o", "whole", "--shard-size", 2)
    assert contents("out") == contents("whole")
    assert all(worker.process.poll() is not None for pool in pools for worker in pool._workers)


def ahead(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many images are decoded at the most before the first of 50 is
    taken, by three threads in all.
    """
    path, decoded = str(save("a.png")), []

    def decode(*_: object, **__: object) -> images.DecodedImage:
        decoded.append(1)
        return images.DecodedImage(np.zeros((20, 30, 3), np.uint8))

    monkeypatch.setattr("vqtok.bulk.worker.decode", decode)
    with pool.Pool(0, 3, images.WHITE) as decoding:
        decoding._threads = ThreadPoolExecutor(3)
        decoding.ahead = 12
        found = decoding.map((number, Entry("a.png", path)) for number in range(50))
        first = next(found)
        time.sleep(0.1)  # what may be decoded is decoded by now
        count = len(decoded)
        assert [number for number, _ in (first, *found)] == list(range(50))
    return count


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch):
    assert ahead(monkeypatch) == 13
    monkeypatch.setattr(pool, "HELD", 3 * 20 * 30 * 3)
    assert 4 <= ahead(monkeypatch) <= 8
    monkeypatch.setattr(pool, "HELD", -1)
    assert ahead(monkeypatch) <= 2


@pytest.mark.slow
def test_a_full_disk_leaves_whole_files(monkeypatch: pytest.MonkeyPatch):
    make_tar("a.tar", image_files(6))
    words = ["a.tar", "-o", "out", "--shard-size", 2, "--workers", 0]
    write, count = files.write_bytes, []

    def fails_later(path: Path, data: bytes, force: bool = False) -> None:
        count.append(path)
        with files.atomic(path, force) as temporary:
            temporary.write_bytes(data[: len(data) // 2] if len(count) == 4 else data)
            if len(count) == 4:
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", fails_later)
    assert "the disk is full" in run("encode", *words).stderr
    assert sorted(contents("out")) == ["00000-00000.jsonl", "00000-00000.npz", "manifest.json"]
    monkeypatch.setattr(files, "write_bytes", write)
    ok("encode", *words, "--resume")
    encode("a.tar", "-o", "whole", "--shard-size", 2)
    assert contents("out") == contents("whole")


@pytest.mark.slow
def test_a_image_is_decoded_alike_in_a_process_and_here():
    make_tar(
        "a.tar",
        {
            "turned.jpg": save("x.jpg", image(33, 21)).read_bytes(),
            "gray.png": png(image(8, 9, 3)[..., 0]),
        },
    )
    encode("a.tar", "-o", "here", workers=0)
    encode("a.tar", "-o", "there", workers=1)
    assert contents("here") == contents("there")
    assert vqtok.CodesDataset("here").codes(0) == codec.load("toy").encode(
        images.read_image(Path("x.jpg")).pixels
    )
