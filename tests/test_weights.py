"""Weights files: round trips, exact bytes, damage; and the search for models."""

import json
import os
import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from make_golden import small_weights

from vqtok import model_registry, weights
from vqtok.errors import FormatError, InputError, ModelError, OutputError
from vqtok.model_registry import ModelFolder
from vqtok.weights import Weights

GOLDEN = Path(__file__).parent / "golden" / "format1" / "tokenizer.safetensors"
GOLDEN_FINGERPRINT = "df0838ad"  # worked out apart from vqtok, with hashlib and struct
META: dict[str, Any] = {"format": 1, "kind": "tokenizer", "config": {}, "record": {}}


def raw(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file of which nothing is checked."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_meta(meta: Any) -> bytes:
    return raw({"__metadata__": {"vqtok": meta if isinstance(meta, str) else json.dumps(meta)}})


def entry(dtype: str, shape: list[int], end: int) -> dict[str, Any]:
    return {
        "__metadata__": {"vqtok": json.dumps(META)},
        "x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]},
    }


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert sorted(one) == sorted(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert one[name].shape == other[name].shape
        np.testing.assert_array_equal(one[name], other[name])


def test_round_trip(tmp_path: Path) -> None:
    tensors = {
        "strided": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::-1],
        "big-endian": np.arange(5, dtype=">i4"),
        "zero axes": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
        "bytes": np.arange(5, dtype=np.uint8),
        "double": np.array([1e300]),
    }
    meta = {"kind": "state", "config": {"labels": ["Füße"]}, "record": {"step": 3, "best": None}}
    weights.save_weights(tmp_path / "new" / "a.safetensors", Weights(tensors, meta))
    after = weights.load_weights(tmp_path / "new" / "a.safetensors", "state")
    assert_equal(after.tensors, {**tensors, "big-endian": tensors["big-endian"].astype("<i4")})
    assert list(after.tensors) == sorted(tensors)
    assert after.meta == {"format": 1, **meta}
    assert (after.config, after.record) == (meta["config"], meta["record"])
    assert all(
        array.flags.writeable and array.flags.c_contiguous for array in after.tensors.values()
    )
    assert weights.fingerprint(after.tensors) == weights.fingerprint(tensors)


def test_golden_file_of_format_1(tmp_path: Path) -> None:
    """Files of every release stay readable, and equal weights give equal bytes."""
    expected = small_weights()
    found = weights.load_weights(GOLDEN, "tokenizer")
    assert_equal(found.tensors, expected.tensors)
    assert found.meta == {"format": 1, **expected.meta}
    assert (
        weights.fingerprint(found.tensors)
        == weights.tokenizer_fingerprint(GOLDEN)
        == GOLDEN_FINGERPRINT
    )
    backwards = Weights(
        dict(reversed(expected.tensors.items())), dict(reversed(expected.meta.items()))
    )
    weights.save_weights(tmp_path / "again.safetensors", backwards)
    assert (tmp_path / "again.safetensors").read_bytes() == GOLDEN.read_bytes()


def test_the_file_is_ordinary_safetensors_with_one_key() -> None:
    assert sorted(safetensors.numpy.load_file(GOLDEN)) == sorted(small_weights().tensors)
    with safetensors.safe_open(GOLDEN, "np") as file:
        assert list(file.metadata()) == ["vqtok"]


def test_fingerprint_sees_names_types_shapes_and_values_but_no_order() -> None:
    base = {"a": np.arange(6, dtype=np.float32), "b": np.zeros(2, np.float32)}
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
        {**base, "b": np.zeros(2, np.int32)},
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "a": base["a"] + np.float32(1e-6)},
        {"a": base["b"], "b": base["a"]},
    ]
    prints = {weights.fingerprint(tensors) for tensors in [base, *others]}
    assert len(prints) == len(others) + 1
    assert weights.fingerprint(dict(reversed(base.items()))) == weights.fingerprint(base)
    assert weights.fingerprint(
        {**base, "a": np.arange(12, dtype=np.float32)[::2] / 2}
    ) == weights.fingerprint(base)


def test_save_does_not_replace_without_force_and_takes_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    weights.save_weights(path, small_weights(), force=False)
    with pytest.raises(OutputError):
        weights.save_weights(path, small_weights(), force=False)
    with pytest.raises(ValueError, match="JSON"):
        weights.save_weights(
            path, Weights({}, {"kind": "state", "config": {}, "record": {"loss": float("nan")}})
        )
    assert path.read_bytes() == GOLDEN.read_bytes()
    weights.save_weights(path, Weights({}, {"kind": "state", "config": {}, "record": {}}))
    assert weights.load_weights(path, "state").tensors == {}


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw(entry("BF16", [3], 6), bytes.fromhex("803f 00c0 4940")))
    tensors = weights.load_weights(path, "tokenizer").tensors
    assert_equal(tensors, {"x": np.array([1, -2, 3.140625], np.float32)})


