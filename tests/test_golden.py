"""Golden runs, models, codes and shards of format 1: every later version reads them and goes on.

Whole numbers are compared exactly: indices, streams, tensors that are read, names. What a
processor may round in its own way (decoded images, steps of training) is compared closely.
`make_golden_runs.py` says how the files were made.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import fails, ok, run
from make_golden_runs import TINY, settings
from safetensors import safe_open

import vqtok
from vqtok.codes import Compact, read_any_codes
from vqtok.codes.compact import checksum, to_stream

GOLDEN = Path(__file__).parent / "golden" / "format1"
FORMS = GOLDEN / "compact2"  # compact files of the second form, of what `codes` holds in the first
SHARED = GOLDEN / "compact3"  # and of the third, whose images share streams
CODED = ("two-sizes", "one-size", "first-level", "deep-coded")
CODES = (*CODED, "bit-packed", "deep-packed")
TOKENIZERS = sorted(path.stem for path in (GOLDEN / "tokenizers").iterdir())
PRIORS = sorted(path.stem for path in (GOLDEN / "priors").iterdir())
WEIGHTS = sorted(path for path in GOLDEN.rglob("*.safetensors") if path.parent != GOLDEN)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the golden files to work on."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a safetensors file holds, read without vqtok: the tensors, and the JSON record."""
    with safe_open(path, "np") as file:
        found = {name: file.get_tensor(name) for name in sorted(file.keys())}
        return found, json.loads(file.metadata()["vqtok"])


def fingerprint(found: dict[str, np.ndarray]) -> str:
    """As docs/format.md says, without vqtok."""
    total = hashlib.sha256()
    for name, value in found.items():
        shape = ",".join(map(str, value.shape))
        words = (name.encode(), value.dtype.name.encode(), shape.encode(), value.tobytes())
        total.update(b"\0".join(words))
    return total.hexdigest()[:8]


def model(folder: Path, tokenizer: Path, prior: Path | None = None) -> vqtok.Model:
    """The model of a tokenizer's and a prior's file."""
    folder.mkdir()
    shutil.copy(tokenizer, folder / "tokenizer.safetensors")
    if prior is not None:
        shutil.copy(prior, folder / "prior.safetensors")
    return vqtok.load(folder, "cpu")


def log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Codes files


@pytest.mark.parametrize("name", CODES)
def test_whole_compact_files_hold_the_codes_that_they_always_held(name: str):
    path, plain = GOLDEN / "codes" / f"{name}.npz", GOLDEN / "codes" / f"{name}.plain.npz"
    with np.load(plain, allow_pickle=False) as file:
        indices, meta = file["indices"], json.loads(str(file["meta"]))
    found = vqtok.read_codes(path, str(GOLDEN / "run") if name in CODED else None)
    assert found.indices.dtype == indices.dtype
    np.testing.assert_array_equal(found.indices, indices)
    sizes = [list(size) for size in dict.fromkeys(found.sizes)]
    assert sizes == meta["sizes"]
    for key in ("model", "fingerprint", "codebook_size", "downsample", "channels"):
        assert getattr(found, key) == meta[key], key
    assert found.range == (tuple(meta["range"]) if "deep" in name else None)
    assert found == vqtok.read_codes(plain)


@pytest.mark.parametrize("name", CODES)
def test_packing_gives_the_bytes_that_it_always_gave(name: str, tmp_path: Path):
    """The integer prior is exact on every machine: so is what it writes."""
    owner = vqtok.load(GOLDEN / ("run" if name in CODED else "stopped"), "cpu")
    plain = vqtok.read_codes(GOLDEN / "codes" / f"{name}.plain.npz")
    vqtok.write_codes(tmp_path / "a.npz", owner.pack(plain))
    forms = (SHARED, FORMS) if (SHARED / f"{name}.npz").exists() else (FORMS, FORMS)
    paths = [tmp_path / "a.npz", *(form / f"{name}.npz" for form in forms)]
    made, golden, second = (read_any_codes(path) for path in paths)
    first = read_any_codes(GOLDEN / "codes" / f"{name}.npz")
    assert isinstance(made, Compact)
    assert isinstance(golden, Compact)
    assert isinstance(second, Compact)
    assert isinstance(first, Compact)
    assert to_stream(made) == to_stream(golden)
    assert (made.prior is not None) == (name in CODED)
    if name in CODED:  # in the first form streams carry no checksum
        assert owner.entropy_coder is not None
        encode, value = owner.entropy_coder.prior.encode, checksum(plain.indices, plain.sizes)
        assert tuple(encode(plain.indices, value)) == second.streams
        assert tuple(encode(plain.indices)) == first.streams
    else:
        assert made.streams == first.streams


