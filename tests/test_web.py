"""The page's own reader and decoder, in Node and in Chromium, against Python's."""

import base64
import io
import re
import subprocess
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import browser
from cli_helpers import fails, ok
from web_helpers import GOLDEN, MODULES, NODE, choose, needs_browser, needs_node, node, shown, wait

import vqtok
from vqtok import model_registry, weights
from vqtok.codes import Codes, Compact, index_dtype, read_any_codes, to_compact, write_codes
from vqtok.codes.compact import checksum, to_stream
from vqtok.codes.io import to_bytes
from vqtok.codes.npz import data_offset
from vqtok.config import EntropyConfig
from vqtok.errors import FormatError
from vqtok.integer_prior import IntegerInference
from vqtok.priors.integer import IntegerPrior
from vqtok.web import site
from vqtok.weights import Weights

RUN = GOLDEN / "run" / "entropy.safetensors"


def assert_equal(found: dict[str, Any], codes: Codes) -> None:
    """What Node found are these codes, all that is said of them too."""
    assert "error" not in found, found
    values = np.frombuffer(base64.b64decode(found["bytes"]), index_dtype(codes.codebook_size))
    np.testing.assert_array_equal(values.reshape(codes.shape), codes.indices)
    assert found["shape"] == list(codes.shape)
    assert [tuple(size) for size in found["sizes"]] == list(codes.sizes)
    said = [
        found[key] for key in ("model", "fingerprint", "codebookSize", "downsample", "channels")
    ]
    assert said == list(codes.description)[:5]
    assert found["range"] == (None if codes.range is None else list(codes.range))


# Codes files


@pytest.mark.slow
@needs_node
def test_golden_files_have_the_same_indices():
    paths = [*(GOLDEN / "codes").glob("*-*.npz"), GOLDEN / "small.npz", GOLDEN / "large.npz"]
    paths += [path for form in (2, 3) for path in (GOLDEN / f"compact{form}").glob("*.npz")]
    assert len(paths) == 24
    for plain in (False, True):
        jobs = [{"file": str(path), "prior": str(RUN), "plain": plain} for path in paths]
        for path, found in zip(paths, node(jobs), strict=True):
            assert_equal(found, vqtok.read_codes(path, str(GOLDEN / "run")))


def random_prior(rng: np.random.Generator, path: Path) -> tuple[IntegerInference, str]:
    """A prior of random shape and weights, whose probabilities are far from even."""
    config = EntropyConfig(
        codebook_size=int(rng.choice([2, 3, 16, 100, 256, 257, 1000, 4099])),
        levels=int(rng.integers(1, 5)),
        embedding=int(rng.integers(1, 12)),
        width=int(rng.integers(4, 20)),
        blocks=int(rng.integers(0, 3)),
        rank=int(rng.integers(4, 20)),
        kinds=int(rng.integers(1, 4)),
    )
    torch.manual_seed(int(rng.integers(1 << 30)))
    network = IntegerPrior(config)
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter) * 0.3
    tensors = network.integers()
    meta = {"kind": "entropy", "config": asdict(config), "record": {"tokenizer": "0badcafe"}}
    weights.save_weights(path, Weights(tensors, meta))
    return IntegerInference(config, tensors), weights.fingerprint(tensors)