def zip_pickle() -> bytes:
    return b"PK\x03\x04" + bytes(60)  # as torch.save begins


BAD_FILES = {
    "empty": (b"", "empty"),
    "five bytes": (b"\1\0\0\0\0", "truncated"),
    "text": (b"hello, this is no model", "not a safetensors file"),
    "pickle": (pickle.dumps({"state_dict": [1, 2, 3]}), "looks like a pickle"),
    "old pickle": (pickle.dumps({"state_dict": [1, 2, 3]}, protocol=2), "looks like a pickle"),
    "torch zip": (zip_pickle(), "looks like a pickle"),
    "huge header": ((2**62).to_bytes(8, "little") + b"{}", "damaged or truncated"),
    "cut in the header": (GOLDEN.read_bytes()[:100], "damaged or truncated"),
    "cut in the tensors": (GOLDEN.read_bytes()[:-1], "damaged or truncated"),
    "too long": (GOLDEN.read_bytes() + b"\0", "damaged or truncated"),
    "header is no JSON": (raw(b'{"__metadata__"'), "damaged header"),
    "header is not UTF-8": (raw(b'{"\xff": 1}'), "damaged header"),
    "header is deep": (raw(b'{"a":' * 100000), "damaged header"),
    "no metadata": (raw({}), "not a vqtok file"),
    "others' metadata": (raw({"__metadata__": {"format": "pt"}}), "not a vqtok file"),
    "metadata is a list": (raw({"__metadata__": [1]}), "not a vqtok file"),
    "meta is a number": (raw({"__metadata__": {"vqtok": 1}}), "not a vqtok file"),
    "meta is no JSON": (with_meta("{"), "metadata is damaged"),
    "meta has NaN": (with_meta({**META, "record": {"psnr": float("nan")}}), "metadata is damaged"),
    "no format": (with_meta({"kind": "tokenizer"}), "metadata is damaged"),
    "no config": (with_meta({**META, "config": None}), "metadata is damaged"),
    "no record": (
        with_meta({"format": 1, "kind": "tokenizer", "config": {}}),
        "metadata is damaged",
    ),
    "unknown kind": (with_meta({**META, "kind": "vocoder"}), "unknown kind 'vocoder'"),
    "kind is a list": (with_meta({**META, "kind": []}), "unknown kind"),
    "a prior": (with_meta({**META, "kind": "prior"}), "a prior file, not a tokenizer file"),
    "8-bit floats": (raw(entry("F8_E4M3", [4], 4), bytes(4)), "x is of type F8_E4M3"),
    "shape": (raw(entry("F32", [2], 4), bytes(4)), "damaged or truncated"),
    "endless shape": (raw(entry("F32", [2**63, 0], 0)), "x has the shape"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_give_one_clear_error(case: str, tmp_path: Path) -> None:
    data, message = BAD_FILES[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError) as error:
        weights.load_weights(path, "tokenizer")
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert error.value.fix


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_meta({"format": 2, "kind": "diffuser"}))
    for read in (weights.read_meta, lambda path: weights.load_weights(path, "tokenizer")):
        with pytest.raises(FormatError, match="newer") as error:
            read(path)
        assert error.value.fix == "upgrade vqtok"


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    """The first bytes are the header's length:
    one of 0x0280 bytes begins as a pickle of protocol 2 does.
    """
    text = json.dumps({"__metadata__": {"vqtok": json.dumps(META)}}).encode().ljust(0x0280)
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw(text))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert weights.load_weights(path, "tokenizer").meta == META


def test_read_meta_reads_the_header_only(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = GOLDEN.read_bytes()[: -len(b"\1") - 72]
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(1 << 40)  # a sparse file: 1 TiB, were it read
    assert (
        weights.read_meta(path)
        == weights.read_meta(GOLDEN, "tokenizer")
        == {"format": 1, **small_weights().meta}
    )
    with pytest.raises(FormatError, match="tokenizer file, not a prior file"):
        weights.read_meta(GOLDEN, "prior")


def test_a_header_is_not_read_beyond_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write((1 << 27).to_bytes(8, "little") + b"{")
        file.truncate(1 << 28)
    tracemalloc.start()
    with pytest.raises(FormatError, match="header of 134217728 bytes"):
        weights.read_meta(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "read", [weights.read_meta, lambda path: weights.load_weights(path, "prior")]
)
def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path: Path, read: Any) -> None:
    for path in (tmp_path, tmp_path / "none.safetensors", tmp_path / ("x" * 300)):
        with pytest.raises(InputError) as error:
            read(path)
        assert error.value.fix


