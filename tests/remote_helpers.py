"""A server of files for the tests: it gives ranges, and fails as it is told to."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Files by name, and how requests end."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    ranges: bool = True
    status: dict[str, int] = field(default_factory=dict)  # by name: answers this in place of it
    failures: int = 0  # the next requests get 503
    cut: int = 0  # the next answers end in the middle
    slow: float = 0.0  # seconds before each answer
    requests: int = 0
    sent: int = 0  # bytes

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/").partition("?")[0]
        self.requests += 1
        time.sleep(self.slow)
        status = self.status.get(name, 200 if name in self.files else 404)
        if self.failures:
            self.failures, status = self.failures - 1, 503
        if status != 200:
            request.send_error(status)
            return
        data, headers = self.files[name], {}
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if found and self.ranges:
            if int(found[1]) >= len(data):
                request.send_error(416)
                return
            part = data[int(found[1]) : int(found[2]) + 1]
            end = int(found[1]) + len(part) - 1
            headers["Content-Range"] = f"bytes {found[1]}-{end}/{len(data)}"
            status, data = 206, part
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(key, value)
        request.end_headers()
        if self.cut and len(data) > 1:
            self.cut, data = self.cut - 1, data[: len(data) // 2]
        self.sent += len(data)
        request.wfile.write(data)


@contextmanager
def serve() -> Iterator[FileServer]:
    """A server on the loopback while the block runs."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):
                state.answer(self)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
