"""What the tests of the commands share: running one as typed, and what must hold when it fails."""

import io
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer.testing
from conftest import image
from PIL import Image
from typer.testing import CliRunner, Result

from vqtok import weights
from vqtok.cli import app

# The commands are built once a session, not at each run: that was half the time of a short run
typer.testing._get_command = cache(typer.main.get_command)  # type: ignore[attr-defined]


def runner() -> CliRunner:
    """Keeps stderr apart from stdout: an option up to Click 8.1, always so after."""
    options: dict[str, Any] = (
        {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
    )
    return CliRunner(**options)


def run(*words: object, stdin: bytes | None = None) -> Result:
    return runner().invoke(app, [str(word) for word in words], input=stdin)


def ok(*words: object, stdin: bytes | None = None) -> Result:
    result = run(*words, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def fails(*words: object, code: int = 1, stdin: bytes | None = None) -> str:
    """Runs a command that must fail with two lines on stderr, nothing on stdout, and no
    file made, changed or gone.
    """
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
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b""
        for p in folder.rglob("*")
    }


def save(name: str, pixels: np.ndarray | None = None, **options: Any) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image() if pixels is None else pixels).save(path, **options)
    return path


def size_of(source: str | Path | bytes) -> tuple[int, int]:
    """(W, H) of an image file, or of its content."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return image.size


def spoil(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "pickle":
        torch.save({"a": torch.zeros(2)}, path)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        stored = weights.load_weights(path, "tokenizer")
        name = sorted(stored.tensors)[0]
        if how == "missing tensor":
            del stored.tensors[name]
        elif how == "wrong shape":
            stored.tensors[name] = stored.tensors[name][:1]
        elif how == "damaged config":
            stored.meta["config"]["downsample"] = 0
        weights.save_weights(path, stored)


def train(*arguments: object) -> Result:
    return runner().invoke(app, ["train", *map(str, arguments)])


def small(*arguments: object) -> Result:
    """`vqtok train` on the images and with the recipe of the fixture `data`."""
    return train("data", "--recipe", "small.toml", *arguments)


def fingerprints(out: Path) -> list[str]:
    return [
        weights.fingerprint(weights.load_weights(out / f"{kind}.safetensors", kind).tensors)
        for kind in ("tokenizer", "prior")
    ]
