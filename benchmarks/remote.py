"""Bulk encoding from an S3 server and to it: peak memory for 1,000 and 100,000 images, and what is
lost or there twice when the server is killed in the middle.

    python benchmarks/remote.py train-000.tar [--counts 1000 100000] [--kills 2] [--photos 300]

It wants pip install 'vqtok[remote]' 'moto[server]'. The images are JPEGs of 32x32 to 64x64, crops
of the photographs in the tars that are named. The server is moto's, on the loopback, with its
objects on the disk: a server that comes back after kill -9 has all that it said it had taken.
"""

import argparse
import importlib.metadata
import io
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bulk import contents, resident, tiny_model
from PIL import Image
from timing import machine, table

from vqtok.bulk import CodesDataset

BUCKET, EACH = "box", 5000  # images a tar


def crops(tars: list[Path], photos: int, count: int) -> Iterator[bytes]:
    """So many JPEGs, the same each time: as many of each photograph."""
    draw, done = random.Random(0), 0
    share = -(-count // photos)
    for path in tars:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is None or not member.name.endswith((".webp", ".jpg", ".png")):
                    continue
                photo = Image.open(file).convert("RGB")
                for _ in range(min(share, count - done)):
                    w, h = (draw.choice((32, 40, 48, 56, 64)) for _ in range(2))
                    x, y = draw.randint(0, photo.width - w), draw.randint(0, photo.height - h)
                    buffer = io.BytesIO()
                    photo.crop((x, y, x + w, y + h)).save(buffer, "JPEG", quality=85)
                    yield buffer.getvalue()
                    done += 1
                if done == count:
                    return
    raise SystemExit(f"these tars give {done} crops only: give more, or --photos {photos // 2}")


def make_tars(images: Iterable[bytes], folder: Path, count: int) -> str:
    """Tars of EACH images; their name, with braces where they are several."""
    folder.mkdir(parents=True)
    number = -(-count // EACH)
    feed = iter(images)
    for tar in range(number):
        with tarfile.open(folder / f"t-{tar:04}.tar", "w") as archive:
            for i in range(tar * EACH, min(count, (tar + 1) * EACH)):
                data = next(feed)
                info = tarfile.TarInfo(f"{i:07}.jpg")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return "t-0000.tar" if number == 1 else f"t-{{0000..{number - 1:04}}}.tar"


class KeptObjects:
    """moto's server, as a WSGI application that writes each object to a folder before it says that
    it has it.
    """

    def __init__(self, folder: Path) -> None:
        from moto.s3.models import s3_backends  # type: ignore[import-not-found]
        from moto.server import (  # type: ignore[import-not-found]
            DomainDispatcherApplication,
            create_backend_app,
        )

        self.app = DomainDispatcherApplication(create_backend_app)
        self.folder = folder
        self.store: Any = s3_backends["123456789012"]["aws"]
        self.store.create_bucket(BUCKET, "us-east-1")
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".part":
                self.store.put_object(
                    BUCKET, path.relative_to(folder).as_posix(), path.read_bytes()
                )

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        said: list[Any] = []
        answer = list(self.app(environ, lambda *words: said.append(words)))
        bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        if bucket == BUCKET and key and str(said[-1][0]).startswith("2"):
            path = self.folder / key
            if environ["REQUEST_METHOD"] in ("PUT", "POST") and self._holds(key):
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
                part.write_bytes(self.store.get_object(BUCKET, key).value)
                part.replace(path)
            elif environ["REQUEST_METHOD"] == "DELETE":
                path.unlink(missing_ok=True)
        start(*said[-1])
        return answer

    def _holds(self, key: str) -> bool:
        return self.store.get_object(BUCKET, key) is not None


def serve(folder: Path, port: int) -> None:
    from werkzeug.serving import run_simple  # type: ignore[import-not-found]

    run_simple("127.0.0.1", port, KeptObjects(folder), threaded=True)


class Server:
    """The server as a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.start()

    def start(self) -> None:
        command = [sys.executable, __file__, "--serve", str(self.folder), str(self.port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        """Until it answers."""
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                assert self.process.poll() is None, "the server does not start"
                time.sleep(0.2)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def encode(words: list[str], server: Server, kills: list[int]) -> tuple[float, int, float]:
    """Runs `vqtok encode`; kills the server once so many shards are written, and starts it 2 s
    later.

    Gives seconds, the most memory that all processes hold together, and their seconds of
    processor time.
    """
    began, peak, waiting = time.perf_counter(), 0, list(kills)
    draw = random.Random(1)
    before = os.times()
    process = subprocess.Popen(
        [sys.executable, "-m", "vqtok", "encode", *words, "-q"], start_new_session=True
    )
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        if (
            waiting
            and len(list((server.folder / "codes").glob("*.npz")))
            + len(list((server.folder / "codes").glob("*.tar")))
            >= waiting[0]
        ):
            waiting.pop(0)
            time.sleep(draw.uniform(0, 1))
            server.kill()
            time.sleep(2)
            server.start()
        time.sleep(0.1)
    assert process.returncode == 0, process.returncode
    assert not waiting, "it was done before the server was killed"
    after = os.times()
    spent = sum(after[2:4]) - sum(before[2:4])
    return time.perf_counter() - began, peak, spent


def measure(folder: Path, tars: list[Path], count: int, kills: int, photos: int) -> list[str]:
    """Encodes from the server to the server and, for comparison, from disk to disk."""
    model = tiny_model(_made(folder / "tiny"))
    store = folder / f"store{count}"
    names = make_tars(crops(tars, min(photos, count), count), store / "in", count)
    shards = -(-count // 1000)
    server = Server(store, int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    try:
        server.wait()
        moments = [shards * (i + 1) // (kills + 1) for i in range(kills)]
        options = ["--model", str(model), "--workers", "2"]
        seconds, peak, spent = encode(
            [f"s3://{BUCKET}/in/{names}", "-o", f"s3://{BUCKET}/codes", *options], server, moments
        )
        server.wait()
        found = Counter(Path(name).name for _, name in CodesDataset(f"s3://{BUCKET}/codes"))
        wanted = {f"{i:07}.jpg" for i in range(count)}
        local = folder / f"local{count}"
        subprocess.run(
            [
                *(sys.executable, "-m", "vqtok", "encode"),
                *(str(path) for path in sorted((store / "in").iterdir())),
                *("-o", str(local), *options, "-q"),
            ],
            check=True,
        )
        equal = contents(store / "codes") == contents(local)
    finally:
        server.kill()
    lost, twice = len(wanted - set(found)), sum(n > 1 for n in found.values())
    rates = [f"{seconds:.0f}", f"{1000 * spent / count:.2f}", f"{peak / 2**20:.0f}"]
    return [f"{count:,}", str(kills), *rates, str(lost), str(twice), "yes" if equal else "NO"]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--kills", type=int, default=2, help="of the server, in the last run")
    parser.add_argument("--photos", type=int, default=300)
    asked = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "t",
        "AWS_SECRET_ACCESS_KEY": "t",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("moto", "s3fs"))
    print(f"{machine()}; {versions}\n")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for count in asked.counts:
            kills = asked.kills if count == asked.counts[-1] else 0
            rows.append(measure(Path(name), asked.tars, count, kills, asked.photos))
            print(f"{count:,} done", file=sys.stderr)
    head = ["images", "kills", "seconds", "ms of processor an image", "peak MiB"]
    print(table([*head, "lost", "twice", "equal to local"], rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