@pytest.mark.slow
def test_damaged_files_never_raise_anything_else(tmp_path: Path) -> None:
    good, chance, path = GOLDEN.read_bytes(), random.Random(0), tmp_path / "bad.safetensors"
    cuts = [good[:cut] for cut in range(0, len(good), 11)]
    for bad in cuts + [flip(good, chance) for _ in range(2000)]:
        path.write_bytes(bad)
        for read in (weights.read_meta, lambda path: weights.load_weights(path, "tokenizer")):
            try:
                read(path)
            except FormatError as error:
                assert error.fix  # noqa: PT017


def flip(good: bytes, chance: random.Random) -> bytes:
    bad = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 8))):
        bad[chance.randrange(len(bad))] = chance.choice(
            (0, 34, 57, 91, 123, 255, chance.randrange(256))
        )
    return bytes(bad)


SHAPES = {"a": (2, 3), "n": ()}


def test_check_passes_what_is_right() -> None:
    weights.check_tensors({"a": np.zeros((2, 3), np.float32), "n": np.array(1)}, SHAPES, "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": None}, "m.safetensors lacks the tensor n"),
        ({"z": np.zeros(1)}, "m.safetensors has the unknown tensor z"),
        ({"a": np.zeros((3, 2))}, r"tensor a has the shape \(3, 2\), its config asks for \(2, 3\)"),
        ({"n": np.zeros(1)}, "tensor n has the shape"),
        ({"a": np.full((2, 3), np.nan, np.float16)}, "tensor a holds NaN"),
        ({"a": np.array([[0, 0, 0], [0, 0, -np.inf]])}, "tensor a holds NaN or infinity"),
    ],
)
def test_check_names_the_wrong_tensor(change: dict[str, np.ndarray | None], message: str) -> None:
    tensors = {"a": np.zeros((2, 3), np.float32), "n": np.array(1), **change}
    with pytest.raises(FormatError, match=message):
        weights.check_tensors(
            {name: array for name, array in tensors.items() if array is not None},
            SHAPES,
            Path("m.safetensors"),
        )


