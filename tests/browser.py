"""A headless Chromium that tests drive over its own pipe (the DevTools protocol), with
the standard library alone.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
PATIENCE = 120  # seconds for one answer, on a machine that does much else


class Browser:
    """One page.

    `events` holds what the page has said so far: console messages, exceptions, requests.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._buffer, self._number = write, read, b"", 0
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._call(method, parameters, self._session)

    def _call(
        self, method: str, parameters: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | (
            {"sessionId": session} if session else {}
        )
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._until(lambda answer: answer.get("id") == self._number)["result"]

    def _until(self, wanted: Any) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while True:
            while b"\0" not in self._buffer:
                assert select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0], (
                    "the browser does not answer"
                )
                part = os.read(self._read, 1 << 20)
                assert part, "the browser has ended"
                self._buffer += part
            line, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(line)
            assert "error" not in answer, answer
            if "method" in answer:
                self.events.append(answer)
            if wanted(answer):
                return answer

    def open(self, path: Path, width: int = 1100, dark: bool = False) -> None:
        """Loads a file, by file://, in the light or dark scheme."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.call("Page.navigate", url=path.resolve().as_uri())
        if not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._until(lambda answer: answer.get("method") == "Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The value of an expression in the page;
        the tools' own evaluation is not bound by the page's policy.
        """
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "Tab": 9, "End": 35}
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
            )

    def complaints(self) -> list[str]:
        """Console errors and warnings, exceptions, and requests for
        anything that is not in the file.
        """
        found = []
        for event in self.events:
            method, what = event["method"], event["params"]
            if method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
                found.append(what["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and what["type"] in (
                "error",
                "warning",
                "assert",
            ):
                found.append(json.dumps(what["args"]))
            elif method == "Runtime.exceptionThrown":
                found.append(json.dumps(what["exceptionDetails"]))
            elif method == "Network.requestWillBeSent" and not what["request"]["url"].startswith(
                ("file:", "data:")
            ):
                found.append(f"asks for {what['request']['url']}")
        return found

    def image(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(
            self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        )


@contextmanager
def browser() -> Iterator[Browser]:
    """A fresh browser with a profile of its own, which ends with the block."""
    (ours_in, its_out), (its_in, ours_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = _start(its_in, its_out, profile)
        try:
            yield Browser(ours_out, ours_in)
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(ours_in)
            os.close(ours_out)


def _start(its_in: int, its_out: int, profile: str) -> int:
    """The process of a browser that reads at 3 and writes at 4, as it expects of a pipe;
    our ends of these two are closed.
    """
    assert CHROMIUM is not None
    # where 3 and 4 do not overwrite them
    high = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 10) for pipe in (its_in, its_out)]
    wires: list[Any] = [(os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)]
    silence: list[Any] = [
        (os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)
    ]
    closed: list[Any] = [(os.POSIX_SPAWN_CLOSE, number) for number in high]
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"]
    try:
        return os.posix_spawn(
            CHROMIUM, command, os.environ, file_actions=[*wires, *closed, *silence]
        )
    finally:
        for number in (its_in, its_out, *high):
            os.close(number)
