"""The commands as typed: results, messages, exit codes, and that nothing is written when something is wrong."""

import errno
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from conftest import make_model, picture
from PIL import Image
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner, Result

import vqtok
from vqtok import codec, codes, files, images, weights
from vqtok.cli import app, output

MINE = ("encode", "decode", "sample", "eval", "info", "models")
COMMANDS: Mapping[str, Any] = typer.main.get_command(app).commands      # type: ignore[attr-defined]


def run(*words: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def ok(*words: object, stdin: bytes | None = None) -> Result:
    result = run(*words, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def fails(*words: object, code: int = 1, stdin: bytes | None = None) -> str:
    """Runs a command that must fail with two lines on stderr, nothing on stdout, and no file made, changed or gone."""
    before = snapshot()
    result = run(*words, stdin=stdin)
    assert snapshot() == before
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("vqtok: error: ")
    assert lines[1].startswith("  fix: ")
    return result.stderr


def snapshot(folder: Path | None = None) -> dict[str, bytes]:
    folder = folder or Path.cwd()
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def save(name: str, pixels: np.ndarray | None = None, **options: Any) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if pixels is None else pixels).save(path, **options)
    return path


def size_of(picture: str | Path | bytes) -> tuple[int, int]:
    """(W, H) of a picture file, or of its content."""
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        return image.size


@pytest.fixture(autouse=True)
def toy(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default model of every command is the toy of conftest."""
    monkeypatch.setenv("VQTOK_MODEL", "toy")
    monkeypatch.setenv("COLUMNS", "120")
    return model


# Help, and no dead option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str):
    command = COMMANDS[name]
    assert command.help
    assert len(command.help.splitlines()[0]) <= 72      # one line in the list of commands
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"
        assert parameter.help.endswith("."), f"{name} {parameter.name}: {parameter.help}"
    shown = " ".join(ok(name, "--help").stdout.split())
    for parameter in command.params:
        assert all(option in shown for option in parameter.opts if option.startswith("-"))


def test_overview_lists_every_command():
    shown = ok("--help").stdout
    assert all(re.search(rf"^  {name} .*\w", shown, re.MULTILINE) for name in COMMANDS)
    assert "..." not in shown.split("Commands:")[1].replace("[ARGS]...", "")      # no help that is cut off


class Case:
    """An option, words of a command that it must change the outcome of, and files that exist before."""

    def __init__(self, command: str, option: str, value: str | None, *words: str, before: Sequence[str] = ()) -> None:
        self.command, self.option, self.value, self.words, self.before = command, option, value, words, before

    def __repr__(self) -> str:
        return f"{self.command} {self.option}"


CASES = [
    Case("encode", "--output", "o.npz", "a.png"),
    Case("encode", "--model", "other", "a.png"),
    Case("encode", "--force", None, "a.png", before=["a.npz"]),
    Case("encode", "--skip-existing", None, "a.png", before=["a.npz"]),
    Case("encode", "--background", "black", "alpha.png"),
    Case("encode", "--device", "nonsense", "a.png"),
    Case("encode", "--precision", "bf16", "large.png"),
    Case("encode", "--json", None, "a.png"),
    Case("encode", "--quiet", None, "a.png"),
    Case("encode", "--verbose", None, "a.png"),
    Case("decode", "--output", "o.png", "ready.npz"),
    Case("decode", "--model", "other", "ready.npz"),
    Case("decode", "--force", None, "ready.npz", before=["ready.decoded.png"]),
    Case("decode", "--skip-existing", None, "ready.npz", before=["ready.decoded.png"]),
    Case("decode", "--device", "nonsense", "ready.npz"),
    Case("decode", "--precision", "bf16", "ready.npz"),
    Case("decode", "--json", None, "ready.npz"),
    Case("decode", "--quiet", None, "ready.npz"),
    Case("decode", "--verbose", None, "ready.npz"),
    Case("sample", "--number", "2", "-o", "s.npz"),
    Case("sample", "--output", "o.png"),
    Case("sample", "--model", "other", "-o", "s.npz"),
    Case("sample", "--size", "24", "-o", "s.npz"),
    Case("sample", "--label", "eel", "-o", "s.npz", "--size", "96"),
    Case("sample", "--temperature", "0.1", "-o", "s.npz"),
    Case("sample", "--top-k", "2", "-o", "s.npz"),
    Case("sample", "--top-p", "0.3", "-o", "s.npz"),
    Case("sample", "--complete", "a.png", "-o", "s.npz", "-n", "2"),
    Case("sample", "--keep", "left:0.2", "-o", "s.npz", "--complete", "a.png"),
    Case("sample", "--seed", "1", "-o", "s.npz"),
    Case("sample", "--force", None, before=["samples.png"]),
    Case("sample", "--device", "nonsense"),
    Case("sample", "--json", None),
    Case("sample", "--quiet", None),
    Case("sample", "--verbose", None),
    Case("eval", "--model", "other", "pictures"),
    Case("eval", "--split", "train", "--limit", "2"),
    Case("eval", "--limit", "1", "pictures"),
    Case("eval", "--sheet", "sheet.png", "pictures"),
    Case("eval", "--force", None, "pictures", "--sheet", "sheet.png", before=["sheet.png"]),
    Case("eval", "--device", "nonsense", "pictures"),
    Case("eval", "--precision", "bf16", "pictures", "--json"),
    Case("eval", "--json", None, "pictures"),
    Case("eval", "--quiet", None, "pictures"),
    Case("eval", "--verbose", None, "pictures"),
    Case("info", "--json", None, "ready.npz"),
    Case("models", "--json", None),
]


def lay_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    monkeypatch.chdir(folder)
    save("a.png")
    save("pictures/b.png", picture(12, 20, seed=1))
    save("pictures/c.png", picture(12, 20, seed=2))
    save("large.png", picture(160, 160))
    save("alpha.png", picture(12, 12, 4))
    codes.write(Path("ready.npz"), codec.load("toy").encode(picture(24, 24)))


def outcome(case: Case, words: Sequence[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """All that a command leaves behind: exit code, text without times and places, files."""
    lay_out(folder, monkeypatch)
    for name in case.before:
        Path(name).write_bytes(b"old")
    result = run(case.command, *words)
    text = re.sub(r"\d+\.\d+ s|\"seconds\": [0-9.]+", "TIME", result.output).replace(str(folder.parent), "")
    return result.exit_code, text, snapshot()


PLAIN: dict[str, Any] = {}      # outcomes without the option, which many cases share


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_no_option_is_dead(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_model(tmp_path / "models" / "other", seed=1)
    monkeypatch.setattr(output, "console", lambda: Console(stderr=True, highlight=False, soft_wrap=True, color_system=None))
    if case.option == "--quiet" and case.command == "eval":
        pytest.skip("quiet hides the progress line of eval, which a terminal alone shows: see the test of progress lines")
    plain = outcome(case, case.words, monkeypatch, tmp_path / "plain")
    key = f"{case.command} {case.words} {case.before}"
    assert plain == PLAIN.setdefault(key, plain)        # what differs below is not chance
    value = [] if case.value is None else [case.value]
    assert plain != outcome(case, [*case.words, case.option, *value], monkeypatch, tmp_path / "with")


def test_the_table_of_options_is_complete():
    for name in MINE:
        options = {max(p.opts, key=len) for p in COMMANDS[name].params if p.param_type_name == "option"} - {"--help"}
        assert options == {case.option for case in CASES if case.command == name}


# Encode and decode


def test_encode_and_decode_write_beside_the_input():
    save("a.png")
    done = ok("encode", "a.png")
    assert done.stdout == ""
    assert re.fullmatch(r"a\.png -> a\.npz  8x5x1, \d+ B, \d\.\d\d bpp, [\d.]+x smaller than PNG, \d+\.\d\d s\n", done.stderr)
    done = ok("decode", "a.npz")
    assert re.fullmatch(r"a\.npz -> a\.decoded\.png  30x20, \d+\.\d\d s\n", done.stderr)
    expected = codec.load("toy").decode(codec.load("toy").encode("a.png"))
    assert (images.read(Path("a.decoded.png")).pixels == expected).all()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def odd_pictures() -> dict[str, tuple[tuple[int, int], str]]:
    """Writes odd pictures; name -> (W, H) when shown upright, and the note that `encode` gives."""
    save("one.png", picture(1, 1))
    save("alpha.png", picture(77, 31, 4))
    save("strip.png", picture(3, 5000))
    save("column.bmp", picture(500, 2))
    Image.fromarray(picture(20, 30)).quantize(16).save("palette.png")
    Image.fromarray(picture(20, 30, 1)[..., 0].astype(np.uint16) * 257).save("deep.png")
    Image.fromarray(picture(20, 30)).convert("CMYK").save("press.jpg")
    Image.fromarray(picture(20, 30)).convert("1").save("bits.png")
    Image.fromarray(picture(20, 30)).convert("L").save("grey.png")
    save("turned.jpg", picture(20, 30), exif=exif(6))
    frames = [Image.fromarray(picture(20, 30, seed=seed)) for seed in range(3)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    return {
        "one.png": ((1, 1), ""), "alpha.png": ((31, 77), "transparency laid over white"), "strip.png": ((5000, 3), ""),
        "column.bmp": ((2, 500), ""), "palette.png": ((30, 20), ""), "deep.png": ((30, 20), "16-bit values reduced to 8 bits"),
        "press.jpg": ((30, 20), "CMYK turned into RGB without a color profile"), "bits.png": ((30, 20), ""),
        "grey.png": ((30, 20), ""), "turned.jpg": ((20, 30), ""), "moving.gif": ((30, 20), "first of 3 frames"),
    }     # fmt: skip


def test_odd_pictures_come_back_in_their_size_and_are_noted():
    expected = odd_pictures()
    done = ok("encode", *expected, "-o", "codes")
    lines = done.stderr.splitlines()
    notes = {f"{name}: {note}" for name, (_, note) in expected.items() if note}
    assert {line for line in lines if " -> " not in line} == notes
    ok("decode", "codes", "-o", "back", "-q")
    for name, (size, _) in expected.items():
        assert size_of(Path("back", name).with_suffix(".decoded.png")) == size, name
    ok("decode", "codes/strip.npz", "-o", "strip.webp")
    assert size_of("strip.webp") == (5000, 3)


def test_folders_are_mirrored_and_made():
    for name in ("in/a.png", "in/sub/b.png", "in/sub/.hidden.png"):
        save(name)
    Path("in/notes.txt").write_text("no picture")
    ok("encode", "in", "-o", "out/deep")
    assert sorted(str(p) for p in Path("out").rglob("*.npz")) == ["out/deep/a.npz", "out/deep/sub/b.npz"]
    ok("decode", "out", "-o", "back")
    assert sorted(str(p) for p in Path("back").rglob("*.png")) == ["back/deep/a.decoded.png", "back/deep/sub/b.decoded.png"]


def test_dash_is_standard_input_and_output():
    content = save("a.png").read_bytes()
    made = ok("encode", "-", stdin=content)
    assert codes.read(made.stdout_bytes) == codec.load("toy").encode("a.png")
    assert re.match("standard input -> standard output  8x5x1, .* smaller than the source", made.stderr)
    back = ok("decode", "-", stdin=made.stdout_bytes)
    assert size_of(back.stdout_bytes) == (30, 20)
    assert ok("encode", "a.png", "-o", "-").stdout_bytes == made.stdout_bytes
    ok("encode", "-", "-o", "x.npz", stdin=content)
    assert Path("x.npz").read_bytes() == made.stdout_bytes
    assert json.loads(ok("info", "-", "--json", stdin=made.stdout_bytes).stdout)["sizes"] == [[30, 20]]
    assert "empty" in fails("encode", "-", stdin=b"")
    for words in (["encode", "a.png"], ["decode", "x.npz"], ["sample"]):
        assert "both go to standard output" in fails(*words, "-o", "-", "--json", code=2)


def test_json_is_one_object_a_line_on_stdout():
    for name in ("a.png", "b.png"):
        save(name)
    done = ok("encode", "a.png", "b.png", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert done.stderr == ""
    data = Path("a.npz").read_bytes()
    assert first.items() >= {
        "input": "a.png", "output": "a.npz", "model": "toy", "size": [30, 20], "grid": [8, 5, 1], "bytes": len(data),
        "bpp": round(8 * len(data) / 600, 4), "raw_bpp": round(40 * 4 / 600, 4), "source_bytes": Path("a.png").stat().st_size,
    }.items()     # fmt: skip
    assert second["input"] == "b.png"
    one = json.loads(ok("decode", "a.npz", "--json").stdout)
    assert (one["output"], one["size"], one["fingerprint"]) == ("a.decoded.png", [30, 20], first["fingerprint"])


def test_quiet_and_verbose():
    save("alpha.png", picture(9, 9, 4))
    assert ok("encode", "alpha.png", "-q").output == ""
    assert ok("decode", "alpha.npz", "-q").output == ""
    assert ok("sample", "-q").output == ""
    loud = ok("encode", "alpha.png", "-fv").stderr.splitlines()
    assert re.fullmatch(r"model toy \([0-9a-f]{8}\) from .*models/toy, \w+, fp32", loud[0])
    assert "vqtok: error" in run("encode", "missing.png", "-q").stderr


def test_existing_results_are_kept_replaced_or_left_out():
    save("a.png")
    save("b.png")
    Path("a.npz").write_bytes(b"old")
    assert "a.npz exists" in fails("encode", "a.png")
    assert "-f/--force" in fails("encode", "a.png")
    skipped = ok("encode", "a.png", "b.png", "--skip-existing")
    assert skipped.stderr.startswith("1 of 2 exist already and are left out\nb.png -> b.npz")
    assert Path("a.npz").read_bytes() == b"old"
    ok("encode", "a.png", "-f")
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    assert ok("encode", "a.png", "b.png", "--skip-existing", "-q").output == ""
    assert "contradict" in fails("encode", "a.png", "-f", "--skip-existing", code=2)


def test_results_that_exist_are_told_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch):
    save("a.png")
    Path("a.npz").write_bytes(b"old")
    monkeypatch.setattr(codec, "load", lambda *_: pytest.fail("loaded"))
    assert "exists" in fails("encode", "a.png")
    ok("encode", "a.png", "--skip-existing")


def test_several_pictures_in_one_file_are_numbered():
    ok("sample", "-n", "3", "-o", "s.npz")
    done = ok("decode", "s.npz")
    assert done.stderr.count("s.npz -> s.decoded-000") == 3
    assert sorted(p.name for p in Path().glob("*.png")) == [f"s.decoded-000{i}.png" for i in (1, 2, 3)]
    assert "s.decoded-0001.png exists" in fails("decode", "s.npz")
    assert ok("decode", "s.npz", "--skip-existing").output == ""
    assert "3 pictures do not go to standard output" in fails("decode", "s.npz", "-o", "-")


def test_two_inputs_for_one_result_are_refused():
    for name in ("a.png", "a.bmp"):
        save(name)
    message = fails("encode", "a.png", "a.bmp", code=2)
    assert "a.png and a.bmp would both become a.npz" in message
    save("x/a.png")
    assert "would both become" in fails("encode", "a.png", "x/a.png", "-o", "out", code=2)
    assert "several results" in fails("encode", "a.png", "x/a.png", "-o", "one.npz", code=2)


def test_a_batch_goes_on_after_bad_files():
    for i in range(4):
        save(f"in/{i}.png", picture(8 + i, 9))
    Path("in/0.png").write_bytes(b"no picture")
    Path("in/2.png").write_bytes(Path("in/2.png").read_bytes()[:50])
    done = run("encode", "in", "missing.png", "-o", "out")
    assert done.exit_code == 1
    assert done.stderr.count("vqtok: error: ") == 3
    assert done.stderr.endswith("\n3 of 5 failed\n")
    assert sorted(p.name for p in Path("out").iterdir()) == ["1.npz", "3.npz"]
    Path("out/4.npz").write_bytes(Path("out/1.npz").read_bytes()[:100])
    done = run("decode", "out", "-o", "back")
    assert done.exit_code == 1
    assert "4.npz" in done.stderr
    assert done.stderr.endswith("\n1 of 3 failed\n")
    assert sorted(p.name for p in Path("back").iterdir()) == ["1.decoded.png", "3.decoded.png"]
    done = run("encode", "in", "-o", "out", "-f", "--json", "-q")
    assert [json.loads(line)["input"] for line in done.stdout.splitlines()] == ["in/1.png", "in/3.png"]


def test_file_names_are_shown_as_they_are_and_on_one_line():
    for name, shown in ((":smile:[red]x[/].png", ":smile:[red]x[/].png"), ("a\nb\x1b[31m.png", "a b?[31m.png")):
        save(name)
        assert ok("encode", name).stderr.startswith(f"{shown} -> ")
        assert shown.replace(".png", ".npz") + " exists" in fails("encode", name)


# Bad input


def png_header(width: int, height: int) -> bytes:
    chunks = b""
    for name, body in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"0")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


BAD_PICTURES = {
    "text": (b"hello", "is not a picture"), "empty": (b"", "is empty"), "truncated": (jpeg(picture(200, 200))[:900], "cut off"),
    "bomb": (png_header(60000, 60000), "million pixels"), "zip": (b"PK\3\4" + b"\0" * 99, "is not a picture"),
}     # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD_PICTURES.values(), ids=list(BAD_PICTURES))
def test_bad_pictures(content: bytes, message: str):
    Path("bad.png").write_bytes(content)
    Path("folder").mkdir()
    Path("folder/bad.png").write_bytes(content)
    assert message in fails("encode", "bad.png")
    assert message in fails("sample", "--complete", "bad.png")
    assert message in fails("encode", "-", stdin=content)
    assert "bad.png" in fails("eval", "folder")


def test_nothing_to_work_on():
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("x")
    assert "missing.png does not exist" in fails("encode", "missing.png")
    assert "no usable file" in fails("encode", "empty")
    assert "no file matches *.tif" in fails("encode", "*.tif")
    assert "missing.npz does not exist" in fails("decode", "missing.npz")
    assert "no usable file" in fails("decode", "empty")
    assert "missing" in fails("eval", "missing")
    assert "empty" in fails("eval", "empty")
    assert "missing.npz does not exist" in fails("info", "missing.npz")
    assert "missing.png does not exist" in fails("sample", "--complete", "missing.png")
    long = "a" * 300
    for words in (["encode", long], ["decode", long], ["eval", long], ["info", long], ["sample", "-o", long], ["encode", long, "-m", long]):
        fails(*words)


def test_no_permission(monkeypatch: pytest.MonkeyPatch):
    """Root may read everything: the refusal is played."""
    save("a.png")

    def refuse(path: Any, *_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", lambda path, _: refuse(path) if path.name == "a.png" else io.FileIO(path), raising=False)
        assert "cannot read a.png: permission denied" in fails("encode", "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "open", refuse)
        assert "cannot write a.npz: permission denied" in fails("encode", "a.png")
        assert "cannot write samples.png: permission denied" in fails("sample")


@pytest.mark.parametrize("words", [["encode", "a.png"], ["decode", "a.npz", "-o", "b.png"], ["sample"], ["sample", "-o", "s.npz"]])
def test_full_disk(words: list[str], monkeypatch: pytest.MonkeyPatch):
    save("a.png")
    if words[0] == "decode":
        ok("encode", "a.png")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert "the disk is full" in fails(*words)


def test_places_that_cannot_be_written():
    save("a.png")
    Path("folder.npz").mkdir()
    assert "not a folder" in fails("encode", "a.png", "-o", "a.png/x.npz")
    assert "not an ordinary file" in fails("encode", "a.png", "-o", "/dev/full")
    assert "unknown picture format" in fails("sample", "-o", "x.gif", code=2)
    ok("encode", "a.png", "-o", "folder.npz")       # an existing folder is a folder, whatever its name
    assert "unknown picture format" in fails("decode", "folder.npz/a.npz", "-o", "x.mp4", code=2)
    assert "unknown picture format" in fails("eval", "--sheet", "x.txt", code=2)


def npz(name: str, **members: np.ndarray) -> None:
    np.savez(name, **members)     # type: ignore[arg-type]


def meta(**changes: Any) -> np.ndarray:
    facts = {"format": 1, "model": "toy", "fingerprint": "00000000", "codebook_size": 16, "downsample": 4, "channels": 3, "sizes": [[8, 8]]}
    return np.array(json.dumps({**facts, **changes}))


GRID = np.zeros((1, 1, 2, 2), np.uint8)
BAD_CODES: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "another model": ({"indices": GRID, "meta": meta()}, "made with model toy (00000000)"),
    "newer format": ({"indices": GRID, "meta": meta(format=2)}, "upgrade vqtok"),
    "indices too large": ({"indices": GRID + 16, "meta": meta()}, "up to 16"),
    "wrong dtype": ({"indices": GRID.astype(np.float32), "meta": meta()}, "<f4"),
    "wrong rank": ({"indices": GRID[0], "meta": meta()}, "four axes"),
    "no meta": ({"indices": GRID}, "meta is missing"),
    "no indices": ({"meta": meta()}, "indices is missing"),
    "sizes do not fit": ({"indices": GRID, "meta": meta(sizes=[[80, 8]])}, "does not have a grid"),
    "objects": ({"indices": np.array([[None]], object), "meta": meta()}, "Python objects"),
}


@pytest.mark.parametrize(("members", "message"), BAD_CODES.values(), ids=list(BAD_CODES))
def test_bad_codes(members: dict[str, np.ndarray], message: str):
    npz("bad.npz", **members)
    told = fails("decode", "bad.npz")
    assert message in told
    assert told.startswith("vqtok: error: bad.npz: ")
    if message != BAD_CODES["another model"][1]:
        assert message in fails("info", "bad.npz")


def test_codes_that_ask_for_a_terabyte():
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1048576, 1048576), }"
    with zipfile.ZipFile("bomb.npz", "w") as archive:
        archive.writestr("indices.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        file = io.BytesIO()
        np.save(file, meta())
        archive.writestr("meta.npy", file.getvalue())
    assert "which the file cannot hold" in fails("decode", "bomb.npz")


def test_what_is_no_codes_file():
    save("a.png")
    Path("empty.npz").write_bytes(b"")
    ok("encode", "a.png")
    Path("cut.npz").write_bytes(Path("a.npz").read_bytes()[:-40])
    for name in ("a.png", "empty.npz", "cut.npz"):
        assert name in fails("decode", name)
        assert name in fails("info", name)
    assert "neither codes nor weights" in fails("info", "a.png")


def test_codes_of_another_fingerprint(tmp_path: Path):
    make_model(tmp_path / "models" / "other", seed=1)
    save("a.png")
    ok("encode", "a.png", "-m", "other")
    ok("decode", "a.npz")       # finds its model, although the default is another
    told = fails("decode", "a.npz", "-m", "toy", "-o", "b.png")
    assert re.search(r"a\.npz: the codes were made with model other \(.{8}\), but this is toy \(.{8}\)\n  fix: .*--model other", told)
    (tmp_path / "models" / "other").rename(tmp_path / "models" / "renamed")
    ok("decode", "a.npz", "-f")
    (tmp_path / "models" / "renamed").rename(tmp_path / "elsewhere")
    assert "no model here has that fingerprint" in fails("decode", "a.npz", "-o", "b.png")
    ok("decode", "a.npz", "-o", "b.png", "-m", "elsewhere")


def test_a_missing_model_is_looked_for_once_a_batch(monkeypatch: pytest.MonkeyPatch):
    for name in ("a.npz", "b.npz"):
        npz(name, indices=GRID, meta=meta())
    asked = []
    find = weights.find_by_fingerprint
    monkeypatch.setattr(weights, "find_by_fingerprint", lambda *which: asked.append(which) or find(*which))
    done = run("decode", "a.npz", "b.npz")
    assert done.exit_code == 1
    assert [line.split(":")[2].strip() for line in done.stderr.splitlines()[::2][:2]] == ["a.npz", "b.npz"]
    assert done.stderr.endswith("2 of 2 failed\n")
    assert len(asked) == 1


def spoil(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "pickle":
        torch.save({"a": torch.zeros(2)}, path)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        stored = weights.load(path, "tokenizer")
        name = sorted(stored.tensors)[0]
        if how == "missing tensor":
            del stored.tensors[name]
        elif how == "wrong shape":
            stored.tensors[name] = stored.tensors[name][:1]
        elif how == "damaged config":
            stored.meta["config"]["downsample"] = 0
        weights.save(path, stored)


SPOILS = {
    "truncated": "damaged or truncated", "pickle": "looks like a pickle", "empty": "is empty", "missing tensor": "lacks the tensor",
    "wrong shape": "its config asks for", "damaged config": "downsample is 0",
}     # fmt: skip


@pytest.mark.parametrize(("how", "message"), SPOILS.items())
def test_damaged_weights(toy: Path, how: str, message: str):
    save("a.png")
    spoil(toy / "tokenizer.safetensors", how)
    for words in (["encode", "a.png"], ["sample"], ["eval", "--limit", "1"], ["encode", "a.png", "-m", toy]):
        assert message in fails(*words)
    if how not in ("missing tensor", "wrong shape"):      # info and models build no network
        assert message in fails("info", "toy")
        done = run("models")
        assert (done.exit_code, done.stdout) == (1, "")
        assert message in done.stderr
        assert done.stderr.endswith("1 of 1 failed\n")


def test_unknown_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save("a.png")
    assert "did you mean toy?" in fails("encode", "a.png", "-m", "tou")
    assert "there is no model 'nowhere/x'" in fails("sample", "-m", "nowhere/x")
    assert "is a prior file, not a tokenizer file" in fails("encode", "a.png", "-m", tmp_path / "models/toy/prior.safetensors")
    Path("hollow").mkdir()
    assert "hollow holds no tokenizer.safetensors" in fails("info", "hollow")
    monkeypatch.setattr(codec, "load", lambda *_: pytest.fail("torch was imported first"))
    fails("encode", "a.png", "-m", "nope")


def test_usage_errors():
    save("a.png")
    for words, message in {
        ("encode",): "missing argument 'IN", ("encode", "a.png", "--colour", "x"): "no such option: --colour",
        ("encod", "a.png"): "no such command 'encod'", ("encode", "a.png", "--background", "blurple"): "'blurple' is no color",
        ("encode", "a.png", "--device", "tpu"): "there is no device 'tpu'", ("eval", "--split", "dev"): "there is no split 'dev'",
        ("encode", "a.png", "--precision", "int8"): "precision 'int8' is not known", ("eval", "a", "b"): "unexpected extra argument",
        ("sample", "-n", "0"): "'-n' / '--number'", ("sample", "--seed", "-1"): "'--seed'", ("sample", "--top-k", "0"): "'--top-k'",
        ("sample", "--temperature", "-1"): "'--temperature'", ("sample", "--top-p", "2"): "top-p is 2.0",
        ("sample", "--size", "24x"): "'24x' is no size", ("sample", "--size", "0x9"): "cannot sample", ("info",): "missing argument 'FILE'",
        ("sample", "--size", "9" * 99): "is no size", ("sample", "--label", "cow"): "there is no label 'cow'",
        ("sample", "--keep", "top:0.5"): "add --complete IMG", ("sample", "--complete", "a.png", "--size", "8"): "does not go with",
        ("sample", "--complete", "a.png", "--keep", "top:2"): "cannot keep 'top:2'",
        ("sample", "--size", "8192", "-n", "99"): "too many for one sheet",
    }.items():     # fmt: skip
        assert message in fails(*words, code=2)


def test_memory_that_runs_out_fails_one_picture_only(monkeypatch: pytest.MonkeyPatch):
    save("in/a.png", picture(8, 8))
    save("in/b.png", picture(80, 80))
    encode = codec.Model.encode_batch

    def small_only(self: codec.Model, pictures: list[np.ndarray]) -> codes.Codes:
        if pictures[0].size > 1000:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ...")
        return encode(self, pictures)

    monkeypatch.setattr(codec.Model, "encode_batch", small_only)
    done = run("encode", "in")
    assert done.exit_code == 1
    assert "vqtok: error: there is not enough memory for in/b.png\n  fix: " in done.stderr
    assert Path("in/a.npz").exists()
    assert "not enough memory" in fails("eval", "in")


def test_memory_that_runs_out_anywhere_else(monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise MemoryError

    save("a.png")
    monkeypatch.setattr(codec, "load", full)
    assert "there is not enough memory for this" in fails("encode", "a.png")


def test_what_no_check_foresaw(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        raise TypeError("a mistake")

    monkeypatch.setattr(weights, "models", broken)
    assert "unexpected TypeError: a mistake" in fails("models")
    monkeypatch.setenv("VQTOK_DEBUG", "1")
    assert isinstance(run("models").exception, TypeError)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VQTOK_DEBUG", "1")
    save("a.png")
    for words in (["encode", "missing.png"], ["encode", "missing.png", "a.png"]):
        assert isinstance(run(*words).exception, vqtok.VqtokError)


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(codec.Model, "sample_codes", interrupt)
    done = run("sample")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "vqtok: interrupted\n")
    assert not Path("samples.png").exists()


# Sample


def test_seed_decides_the_bytes():
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ok("sample", "-n", "4", "--seed", seed, "-o", f"{name}.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()


def test_sample_to_sheet_folder_and_codes():
    done = ok("sample", "-n", "3")
    assert re.fullmatch(r"3 pictures of 20x16 from toy, seed 0 -> samples\.png  \d+\.\d\d s\n", done.stderr)
    width, height = size_of("samples.png")
    assert width > 3 * 20 * 4       # enlarged; a column for each label
    assert height > 16 * 4
    done = ok("sample", "-n", "1", "--size", "24x16", "-o", "one.png")
    assert done.stderr.startswith("1 picture of 24x16")
    assert size_of("one.png") == (24, 16)
    ok("sample", "-n", "3", "--size", "24x16", "-o", "many", "--seed", "5")
    ok("sample", "-n", "3", "--size", "24x16", "-o", "many.npz", "--seed", "5")
    ok("decode", "many.npz", "-o", "again.png")
    for i in (1, 2, 3):
        ours, theirs = Path(f"many/000{i}.png"), Path(f"again-000{i}.png")
        assert size_of(ours) == (24, 16)
        assert ours.read_bytes() == theirs.read_bytes()
    assert "many/0001.png exists" in fails("sample", "-n", "3", "-o", "many")
    ok("sample", "-n", "3", "-o", "many", "-f")
    piped = ok("sample", "-n", "1", "--size", "24x16", "-o", "-").stdout_bytes
    assert piped == Path("one.png").read_bytes()


def test_sample_json():
    lines = [json.loads(line) for line in ok("sample", "-n", "2", "-o", "d", "--json", "--seed", "7").stdout.splitlines()]
    assert [line["output"] for line in lines] == ["d/0001.png", "d/0002.png"]
    assert lines[0].items() >= {"model": "toy", "seed": 7, "size": [20, 16], "pictures": 1}.items()
    assert json.loads(ok("sample", "-n", "2", "--json").stdout)["pictures"] == 2


def test_sample_options_reach_the_library():
    words = ["--label", "dog", "--temperature", "0.7", "--top-k", "9", "--top-p", "0.8", "--seed", "3", "--size", "30x22", "-n", "2"]
    ok("sample", *words, "-o", "s.npz")
    expected = codec.load("toy").sample_codes(2, (22, 30), label="dog", temperature=0.7, top_k=9, top_p=0.8, seed=3)
    assert codes.read(Path("s.npz")) == expected
    ok("sample", "--temperature", "0", "--label", "1", "-n", "2", "-o", "cold.npz")
    cold = codes.read(Path("cold.npz")).indices
    assert (cold[0] == cold[1]).all()


@pytest.mark.parametrize("keep", ["top:0.5", "bottom:0.3", "left:0.5", "right:0.25"])
def test_complete_keeps_the_codes(keep: str):
    save("a.png")
    ok("encode", "a.png")
    given = codes.read(Path("a.npz")).indices
    done = ok("sample", "--complete", "a.png", "--keep", keep, "-n", "2", "-o", "c.npz")
    assert done.stderr.startswith("2 pictures of 30x20")
    made = codes.read(Path("c.npz")).indices
    rows, columns = codec.kept_part(keep, *given.shape[2:])
    assert (made[..., rows, columns] == given[..., rows, columns]).all()
    assert (made != given).any()
    ok("sample", "--complete", "-", "--keep", keep, "-n", "2", "-o", "d.npz", stdin=Path("a.png").read_bytes())
    assert Path("d.npz").read_bytes() == Path("c.npz").read_bytes()


def test_complete_shows_notes():
    save("alpha.png", picture(20, 30, 4))
    assert ok("sample", "--complete", "alpha.png", "-n", "1").stderr.startswith("alpha.png: transparency laid over white\n")


def test_models_without_a_prior_or_with_a_wrong_one(tmp_path: Path):
    make_model(tmp_path / "models" / "bare", prior=None)
    make_model(tmp_path / "models" / "mixed", seed=3)
    stranger = tmp_path / "models" / "toy" / "prior.safetensors"
    (tmp_path / "models" / "mixed" / "prior.safetensors").write_bytes(stranger.read_bytes())
    assert "the model bare has no prior" in fails("sample", "-m", "bare")
    assert "prior of another tokenizer" in fails("sample", "-m", "mixed")
    assert "prior of another tokenizer" in fails("eval", "-m", "mixed", "--limit", "2")
    table = ok("eval", "-m", "bare", "--limit", "2").stdout
    assert "by the prior" not in table


# Eval, info, models


def test_eval_says_which_pictures_failed():
    save("in/a.png", picture(12, 16))
    Path("in/b.png").write_bytes(b"no picture")
    done = run("eval", "in", "--json")
    assert done.exit_code == 1
    figures = json.loads(done.stdout)
    assert (figures["pictures"], figures["skipped"], figures["model"], figures["data"]) == (1, 1, "toy", "in")
    assert re.fullmatch(r"vqtok: error: in/b\.png is not a picture\n  fix: .*\n1 of 2 failed\n", done.stderr)


def test_eval_table_json_and_sheet():
    table = ok("eval", "--limit", "3", "--sheet", "new/sheet.png").stdout
    title, *rows = [line.strip() for line in table.splitlines() if line.strip()]
    assert title == "toy on 2,000 built-in pictures of 32x32 with 6 labels"
    assert ["pictures", "3"] in [row.split() for row in rows]
    for name in ("PSNR, dB", "SSIM", "MS-SSIM", "codes used", "perplexity", "bits per pixel, raw", "bits per dimension"):
        assert any(row.startswith(name) for row in rows)
    width, height = size_of("new/sheet.png")
    assert height > 3 * 128
    assert width > 2 * 128
    figures = json.loads(ok("eval", "--limit", "3", "--json").stdout)
    assert f"{figures['psnr']:.2f}" in table
    assert figures["bpp"] == 0.25


def test_json_has_no_word_for_infinity(capsysbinary: pytest.CaptureFixture[bytes]):
    output.print_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": {"d": float("-inf")}})
    assert json.loads(capsysbinary.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_info_of_codes_weights_and_models(toy: Path):
    save("a.png")
    ok("encode", "a.png")
    facts = json.loads(ok("info", "a.npz", "--json").stdout)
    fingerprint = weights.tokenizer_fingerprint(toy / "tokenizer.safetensors")
    assert facts.items() >= {
        "kind": "codes", "model": "toy", "fingerprint": fingerprint, "model_path": str(toy), "pictures": 1, "grid": [8, 5, 1],
        "codebook_size": 16, "downsample": 4, "channels": 3, "sizes": [[30, 20]], "bytes": Path("a.npz").stat().st_size,
    }.items()     # fmt: skip
    by_name = json.loads(ok("info", "toy", "--json").stdout)
    assert by_name == json.loads(ok("info", toy, "--json").stdout) == json.loads(ok("info", toy / "tokenizer.safetensors", "--json").stdout)
    assert (by_name["fingerprint"], by_name["bpp"], by_name["prior"]["config"]["labels"]) == (fingerprint, 0.25, ["cat", "dog", "eel"])
    assert json.loads(ok("info", toy / "prior.safetensors", "--json").stdout)["kind"] == "prior"
    text = ok("info", "a.npz").stdout
    assert re.search(r"grid +8x5x1\n", text)
    assert re.search(rf"decodes with +{re.escape(str(toy))}\n", text)
    text = ok("info", "toy").stdout
    assert re.search(r"\n +labels +cat, dog, eel\n", text)
    toy.rename(toy.with_name(".gone"))
    (toy.with_name(".gone") / "tokenizer.safetensors").unlink()
    assert "no model here" in ok("info", "a.npz").stdout


def test_models_lists_all_and_says_which_are_damaged(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "bundled", lambda: tmp_path / "none")
    bare = make_model(tmp_path / "models" / "bare", prior=None)
    listed = {m["name"]: m for m in map(json.loads, ok("models", "--json").stdout.splitlines())}
    assert set(listed) == {"bare", "toy"}
    assert listed["toy"].items() >= {"prior": True, "labels": ["cat", "dog", "eel"], "bpp": 0.25, "validation": {"psnr": 10.0}}.items()
    assert listed["bare"]["prior"] is False
    table = ok("models").stdout
    assert re.search(r"toy +4 +16 +0\.250 +10\.00 +3 +yes ", table)
    spoil(bare / "tokenizer.safetensors", "truncated")
    done = run("models")
    assert done.exit_code == 1
    assert "toy" in done.stdout
    assert "bare/tokenizer.safetensors" in done.stderr
    monkeypatch.setenv("VQTOK_MODELS", "nowhere")
    assert "no model here" in fails("models")


def test_environment_names_models_and_device(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save("a.png")
    elsewhere = make_model(tmp_path / "elsewhere" / "second", seed=4)
    monkeypatch.setenv("VQTOK_MODELS", f"{tmp_path / 'models'}{os.pathsep}{tmp_path / 'elsewhere'}")
    monkeypatch.setenv("VQTOK_MODEL", "second")
    ok("encode", "a.png")
    assert codes.read(Path("a.npz")).model == "second"
    ok("encode", "a.png", "-f", "-m", "toy")
    assert codes.read(Path("a.npz")).model == "toy"
    monkeypatch.setenv("VQTOK_MODEL", str(elsewhere))
    ok("encode", "a.png", "-f")
    assert codes.read(Path("a.npz")).model == "second"
    monkeypatch.setenv("VQTOK_DEVICE", "tpu")
    assert "no device 'tpu'" in fails("encode", "a.png", "-f", code=2)
    ok("encode", "a.png", "-f", "--device", "cpu")


# Terminals and pipes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_text(monkeypatch: pytest.MonkeyPatch, show: Callable[[], None]) -> str:
    """What `show` writes to a standard error that is a terminal."""
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        show()
    return stream.getvalue()


def test_colors_on_a_terminal_only_and_not_under_no_color(monkeypatch: pytest.MonkeyPatch):
    def show() -> None:
        output.show_error(vqtok.VqtokError("wrong", "mend it"))

    assert "\x1b[1;31m" in terminal_text(monkeypatch, show)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in terminal_text(monkeypatch, show)
    assert "\x1b" not in run("encode", "missing.png").stderr


def test_progress_on_a_terminal_only_and_not_under_quiet(monkeypatch: pytest.MonkeyPatch):
    from vqtok.cli.progress import bar

    def show(quiet: bool) -> None:
        with bar("sample", quiet) as progress:
            if progress is not None:
                progress(3, 7)

    assert "3/7" in terminal_text(monkeypatch, lambda: show(False))
    assert terminal_text(monkeypatch, lambda: show(True)) == ""
    for command in (["sample"], ["eval", "--limit", "2"]):
        assert "/" not in re.sub(r"samples\.png", "", run(*command, "-q").stderr)


def test_binary_never_goes_to_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output, "_is_terminal", lambda: True)
    save("a.png")
    assert "standard output is a terminal" in fails("encode", "a.png", "-o", "-")


class Broken(io.BytesIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, data: Any) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_standard_output_that_takes_nothing(number: int, monkeypatch: pytest.MonkeyPatch):
    """A reader that has gone is no error to tell; a full disk is."""
    table = Table("a")
    table.add_row("b")
    for write in (lambda: output.write_stdout(b"x"), lambda: output.print_json({}), lambda: output.print_table(table)):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Broken(number), write_through=True))
        with pytest.raises(typer.Exit if number == errno.EPIPE else vqtok.VqtokError):
            write()


# As real processes


def process(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "vqtok", *words], capture_output=True, timeout=60, **options)


def test_exit_codes_and_streams_of_the_real_command():
    for words, code in ((["--version"], 0), (["info", "missing.npz"], 1), (["encode"], 2)):
        done = process(*words)
        assert done.returncode == code
        assert b"Traceback" not in done.stderr
        if code:
            assert done.stdout == b""
            assert done.stderr.startswith(b"vqtok: error: ")
            assert done.stderr.count(b"\n") == 2
        else:
            assert (done.stdout, done.stderr) == (f"vqtok {vqtok.__version__}\n".encode(), b"")


def test_light_commands_do_without_torch():
    save("a.png")
    ok("encode", "a.png")
    words = [["--help"], ["--version"], ["encode", "--help"], ["info", "a.npz"], ["info", "toy"], ["models"], ["encode", "no.png"],
             ["encode", "a.png", "-m", "no"], ["decode", "a.png"]]      # fmt: skip
    script = f"""
import contextlib, io, sys
from vqtok.cli import main
for words in {words!r}:
    sys.argv = ["vqtok", *words]
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        main()
    assert "torch" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
def test_a_pipe_of_real_commands():
    content = save("a.png").read_bytes()
    made = process("encode", "-", input=content)
    assert (made.returncode, made.stderr.count(b"\n")) == (0, 1)
    back = process("decode", "-", input=made.stdout)
    assert size_of(back.stdout) == (30, 20)


@pytest.mark.slow
def test_ctrl_c_of_the_real_command():
    words = ["sample", "-v", "--size", "4096", "-n", "4", "-o", "out"]
    with subprocess.Popen([sys.executable, "-m", "vqtok", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stderr is not None
        assert child.stderr.readline().startswith(b"model toy")
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
    assert (child.returncode, told) == (130, b"vqtok: interrupted\n")
    assert not Path("out").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_file_system_that_takes_no_more():
    import resource

    save("a.png")
    before = snapshot()
    done = process("encode", "a.png", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)))
    assert done.returncode == 1
    assert done.stderr.startswith(b"vqtok: error: cannot write a.npz: ")
    assert done.stderr.count(b"\n") == 2
    assert snapshot() == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kB, RLIMIT_AS that holds")
def test_a_huge_config_in_a_small_file_takes_no_memory(toy: Path):
    stored = weights.load(toy / "tokenizer.safetensors", "tokenizer")
    stored.meta["config"] |= {"width": 2048, "code_dim": 1024, "codebook_size": 65536, "encoder_blocks": 64, "decoder_blocks": 64}
    weights.save(toy / "tokenizer.safetensors", stored)
    save("a.png")
    script = """
import resource, sys
sys.argv = ["vqtok", "encode", "a.png"]
resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
from vqtok.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert b"its config asks for" in done.stderr
    assert int(done.stdout) < 1_000_000
