"""Bad input to the commands: two lines, the right exit code, and nothing written."""

import errno
import io
import json
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import fails, ok, run, save, spoil
from conftest import image, make_model
from PIL import Image

import vqtok
from vqtok import codec, codes, files, model_registry

pytestmark = pytest.mark.usefixtures("toy")


def png_header(width: int, height: int) -> bytes:
    chunks = b""
    for name, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
        (b"IEND", b""),
    ):
        chunks += (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


BAD_IMAGES = {
    "text": (b"hello", "is not an image"),
    "empty": (b"", "is empty"),
    "truncated": (jpeg(image(200, 200))[:900], "cut off"),
    "bomb": (png_header(60000, 60000), "million pixels"),
    "zip": (b"PK\3\4" + b"\0" * 99, "is not an image"),
}


@pytest.mark.parametrize(("content", "message"), BAD_IMAGES.values(), ids=list(BAD_IMAGES))
def test_bad_images(content: bytes, message: str):
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
    for words in (
        ["encode", long],
        ["decode", long],
        ["eval", long],
        ["info", long],
        ["sample", "-o", long],
        ["encode", long, "-m", long],
    ):
        fails(*words)


def test_no_permission(monkeypatch: pytest.MonkeyPatch):
    """Root may read everything: the refusal is played."""
    save("a.png")

    def refuse(path: Any, *_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(
            files,
            "open",
            lambda path, _: refuse(path) if path.name == "a.png" else io.FileIO(path),
            raising=False,
        )
        assert "cannot read a.png: permission denied" in fails("encode", "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "open", refuse)
        assert "cannot write a.npz: permission denied" in fails("encode", "a.png")
        assert "cannot write samples.png: permission denied" in fails("sample")


@pytest.mark.parametrize(
    "words",
    [
        ["encode", "a.png"],
        ["decode", "a.npz", "-o", "b.png"],
        ["sample"],
        ["sample", "-o", "s.npz"],
    ],
)
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
    assert "unknown image format" in fails("sample", "-o", "x.gif", code=2)
    ok("encode", "a.png", "-o", "folder.npz")  # an existing folder is a folder, whatever its name
    assert "unknown image format" in fails("decode", "folder.npz/a.npz", "-o", "x.mp4", code=2)
    assert "unknown image format" in fails("eval", "--sheet", "x.txt", code=2)


def npz(name: str, **members: np.ndarray) -> None:
    np.savez(name, **members)  # type: ignore[arg-type]


def meta(**changes: Any) -> np.ndarray:
    facts = {
        "format": 1,
        "model": "toy",
        "fingerprint": "00000000",
        "codebook_size": 16,
        "downsample": 4,
        "channels": 3,
        "sizes": [[8, 8]],
    }
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
        archive.writestr(
            "indices.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        )
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
    ok("decode", "a.npz")  # finds its model, although the default is another
    told = fails("decode", "a.npz", "-m", "toy", "-o", "b.png")
    assert re.search(
        r"a\.npz: the codes were made with model other \(.{8}\), "
        r"but this is toy \(.{8}\)\n  fix: .*--model other",
        told,
    )
    (tmp_path / "models" / "other").rename(tmp_path / "models" / "renamed")
    ok("decode", "a.npz", "-f")
    (tmp_path / "models" / "renamed").rename(tmp_path / "elsewhere")
    assert "no model here has that fingerprint" in fails("decode", "a.npz", "-o", "b.png")
    told = fails("decode", "a.npz", "-o", "b.png", "-m", "toy")
    assert "the path of other's folder with --model" in told  # `--model other` would find none
    ok("decode", "a.npz", "-o", "b.png", "-m", "elsewhere")


def test_a_missing_model_is_looked_for_once_a_batch(monkeypatch: pytest.MonkeyPatch):
    for name in ("a.npz", "b.npz"):
        npz(name, indices=GRID, meta=meta())
    asked = []
    find = model_registry.read_by_fingerprint
    monkeypatch.setattr(
        model_registry, "read_by_fingerprint", lambda *which: asked.append(which) or find(*which)
    )
    done = run("decode", "a.npz", "b.npz")
    assert done.exit_code == 1
    assert [line.split(":")[2].strip() for line in done.stderr.splitlines()[::2][:2]] == [
        "a.npz",
        "b.npz",
    ]
    assert done.stderr.endswith("2 of 2 failed\n")
    assert len(asked) == 1


SPOILS = {
    "truncated": "damaged or truncated",
    "pickle": "looks like a pickle",
    "empty": "is empty",
    "missing tensor": "lacks the tensor",
    "wrong shape": "its config asks for",
    "damaged config": "downsample is 0",
}


@pytest.mark.parametrize(("how", "message"), SPOILS.items())
def test_damaged_weights(toy: Path, how: str, message: str):
    save("a.png")
    spoil(toy / "tokenizer.safetensors", how)
    for words in (
        ["encode", "a.png"],
        ["sample"],
        ["eval", "--limit", "1"],
        ["encode", "a.png", "-m", toy],
    ):
        assert message in fails(*words)
    if how not in ("missing tensor", "wrong shape"):  # info and models build no network
        assert message in fails("info", "toy")
        done = run("models")
        assert (done.exit_code, done.stdout) == (1, "")
        assert message in done.stderr
        assert done.stderr.endswith("1 of 1 failed\n")


def test_unknown_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save("a.png")
    assert "did you mean toy?" in fails("encode", "a.png", "-m", "tou")
    assert "there is no model 'nowhere/x'" in fails("sample", "-m", "nowhere/x")
    assert "is a prior file, not a tokenizer file" in fails(
        "encode", "a.png", "-m", tmp_path / "models/toy/prior.safetensors"
    )
    Path("hollow").mkdir()
    assert "hollow holds no tokenizer.safetensors" in fails("info", "hollow")
    monkeypatch.setattr(codec, "Model", lambda *_: pytest.fail("torch was imported first"))
    fails("encode", "a.png", "-m", "nope")


def test_usage_errors():
    save("a.png")
    for words, message in {
        ("encode",): "missing argument 'IN",
        ("encode", "a.png", "--colour", "x"): "no such option: --colour",
        ("encod", "a.png"): "no such command 'encod'",
        ("encode", "a.png", "--background", "blurple"): "'blurple' is no color",
        ("encode", "a.png", "--device", "tpu"): "there is no device 'tpu'",
        ("eval", "--split", "dev"): "there is no split 'dev'",
        ("encode", "a.png", "--precision", "int8"): "precision 'int8' is not known",
        ("eval", "a", "b"): "unexpected extra argument",
        ("sample", "-n", "0"): "'-n' / '--number'",
        ("sample", "--seed", "-1"): "'--seed'",
        ("sample", "--top-k", "0"): "'--top-k'",
        ("sample", "--temperature", "-1"): "temperature is -1.0",
        ("sample", "--top-p", "2"): "top-p is 2.0",
        ("sample", "--size", "24x"): "'24x' is no size",
        ("sample", "--size", "0x9"): "cannot sample",
        ("info",): "missing argument 'FILE'",
        ("sample", "--size", "9" * 99): "is no size",
        ("sample", "--label", "cow"): "there is no label 'cow'",
        ("sample", "--keep", "top:0.5"): "add --complete IMG",
        ("sample", "--complete", "a.png", "--size", "8"): "does not go with",
        ("sample", "--complete", "a.png", "--keep", "top:2"): "cannot keep 'top:2'",
        ("sample", "--size", "8192", "-n", "99"): "too many for one sheet",
    }.items():
        assert message in fails(*words, code=2)


def test_memory_that_runs_out_fails_one_image_only(monkeypatch: pytest.MonkeyPatch):
    save("in/a.png", image(8, 8))
    save("in/b.png", image(80, 80))
    encode = codec.Model.encode_batch

    def small_only(
        self: codec.Model, images: list[np.ndarray], *_: object, **__: object
    ) -> codes.Codes:
        if images[0].size > 1000:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: "
                "can't allocate memory: you tried ..."
            )
        return encode(self, images)

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
    monkeypatch.setattr("vqtok.codec.model.Model", full)
    assert "there is not enough memory for this" in fails("encode", "a.png")


def test_what_no_check_foresaw(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        raise TypeError("a mistake")

    monkeypatch.setattr(model_registry, "list_models", broken)
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
