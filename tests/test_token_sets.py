"""Token arrays of any tokenizer, packed without loss: by a model, or by what they teach."""

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import fails, ok, run

from vqtok import codes, weights
from vqtok.cli import token_sets
from vqtok.codes import npz
from vqtok.errors import FormatError
from vqtok.token_sets import arrays, counts, packed


def video(frames: int = 40, codes: int = 16, seed: int = 0) -> np.ndarray:
    """Frames (n, 4, 6) in which three of four tokens stay what they were."""
    rng = np.random.default_rng(seed)
    found = [rng.integers(0, codes, (4, 6))]
    for _ in range(frames - 1):
        keep = rng.random((4, 6)) < 0.75
        found.append(np.where(keep, found[-1], rng.integers(0, codes, (4, 6))))
    return np.stack(found)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    np.save(folder / "train.npy", video(seed=1))
    ok("train", folder / "train.npy", "--frames", "--stage", "entropy", "-o", folder / "m")
    return folder / "m"


@pytest.fixture
def model(tmp_path: Path, trained: Path) -> Path:
    """A model of such videos, trained once and copied for each test."""
    return Path(shutil.copytree(trained, tmp_path / "m"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["<i8", ">i2", "u1", "<u4"])
def test_the_same_array_comes_back(tmp_path: Path, model: Path, dtype: str) -> None:
    path, small, back = (tmp_path / name for name in ("t.npy", "t.vqtok.npz", "back.npy"))
    np.save(path, video().astype(dtype))
    ok("pack", path, "-m", model, "-o", small)
    ok("unpack", small, "-m", model, "-o", back)
    found = np.load(back)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, np.load(path))
    assert small.stat().st_size < 40 * 24 * 4 / 8 * 0.75 + 800  # beside 560 bytes of headers


@pytest.mark.parametrize(
    ("shape", "codes"),
    [((5, 7), 9), ((5, 3, 4), 1000), ((3, 2, 3, 4), 70000), ((4, 1, 1), 1), ((2, 2, 3), 1 << 32)],
)
@pytest.mark.parametrize("frames", [True, False])
@pytest.mark.parametrize("learn", [True, False])
def test_shapes_and_ids(shape: tuple[int, ...], codes: int, frames: bool, learn: bool) -> None:
    array = np.random.default_rng(0).integers(0, codes, shape)
    array.flat[0] = codes - 1
    tokens = arrays.to_tokens(array, "t")
    model = packed.empty(tokens, frames)
    if learn:
        learned = packed.train(tokens, frames)
        tensors = learned.counts.tensors()
        again = counts.Counts.of_tensors(learned.layout, tensors)
        assert again == learned.counts
        model = packed.TokenModel(
            learned.bits, learned.levels, frames, learned.grid, again, weights.fingerprint(tensors)
        )
    data = packed.pack(tokens, model, "t")
    np.testing.assert_array_equal(packed.Packed.of(data).unpack(model), array)


@pytest.mark.slow
def test_frames_see_the_one_before() -> None:
    tokens = arrays.to_tokens(video(100), "t")
    files = [packed.pack(tokens, packed.empty(tokens, f), "t") for f in (True, False)]
    sizes = [len(packed.Packed.of(data).stream) for data in files]
    assert sizes[0] < 0.75 * sizes[1]


@pytest.mark.slow
def test_rows_are_grids(tmp_path: Path, model: Path) -> None:
    rows, back = tmp_path / "rows.npy", tmp_path / "back.npy"
    np.save(rows, video().reshape(-1, 24))
    ok("pack", rows, "-m", model)  # the model knows the grid
    ok("unpack", tmp_path / "rows.vqtok.npz", "-m", model, "-o", back)
    np.testing.assert_array_equal(np.load(back), np.load(rows))
    ok("pack", rows, "--frames", "--grid", "4x6", "-o", tmp_path / "own.vqtok.npz")
    ok("unpack", tmp_path / "own.vqtok.npz", "-o", back, "-f")  # no model is needed
    np.testing.assert_array_equal(np.load(back), np.load(rows))


def test_the_stream_is_the_same_everywhere() -> None:
    """These bytes were written once; another machine must read and write the same."""
    tokens = arrays.to_tokens(np.arange(240).reshape(10, 4, 6) * 7 % 31, "t")
    data = packed.pack(tokens, packed.train(tokens, True), "t")
    stream = packed.Packed.of(data).stream
    assert hashlib.sha256(stream).hexdigest()[:16] == "4dfeea475b87531f"


