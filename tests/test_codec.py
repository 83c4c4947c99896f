"""The library as a user calls it: images to codes and back, samples, completions, and every
way a model can be wrong.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PRIOR, TOKENIZER, image, make_model
from PIL import Image

import vqtok
from vqtok import codec, weights
from vqtok.codec import loading
from vqtok.codes import Codes
from vqtok.errors import FormatError, ModelError, UsageError, VqtokError

SIZES = [(1, 1), (20, 30), (30, 20), (77, 31), (3, 500), (500, 3), (4, 4), (5, 4)]


@pytest.fixture
def toy(model: Path) -> codec.Model:
    return codec.load("toy")


# Loading


def test_load_by_name_path_and_environment(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VQTOK_MODEL", "toy")
    loaded = [
        codec.load(which)
        for which in ("toy", model, str(model), model / "tokenizer.safetensors", None)
    ]
    assert {m.name for m in loaded} == {"toy"}
    assert {m.fingerprint for m in loaded} == {
        weights.tokenizer_fingerprint(model / "tokenizer.safetensors")
    }
    assert vqtok.load is codec.load


def test_device_comes_from_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VQTOK_DEVICE", "nonsense")
    assert codec.pick_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="nonsense"):
        codec.pick_device()
    monkeypatch.setenv("VQTOK_DEVICE", "cpu")
    assert codec.pick_device().type == "cpu"


def test_auto_takes_the_fastest_device_there_is(monkeypatch: pytest.MonkeyPatch):
    for cuda, mps, best in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert codec.pick_device("auto").type == best
    with pytest.raises(UsageError, match="no cuda device"):
        codec.pick_device("cuda")


def test_unknown_precision_is_a_usage_error(model: Path):
    with pytest.raises(UsageError, match="int4"):
        codec.load("toy", precision="int4")


# Encode and decode


@pytest.mark.parametrize("size", SIZES)
def test_any_size_comes_back_exactly(toy: codec.Model, size: tuple[int, int]):
    codes = toy.encode(image(*size))
    assert codes.sizes == (size,)
    assert codes.indices.shape == (1, 1, -(-size[0] // 4), -(-size[1] // 4))
    decoded = toy.decode(codes)
    assert decoded.shape == (*size, 3)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous


def test_place_in_the_image_is_place_in_the_grid(toy: codec.Model):
    """Height and width are never swapped: what happens at the right end of a
    strip stays there, both ways.
    """
    strip = image(8, 200)
    changed = strip.copy()
    changed[:, -8:] = 255 - changed[:, -8:]
    a, b = toy.encode(strip), toy.encode(changed)
    assert (a.indices[..., :40] == b.indices[..., :40]).all()
    assert (a.indices[..., 40:] != b.indices[..., 40:]).any()
    moved = a.indices.copy()
    moved[..., -1] = (moved[..., -1] + 5) % 16
    before, after = toy.decode(a), toy.decode(replace(a, indices=moved))
    assert (before[:, :120] == after[:, :120]).all()
    assert (before[:, -4:] != after[:, -4:]).any()


def test_encode_takes_whatever_is_a_image(toy: codec.Model, tmp_path: Path):
    pixels = image(9, 14)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    codes = [
        toy.encode(image)
        for image in (path, str(path), path.read_bytes(), Image.fromarray(pixels), pixels)
    ]
    assert all(c == codes[0] for c in codes)


def test_background_stands_behind_transparency(toy: codec.Model):
    clear = np.zeros((12, 12, 4), np.uint8)
    assert toy.encode(clear) == toy.encode(np.full((12, 12, 3), 255, np.uint8))
    assert toy.encode(clear, (0, 0, 0)) == toy.encode(np.zeros((12, 12, 3), np.uint8))


def test_a_batch_gives_what_single_images_give(toy: codec.Model):
    # one grid, two sizes
    images = [image(20, 30, seed=seed) for seed in range(5)] + [image(18, 29, seed=9)]
    together = toy.encode_batch(images)
    assert together.sizes == tuple(p.shape[:2] for p in images)
    for i, single in enumerate(images):
        assert (together.indices[i] == toy.encode(single).indices[0]).all()
    for whole, single in zip(toy.decode_all(together), images, strict=True):
        assert (whole == toy.decode(toy.encode(single))).all()


def test_images_of_two_grids_are_no_batch(toy: codec.Model):
    with pytest.raises(UsageError, match="2 images do not fill one grid"):
        toy.encode_batch([image(20, 30), image(30, 20)])
    with pytest.raises(UsageError):
        toy.encode_batch([])


def test_decode_is_for_one_image(toy: codec.Model):
    with pytest.raises(UsageError, match="hold 2 images"):
        toy.decode(toy.encode_batch([image()] * 2))


@pytest.mark.parametrize(
    "form", [torch.from_numpy, np.asarray, lambda grids: grids.astype(np.uint8)]
)
def test_codes_of_index_grids_from_elsewhere(toy: codec.Model, form: Callable[[np.ndarray], Any]):
    codes = toy.encode_batch([image(20, 30), image(19, 29)])
    grids = codes.indices.astype(np.int64)
    assert toy.codes(form(grids), codes.sizes) == codes
    assert toy.codes(form(grids)).sizes == ((20, 32), (20, 32))  # 5 x 8 places, f = 4
    assert [decoded.shape for decoded in toy.decode_all(toy.codes(form(grids)))] == [
        (20, 32, 3)
    ] * 2


def test_codes_of_the_first_levels(tmp_path: Path):
    model = codec.load(
        make_model(tmp_path / "deep", tokenizer=replace(TOKENIZER, levels=2, normalize=False))
    )
    codes = model.encode(image(20, 30))
    assert model.codes(codes.indices[:, :1], codes.sizes) == codes.first_levels(1)


GRIDS = np.zeros((2, 1, 3, 4), np.int64)
NO_CODES: dict[str, tuple[Any, Any]] = {
    "float32 in the shape": (GRIDS.astype(np.float32), None),
    r"the shape \(1, 3, 4\)": (GRIDS[0], None),
    r"the shape \(0, 1, 3, 4\)": (GRIDS[:0], None),
    "from -1 to 0": (GRIDS - np.eye(4, dtype=np.int64)[:3], None),
    "from 0 to 16": (torch.from_numpy(GRIDS + 16 * np.eye(4, dtype=np.int64)[:3]), None),
    "has 1 level, not 2": (GRIDS.repeat(2, axis=1), None),
    "sizes": (GRIDS, ((12, 16),)),
    "17": (GRIDS, ((12, 16), (12, 17))),
}


@pytest.mark.parametrize(("message", "given"), NO_CODES.items(), ids=NO_CODES)
def test_what_is_no_index_grid_of_the_model(toy: codec.Model, message: str, given: tuple[Any, Any]):
    with pytest.raises(UsageError, match=message):
        toy.codes(*given)


def test_gray_model(tmp_path: Path):
    make_model(tmp_path / "models" / "gray", replace(TOKENIZER, channels=1), None)
    gray = codec.load("gray")
    codes = gray.encode(image(10, 13, 3))
    assert codes.channels == 1
    assert gray.decode(codes).shape == (10, 13, 1)


def test_thread_count_changes_nothing(toy: codec.Model):
    codes = toy.encode(image(64, 96))
    torch.set_num_threads(2)
    assert toy.encode(image(64, 96)) == codes


def test_bf16_is_near_but_not_equal(toy: codec.Model):
    codes = toy.encode(image(64, 64))
    half = codec.load("toy", precision="bf16")
    difference = half.decode(codes).astype(int) - toy.decode(codes)
    assert difference.any()
    assert np.abs(difference).mean() < 3
    assert (half.encode(image(64, 64)).indices == codes.indices).mean() > 0.9


def test_codes_of_another_model_are_refused(toy: codec.Model, tmp_path: Path):
    make_model(tmp_path / "models" / "other", seed=1)
    other = codec.load("other")
    assert other.fingerprint != toy.fingerprint
    with pytest.raises(
        ModelError, match=r"made with model toy \(.{8}\), but this is other"
    ) as caught:
        other.decode(toy.encode(image()))
    assert "--model toy" in caught.value.command_fix
    assert "vqtok.load('toy')" in caught.value.fix
    again = codec.load(make_model(tmp_path / "again" / "toy", seed=1))
    with pytest.raises(ModelError, match="but this is toy") as caught:
        again.decode(toy.encode(image()))
    assert "trained again" in caught.value.fix


def test_codes_that_claim_the_fingerprint_but_do_not_fit_are_refused(toy: codec.Model):
    lie = Codes(np.zeros((1, 1, 3, 3), np.uint8), "toy", toy.fingerprint, 200, 4, 3, ((12, 12),))
    with pytest.raises(ModelError, match="do not fit"):
        toy.decode(lie)


# Models that are wrong

Edit = Callable[[dict[str, np.ndarray], dict[str, Any]], None]


def edit(path: Path, change: Edit) -> None:
    """Rewrites a weights file after `change(tensors, meta)`."""
    kind = path.stem
    stored = weights.load_weights(path, kind)
    change(stored.tensors, stored.meta)
    weights.save_weights(path, stored)


def drop_tensor(tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    del tensors[sorted(tensors)[0]]


def wrong_shape(tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name][..., None]


def not_finite(tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    tensors[sorted(tensors)[0]].flat[0] = np.nan


def extra_tensor(tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    tensors["more"] = np.zeros(3, np.float32)


def config_lacks(tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    del meta["config"]["width"]


def config_of_wrong_type(tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    meta["config"]["width"] = "wide"


def config_out_of_range(tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    meta["config"]["width"] = 10**9


EDITS: dict[Edit, str] = {
    drop_tensor: "lacks the tensor",
    wrong_shape: "has the shape",
    not_finite: "NaN",
    extra_tensor: "unknown tensor",
    config_lacks: "no valid",
    config_of_wrong_type: "'wide'",
    config_out_of_range: "width",
}


@pytest.mark.parametrize(
    ("change", "message"), EDITS.items(), ids=[change.__name__ for change in EDITS]
)
@pytest.mark.parametrize("part", ["tokenizer", "prior"])
def test_damaged_weights(model: Path, change: Edit, message: str, part: str):
    path = model / f"{part}.safetensors"
    edit(path, change)
    with pytest.raises(VqtokError, match=message) as caught:
        assert codec.load("toy").prior
    if part == "tokenizer":
        assert isinstance(caught.value, FormatError)


@pytest.mark.parametrize("part", ["tokenizer", "prior"])
@pytest.mark.parametrize(
    "content",
    [b"", b"hello, this is text", b"\x80\x04\x95\0\0\0\0\0\0\0\0", b"PK\3\4" + b"\0" * 40, None],
)
def test_what_is_no_weights_file(model: Path, part: str, content: bytes | None):
    path = model / f"{part}.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(FormatError, match=path.name) as caught:
        assert codec.load("toy").prior
    if content and content[:1] in b"\x80P":
        assert "pickle" in str(caught.value)


def test_a_huge_config_in_a_small_file_reserves_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
):
    """The network of this config would take 40 GB; no tensor of it may leave the meta device."""
    huge = {
        "width": 2048,
        "code_dim": 1024,
        "codebook_size": 65536,
        "encoder_blocks": 64,
        "decoder_blocks": 64,
    }
    edit(model / "tokenizer.safetensors", lambda tensors, meta: meta["config"].update(huge))
    devices = set()
    build = loading.VQVAE

    def spy(settings: Any) -> Any:
        # the test must not take 40 GB either
        network = build(replace(settings, width=8, encoder_blocks=1, decoder_blocks=1))
        devices.update(tensor.device.type for tensor in network.state_dict().values())
        return network

    monkeypatch.setattr(loading, "VQVAE", spy)
    with pytest.raises(FormatError, match="its config asks for"):
        codec.load("toy")
    assert devices == {"meta"}


def test_no_prior(tmp_path: Path):
    make_model(tmp_path / "models" / "bare", prior=None)
    bare = codec.load("bare")
    assert bare.decode(bare.encode(image())).shape == (20, 30, 3)
    for use in (
        lambda: bare.sample(1),
        lambda: bare.labels,
        lambda: bare.complete(bare.encode(image()), "top:0.5"),
    ):
        with pytest.raises(ModelError, match="bare has no prior"):
            use()


@pytest.mark.parametrize("other", [{"seed": 1}, {"prior": replace(PRIOR, codebook_size=32)}])
def test_prior_of_another_tokenizer(model: Path, tmp_path: Path, other: dict[str, Any]):
    stranger = make_model(tmp_path / "other", **other)
    (model / "prior.safetensors").write_bytes((stranger / "prior.safetensors").read_bytes())
    loaded = codec.load("toy")
    assert loaded.encode(image()).sizes == ((20, 30),)
    with pytest.raises(ModelError, match="prior of another tokenizer"):
        loaded.sample(1)


@pytest.mark.parametrize("grid", [None, 7, [4], ["a", "b"], [4.0, 5.0]])
def test_prior_that_does_not_say_its_grid(model: Path, grid: Any):
    edit(model / "prior.safetensors", lambda tensors, meta: meta["record"].update(grid=grid))
    loaded = codec.load("toy")
    with pytest.raises(FormatError, match="which grid"):
        loaded.sample(1)
    assert loaded.sample(1, (8, 12))[0].shape == (8, 12, 3)


# Sampling


def sharpen(model: codec.Model) -> None:
    """An untrained prior finds all codes nearly equal;
    this one has opinions, so that a label tells.
    """
    with torch.no_grad():
        for parameter in model.prior.readout.parameters():
            parameter.mul_(50)


def test_sample_sizes(toy: codec.Model):
    assert toy.native_size == (16, 20)
    assert [p.shape for p in toy.sample(2)] == [(16, 20, 3)] * 2
    assert toy.sample_codes(3, (17, 30)).indices.shape == (3, 1, 5, 8)
    assert toy.sample(1, (17, 30))[0].shape == (17, 30, 3)


@pytest.mark.parametrize(("n", "size"), [(0, None), (1, (0, 5)), (1, (5, 8193)), (-1, (8, 8))])
def test_sample_refuses_absurd_sizes(toy: codec.Model, n: int, size: tuple[int, int] | None):
    with pytest.raises(UsageError, match="cannot sample"):
        toy.sample(n, size)


def test_seed_decides(toy: codec.Model):
    assert toy.sample_codes(4, seed=3) == toy.sample_codes(4, seed=3)
    assert toy.sample_codes(4, seed=3) != toy.sample_codes(4, seed=4)


def test_labels_by_name_and_number_and_in_turn(toy: codec.Model):
    assert toy.labels == ("cat", "dog", "eel")
    sharpen(toy)
    by_class = [toy.sample_codes(4, label=label) for label in toy.labels]
    assert by_class[1] == toy.sample_codes(4, label=1) == toy.sample_codes(4, label="1")
    assert len({c.indices.tobytes() for c in by_class}) == 3
    in_turn = toy.sample_codes(4)
    for i in range(4):
        assert (in_turn.indices[i] == by_class[i % 3].indices[i]).all()
    for wrong in ("cow", 3, -1):
        with pytest.raises(UsageError, match="no label") as caught:
            toy.sample_codes(1, label=wrong)
        assert "cat, dog, eel" in caught.value.fix


def test_capitals_of_a_label_count_only_where_they_tell(tmp_path: Path):
    make_model(tmp_path / "shoes", prior=replace(PRIOR, labels=("Sneaker", "boot", "Boot")))
    model = codec.load(tmp_path / "shoes")
    for label, number in (("sneaker", 0), ("SNEAKER", 0), ("boot", 1), ("Boot", 2)):
        assert model._labels(label, 1).tolist() == [number]  # type: ignore
    with pytest.raises(UsageError, match="several labels are 'BOOT'") as caught:
        model.sample_codes(1, label="BOOT")
    assert "boot, Boot" in caught.value.fix


def test_where_names_are_numbers_a_number_is_a_name(tmp_path: Path):
    names = tuple(sorted(str(n) for n in range(1, 13)))  # as folders are: 1, 10, 11, 12, 2, ...
    make_model(tmp_path / "months", prior=replace(PRIOR, labels=names))
    model = codec.load(tmp_path / "months")
    assert model._labels("2", 1).tolist() == [names.index("2")]  # type: ignore
    assert model._labels(12, 1).tolist() == [names.index("12")]  # type: ignore
    assert model._labels("02", 1).tolist() == [names.index("2")]  # type: ignore
    for none in (0, "0", 13):
        with pytest.raises(UsageError, match="there is no label"):
            model.sample_codes(1, label=none)


def test_labels_of_an_unconditional_prior(tmp_path: Path):
    make_model(tmp_path / "models" / "plain", prior=replace(PRIOR, labels=()))
    plain = codec.load("plain")
    assert len(plain.sample(2)) == 2
    with pytest.raises(UsageError, match="no label 'cat'") as caught:
        plain.sample(1, label="cat")
    assert "leave it out" in caught.value.fix


def test_temperature_and_cuts(toy: codec.Model):
    cold = toy.sample_codes(3, label=0, temperature=0)
    assert cold == toy.sample_codes(3, label=0, temperature=0, seed=9)
    assert (
        cold
        == toy.sample_codes(3, label=0, top_k=1, seed=5)
        == toy.sample_codes(3, label=0, top_p=1e-9, seed=5)
    )
    assert (cold.indices == cold.indices[:1]).all()
    assert toy.sample_codes(3, label=0) != cold
    assert toy.sample_codes(3, top_p=0.5) != toy.sample_codes(3)
    wrongs: list[dict[str, Any]] = [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ]
    for wrong in wrongs:
        with pytest.raises(UsageError):
            toy.sample_codes(1, **wrong)


# Completion

KEPT = {
    "top:0.5": np.s_[..., :2, :],
    "bottom:0.5": np.s_[..., 3:, :],
    "left:0.5": np.s_[..., :, :4],
    "right:0.25": np.s_[..., :, 6:],
    "top:0.99": np.s_[..., :4, :],
    "left:0.001": np.s_[..., :, :1],
}


@pytest.mark.parametrize(("keep", "where"), KEPT.items())
def test_complete_keeps_its_part_and_invents_the_rest(toy: codec.Model, keep: str, where: Any):
    codes = toy.encode(image(20, 30))  # a grid of 5 rows and 8 columns
    completed = toy.complete(codes, keep, 3, seed=2)
    assert completed.sizes == ((20, 30),) * 3
    kept = np.zeros((5, 8), bool)
    kept[where] = True
    same = completed.indices == codes.indices
    assert same[..., kept].all()
    assert not same[..., ~kept].all()
    assert len({grid.tobytes() for grid in completed.indices}) == 3
    assert completed == toy.complete(codes, keep, 3, seed=2) != toy.complete(codes, keep, 3, seed=3)


def test_complete_takes_labels(toy: codec.Model):
    sharpen(toy)
    codes = toy.encode(image(20, 30))
    results = [toy.complete(codes, "top:0.2", label=label) for label in (None, "cat", "dog")]
    assert len({c.indices.tobytes() for c in results}) == 3


@pytest.mark.parametrize(
    "keep",
    ["", "top", "top:", "top:0", "top:1", "top:-0.5", "top:nan", "middle:0.5", "0.5", "top:half"],
)
def test_keep_that_cannot_be(toy: codec.Model, keep: str):
    with pytest.raises(UsageError, match="cannot keep"):
        toy.complete(toy.encode(image()), keep)


def test_complete_of_a_single_row_or_column(toy: codec.Model):
    strip = toy.encode(image(3, 40))
    with pytest.raises(UsageError, match="nothing is left to invent"):
        toy.complete(strip, "top:0.5")
    assert (toy.complete(strip, "left:0.5").indices[..., :5] == strip.indices[..., :5]).all()
    with pytest.raises(UsageError, match="hold 2 images"):
        toy.complete(toy.encode_batch([image()] * 2), "top:0.5")


def test_record_is_the_files(toy: codec.Model, model: Path):
    assert toy.record == weights.read_meta(model / "tokenizer.safetensors")["record"]
    assert (
        json.loads(json.dumps(asdict(toy.config)))
        == weights.read_meta(model / "tokenizer.safetensors")["config"]
    )


def test_a_decoder_that_says_the_scales_too_decodes_in_parts_as_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = codec.load(
        make_model(tmp_path / "m", replace(TOKENIZER, likelihood="heteroscedastic"), prior=None)
    )
    codes = model.encode(image(77, 31))
    whole, output = model.decode(codes), model.output(codes, 0)
    assert output.shape == (1, 6, 77, 31)
    np.testing.assert_array_equal(model.to_image(output), whole)
    monkeypatch.setattr("vqtok.codec.model.PIXELS_AT_ONCE", 256)
    torch.testing.assert_close(model.output(codes, 0), output)
    np.testing.assert_array_equal(model.decode(codes), whole)