@pytest.mark.parametrize("name", CODES)
def test_the_second_compact_form_holds_the_codes_of_the_first(name: str):
    path, first = FORMS / f"{name}.npz", GOLDEN / "codes" / f"{name}.npz"
    owner = str(GOLDEN / "run") if name in CODED else None
    with np.load(path, allow_pickle=False) as file:
        assert file.files == ["c"]
    assert vqtok.read_codes(path, owner) == vqtok.read_codes(first, owner)
    assert first.stat().st_size - path.stat().st_size > 80


@pytest.mark.parametrize("path", sorted(SHARED.iterdir()), ids=lambda path: path.stem)
def test_images_that_share_streams_are_what_they_always_were(path: Path):
    name = "one-size" if path.stem == "in-fives" else path.stem
    plain, run = vqtok.read_codes(GOLDEN / "codes" / f"{name}.plain.npz"), str(GOLDEN / "run")
    packed = read_any_codes(path)
    assert isinstance(packed, Compact)
    assert packed.sharing == (5 if path.stem == "in-fives" else len(plain))
    assert len(packed.streams) == -(-len(plain) // packed.sharing)
    assert vqtok.read_codes(path, run) == plain
    with np.load(path, allow_pickle=False) as file:
        assert file.files == ["c"]
        assert file["c"] == to_stream(packed)
    assert path.stat().st_size < (FORMS / f"{name}.npz").stat().st_size


# Models


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: "-".join(path.relative_to(GOLDEN).parts))
def test_weights_of_all_kinds_tell_what_they_are(path: Path):
    """Without a network: kind, settings and record are those in the file's header."""
    _, meta = tensors(path)
    facts = json.loads(ok("info", path, "--json").stdout)
    if meta["kind"] == "tokenizer" and path.name == "tokenizer.safetensors":  # a model, then
        assert facts["tokenizer"] == {key: meta[key] for key in ("config", "record")}
    else:
        assert {key: facts[key] for key in ("kind", "config", "record")} == {
            key: meta[key] for key in ("kind", "config", "record")
        }


def test_the_entropy_prior_belongs_to_its_tokenizer():
    found, meta = tensors(GOLDEN / "run" / "entropy.safetensors")
    assert {name: value.dtype.name for name, value in found.items()} == {
        name: "int8" if name.endswith(("weight", "embedding")) else "int32" for name in found
    }
    owner = vqtok.load(GOLDEN / "run", "cpu")
    assert meta["record"]["tokenizer"] == owner.fingerprint
    packed = owner.pack(vqtok.read_codes(GOLDEN / "codes" / "one-size.plain.npz"))
    assert packed.prior == fingerprint(found)


@pytest.mark.parametrize("name", ["run", "stopped", *TOKENIZERS])
def test_tokenizers_of_all_kinds_decode_as_they_always_did(name: str, tmp_path: Path):
    path = GOLDEN / "tokenizers" / f"{name}.safetensors"
    path = path if path.exists() else GOLDEN / name / "tokenizer.safetensors"
    loaded = model(tmp_path / name, path)
    assert loaded.fingerprint == fingerprint(tensors(path)[0])
    with np.load(GOLDEN / "codes" / f"decoded.{name}.npz") as file:
        decoded = loaded.decode(loaded.codes(file["indices"], ((23, 30),)))
        assert np.abs(decoded.astype(int) - file["decoded"]).max() <= 1


