"""Runs the page's modules in Node, and the page in Chromium, for the tests of both directions."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM

from vqtok.web import site

GOLDEN = Path(__file__).parent / "golden" / "format1"
MODULES = Path(site.__file__).parent
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no Node here")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def node(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    script = Path(__file__).with_name("web_decode.mjs")
    words = [str(NODE), str(script), str(MODULES)]
    done = subprocess.run(words, input=json.dumps(jobs).encode(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def choose(page: Any, path: Path) -> None:
    page.run("document.getElementById('status').textContent = ''")
    page.run("document.getElementById('error').textContent = ''")
    page.run("document.getElementById('file').value = ''")
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    field = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(path)], nodeId=field)


def wait(page: Any, status: str) -> str:
    """Waits for a status or an error, and returns the error."""
    end, said = time.monotonic() + 60, ""
    while time.monotonic() < end:
        said, error = (
            page.run(f"document.getElementById('{name}').textContent")
            for name in ("status", "error")
        )
        if error or said.startswith(status):
            return error
        time.sleep(0.05)
    raise AssertionError(f"the page says {said!r}")


def shown(page: Any) -> np.ndarray:
    """Pixels on the canvas, uint8 (H, W, 3)."""
    script = """(() => {
        const canvas = document.getElementById("canvas");
        const context = canvas.getContext("2d");
        const {data, width, height} = context.getImageData(0, 0, canvas.width, canvas.height);
        return {width, height, data: btoa(String.fromCharCode(...data))};
    })()"""
    found = page.run(script)
    data = np.frombuffer(base64.b64decode(found["data"]), np.uint8)
    return data.reshape(found["height"], found["width"], 4)[..., :3]
