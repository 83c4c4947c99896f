"""Full disks, read-only folders and ends on demand:
two lines, nothing half-written, and the same command goes on once there is room.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import warm
from bulk_helpers import image_files, make_tar
from cli_helpers import fails, fingerprints, ok, run, save, small, snapshot, train

import vqtok
from vqtok import files
from vqtok.cli import output
from vqtok.errors import OutputError

ROOT = Path(vqtok.__file__).parents[1]
Calls = {
    "encode": ["encode", "in.png", "-o", "out/a.npz"],
    "encode --bulk": ["encode", "in.tar", "-o", "out", "--workers", 0, "-q"],
    "decode": ["decode", "there.npz", "-o", "out/a.png"],
    "pack": ["pack", "there.npz", "-o", "out/a.npz"],
    "sample": ["sample", "-o", "out/a.png", "-n", 1],
}


@pytest.fixture
def there(toy: Path) -> None:
    save("in.png")
    make_tar("in.tar", image_files(4))
    ok("encode", "in.png", "-o", "there.npz")
    Path("out").mkdir()


def failing(number: int, where: str) -> Callable[..., None]:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(number, os.strerror(number), where)

    return fail


def spoil(monkeypatch: pytest.MonkeyPatch, where: str, number: int) -> None:
    if where == "write":
        monkeypatch.setattr(Path, "write_bytes", failing(number, "x"))
    elif where == "fsync":
        monkeypatch.setattr(files.os, "fsync", failing(number, "x"))
    else:  # as where the folder refuses: the temporary file cannot be made
        opened, fail = os.open, failing(number, "x")
        monkeypatch.setattr(
            files.os,
            "open",
            lambda path, flags, *mode: fail() if flags & os.O_CREAT else opened(path, flags, *mode),
        )


@pytest.mark.parametrize(
    ("name", "where", "number", "said"),
    [
        ("encode", "write", errno.ENOSPC, "the disk is full"),
        ("encode", "fsync", errno.EIO, "Input/output error"),
        ("encode", "open", errno.EROFS, "the file system is read-only"),
        ("encode", "open", errno.EACCES, "permission denied"),
        # the content is there already, under its temporary name
        *((name, "fsync", errno.EDQUOT, "the disk quota is used up") for name in Calls),
    ],
)
def test_what_cannot_be_written_is_told_and_leaves_nothing(
    there: None, monkeypatch: pytest.MonkeyPatch, name: str, where: str, number: int, said: str
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, where, number)
        assert said in fails(*Calls[name])
    assert not any(Path("out").iterdir())
    ok(*Calls[name])


@pytest.mark.slow
@pytest.mark.parametrize("full_at", [3, 6, 11, 17])
def test_training_on_a_full_disk_goes_on_to_the_same_model(
    data: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    """The disk is full from some write on: recipe, weights, sheet, state,
    grids, ..., samples or card.
    """
    assert small("-o", "whole").exit_code == 0
    write, count = Path.write_bytes, iter(range(1, 1000))

    def limited(self: Path, content: bytes) -> int:
        return (
            failing(errno.ENOSPC, str(self))() or 0
            if next(count) >= full_at
            else write(self, content)
        )

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", limited)
        result = small("-o", "m")
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()[-2:]
    assert first.startswith("vqtok: error: cannot write m/")
    assert first.endswith(": the disk is full")
    assert second == "  fix: free some space, or allow writing there, then go on with --resume"
    assert not list(Path("m").glob(".vqtok*"))
    assert train("--resume", "-o", "m").exit_code == 0
    assert fingerprints(Path("m")) == fingerprints(Path("whole"))
    assert {p.name for p in Path("m").iterdir()} == {p.name for p in Path("whole").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("again", [["--resume"], ["-f"]])
def test_what_a_killed_run_was_writing_is_taken_away(data: Path, again: list[str]) -> None:
    assert small("-o", "m", "--max-time", "0s").exit_code == 0
    for name in (
        ".vqtok-0123456789ab.safetensors",
        ".vqtok-0123456789ab",
        ".vqtok-0123456789ab.json",
    ):
        (Path("m") / name).write_bytes(b"half")
    mine = [".vqtok-notes.txt", "notes.npz"]
    for name in mine:
        (Path("m") / name).write_bytes(b"mine")
    words = ["--resume"] if again == ["--resume"] else ["data", "--recipe", "small.toml", "-f"]
    assert train(*words, "-o", "m").exit_code == 0
    assert sorted(p.name for p in Path("m").glob(".*")) == mine[:1]
    assert (Path("m") / mine[1]).read_bytes() == b"mine"


def test_a_size_limit_of_the_system_is_one_more_full_disk(there: None) -> None:
    resource = pytest.importorskip("resource")
    before, limits = snapshot(), resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        result = run(*Calls["decode"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert result.exit_code == 1
    assert "the file system takes no file this large" in result.stderr
    assert snapshot() == before


def test_sigterm_ends_a_command_as_ctrl_c_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a write: the temporary file goes, and the exit code is that
    of an interrupted command.
    """

    @output.handle_errors
    def command() -> None:
        with files.atomic(tmp_path / "a.npz") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(output.typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "vqtok: interrupted\n"
    assert not any(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_command_in_a_thread_leaves_signals_alone() -> None:
    seen: list[object] = []
    thread = threading.Thread(
        target=output.handle_errors(lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    )
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


@pytest.mark.slow
def test_sigterm_to_a_bulk_encode_leaves_no_temporary_file_and_no_worker(toy: Path) -> None:
    make_tar("a.tar", image_files(2000))
    words = "encode a.tar -o out --shard-size 5 --workers 1 -q"
    process = warm.Warm(warm.COMMAND, words.split(), {"PYTHONPATH": str(ROOT)})
    while not any(Path("out").glob("*.npz")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "vqtok: interrupted\n")
    assert not list(Path("out").glob(".vqtok*"))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_stale_files_go_and_all_others_stay(tmp_path: Path) -> None:
    names = {
        ".vqtok-0123456789ab.npz": False,
        ".vqtok-0123456789ab": False,
        ".vqtok-0123456789AB.npz": True,
        "a.npz": True,
        ".vqtok": True,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".vqtok-aaaaaaaaaaaa").mkdir()
    files.remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        name for name, stays in names.items() if stays
    } | {".vqtok-aaaaaaaaaaaa"}
    files.remove_stale(tmp_path / "nowhere")
    with pytest.raises(OutputError):
        files.write_bytes(tmp_path / "a.npz", b"")