@pytest.mark.parametrize("name", ["run", *PRIORS])
def test_priors_of_all_kinds_draw_what_they_always_drew(name: str, tmp_path: Path):
    """Indices of a seed; the draws were far enough from a border to come out alike in float64."""
    path = GOLDEN / "priors" / f"{name}.safetensors"
    path = path if path.exists() else GOLDEN / "run" / "prior.safetensors"
    loaded = model(tmp_path / name, GOLDEN / "run" / "tokenizer.safetensors", path)
    assert loaded.labels == ("0", "1")
    with np.load(GOLDEN / "codes" / f"drawn.{name}.npz") as file:
        np.testing.assert_array_equal(loaded.sample_codes(6, seed=1).indices, file["indices"])


# Runs


@pytest.mark.parametrize(
    ("name", "stage"), [("stopped", "tokenizer"), ("run", "prior"), ("run", "entropy")]
)
def test_a_state_is_taken_up_whole(name: str, stage: str, golden: Path):
    """A resumed run that stops at once writes the same weights, moments, averages and counts."""
    path = golden / name / f"{stage}.state.safetensors"
    before = path.stat().st_ino
    words = (
        "--resume",
        "--stage",
        stage,
        "-o",
        golden / name,
        "--max-time",
        "0s",
        "--device",
        "cpu",
    )
    ok("train", golden / "data.npz", *words)
    assert path.stat().st_ino != before, "it was not written"
    (old, old_meta), (new, new_meta) = tensors(GOLDEN / name / path.name), tensors(path)
    assert list(old) == list(new)
    for tensor, value in old.items():
        assert (value.dtype, value.shape) == (new[tensor].dtype, new[tensor].shape), tensor
        assert value.tobytes() == new[tensor].tobytes(), tensor
    assert old_meta["record"].items() <= new_meta["record"].items()
    assert (golden / name / "log.jsonl").read_bytes() == (GOLDEN / name / "log.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), [("stopped", "tokenizer"), ("run", "all")])
def test_a_run_goes_on_to_its_end(name: str, stage: str, golden: Path):
    """The losses are those of the machine that made the run, within 0.1 %; those of the integer
    prior, whose weights are rounded, within 1 %: torch 2.14 differs by 0.5 % from 2.4 to 2.13.
    """
    folder = golden / name
    words = ("--resume", "--stage", stage, "-o", folder, "--device", "cpu")
    grids = folder / "indices.state.safetensors"
    kept_grids = grids.stat().st_ino if name == "run" else None
    ok("train", golden / "data.npz", *words)
    assert name != "run" or grids.stat().st_ino == kept_grids, "the run's own index grids are read"
    before, after = log(GOLDEN / name / "log.jsonl"), log(folder / "log.jsonl")
    expected = log(GOLDEN / f"{name}.finished.jsonl")
    assert after[: len(before)] == before
    assert [(line["stage"], line["step"]) for line in after] == [
        (line["stage"], line["step"]) for line in expected
    ]
    for found, line in zip(after[len(before) :], expected[len(before) :], strict=True):
        within = 1e-2 if line["stage"] == "entropy" else 1e-3
        for key in ("loss", *(name for name in line if name.startswith("val_"))):
            assert found[key] == pytest.approx(line[key], rel=within), (found["stage"], key)
    if name == "run":
        kept = (folder / "tokenizer.safetensors").read_bytes()
        assert kept == (GOLDEN / name / "tokenizer.safetensors").read_bytes()
        assert tensors(folder / "prior.safetensors")[1]["record"]["step"] == 8
        assert tensors(folder / "entropy.safetensors")[1]["record"]["step"] == 90


@pytest.mark.slow
def test_what_a_run_was_started_with_is_read(golden: Path):
    """Another seed or prior is refused, so the recipe is read; other data, too."""
    words = ("--resume", "-o", golden / "run", "--device", "cpu")
    said = fails("train", golden / "data.npz", *words, "--seed", 1, "--set", "prior.width=8")
    assert "another prior.width, seed" in said
    assert "was started on 16 " in fails("train", golden / "loose", *words)
    command = json.loads((GOLDEN / "run" / "run.json").read_text())["command"]
    ok("train", golden / "data.npz", *words, "-q")
    assert command in (golden / "run" / "README.md").read_text()
    assert json.loads((golden / "run" / "run.json").read_text())["command"] == command


def test_the_log_is_what_a_page_shows(golden: Path, tmp_path: Path):
    ok("report", golden / "run", "-o", tmp_path / "page.html", "--samples", 0)
    page = (tmp_path / "page.html").read_text()
    for line in log(GOLDEN / "run" / "log.jsonl"):
        value = line["val_psnr"] if line["stage"] == "tokenizer" else line["val_bits"]
        assert f"{value:.4g}" in page, line


@pytest.mark.slow
def test_a_discriminator_has_its_names_in_the_state(golden: Path):
    """Its state is too large to keep; a state with other names would not go on."""
    adversary = {"losses.adversarial": 0.1, "losses.adversarial_start": 0.0}
    words = ("--preset", "tiny", "--stage", "tokenizer", "--steps", 2, "-o", "a", "--device", "cpu")
    ok("train", golden / "data.npz", *words, *settings(adversary))
    found, _ = tensors(Path("a", "tokenizer.state.safetensors"))
    shown = {name: [value.dtype.name, *value.shape] for name, value in found.items()}
    assert shown == json.loads((GOLDEN / "adversary.json").read_text())


# Shards


@pytest.mark.parametrize("name", ["shards", "shards-compact"])
def test_shards_hold_what_they_always_held(name: str):
    data = vqtok.CodesDataset(GOLDEN / name, model=str(GOLDEN / "run"))
    data.verify()
    with np.load(GOLDEN / "shards.expected.npz") as expected:
        assert [title for _, title in data] == expected.files
        for number, (indices, title) in enumerate(data):
            assert indices.dtype == np.int64
            np.testing.assert_array_equal(indices, expected[title], title)
            np.testing.assert_array_equal(data.codes(number).indices[0], expected[title], title)
        assert data.grids.tolist() == [list(expected[title].shape) for title in expected.files]
    assert data.failed == 1
    assert [data.codes(number).sizes[0] for number in (0, 6, 8)] == [(16, 16), (20, 27), (9, 30)]
    damaged = [line for path in sorted((GOLDEN / name).glob("*.jsonl")) for line in log(path)]
    assert [line["name"] for line in damaged if "error" in line] == ["damaged.png"]


@pytest.mark.parametrize("name", ["shards", "shards-compact"])
def test_bulk_encoding_goes_on_with_golden_shards(
    name: str, golden: Path, monkeypatch: pytest.MonkeyPatch
):
    """One that is missing is made, the others stay as they are."""
    monkeypatch.chdir(golden)
    for path in Path(name).glob("00000-00001.*"):
        path.unlink()
    kept = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    words = ("--bulk", "-o", name, "-m", "run", "--shard-size", 3, "--workers", 0, "--resume")
    more = ("--compact",) if "compact" in name else ()
    done = run("encode", "even.tar", "mixed.tar", "loose", *words, "--json", *more)
    assert done.exit_code == 1, done.output  # the damaged image of before
    (line,) = (json.loads(line) for line in done.stdout.splitlines())
    assert line["output"] == f"{name}/00000-00001.npz"
    assert {path.name for path in Path(name).iterdir()} == {
        path.name for path in (GOLDEN / name).iterdir()
    }
    for file, data in kept.items():
        assert Path(name, file).read_bytes() == data, file


@pytest.mark.slow
def test_a_prior_learns_from_golden_shards(golden: Path):
    words = ("--stage", "prior", "--prior-steps", 1, "-o", golden / "run", "--device", "cpu", "-f")
    small = {key: value for key, value in TINY.items() if key.startswith("prior")}
    new = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    for file in ("run.json", "recipe.toml"):
        (golden / "run" / file).unlink()
    done = ok("train", golden / "shards", *words, *new)
    assert "13 " in done.stderr
    assert tensors(golden / "run" / "prior.safetensors")[1]["record"]["step"] == 1
