"""What `import vqtok` gives: its eight names, how they show themselves, and how models load."""

import json
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import ok, save
from conftest import image

import vqtok
from vqtok import codes, model_registry

NAMES = [
    "Codes",
    "CodesDataset",
    "Model",
    "VqtokError",
    "__version__",
    "load",
    "read_codes",
    "write_codes",
]


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dir_shows_the_public_names():
    assert dir(vqtok) == sorted(vqtok.__all__) == NAMES
    assert all(getattr(vqtok, name) is not None for name in NAMES)
    assert not hasattr(vqtok, "lod")


def test_help_shows_the_public_names():
    text = pydoc.plain(pydoc.render_doc(vqtok))
    for name in ("class Codes(", "class CodesDataset(", "class Model(", "class VqtokError("):
        assert name in text, name
    for name in ("load(", "read_codes(", "write_codes("):
        assert f"\n    {name}" in text, name


def test_dir_of_the_codec_shows_what_it_hands_on():
    from vqtok import codec

    assert dir(codec) == sorted(codec.__all__)
    assert all(callable(getattr(codec, name)) for name in codec.__all__)


def test_repr_is_one_line(toy: Path):
    model = vqtok.load()
    mark = model.fingerprint
    assert repr(model) == f"<Model toy ({mark}): {model.config.grid}, cpu, fp32>"
    K = model.config.codebook_size
    one = model.encode(image(33, 20))
    f = model.config.downsample
    grid = f"grid {-(-20 // f)}x{-(-33 // f)}"
    assert repr(one) == f"<Codes of toy ({mark}): 1 image of 20x33, {grid}, 1 level of {K} codes>"
    assert repr(codes.to_compact(one)) == repr(one).replace("<Codes", "<Compact")
    sizes = ((33, 20), (34, 20), (33, 19), (34, 19), (33, 20))
    many = model.encode_batch([image(*size) for size in sizes])
    assert f": 5 images of 20x33, 20x34, 19x33, ..., {grid}" in repr(many)


@pytest.mark.slow
def test_a_model_is_read_beside_the_import_of_torch(toy: Path):
    """The file is read on another thread, which starts before torch is imported."""
    out = python(f"""
import json, sys, threading
import vqtok
from vqtok import model_registry
found, read = [], model_registry.read_tokenizer
def noted(folder):
    found.append((threading.current_thread() is threading.main_thread(), started))
    return read(folder)
model_registry.read_tokenizer = noted
load = vqtok.load
started = "torch" in sys.modules
model = load({str(toy)!r})
print(json.dumps([*found, model.name, "torch" in sys.modules]))
""")
    assert json.loads(out) == [[False, False], "toy", True]


def test_a_wrong_name_is_told_before_torch_is_imported():
    out = python("""
import sys, vqtok
try:
    vqtok.load("nobody")
except vqtok.VqtokError as error:
    print(error, "torch" in sys.modules)
""")
    assert out == "there is no model 'nobody' False\n"


def test_a_command_searches_for_its_model_once(toy: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    find = model_registry.find_model
    monkeypatch.setattr(
        model_registry,
        "find_model",
        lambda name=None, *more: asked.append(name) or find(name, *more),
    )
    save("a.png")
    ok("encode", "a.png", "--levels", "1")
    assert len(asked) == 1
    ok("pack", "a.npz", "-m", "toy", "-o", "b.npz")
    assert len(asked) == 2