def random_file(
    rng: np.random.Generator, path: Path, prior: IntegerInference, name: str
) -> tuple[Codes, bool]:
    """Codes in compact form, and whether the prior coded them. Most indices repeat."""
    f, n, K = int(rng.choice([1, 4, 16])), int(rng.integers(1, 4)), prior.config.codebook_size
    levels = int(rng.integers(1, prior.config.levels + 1))
    h, w = (int(side) for side in rng.integers(1, 13, 2))
    common = rng.integers(0, K, 1 + K // 16)
    indices = rng.choice(common, (n, levels, h, w))
    sizes = [(h * f - int(rng.integers(f)), w * f - int(rng.integers(f))) for _ in range(n)]
    sizes = sizes[:1] * n if rng.random() < 0.5 else sizes
    described = (str(rng.choice(["a", "Füße 2", "long" * 40])), "0badcafe", K, f)
    value_range = (-0.5, float(rng.random())) if rng.random() < 0.3 else None
    more = (int(rng.choice([1, 3])), tuple(sizes), value_range)
    codes = Codes(indices.astype(index_dtype(K)), *described, *more)
    if rng.random() < 0.1:
        write_codes(path, to_compact(codes))
        return codes, False
    # not `to_compact`: it takes the streams of a prior only where they are smaller
    value, sharing = checksum(codes.indices, codes.sizes), int(rng.integers(1, n + 1))
    streams = tuple(prior.encode(codes.indices, value, sharing))
    about = codes.description
    compact = Compact(*about, codes.levels, None, name, streams, sharing)  # type: ignore[arg-type]
    write_codes(path, compact)
    return codes, True


def compare_random_files(folder: Path, seed: int, priors: int, each: int) -> int:
    """How many files a prior coded, of priors * each."""
    rng, jobs, expected, coded = np.random.default_rng(seed), [], [], 0
    for number in range(priors):
        weights_path = folder / f"{number}.safetensors"
        prior, name = random_prior(rng, weights_path)
        for i in range(each):
            path = folder / f"{number}-{i}.npz"
            codes, by_prior = random_file(rng, path, prior, name)
            coded += by_prior
            jobs.append({"file": str(path), "prior": str(weights_path), "plain": i % 4 == 0})
            expected.append(codes)
    for found, codes in zip(node(jobs), expected, strict=True):
        assert_equal(found, codes)
    return coded


@pytest.mark.slow
@needs_node
def test_random_files_have_the_same_indices(tmp_path: Path):
    assert compare_random_files(tmp_path, seed=0, priors=8, each=6) > 30


@needs_node
@pytest.mark.slow
def test_hundreds_of_random_files_have_the_same_indices(tmp_path: Path):
    assert compare_random_files(tmp_path, seed=1, priors=20, each=12) > 190


@pytest.mark.slow
@needs_node
def test_damaged_files_are_refused_or_read_as_python_does(tmp_path: Path):
    """The page never reads what Python refuses, and never other indices."""
    rng, jobs, wanted = np.random.default_rng(2), [], []
    names = ("codes/two-sizes", "codes/bit-packed", "codes/one-size.plain", "small", "large")
    names += ("compact2/two-sizes", "compact2/bit-packed", "compact2/first-level")
    names += ("codes/deep-coded", "compact2/deep-coded", "compact2/deep-packed")
    names += ("compact3/two-sizes", "compact3/in-fives")
    for name in names:
        whole = (GOLDEN / f"{name}.npz").read_bytes()
        stream = np.load(GOLDEN / f"{name}.npz").get("stream")
        member = np.load(GOLDEN / f"{name}.npz").get("c")
        for i in range(16):
            data = bytearray(whole)
            if i % 2 and stream is not None:  # inside the stream, where no checksum of zip helps
                with_error = stream.copy()
                with_error[rng.integers(min(60, len(stream)))] ^= 1 << rng.integers(8)
                np.savez(tmp_path / "x.npz", stream=with_error)
                data = bytearray((tmp_path / "x.npz").read_bytes())
            elif i % 2 and member is not None:  # and so here, in a zip made anew
                changed = bytearray(member)
                changed[rng.integers(min(40, len(changed)))] ^= 1 << rng.integers(8)
                with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
                    archive.writestr("c", bytes(changed))
                data = bytearray((tmp_path / "x.npz").read_bytes())
            elif i % 4 == 0:
                del data[rng.integers(len(data)) :]
            else:
                data[rng.integers(len(data))] = rng.integers(256)
            path = tmp_path / f"{name.replace('/', '-')}-{i}.npz"
            path.write_bytes(data)
            jobs.append({"file": str(path), "prior": str(RUN)})
            wanted.append(python_reads(path))
    refused = 0
    for job, found, codes in zip(jobs, node(jobs), wanted, strict=True):
        if codes is None:
            refused += 1
            assert found.get("error"), job
            assert found["fix"], job
        elif "error" not in found:
            assert_equal(found, codes)
        else:  # a browser's inflate refuses what stands after its end, and zlib does not
            assert found["error"] == "damaged or truncated"
    assert len(jobs) / 4 < refused < len(jobs)


@pytest.mark.slow
@needs_node
def test_a_changed_index_of_a_stored_member_is_found(tmp_path: Path):
    """Nothing but the zip's CRC-32 tells."""
    data = bytearray(to_bytes(vqtok.read_codes(GOLDEN / "large.npz"), deflate=False))
    at = data_offset(bytes(data), "indices")
    before = write(tmp_path / "a.npz", bytes(data))
    data[at] ^= 1
    whole, changed = node([{"file": before}, {"file": write(tmp_path / "b.npz", bytes(data))}])
    assert "error" not in whole
    assert changed["error"] == "damaged or truncated"


def python_reads(path: Path) -> Codes | None:
    """With the prior of the golden run, whatever model the file names."""
    try:
        packed = read_any_codes(path)
        if isinstance(packed, Codes):
            return packed
        if packed.prior is None:
            return vqtok.read_codes(path)
        stored = weights.load_weights(RUN, "entropy")
        config = EntropyConfig(**stored.config)
        prior = IntegerInference(config, stored.tensors)
        if packed.codebook_size != config.codebook_size or packed.levels > config.levels:
            return None
        n, *grid = packed.shape
        indices, carried = prior.decode_all(packed.streams, *grid, sharing=packed.sharing, images=n)
        return packed.with_indices(indices.astype(index_dtype(packed.codebook_size)), carried)
    except FormatError:
        return None


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"hello", "not a codes file"),
        (b"PK\5\6" + bytes(18), "the member indices is missing"),
        (b"PK\5\6" + b"\xff" * 18, "damaged"),
    ],
)
def test_other_files_get_a_clear_message(data: bytes, said: str, tmp_path: Path):
    (tmp_path / "a.npz").write_bytes(data)
    (found,) = node([{"file": str(tmp_path / "a.npz")}])
    assert said in found["error"]