@pytest.mark.slow
def test_intervals_are_exact_at_the_bounds() -> None:
    """The largest alphabet, and a context that has counted as much as it may."""
    layout = counts.Layout(1 << arrays.DIGIT_BITS, 1, True)
    known = counts.Counts()
    mixture = counts.Mixture(layout, known, 1, 1)
    for _ in range(counts.COUNTED + 10):
        mixture.learn(0, 4, mixture.contexts(0, 0, 4), layout.codebook_size - 1)
    table = mixture.cumulative(0, mixture.contexts(0, 0, 4))
    assert (table[0], table[-1]) == (0, 1 << 16)
    assert (np.diff(table) > 0).all()
    assert max(known.totals.values()) < counts.COUNTED


def save_as(name: str) -> np.ndarray:
    frames = video(3)
    return {
        "floats": frames * 1.0,
        "negative": frames - 100,
        "large": frames + 1000,
        "flat": frames.ravel(),
        "five": frames[None, None],
        "empty": frames[:0],
        "levels": frames.reshape(1, 3, 4, 6),
    }[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("floats", "integers"),
        ("negative", "the id -"),
        ("large", "ids below 16"),
        ("flat", "shape (72,)"),
        ("five", "shape (1, 1, 3, 4, 6)"),
        ("empty", "shape (0, 4, 6)"),
        ("levels", "3 levels"),
    ],
)
def test_what_is_no_token_array(tmp_path: Path, model: Path, name: str, said: str) -> None:
    np.save(tmp_path / "t.npy", save_as(name))
    assert said in fails("pack", tmp_path / "t.npy", "-m", model)


@pytest.mark.slow
def test_no_model_and_another_model(tmp_path: Path, model: Path) -> None:
    np.save(tmp_path / "t.npy", video())
    ok("pack", tmp_path / "t.npy", "-m", model)
    (tmp_path / "t.npy").unlink()
    assert "--model" in fails("unpack", tmp_path / "t.vqtok.npz")
    np.save(tmp_path / "other.npy", video(seed=5))
    ok("train", tmp_path / "other.npy", "--stage", "entropy", "-o", tmp_path / "n")
    assert "--model" in fails("unpack", tmp_path / "t.vqtok.npz", "-m", tmp_path / "n")


@pytest.mark.slow
def test_damage_is_found() -> None:
    tokens = arrays.to_tokens(video(4), "t")
    data = packed.pack(tokens, packed.empty(tokens, True), "t")
    for at in range(0, len(data), 7):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 5]) + data[at + 1 :]):
            try:
                found = packed.Packed.of(damaged).unpack(None)
            except FormatError:
                continue
            np.testing.assert_array_equal(found, tokens.array)


@pytest.mark.parametrize(
    "grids", [[1 << 40, 1, 4, 6], [40, 1, 1 << 30, 6], [1, 1 << 30, 1, 1], [0, 1, 4, 6]]
)
def test_a_header_does_not_ask_for_more_than_its_stream_holds(grids: list[int]) -> None:
    tokens = arrays.to_tokens(video(), "t")
    data = packed.pack(tokens, packed.empty(tokens, True), "t")
    header = packed.Packed.of(data).header | {"grids": grids, "shape": grids}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        npz.write_member(archive, packed.HEADER, text)
        npz.write_member(archive, "stream", np.frombuffer(packed.Packed.of(data).stream, np.uint8))
    with pytest.raises(FormatError):
        packed.Packed.of(changed.getvalue())


