"""Inputs, output names, and writes that are whole or not at all."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from vqtok import files
from vqtok.errors import InputError, OutputError, UsageError
from vqtok.files import (
    Source,
    atomic,
    expand,
    human_bytes,
    output_path,
    read_bytes,
    read_stdin,
    write_bytes,
)

IMAGES = frozenset({".png", ".jpg"})


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a few files, which is also the current folder."""
    for name in [
        "b.png",
        "a.JPG",
        "notes.txt",
        "plain",
        ".hidden.png",
        "odd[1].png",
        "sub/c.png",
        "sub/deep/d.png",
        ".git/e.png",
    ]:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str) -> list[str]:
    return [str(s.path) for s in expand(inputs, IMAGES)]


def left(folder: Path) -> list[str]:
    """All that is in a folder, hidden files too: a temporary file that stayed would show."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_folder_is_walked_sorted_and_mirrored(tree: Path) -> None:
    sources = expand(["in"], IMAGES)
    assert [str(s.relative) for s in sources] == [
        "a.JPG",
        "b.png",
        "odd[1].png",
        "sub/c.png",
        "sub/deep/d.png",
    ]
    assert all(s.path == Path("in") / s.relative for s in sources)
    assert str(expand(["."], IMAGES)[0].relative) == "in/a.JPG"


def test_named_file_counts_whatever_its_suffix_and_only_once(tree: Path) -> None:
    assert names("in/notes.txt", "in/b.png", "in/../in/b.png", "in/b.png") == [
        "in/notes.txt",
        "in/b.png",
    ]
    assert expand(["in/sub/c.png"], IMAGES) == [Source(Path("in/sub/c.png"), Path("c.png"))]
    assert names("in/b.png", "in")[:2] == ["in/b.png", "in/a.JPG"]


def test_several_folders_keep_their_names(tree: Path) -> None:
    (tree / "other").mkdir()
    (tree / "other" / "b.png").write_bytes(b"x")
    relative = [str(s.relative) for s in expand(["in/sub", "other"], IMAGES)]
    assert relative == ["sub/c.png", "sub/deep/d.png", "other/b.png"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("in/*.png", ["in/b.png", "in/odd[1].png"]),
        ("in/*", ["in/a.JPG", "in/b.png", "in/odd[1].png"]),
        ("in/*.txt", ["in/notes.txt"]),
        ("in/**/*.png", ["in/b.png", "in/odd[1].png", "in/sub/c.png", "in/sub/deep/d.png"]),
        ("in/**", ["in/a.JPG", "in/b.png", "in/odd[1].png", "in/sub/c.png", "in/sub/deep/d.png"]),
        ("**/d.png", ["in/sub/deep/d.png"]),
        ("in/s*/?.png", ["in/sub/c.png"]),
        ("in/*/deep/[cd].png", ["in/sub/deep/d.png"]),
        ("in/.*.png", ["in/.hidden.png"]),
        ("in/odd[1].png", ["in/odd[1].png"]),
    ],
)
def test_globs(tree: Path, pattern: str, found: list[str]) -> None:
    assert names(pattern) == found


def test_glob_is_mirrored_below_its_fixed_part(tree: Path) -> None:
    assert [str(s.relative) for s in expand(["in/**/d.png"], IMAGES)] == ["sub/deep/d.png"]


def test_loops_of_links_end_and_linked_folders_count(tree: Path) -> None:
    (tree / "in" / "sub" / "up").symlink_to(tree / "in")
    (tree / "in" / "self").symlink_to(tree / "in" / "self")
    (tree / "far").mkdir()
    (tree / "far" / "f.png").write_bytes(b"x")
    (tree / "in" / "linked").symlink_to(tree / "far")
    found = names("in")
    assert "in/linked/f.png" in found
    assert len(found) == 6
    assert names("in/**/f.png") == ["in/linked/f.png"]


def test_broken_link_is_reported_by_reading_and_pipes_are_left_out(tree: Path) -> None:
    (tree / "in" / "gone.png").symlink_to(tree / "nowhere")
    os.mkfifo(tree / "in" / "pipe.png")
    assert "in/gone.png" in names("in")
    assert "in/pipe.png" not in names("in")


def test_stdin_is_a_source(tree: Path) -> None:
    assert expand(["-", "-"], IMAGES) == [Source(None, Path("stdin"))]
    assert str(expand(["-"], IMAGES)[0]) == "standard input"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no input"),
        (["gone.png"], "gone.png does not exist"),
        (["*.webp"], "no file matches"),
        (["empty"], "no usable file is in the folder empty"),
        (["gone.png", "empty"], r"gone.png does not exist \(nor in 1 more\)"),
        ([""], "does not exist"),
        (["x" * 5000], "does not exist"),
    ],
)
def test_nothing_found(tree: Path, inputs: list[str], message: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        expand(inputs, IMAGES)


def test_a_missing_input_among_others_stays_to_be_reported(tree: Path) -> None:
    assert names("gone.png", "in/b.png") == ["gone.png", "in/b.png"]


def test_a_folder_that_cannot_be_listed_stays_to_be_reported(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: Path) -> object:
        if path.name == "deep":
            raise PermissionError(errno.EACCES, "no")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "in/sub/deep" in names("in")


@pytest.mark.parametrize(
    ("out", "many", "expected"),
    [
        (None, True, "in/sub/c.npz"),
        ("out", True, "out/sub/c.npz"),
        ("out", False, "out/sub/c.npz"),
        ("x.npz", False, "x.npz"),
        ("v1.2", False, "v1.2/sub/c.npz"),
        ("in", False, "in/sub/c.npz"),
        ("run.old", True, "run.old/sub/c.npz"),
        ("in/plain", False, "in/plain"),
        ("-", False, "-"),
    ],
)
def test_output_path(tree: Path, out: str | None, many: bool, expected: str) -> None:
    source = Source(Path("in/sub/c.png"), Path("sub/c.png"))
    assert output_path(source, ".npz", Path(out) if out else None, many) == Path(expected)


def test_output_path_of_decode_and_of_stdin(tree: Path) -> None:
    assert output_path(
        Source(Path("a/img.npz"), Path("img.npz")), ".decoded.png", None, False
    ) == Path("a/img.decoded.png")
    assert output_path(Source(None, Path("stdin")), ".npz", None, False) == Path("-")
    assert output_path(Source(None, Path("stdin")), ".npz", Path("out"), False) == Path(
        "out/stdin.npz"
    )


@pytest.mark.parametrize(
    ("out", "suffix"),
    [("x.npz", ".npz"), ("x.png", ".decoded.png"), ("-", ".npz"), ("in/plain", ".npz")],
)
def test_many_results_do_not_go_into_one_file(tree: Path, out: str, suffix: str) -> None:
    with pytest.raises(UsageError, match="one file"):
        output_path(Source(Path("in/b.png"), Path("b.png")), suffix, Path(out), True)


def test_write_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "er" / "x.npz"
    write_bytes(path, b"one")
    assert path.read_bytes() == b"one"
    assert left(tmp_path) == ["new", "new/er", "new/er/x.npz"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_existing_file_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write_bytes(path, b"one")
    with pytest.raises(OutputError, match="exists") as caught:
        write_bytes(path, b"two")
    assert "--force" in caught.value.command_fix
    assert path.read_bytes() == b"one"
    write_bytes(path, b"two", force=True)
    assert path.read_bytes() == b"two"
    assert left(tmp_path) == ["x.npz"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "x.npz"
    writing = atomic(path)
    writing.__enter__().write_bytes(b"mine")
    path.write_bytes(b"theirs")
    with pytest.raises(OutputError, match="exists"):
        writing.__exit__(None, None, None)
    assert path.read_bytes() == b"theirs"
    assert left(tmp_path) == ["x.npz"]
    write_bytes(tmp_path / "y.npz", b"fine")
    assert left(tmp_path) == ["x.npz", "y.npz"]
    assert (tmp_path / "y.npz").read_bytes() == b"fine"


def fail_within(path: Path, error: BaseException) -> None:
    with atomic(path, force=True) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".npz"
        temporary.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), InputError("a", "b")])
def test_failing_block_leaves_all_as_it_was(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        fail_within(path, error)
    assert path.read_bytes() == b"old"
    assert left(tmp_path) == ["x.npz"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_operating_system_errors_are_said_plainly(tmp_path: Path, code: int, message: str) -> None:
    with pytest.raises(OutputError, match=message) as caught:
        fail_within(tmp_path / "x.npz", OSError(code, os.strerror(code)))
    assert "x.npz" in str(caught.value)
    assert caught.value.fix
    assert left(tmp_path) == []


def test_full_disk_at_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="disk is full"):
        write_bytes(tmp_path / "x.npz", b"data")
    assert left(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a file, not a folder"):
        write_bytes(tmp_path / "file" / "x.npz", b"")
    with pytest.raises(OutputError, match="it is a folder"):
        write_bytes(tmp_path / "folder", b"", force=True)
    with pytest.raises(OutputError, match="too long"):
        write_bytes(tmp_path / ("x" * 300), b"")
    assert left(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission denied"):
        write_bytes(tmp_path / "x.npz", b"")
    tmp_path.chmod(0o700)


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="not an ordinary file"):
        write_bytes(tmp_path / "pipe", b"", force=True)
    with pytest.raises(OutputError, match="not an ordinary file"):
        files.check_free(Path("/dev/null"), force=True)


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link = tmp_path / "latest.npz"
    link.symlink_to(tmp_path / "data" / "x.npz")
    with pytest.raises(OutputError, match="exists"):
        write_bytes(link, b"new")
    write_bytes(link, b"new", force=True)
    assert link.is_symlink()
    assert (tmp_path / "data" / "x.npz").read_bytes() == b"new"


def test_read_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 8192)  # 2 MiB: several pieces
    assert read_bytes(path, 1 << 21) == path.read_bytes()
    with pytest.raises(InputError, match="larger than"):
        read_bytes(path, (1 << 21) - 1)
    with pytest.raises(InputError, match="larger than"):
        read_bytes(Path("/dev/zero"), 5000)  # a file that does not know its size


@pytest.mark.parametrize(
    ("name", "message"), [("gone", "does not exist"), (".", "is a folder"), ("a\0b", "cannot read")]
)
def test_read_bytes_errors(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_bytes(tmp_path / name, 10)


def test_read_bytes_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr("builtins.open", refuse)  # chmod does not stop root
    with pytest.raises(InputError, match="permission denied"):
        read_bytes(tmp_path / "x", 10)


def test_read_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff" * 100)))
    assert read_stdin(100) == b"\xff" * 100
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff" * 101)))
    with pytest.raises(InputError, match="standard input is larger than 100 B"):
        read_stdin(100)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="terminal"):
        read_stdin(100)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9950, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (56_000_000, "56 MB"),
        (3_400_000_000, "3.4 GB"),
    ],
)
def test_human_bytes(n: int, text: str) -> None:
    assert human_bytes(n) == text