@pytest.mark.slow
@needs_node
def test_a_vast_claim_takes_no_memory(tmp_path: Path):
    """A compact file of 200 bytes that says it holds 2^24 images of 14,000 x 14,000 pixels."""
    codes = Codes(np.zeros((2, 1, 2, 2), np.uint8), "a", "0badcafe", 256, 4, 3, ((8, 8),) * 2)
    stream = to_stream(to_compact(codes))
    assert stream[3] == 2  # n
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("c", stream[:3] + b"\x80\x80\x80\x08" + stream[4:])
    (found,) = node([{"file": str(tmp_path / "b.npz")}])
    assert "16777216 images are claimed" in found["error"]


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


# The decoder


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("name", ["vq", "simvq", "fsq", "lfq", "pixels", "run", "stopped"])
def test_images_are_those_of_python(name: str, tmp_path: Path):
    """Within one gray level, at every number of levels, whole and in strips."""
    path = GOLDEN / "tokenizers" / f"{name}.safetensors"
    path = path if path.exists() else GOLDEN / name
    folder, model = model_registry.find_model(str(path)), vqtok.load(path, "cpu")
    (tmp_path / "model").write_bytes(site.decoder_weights(folder))
    f, C = model.config.downsample, model.config.channels
    H, W = 21 * f, 14 * f
    image = np.random.default_rng(3).integers(0, 256, (H, W, C), np.uint8)
    codes = model.encode_batch([image])
    write_codes(tmp_path / "a.npz", codes)
    jobs = [
        {
            "file": str(tmp_path / "a.npz"),
            "model": str(tmp_path / "model"),
            "levels": levels,
            "parts": parts,
            "out": str(tmp_path / f"{levels}-{parts}"),
        }
        for levels in range(1, model.config.levels + 1)
        for parts in (1, 4)
    ]
    for job, answer in zip(jobs, node(jobs), strict=True):
        assert answer == {"strips": job["parts"]}
        found = np.fromfile(job["out"], np.uint8).reshape(H, W, 4)
        assert (found[..., 3] == 255).all()
        expected = model.decode(codes, job["levels"]).astype(int)
        assert np.abs(expected - found[..., :C]).max() <= 1