def put(folder: Path, seed: int = 0, prior: bool = False) -> str:
    """A model of one tensor in a folder; gives its fingerprint."""
    tensors = {"x": np.array([seed])}
    weights.save_weights(folder / "tokenizer.safetensors", Weights(tensors, META))
    if prior:
        weights.save_weights(folder / "prior.safetensors", Weights({}, {**META, "kind": "prior"}))
        (folder / "README.md").write_text("card")
    return weights.fingerprint(tensors)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photo and cifar10 bundled; mine, and another photo, in the first folder of VQTOK_MODELS;
    the second does not exist.
    """
    monkeypatch.setattr(model_registry, "bundled_models", lambda: tmp_path / "bundled")
    monkeypatch.setenv(
        "VQTOK_MODELS", os.pathsep.join([str(tmp_path / "own"), "", str(tmp_path / "none")])
    )
    monkeypatch.delenv("VQTOK_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "bundled" / "photo", 1, prior=True)
    put(tmp_path / "bundled" / "cifar10", 2)
    put(tmp_path / "own" / "mine", 3)
    put(tmp_path / "own" / "photo", 4)
    (tmp_path / "own" / "empty").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("no model")
    weights.save_weights(tmp_path / "own" / "loose.safetensors", Weights({}, META))
    return tmp_path


def test_models_in_the_search_path(home: Path) -> None:
    assert model_registry.search_path() == [home / "own", home / "none", home / "bundled"]
    found = model_registry.list_models()
    assert [model.name for model in found] == ["cifar10", "mine", "photo"]
    assert found[2].path == home / "own" / "photo"  # the first folder wins


def test_an_entry_may_itself_be_a_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQTOK_MODELS", str(home / "own" / "mine"))
    assert model_registry.list_models()[1] == ModelFolder("mine", home / "own" / "mine")


def test_parts_of_a_model(home: Path) -> None:
    whole, bare = (
        ModelFolder("photo", home / "bundled" / "photo"),
        model_registry.find_model("cifar10"),
    )
    assert whole.tokenizer == whole.path / "tokenizer.safetensors"
    assert (whole.prior, whole.entropy) == (whole.path / "prior.safetensors", None)
    assert (bare.prior, bare.entropy) == (None, None)


def test_find_by_name_path_and_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = home / "runs" / "a.1"
    put(run, prior=True)
    put(home / "photo")  # a name goes before a folder of that name
    assert (
        model_registry.find_model().path
        == model_registry.find_model("photo").path
        == home / "own" / "photo"
    )
    assert model_registry.find_model(str(run)) == ModelFolder("a.1", run)
    assert model_registry.find_model(str(run / "tokenizer.safetensors")) == ModelFolder("a.1", run)
    assert model_registry.find_model("./photo").path == Path("photo")
    loose = model_registry.find_model("own/loose.safetensors")
    assert (loose.name, loose.tokenizer, loose.prior) == (
        "loose",
        Path("own/loose.safetensors"),
        None,
    )
    monkeypatch.chdir(run)
    assert model_registry.find_model(".").name == "a.1"
    monkeypatch.setenv("VQTOK_MODEL", "mine")
    assert model_registry.find_model().name == "mine"
    monkeypatch.setenv("VQTOK_MODEL", str(run))
    assert model_registry.find_model().prior == run / "prior.safetensors"


@pytest.mark.parametrize(
    ("wanted", "message", "fix"),
    [
        ("foto", "there is no model 'foto'", "did you mean photo?"),
        ("zzz", "there is no model 'zzz'", "cifar10, mine, photo"),
        ("own/empty", "own/empty holds no tokenizer.safetensors", "cifar10"),
        ("own/notes.txt", "holds no tokenizer", "cifar10"),
        ("~no such user/x", "there is no model", "cifar10"),
        ("a\0b", "there is no model", "cifar10"),
        ("x" * 5000, "there is no model", "cifar10"),
    ],
)
@pytest.mark.usefixtures("home")
def test_find_says_what_there_is(wanted: str, message: str, fix: str) -> None:
    with pytest.raises(ModelError) as error:
        model_registry.find_model(wanted)
    assert message in str(error.value)
    assert fix in error.value.fix


def test_find_by_fingerprint(home: Path) -> None:
    prints = {
        file.parent: weights.tokenizer_fingerprint(file)
        for file in home.glob("*/*/tokenizer.safetensors")
    }
    assert len(set(prints.values())) == 4
    for path, fingerprint in prints.items():  # the shadowed photo too
        assert model_registry.find_by_fingerprint(path.name, fingerprint).path == path
        assert model_registry.find_by_fingerprint("renamed since", fingerprint).path == path


def test_find_by_fingerprint_prefers_the_name(home: Path) -> None:
    # the same tensors as cifar10, and earlier in the path
    fingerprint = put(home / "own" / "aa", 2)
    assert model_registry.find_by_fingerprint("cifar10", fingerprint).name == "cifar10"
    assert model_registry.find_by_fingerprint("zz", fingerprint).name == "aa"


def test_find_by_fingerprint_says_what_differs(home: Path) -> None:
    own = weights.tokenizer_fingerprint(home / "own" / "mine" / "tokenizer.safetensors")
    with pytest.raises(
        ModelError, match=rf"made with model mine \(00000000\); the model mine here is {own}"
    ):
        model_registry.find_by_fingerprint("mine", "00000000")
    with pytest.raises(ModelError, match="no model here has that fingerprint"):
        model_registry.find_by_fingerprint("other", "00000000")


def test_a_damaged_model_does_not_hide_the_others(home: Path) -> None:
    fingerprint = weights.tokenizer_fingerprint(
        home / "bundled" / "photo" / "tokenizer.safetensors"
    )
    (home / "own" / "photo" / "tokenizer.safetensors").write_bytes(b"damaged")
    assert (
        model_registry.find_by_fingerprint("photo", fingerprint).path == home / "bundled" / "photo"
    )
    with pytest.raises(ModelError, match="the model photo here is damaged"):
        model_registry.find_by_fingerprint("photo", "00000000")


def test_the_name_in_a_codes_file_is_never_a_path(home: Path) -> None:
    fingerprint = put(home / "elsewhere" / "model", 9)
    for name in (str(home / "elsewhere" / "model"), "../elsewhere/model"):
        with pytest.raises(ModelError):
            model_registry.find_by_fingerprint(name, fingerprint)


def test_a_strange_folder_name_becomes_a_name_that_codes_can_hold(home: Path) -> None:
    put(home / "own" / "a\nb")
    assert model_registry.find_model(str(home / "own" / "a\nb")).name == "a_b"


def test_bundled_models_lie_in_the_package_or_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_registry, "__file__", str(tmp_path / "vqtok" / "weights.py"))
    assert model_registry.bundled_models() == tmp_path / "models"  # a checkout
    (tmp_path / "vqtok" / "models").mkdir(parents=True)
    assert model_registry.bundled_models() == tmp_path / "vqtok" / "models"  # an installed wheel


def test_weights_are_held_once_while_they_are_read(tmp_path: Path) -> None:
    tensors = {name: np.ones((256, 1024), np.float32) for name in "abcd"}  # 1 MiB each
    weights.save_weights(tmp_path / "a.safetensors", Weights(tensors, META))
    tracemalloc.start()
    found = weights.load_weights(tmp_path / "a.safetensors", "tokenizer")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_equal(found.tensors, tensors)
    assert peak < 4.5 * (1 << 20)
