"""URLs in the place of files and folders: read by ranges, tried again, refused in two lines."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from bulk_helpers import contents, image_files, make_tar, png
from cli_helpers import fails, ok, run
from conftest import image
from remote_helpers import FileServer, serve

import vqtok
from vqtok import files, remote
from vqtok.bulk import CodesDataset
from vqtok.data import open_data
from vqtok.errors import UsageError, VqtokError
from vqtok.files import as_path, is_url

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("VQTOK_RETRY_SECONDS", "0")
    with serve() as state:
        yield state


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of an empty store in this process."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield "memory://box"
    store.store.clear()


def stored(url: str) -> dict[str, bytes]:
    folder = as_path(url)
    assert isinstance(folder, remote.RemotePath)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in remote.find(folder)}


def store(url: str, members: dict[str, bytes]) -> None:
    for name, data in members.items():
        (as_path(url) / name).write_bytes(data)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("s3://b/x.tar", "s3://b/x.tar"),
        (Path("s3://b/x.tar"), "s3://b/x.tar"),  # as an option of a command gives it
        ("HTTP://h:80/a?x=1&y=/2", "http://h:80/a?x=1&y=/2"),
        ("hf://datasets/a/b@main/c", "hf://datasets/a/b@main/c"),
    ],
)
def test_url_is_a_path(name: str | Path, shown: str):
    path = as_path(name)
    assert is_url(name)
    assert str(path) == shown
    assert as_path(path) is path
    assert pickle.loads(pickle.dumps(path)) == path
    assert str(path.parent / "y") == shown.rpartition("/")[0] + "/y"
    assert str(path.with_suffix(".npz").name).endswith(".npz")


def test_local_names_stay_paths():
    Path("s3:").mkdir()
    Path("s3:/x").touch()
    for name in ("x.tar", "C:/x", "a:b", "s3:/x", Path("s3:/x"), "://x", ":memory:"):
        assert not is_url(name)
        assert type(as_path(name)) is type(Path())
    assert as_path("file:///a/b") == Path("/a/b")


@pytest.mark.parametrize("compact", [False, True])
def test_store_to_store_equals_local(memory: str, compact: bool):
    """Tars named by braces, shards and data set: the same bytes as on the disk."""
    for i in range(2):
        path = make_tar(f"t-{i:04}.tar", image_files(5, ((16, 16), (16, 20)), first=10 * i))
        store(memory, {path.name: path.read_bytes()})
    flags = ["--shard-size", 3, "--workers", 0, *(["--compact"] if compact else [])]
    ok("encode", "t-0000.tar", "t-0001.tar", "-o", "local", *flags)
    ok("encode", f"{memory}/t-{{0000..0001}}.tar", "-o", f"{memory}/codes", *flags)
    assert stored(f"{memory}/codes") == contents("local")
    here, there = CodesDataset("local"), CodesDataset(f"{memory}/codes")
    assert len(there) == 10
    for (a, name), (b, other) in zip(here, there, strict=True):
        assert name == other
        assert (a == b).all()
    there.verify()
    assert np.array_equal(pickle.loads(pickle.dumps(there))[3][0], here[3][0])
    # a second run is refused, and --resume finds all done
    taken = run("encode", f"{memory}/t-{{0000,0001}}.tar", "-o", f"{memory}/codes", *flags)
    assert f"{memory}/codes holds codes shards already" in taken.stderr
    again = ok("encode", f"{memory}/t-*.tar", "-o", f"{memory}/codes", "--resume", *flags)
    assert "4 of them before" in again.stderr
    assert stored(f"{memory}/codes") == contents("local")


def test_resume_makes_what_is_missing(memory: str):
    path = make_tar("t.tar", image_files(6))
    store(memory, {"t.tar": path.read_bytes()})
    words = ["encode", f"{memory}/t.tar", "-o", f"{memory}/codes", "--shard-size", 2]
    ok(*words, "--workers", 0)
    whole = stored(f"{memory}/codes")
    (as_path(memory) / "codes/00000-00001.jsonl").unlink()
    ok(*words, "--workers", 0, "--resume")
    assert stored(f"{memory}/codes") == whole
    ok(*words, "--workers", 0, "-f")
    assert stored(f"{memory}/codes") == whole


def test_single_images_and_folders(memory: str):
    members = {"a/x.png": png(image(16, 16, seed=1)), "b.png": png(image(16, 16, seed=2))}
    store(f"{memory}/in", members)
    ok("encode", f"{memory}/in", "-o", f"{memory}/out")
    found = stored(f"{memory}/out")
    assert sorted(found) == ["a/x.npz", "b.npz"]
    assert vqtok.read_codes(f"{memory}/out/b.npz") == vqtok.load("toy").encode(members["b.png"])
    message = fails("encode", f"{memory}/in/b.png", "-o", f"{memory}/out/b.npz")
    assert f"{memory}/out/b.npz exists" in message
    ok("encode", f"{memory}/in", "--bulk", "-o", "shards", "--workers", 0)
    assert [name for _, name in CodesDataset("shards")] == ["a/x.png", "b.png"]


@pytest.mark.parametrize("to", ["bin", "webdataset", "jsonl", "llamagen"])
def test_export_by_url(memory: str, to: str):
    """From a store and to a store: the same bytes as on the disk."""
    path = make_tar("t.tar", {f"{i}.png": png(image(16, 16, seed=i)) for i in range(6)})
    ok("encode", path, "-o", "codes", "--workers", 0)
    store(f"{memory}/codes", contents("codes"))
    ok("export", "codes", "-o", "out", "--to", to)
    ok("export", f"{memory}/codes", "-o", f"{memory}/out", "--to", to)
    local = {p.relative_to("out").as_posix(): p.read_bytes() for p in Path("out").rglob("*.*")}
    assert stored(f"{memory}/out") == local
    assert "exists" in fails("export", f"{memory}/codes", "-o", f"{memory}/out", "--to", to)
    ok("export", f"{memory}/codes", "-o", f"{memory}/out", "--to", to, "-f")


def test_training_data_by_url(memory: str, server: FileServer):
    """`train` reads tars and folders of a store, and a tar of a web server."""
    path = make_tar("t.tar", image_files(5))
    store(memory, {"t-0.tar": path.read_bytes(), "t-1.tar": path.read_bytes()})
    store(f"{memory}/photos", image_files(3))
    server.files["t.tar"] = path.read_bytes()
    local = open_data("t.tar")
    for url, count in (
        (f"{memory}/t-{{0..1}}.tar", 10),
        (f"{memory}/photos", 3),
        (Path(f"{server.url}/t.tar"), 5),
    ):
        data = open_data(url)
        assert len(data) == count
        assert (data.image(1)[0] == local.image(1)[0]).all()


def test_http_tar_is_read_by_ranges(server: FileServer):
    """The tar goes over the wire about twice: for its headers, and for its images."""
    path = make_tar("t.tar", image_files(8))
    server.files["t.tar"] = path.read_bytes()
    ok("encode", path, "-o", "local", "--workers", 0)
    ok("encode", f"{server.url}/t.tar", "-o", "codes", "--workers", 1)
    assert contents("codes") == contents("local")
    assert server.sent < 3 * path.stat().st_size
    # of a signed address nothing is kept in the shards
    ok("encode", f"{server.url}/t.tar?signature=a/b.c", "-o", "signed", "--workers", 0)
    assert contents("signed") == contents("local")
    assert len(open_data(f"{server.url}/t.tar?signature=a/b.c")) == 8
    server.ranges = False
    ok("encode", f"{server.url}/t.tar", "-o", "whole", "--workers", 0)
    assert contents("whole") == contents("local")


def test_server_that_comes_back(server: FileServer, monkeypatch: pytest.MonkeyPatch):
    """503, and answers that are cut off in the middle, are asked again."""
    monkeypatch.setenv("VQTOK_RETRY_SECONDS", "60")
    path = make_tar("t.tar", image_files(4))
    server.files["t.tar"] = path.read_bytes()
    server.failures, server.cut = 2, 2
    ok("encode", f"{server.url}/t.tar", "-o", "codes", "--workers", 0)
    ok("encode", path, "-o", "local", "--workers", 0)
    assert contents("codes") == contents("local")
    assert (server.failures, server.cut) == (0, 0)


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (403, "the server refuses it (the server answers 403)"),
        (404, "it does not exist (the server answers 404)"),
        (500, "the server answers 500"),
        (400, "the server answers 400"),
    ],
)
@pytest.mark.parametrize("name", ["t.tar", "x.png", "codes/manifest.json"])
def test_server_errors(server: FileServer, status: int, what: str, name: str):
    server.status[name] = status
    url = f"{server.url}/{name}"
    if "manifest" in name:
        with pytest.raises(VqtokError, match="cannot read") as caught:
            CodesDataset(f"{server.url}/codes")
        message = str(caught.value)
    elif name == "t.tar":
        message = fails("encode", url, "-o", "codes", "--workers", 0)
        expected = f"there is no {url}" if status == 404 else what
        assert expected in fails("train", url, "-o", "model", "--steps", 1)
    else:
        message = fails("encode", url, "-o", "x.npz")
    assert f"cannot read {url}: {what}" in message


def test_slow_server(server: FileServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VQTOK_TIMEOUT_SECONDS", "0.1")
    server.slow, server.files["t.tar"] = 0.5, b"x"
    message = fails("encode", f"{server.url}/t.tar", "-o", "codes", "--workers", 0)
    assert "the server does not answer in time" in message


# lost at a header of u, and at an image of t
@pytest.mark.parametrize(("tars", "workers"), [("{t,u}", 0), ("t", 0), ("t", 1)])
def test_server_lost_in_the_middle(server: FileServer, workers: int, tars: str):
    """Nothing that could not be read counts as a damaged image, and --resume brings the rest."""
    path = make_tar("t.tar", image_files(6))
    server.files |= {"t.tar": path.read_bytes(), "u.tar": path.read_bytes()}
    words = ["encode", f"{server.url}/{tars}.tar", "-o", "codes", "--shard-size", 2]
    whole = run(*words[:2], "-o", "whole", *words[4:], "--workers", workers)
    assert whole.exit_code == 0
    answer, asked = server.answer, server.requests
    seen = iter(range(1 << 30))

    def fail(request: object) -> None:
        if next(seen) >= (asked // 2 if "u" in tars else asked - 2):
            server.status = {"t.tar": 500, "u.tar": 500}
        answer(request)  # type: ignore[arg-type]

    server.answer = fail  # type: ignore[method-assign]
    lost = run(*words, "--workers", workers)
    assert lost.exit_code == 1
    assert "the server answers 500" in lost.stderr.splitlines()[-2]
    server.answer, server.status = answer, {}  # type: ignore[method-assign]
    ok(*words, "--workers", workers, "--resume")
    assert contents("codes") == contents("whole")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("nosuch://b/x.tar", "-o", "codes"), "vqtok knows no nosuch://"),
        (("http://127.0.0.1:9/*.tar", "-o", "codes"), "lists no files"),
        (("x.tar", "-o", "http://127.0.0.1:9/codes"), "http is only read"),
    ],
)
def test_urls_that_cannot_be(
    words: tuple[str, ...], what: str, monkeypatch: pytest.MonkeyPatch, memory: str
):
    monkeypatch.setenv("VQTOK_RETRY_SECONDS", "0")
    make_tar("x.tar", image_files(1))
    message = run("encode", *words, "--workers", 0).stderr
    assert what in message
    assert len(message.splitlines()) == 2


def test_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    def absent(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    remote._open_filesystem.cache_clear()
    with pytest.raises(UsageError, match="s3:// needs s3fs") as caught:
        CodesDataset("s3://b/codes")
    assert caught.value.fix == "pip install 'vqtok[remote]', or s3fs alone"


def test_missing_in_a_store(memory: str):
    with pytest.raises(VqtokError, match="does not exist"):
        files.read_bytes(as_path(f"{memory}/x"), 10)
    assert "does not exist" in run("export", f"{memory}/x", "-o", "o", "--to", "bin").stderr


def test_texts_beside_images_of_a_store(memory: str):
    """Labels and captions of loose files by URL are those of the same files on the disk."""
    members: dict[str, bytes] = {}
    for i in range(4):
        members[f"a/{i}.png"] = png(image(16, 16, seed=i))
        members[f"a/{i}.cls"] = str(i % 2).encode()
        if i != 2:
            members[f"a/{i}.txt"] = f"image {i}".encode()
    members["b/9.png"] = png(image(16, 16, seed=9))
    store(f"{memory}/in", members)
    for name, data in members.items():
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        Path("in", name).write_bytes(data)
    for words in (["in"], ["in/a/*.png"]):
        ok("encode", *words, "--bulk", "-o", "local", "--workers", 0, "-f")
        urls = [f"{memory}/{word}" for word in words]
        ok("encode", *urls, "--bulk", "-o", "codes", "--workers", 0, "-f")
        there = CodesDataset("codes").sequences()
        assert list(there.labels[:4]) == [0, 1, 0, 1]
        assert list(there.captions[:4]) == ["image 0", "image 1", None, "image 3"]
        assert contents("codes") == contents("local")


def test_small_images_and_texts_of_a_tar_share_requests(server: FileServer):
    """200 images with labels and captions: not a request for each, and the same bytes."""
    members: dict[str, bytes] = {}
    for i in range(200):
        members[f"{i:03}.png"] = png(image(16, 16, seed=i))
        members[f"{i:03}.cls"], members[f"{i:03}.txt"] = b"3", b"text"
    path = make_tar("t.tar", members)
    server.files["t.tar"] = path.read_bytes()
    ok("encode", path, "-o", "local", "--workers", 0)
    for workers in (0, 1):
        server.requests = 0
        ok("encode", f"{server.url}/t.tar", "-o", "codes", "--workers", workers, "-f")
        assert server.requests < 10
        assert contents("codes") == contents("local")


def test_parts_over_the_borders_of_blocks(memory: str, monkeypatch: pytest.MonkeyPatch):
    data = bytes(range(256)) * 4
    store(memory, {"x": data})
    path = as_path(f"{memory}/x")
    assert isinstance(path, remote.RemotePath)
    monkeypatch.setattr(remote, "_AHEAD", 100)
    for start, end in ((0, 1), (99, 101), (100, 200), (50, 450), (1000, 1024), (5, 5)):
        remote._kept.clear()
        assert remote.read_near(path, start, end) == data[start:end]
    remote._kept.clear()
    monkeypatch.setenv("VQTOK_RETRY_SECONDS", "0")
    with pytest.raises(remote.RemoteError, match="it gave 24 of 25 bytes"):
        remote.read_near(path, 1000, 1025)


def test_a_tar_cut_in_its_last_image(server: FileServer):
    """The image counts as damaged, as on the disk: it is not waited for."""
    path = make_tar("t.tar", image_files(3))
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[:-40])
    server.files["t.tar"] = path.read_bytes()
    local = run("encode", path, "-o", "local", "--workers", 0)
    found = run("encode", f"{server.url}/t.tar", "-o", "codes", "--workers", 0)
    assert (found.exit_code, local.exit_code) == (1, 1)
    assert contents("codes") == contents("local")