# The page


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    ok("web", "-m", GOLDEN / "run", "-o", "site")
    names = {path.name for path in Path("site").iterdir()}
    assert names == {"index.html", "offline.js", "model-00.js", "model-01.js"}
    for name in names:
        text = Path("site", name).read_text("utf-8")
        assert not re.search(r"https?://", text), name
        assert not re.search(r"/\*[A-Z]+\*/", text), "a part is missing"
    assert "index.html exists" in fails("web", "-m", GOLDEN / "run", "-o", "site")


@pytest.mark.slow
def test_the_photo_page_is_small_enough_to_load():
    made = site.make_site(model_registry.find_model("photo"))
    assert made.bytes < 25_000_000


def test_the_classic_network_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    said = fails("web", "-m", GOLDEN / "tokenizers" / "classic.safetensors", "-o", "site")
    assert "classic" in said
    assert "--to onnx" in said


@pytest.mark.slow
@needs_node
def test_the_scripts_of_the_page_are_whole(tmp_path: Path):
    """Joined modules share one scope: names that stand twice, or imports that stay, break it."""
    for name, text in {
        "worker.js": site.bundle(site.MODULES),
        "page.js": "\n".join((MODULES / f"{name}.js").read_text("utf-8") for name in site.SCRIPTS),
    }.items():
        assert "</script" not in text
        assert not re.search(r"^(import|export) ", text, re.MULTILINE)
        subprocess.run([str(NODE), "--check", write(tmp_path / name, text.encode())], check=True)


@needs_browser
def test_the_page_decodes_in_a_browser(tmp_path: Path):
    site.make_site(model_registry.find_model(str(GOLDEN / "run"))).write(tmp_path, False)
    model = vqtok.load(GOLDEN / "run", "cpu")
    with browser() as page:
        page.open(tmp_path / "index.html")
        assert wait(page, "Ready") == ""
        for name in ("two-sizes", "one-size.plain", "first-level"):
            path = GOLDEN / "codes" / f"{name}.npz"
            choose(page, path)
            assert wait(page, f"Decoded {name}.npz") == ""
            expected = model.decode_all(vqtok.read_codes(path, str(GOLDEN / "run")))[0]
            assert np.abs(shown(page).astype(int) - expected).max() <= 1
        choose(page, GOLDEN / "codes" / "two-sizes.npz")
        wait(page, "Decoded two-sizes.npz at 2 of 2")
        page.run("document.getElementById('levels').focus()")
        page.press("ArrowLeft")
        assert wait(page, "Decoded two-sizes.npz at 1 of 2") == ""
        codes = vqtok.read_codes(GOLDEN / "codes" / "two-sizes.npz", str(GOLDEN / "run"))
        expected = model.decode_all(codes, 1)[0]
        assert np.abs(shown(page).astype(int) - expected).max() <= 1
        choose(page, GOLDEN / "large.npz")
        assert "were made with model" in wait(page, "never")
        choose(page, Path(write(tmp_path / "damaged.npz", path.read_bytes()[:-30])))
        assert "damaged" in wait(page, "never")
        ours = ("asks for blob:", "Canvas2D: Multiple readback")  # the worker; this test's reading
        assert [said for said in page.complaints() if not said.startswith(ours)] == []


@pytest.mark.slow
@needs_node
def test_a_deflate_bomb_takes_no_memory(tmp_path: Path):
    """600 MiB of zeros in 3 MB: refused before they are unpacked."""
    shape = (600, 1, 1024, 1024)
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        array, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("indices.npy", "w") as member:
            member.write(array.getvalue())
            for _ in range(600):
                member.write(bytes(1024 * 1024))
        archive.writestr("meta.npy", b"")
    (found,) = node([{"file": str(tmp_path / "a.npz")}])
    assert "too many for this page" in found["error"]
    assert found["fix"] == "use vqtok decode"
