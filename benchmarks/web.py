"""Holds the page of `vqtok web` against Python, in Node and in Chromium.

    python benchmarks/web.py proof [--files 1000]       equal indices of golden and random files
    python benchmarks/web.py photos IMAGES...           codes that the page makes of photos
    python benchmarks/web.py seconds IMAGE [--rounds 7] decoding one image, beside `vqtok decode`

Needs node and chromium on the PATH. `seconds` takes turns, page and Python, in one run; both have
their model loaded, and the page is warm, as Python is. What is timed is a file's bytes to pixels.
"""

import argparse
import base64
import json
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import browser
from test_web import random_file, random_prior
from timing import machine
from web_helpers import GOLDEN, MODULES, choose, node, wait

import vqtok
from vqtok import images, model_registry
from vqtok.codes import Codes, Compact, index_dtype, read_any_codes
from vqtok.errors import FormatError
from vqtok.web import site

RUN = str(GOLDEN / "run")
PRIOR = GOLDEN / "run" / "entropy.safetensors"
EACH = 20  # random files of a random prior
AT_ONCE = 50  # files that Chromium gets in one message
NEAR = 1e-4  # of a squared distance: less is a near tie

# what the modules, joined, answer for files given as base64
ASK = """(async () => {
    const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const kernels = new WebAssembly.Module(bytesOf(KERNELS));
    const priors = new Map();
    const prior = (text) => {
        const made = () =>
            new IntegerPrior(readWeights(bytesOf(PRIORS[text])), new Kernels(kernels));
        if (!priors.has(text)) priors.set(text, made());
        return priors.get(text);
    };
    const answers = [];
    for (const [data, name] of FILES) {
        try {
            const codes = await readCodes(bytesOf(data));
            const done = decodeIndices(codes, () => prior(name));
            const { buffer, byteOffset, byteLength } = done.indices;
            let text = "";
            for (const byte of new Uint8Array(buffer, byteOffset, byteLength))
                text += String.fromCharCode(byte);
            answers.push({ shape: done.shape, bytes: btoa(text) });
        } catch (error) {
            answers.push({ error: error.message });
        }
    }
    return answers;
})()"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    jobs.add_parser("proof").add_argument("--files", type=int, default=1000)
    jobs.add_parser("photos").add_argument("images", nargs="+", type=Path)
    timed = jobs.add_parser("seconds")
    timed.add_argument("image", type=Path)
    timed.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.job == "proof":
            prove(Path(folder), given.files)
        elif given.job == "photos":
            compare_photos(Path(folder), given.images)
        else:
            compare_seconds(Path(folder), given.image, given.rounds)


# Equal indices


def prove(folder: Path, count: int) -> None:
    """Prints how many files have the same indices as in Python, and exits with 1 unless all do."""
    golden = golden_files()
    files = [(path, PRIOR, vqtok.read_codes(path, RUN)) for path in golden]
    files += random_files(folder, count)
    jobs = [{"file": str(path), "prior": str(prior)} for path, prior, _ in files]
    failed = 0
    for name, answers in [("Node", node(jobs)), ("Chromium", in_chromium(files))]:
        equal = [
            is_equal(answer, codes) for answer, (_, _, codes) in zip(answers, files, strict=True)
        ]
        same = sum(equal[: len(golden)]), sum(equal[len(golden) :])
        print(f"{name}: {same[0]} of {len(golden)} golden and {same[1]} of {count} random files")
        failed += len(equal) - sum(equal)
    failed += prove_page(folder, golden)
    sys.exit(failed > 0)


def golden_files() -> list[Path]:
    """All compact files of the golden ones; their models are `run` and `stopped` there."""
    found = []
    for path in sorted(GOLDEN.rglob("*.npz")):
        with suppress(FormatError):
            if isinstance(read_any_codes(path), Compact):
                found.append(path)
    return found


def random_files(folder: Path, count: int) -> list[tuple[Path, Path, Codes]]:
    """Compact files of random priors of every shape."""
    rng, made = np.random.default_rng(21), []
    while len(made) < count:
        path = folder / f"{len(made)}.safetensors"
        prior, name = random_prior(rng, path)
        for _ in range(min(EACH, count - len(made))):
            file = folder / f"{len(made)}.npz"
            made.append((file, path, random_file(rng, file, prior, name)[0]))
    return made


def in_chromium(files: list[tuple[Path, Path, Codes]]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    kernels = text_of(MODULES / "kernels.wasm")
    with browser() as page:
        page.run(site.bundle(site.MODULES) + f";const KERNELS = '{kernels}'; let FILES, PRIORS; 0")
        for start in range(0, len(files), AT_ONCE):
            part = files[start : start + AT_ONCE]
            priors = {str(prior): text_of(prior) for _, prior, _ in part}
            sent = [[text_of(path), str(prior)] for path, prior, _ in part]
            page.run(f"FILES = {json.dumps(sent)}; PRIORS = {json.dumps(priors)}; 0")
            answers += page.run(ASK)
    return answers


def text_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def is_equal(answer: dict[str, Any], codes: Codes) -> bool:
    if "error" in answer or answer["shape"] != list(codes.shape):
        return False
    found = np.frombuffer(base64.b64decode(answer["bytes"]), index_dtype(codes.codebook_size))
    return np.array_equal(found.reshape(codes.shape), codes.indices)


def prove_page(folder: Path, golden: list[Path]) -> int:
    """The golden files again, dropped on the pages of their models; how many differ."""
    equal = 0
    with browser() as page:
        for name in ("run", "stopped"):
            site.make_site(model_registry.find_model(str(GOLDEN / name))).write(
                folder / name, False
            )
            page.open(folder / name / "index.html")
            assert wait(page, "Ready") == ""
            for path in golden:
                if read_any_codes(path).model == name:
                    choose(page, path)
                    error = wait(page, f"Decoded {path.name}")
                    assert not error, error
                    answer = page.run(
                        "({shape: current.codes.shape, bytes: btoa(String.fromCharCode(..."
                        "new Uint8Array(current.codes.indices.buffer)))})"
                    )
                    equal += is_equal(answer, vqtok.read_codes(path, str(GOLDEN / name)))
    print(f"the page in Chromium: {equal} of {len(golden)} golden files")
    return len(golden) - equal


# Photos


def compare_photos(folder: Path, paths: list[Path]) -> None:
    """Prints how many indices of the page's codes are not Python's, and how many of the places
    where they begin to differ are no near ties.
    """
    model = vqtok.load("photo", "cpu")
    site.make_site(model_registry.find_model("photo"), encoder=True).write(folder, False)
    total = np.zeros(4, int)
    with browser() as page:
        page.open(folder / "index.html")
        assert wait(page, "Ready") == ""
        for path in paths:
            choose(page, path)
            assert wait(page, f"Decoded {path.name}") == ""
            data = page.run(
                "new Promise((done) => { const reader = new FileReader(); reader.onload = () => "
                "done(reader.result); reader.readAsDataURL(new Blob([current.file])); })"
            )
            codes = vqtok.read_codes(base64.b64decode(data.partition(",")[2]))
            image = images.from_any(path, 3)
            row = np.array(differing(model, image.pixels, codes.indices))
            total += row
            print(f"{path.name:16} {row[0]:8} indices, {row[1]:5} differ; "
                  f"{row[2]:4} places, {row[3]} of them no near ties {' '.join(image.notes)}",
                  flush=True)  # fmt: skip
    print(f"{len(paths)} photos: {total[0]} indices, {total[1]} differ; {total[2]} places, "
          f"{total[3]} of them no near ties")  # fmt: skip


def differing(
    model: vqtok.Model, image: np.ndarray, found: np.ndarray
) -> tuple[int, int, int, int]:
    """How many indices there are, how many differ, at how many places, and how many of these are no
    near ties: by the squared distances, in Python, of the two entries at the first level there.
    """
    codes, f = model.encode(image), model.config.downsample
    wanted, books = codes.indices, model.codebook
    different = wanted != found
    H, W = image.shape[:2]
    full = np.pad(image, ((0, -H % f), (0, -W % f), (0, 0)), "edge")
    with torch.inference_mode():
        pixels = torch.from_numpy(full).permute(2, 0, 1)[None].float() / 127.5 - 1
        z = model.encoder(pixels)[0]
    places = np.argwhere(different.any(1)[0])
    clear = 0
    for i, j in places:
        level = int(different[0, :, i, j].argmax())
        residual = z[:, i, j].clone()
        for before in range(level):
            residual -= books[before, int(wanted[0, before, i, j])]
        two = [books[level, int(grid[0, level, i, j])] for grid in (wanted, found)]
        first, second = (float(((residual - entry) ** 2).sum()) for entry in two)
        clear += abs(first - second) > NEAR * first
    return wanted.size, int(different.sum()), len(places), clear


# Time


def compare_seconds(folder: Path, path: Path, rounds: int) -> None:
    """Prints the median seconds of page and Python for plain and compact files of an image."""
    model = vqtok.load("photo", "cpu")
    codes = model.encode(path)
    H, W = codes.sizes[0]
    site.make_site(model_registry.find_model("photo")).write(folder / "page", False)
    threads = torch.get_num_threads()
    print(f"{machine()}; {W}x{H}, {codes.levels} levels, {threads} threads in Python")
    with browser() as page:
        page.open(folder / "page" / "index.html")
        assert wait(page, "Ready") == ""
        workers = page.run("pool.length")
        for name, kept in [("plain", codes), ("compact", model.pack(codes))]:
            file = folder / f"{name}.npz"
            vqtok.write_codes(file, kept)
            times: list[tuple[float, float]] = []
            for turn in range(rounds + 1):
                row = page_seconds(page, file), python_seconds(model, file)
                times += [row] if turn else []
            ours, python = (statistics.median(row) for row in zip(*times, strict=True))
            ratio = statistics.median(a / b for a, b in times)
            print(f"{name}: page {ours:.2f} s with {workers} workers, Python {python:.2f} s, "
                  f"ratio {ratio:.2f}", flush=True)  # fmt: skip


def page_seconds(page: Any, file: Path) -> float:
    """From the choice of a file to the end of its decoding, as the page has it."""
    choose(page, file)
    assert wait(page, f"Decoded {file.name}") == ""
    return page.run("performance.measure('x', 'opened', 'shown').duration / 1000")


def python_seconds(model: vqtok.Model, file: Path) -> float:
    begin = time.perf_counter()
    model.decode(model.unpack(read_any_codes(file)))
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
