"""`vqtok decode` of several files: the next is decoded while the last image is written."""

import threading
from pathlib import Path

import pytest
from cli_helpers import ok, run, save
from conftest import image, make_model

from vqtok import codec, images, model_registry
from vqtok.cli import decode


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_registry, "bundled_models", lambda: tmp_path / ".none")
    monkeypatch.setenv("VQTOK_MODEL", "tiny")
    make_model(tmp_path / "models" / "tiny")
    for i in range(3):
        save(f"{i}.png", image(8 + 4 * i, 12))
    ok("encode", "0.png", "1.png", "2.png", "-q")


def test_an_image_is_written_while_the_next_is_decoded(monkeypatch: pytest.MonkeyPatch):
    plain, later, waited = decode._pack, threading.Event(), []
    whole = codec.Model.decode_all

    def pack(path: Path, pixels: object) -> bytes:
        if path.name == "0.decoded.png":
            waited.append(later.wait(60))
        return plain(path, pixels)  # type: ignore[arg-type]

    def decode_all(self: codec.Model, codes: object) -> list[object]:
        if codes.sizes[0][0] == 12:  # type: ignore[attr-defined]
            later.set()
        return whole(self, codes)  # type: ignore[return-value]

    monkeypatch.setattr(decode, "_pack", pack)
    monkeypatch.setattr(codec.Model, "decode_all", decode_all)
    ok("decode", "0.npz", "1.npz", "2.npz")
    assert waited == [True]
    for i in range(3):
        assert images.read_image(Path(f"{i}.decoded.png")).pixels.shape[:2] == (8 + 4 * i, 12)


def test_what_cannot_be_written_does_not_stop_the_rest():
    Path("out").mkdir()
    (Path("out") / "1.decoded.png").mkdir()
    done = run("decode", "0.npz", "1.npz", "2.npz", "-o", "out", "-f")
    assert done.exit_code == 1
    assert "1 of 3 failed" in done.stderr
    assert (Path("out") / "2.decoded.png").is_file()