@pytest.mark.slow
def test_the_model_is_found_by_its_fingerprint(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of VQTOK_MODELS, beside a damaged one and another, whatever its name is now."""
    np.save(tmp_path / "t.npy", video())
    small, back = tmp_path / "t.vqtok.npz", tmp_path / "back.npy"
    ok("pack", tmp_path / "t.npy", "-m", model)
    assert "VQTOK_MODELS" in fails("unpack", small, "-o", back)
    for name in ("a", "b"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "models/a/tokens.safetensors").write_bytes(b"x")
    np.save(tmp_path / "other.npy", video(seed=2))
    ok("train", tmp_path / "other.npy", "--stage", "entropy", "-o", tmp_path / "models/b")
    model.rename(tmp_path / "models/c")
    monkeypatch.setenv("VQTOK_MODELS", str(tmp_path / "models"))
    ok("unpack", small, "-o", back)
    np.testing.assert_array_equal(np.load(back), np.load(tmp_path / "t.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("bad", ["damaged", "exists"])
def test_of_several_arrays_the_good_ones_are_packed(tmp_path: Path, model: Path, bad: str) -> None:
    """One that fails is reported, the others are whole, and the command exits with 1."""
    for name in ("a", "b", "c"):
        np.save(tmp_path / f"{name}.npy", video(seed=len(name)))
    if bad == "damaged":
        (tmp_path / "b.npy").write_bytes(b"\x93NUMPY no")
    else:
        (tmp_path / "b.vqtok.npz").write_bytes(b"mine")
    paths = [tmp_path / f"{name}.npy" for name in ("a", "b", "c")]
    found = run("pack", *paths, "-m", model)
    assert found.exit_code == 1
    assert found.stderr.splitlines()[-1] == "1 of 3 failed"
    assert "b." in found.stderr
    made = sorted(path.name for path in tmp_path.glob("*.vqtok.npz"))
    assert made == (["a.vqtok.npz", "c.vqtok.npz"] if bad == "damaged" else made)
    if bad == "exists":
        assert (tmp_path / "b.vqtok.npz").read_bytes() == b"mine"
    (tmp_path / "b.vqtok.npz").write_bytes(b"no")
    back = run("unpack", *sorted(tmp_path.glob("*.vqtok.npz")), "-m", model, "-o", tmp_path / "o")
    assert back.exit_code == 1


def test_folders_are_packed_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way round again leaves the other command's files out; names and folders are kept."""
    monkeypatch.chdir(tmp_path)
    Path("in/below").mkdir(parents=True)
    wanted = {"a": video(2), "below/b": video(2, seed=1), "c": video(2, seed=2)}
    np.save("in/a.npy", wanted["a"])
    np.save("in/below/b.npy", wanted["below/b"])
    np.savez("in/c.npz", ids=wanted["c"])
    ok("pack", "in", "-o", "small")
    ok("unpack", "small", "-o", "back")
    for name, array in wanted.items():
        np.testing.assert_array_equal(np.load(f"back/{name}.npy"), array)
    ok("pack", "in")  # beside the arrays
    said = ok("pack", "in", "-f").stderr
    assert "3 of 6 left out: packed already" in said
    assert sorted(p.name for p in Path("in").rglob("*.vqtok.npz")) == [
        f"{name}.vqtok.npz" for name in "abc"
    ]
    assert "1 of 4 left out: not packed" in ok("unpack", "in", "-f").stderr
    np.testing.assert_array_equal(np.load("in/c.npy"), wanted["c"])
    ok("pack", "in/c.np*", "-o", "one")
    assert sorted(p.name for p in Path("one").iterdir()) == ["c.npz.vqtok.npz", "c.vqtok.npz"]
    ok("unpack", "small", "--indices-only", "-o", "alone")
    for name, array in wanted.items():
        with np.load(f"alone/{name}.indices.npz") as found:
            assert found.files == ["indices"]
            np.testing.assert_array_equal(found["indices"], array)
    assert "packed already" in fails("pack", "small")


def test_a_folder_of_both_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes files in a folder are packed as ever, whatever arrays lie beside them."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    np.save("in/a.npy", video(2))
    ok("pack", "in")
    np.savez("in/codes.npz", indices=np.zeros((1, 1, 2, 2), np.uint8), meta=np.array("{}"))
    assert "one kind at a time" in fails("unpack", "in", code=2)
    assert "one kind at a time" in fails("pack", "in/a.npy", "in/codes.npz", code=2)
    assert "codes file of vqtok" in fails("pack", "in/codes.npz", "--frames")
    assert token_sets.arrays_of(["in"], None, False) is False


def test_packed_tokens_are_not_said_to_be_of_a_newer_vqtok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their member `stream` was taken for the compact form of codes, of some version."""
    monkeypatch.chdir(tmp_path)
    np.save("t.npy", video(2))
    ok("pack", "t.npy")
    for words in (
        ("info", "t.vqtok.npz"),
        ("decode", "t.vqtok.npz"),
        ("truncate", "t.vqtok.npz", "--levels", 1),
        ("view", "t.vqtok.npz", "--always"),
        ("report", "t.vqtok.npz", "-o", "r.html"),
        ("export", "t.vqtok.npz", "--to", "bin", "-o", "x"),
    ):
        said = fails(*words)
        assert "these are packed tokens, not codes of images" in said
        assert "fix: vqtok unpack" in said
    assert "packed tokens, not images" in fails("eval", "t.vqtok.npz")
    with pytest.raises(FormatError, match="these are packed tokens"):
        codes.read_codes_meta("t.vqtok.npz")
