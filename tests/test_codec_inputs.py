"""What a caller may give a model: tensors, arrays, files, sizes, devices; and copies of models."""

import ast
import copy
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOKENIZER, image, make_model
from PIL import Image

import vqtok
from vqtok import codec, model_registry
from vqtok.codec import inputs
from vqtok.codec.loading import Device
from vqtok.codes import to_bytes
from vqtok.errors import FormatError, InputError, ModelError, UsageError, VqtokError
from vqtok.quantizers import ResidualQuantizer

LEVELS = replace(TOKENIZER, levels=3, normalize=False)


@pytest.fixture
def toy(model: Path) -> codec.Model:
    return codec.load("toy")


@pytest.fixture
def deep(tmp_path: Path) -> codec.Model:
    """Of three levels."""
    return codec.load(make_model(tmp_path / "deep", LEVELS, None))


def chw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


# Encoding arrays

NO_IMAGES: dict[str, Any] = {
    "complex": np.zeros((20, 30, 3), np.complex64),
    "five channels": np.zeros((20, 30, 5), np.uint8),
    "five axes": np.zeros((1, 1, 20, 30, 3), np.uint8),
    "empty": np.zeros((0, 30, 3), np.uint8),
    "number": 3,
    "nothing": None,
}


@pytest.mark.parametrize(
    "factor", [np.uint16(257), np.float32(1 / 255), np.float64(1 / 255)], ids=str
)
def test_deep_arrays_are_images_in_both(toy: codec.Model, factor: Any):
    """Of bytes in 16 bits, or in [0, 1]: what the bytes give."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    expected = toy.encode(pixels).indices
    assert np.array_equal(toy.encode(pixels * factor).indices, expected)
    assert np.array_equal(toy.encode_batch([pixels * factor]).indices, expected)


@pytest.mark.parametrize("given", NO_IMAGES.values(), ids=NO_IMAGES)
def test_a_batch_has_the_checks_of_one_image(toy: codec.Model, given: Any):
    with pytest.raises(InputError) as one:
        toy.encode(given)
    with pytest.raises(InputError) as several:
        toy.encode_batch([given])
    assert (str(one.value), one.value.fix) == (str(several.value), several.value.fix)


def test_a_batch_takes_the_kinds_of_one_image(toy: codec.Model, tmp_path: Path):
    pixels = image(9, 14)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    kinds = [path, str(path), path.read_bytes(), Image.fromarray(pixels), pixels, pixels[:, ::1]]
    together = toy.encode_batch(kinds)
    assert (together.indices == toy.encode(pixels).indices).all()
    gray = np.zeros((9, 14), np.uint8)
    assert toy.encode_batch([gray, gray[..., None]]).sizes == ((9, 14),) * 2
    clear = np.zeros((9, 14, 4), np.uint8)
    assert toy.encode_batch([clear], background=(0, 0, 0)) == toy.encode(clear, (0, 0, 0))
    stacked = np.stack([pixels, pixels + 1])
    assert toy.encode_batch(stacked) == toy.encode_batch(list(stacked))
    assert toy.encode_batch(iter(stacked)) == toy.encode_batch(list(stacked))


@pytest.mark.parametrize("given", ["a.png", b"bytes", Path("a.png"), image(9, 14), {"a": 1}, 3])
def test_one_image_is_no_batch(toy: codec.Model, given: Any):
    with pytest.raises(UsageError, match="no list of images"):
        toy.encode_batch(given)


# Tensors


@pytest.mark.parametrize("size", [(20, 32), (17, 30), (1, 1), (3, 50)])
def test_tensors_give_the_codes_of_arrays(toy: codec.Model, size: tuple[int, int]):
    pixels = [image(*size, seed=seed) for seed in range(3)]
    expected = toy.encode_batch(pixels)
    x = torch.stack([chw(p) for p in pixels])  # (B, C, H, W)
    for given in (x, x.float() / 255, x.double() / 255, x.contiguous(), (x / 255).requires_grad_()):
        indices = toy.encode(given)
        assert indices.dtype == torch.int64
        assert not indices.is_inference()
        assert (indices.numpy() == expected.indices).all()
        assert toy.encode_batch(given.detach()) == expected
        assert toy.codes(indices, expected.sizes) == expected
    assert (toy.encode(x[0]).numpy() == expected.indices[:1]).all()
    assert toy.encode_batch(list(x)) == expected


def test_a_list_of_tensors_may_differ_in_size_inside_a_grid(toy: codec.Model):
    pixels = [image(20, 30), image(19, 29, seed=1)]
    assert toy.encode_batch([chw(p) for p in pixels]) == toy.encode_batch(pixels)
    with pytest.raises(UsageError, match="do not fill one grid"):
        toy.encode_batch([chw(image(20, 30)), chw(image(30, 20))])


def test_every_byte_survives_division_by_255():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(inputs.scale(levels), inputs.scale(levels.float() / 255))
    assert torch.equal(inputs.scale(levels), inputs.scale(levels.double() / 255))


@pytest.mark.parametrize("pixels", [64, 256, 2**19])
def test_tensors_are_worked_on_in_parts(
    deep: codec.Model, pixels: int, monkeypatch: pytest.MonkeyPatch
):
    x = torch.stack([chw(image(37, 30, seed=seed)) for seed in range(3)])
    indices, decoded = deep.encode(x), deep.decode(deep.encode(x))
    monkeypatch.setattr("vqtok.codec.model.PIXELS_AT_ONCE", pixels)
    assert torch.equal(deep.encode(x), indices)
    torch.testing.assert_close(deep.decode(indices), decoded)


NO_TENSORS: dict[str, tuple[str, Any]] = {
    "minus one": ("goes from -1", torch.linspace(-1, 1, 3 * 64).view(1, 3, 8, 8)),
    "bytes as floats": ("to 255", torch.full((1, 3, 8, 8), 255.0)),
    "NaN": ("nan", torch.full((1, 3, 8, 8), torch.nan)),
    "sparse": ("sparse", torch.zeros(1, 3, 8, 8).to_sparse()),
    "meta": ("without values", torch.zeros(1, 3, 8, 8, device="meta")),
    "infinity": ("inf", torch.full((1, 3, 8, 8), torch.inf)),
    "int64": ("int64", torch.zeros(1, 3, 8, 8, dtype=torch.int64)),
    "bool": ("bool", torch.zeros(1, 3, 8, 8, dtype=torch.bool)),
    "channels last": ("channels come first", torch.zeros(1, 8, 8, 3)),
    "gray": ("1 channels", torch.zeros(1, 1, 8, 8)),
    "two axes": ("no batch", torch.zeros(8, 8)),
    "none": ("no batch", torch.zeros(0, 3, 8, 8)),
}


@pytest.mark.parametrize(("message", "given"), NO_TENSORS.values(), ids=NO_TENSORS)
def test_tensors_that_are_no_images(toy: codec.Model, message: str, given: torch.Tensor):
    calls: list[Callable[[torch.Tensor], Any]] = [toy.encode, toy.encode_batch, toy.reconstruct]
    for call in calls:
        with pytest.raises(UsageError, match=message):
            call(given)


def test_a_hair_over_one_is_one(toy: codec.Model):
    """Antialiased resizing passes both ends."""
    x = chw(image(16, 16))[None] / 255
    over = torch.where(x > 0.9, 1.03, torch.where(x < 0.1, -0.03, x))
    assert torch.equal(toy.encode(over), toy.encode(over.clamp(0, 1)))


def test_lists_of_mixed_kinds(toy: codec.Model):
    x = chw(image(16, 16))
    for given in ([x, image(16, 16)], [x, x / 255], [x[None], x[None]]):
        with pytest.raises(UsageError):
            toy.encode_batch(given)


def test_decoding_tensors(deep: codec.Model):
    codes = deep.encode_batch([image(20, 32, seed=seed) for seed in range(3)])
    indices = torch.from_numpy(codes.indices.astype(np.int64))
    arrays = np.stack(deep.decode_all(codes))
    as_bytes = deep.decode(indices, dtype=torch.uint8)
    assert (as_bytes.permute(0, 2, 3, 1).numpy() == arrays).all()
    floats = deep.decode(indices)
    assert floats.dtype == torch.float32
    assert not floats.is_inference()
    assert float(floats.min()) >= 0
    assert float(floats.max()) <= 1
    torch.testing.assert_close(floats * 255, as_bytes.float(), rtol=0, atol=0.5001)
    assert deep.decode(indices, dtype=torch.float16).dtype == torch.float16
    torch.testing.assert_close(deep.decode(indices[0]), floats[:1])
    torch.testing.assert_close(deep.decode(indices.to(torch.uint16)), floats)
    few = deep.decode(indices[:, :1], dtype=torch.uint8)
    assert torch.equal(deep.decode(indices, 1, torch.uint8), few)
    assert (few[0].permute(1, 2, 0).numpy() == deep.decode_all(codes, 1)[0]).all()


@pytest.mark.parametrize(
    "given",
    [
        torch.zeros(1, 1, 3, 4),
        torch.full((1, 1, 3, 4), 16),
        torch.full((1, 1, 3, 4), -1),
        torch.zeros(1, 2, 3, 4, dtype=torch.int64),
        torch.zeros(3, 4, dtype=torch.int64),
        torch.zeros(0, 1, 3, 4, dtype=torch.int64),
        torch.zeros(1, 1, 3, 4, dtype=torch.bool),
    ],
)
def test_tensors_that_are_no_indices(toy: codec.Model, given: torch.Tensor):
    calls: list[Callable[[torch.Tensor], Any]] = [toy.decode, toy.decode_all, toy.vectors]
    for call in calls:
        with pytest.raises(UsageError):
            call(given)
    with pytest.raises(UsageError):
        toy.decode(torch.zeros(1, 1, 3, 4, dtype=torch.int64), dtype=torch.int64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_stay_on_their_device(model: Path):
    on_cpu, on_gpu = codec.load("toy", "cpu"), codec.load("toy", "cuda:0")
    x = chw(image(20, 32))[None]
    for one in (on_cpu, on_gpu):
        for device in ("cpu", "cuda:0"):
            indices = one.encode(x.to(device))
            assert str(indices.device) == device
            assert str(one.decode(indices).device) == device
            assert str(one.vectors(indices).device) == device
            assert str(one.reconstruct(x.to(device)).device) == device
            assert (indices.cpu() == on_cpu.encode(x)).float().mean() > 0.9


# Vectors and gradients

QUANTIZERS = {
    "vq": {"quantizer": "vq"},
    "ema": {},
    "levels": {"levels": 3, "normalize": False},
    "simvq": {"quantizer": "simvq"},
    "fsq": {"quantizer": "fsq", "codebook_size": 64, "normalize": False},
    "lfq": {"quantizer": "lfq", "codebook_size": 16, "normalize": False},
}


@pytest.fixture(params=QUANTIZERS)
def any_model(request: pytest.FixtureRequest, tmp_path: Path) -> codec.Model:
    settings = replace(TOKENIZER, **QUANTIZERS[request.param])
    return codec.load(make_model(tmp_path / request.param, settings, None))


def test_vectors_and_codebook(any_model: codec.Model):
    config = any_model.config
    K, D, L = config.codebook_size, config.code_dim, config.levels
    codes = any_model.encode(image(20, 32))
    indices = torch.from_numpy(codes.indices.astype(np.int64))
    vectors, book = any_model.vectors(codes), any_model.codebook
    assert vectors.shape == (1, D, 5, 8)
    assert book.shape == (L, K, D)
    assert not book.requires_grad
    for given in (indices, codes.indices, codes.indices[0], indices[0]):
        assert torch.equal(any_model.vectors(given), vectors)
    total = sum(book[level][indices[0, level]] for level in range(L))  # (h, w, D)
    quantizer: Any = any_model.quantizer
    mark = quantizer.depth[-1] if isinstance(quantizer, ResidualQuantizer) else 0
    torch.testing.assert_close(vectors[0].permute(1, 2, 0), total + mark)
    if L > 1:
        assert torch.equal(any_model.vectors(codes, 1), any_model.vectors(indices[:, :1]))


def test_reconstruct_is_what_encoding_and_decoding_give(any_model: codec.Model):
    x = torch.stack([chw(image(18, 30, seed=seed)) for seed in range(2)])
    expected = any_model.decode(any_model.encode(x))[:, :, :18, :30]
    with torch.no_grad():
        found = any_model.reconstruct(x)
    torch.testing.assert_close(found.clamp(0, 1), expected, rtol=0, atol=1e-4)
    if any_model.config.levels > 1:
        few = any_model.decode(any_model.encode(x, levels=1))[:, :, :18, :30]
        torch.testing.assert_close(
            any_model.reconstruct(x, 1).detach().clamp(0, 1), few, rtol=0, atol=1e-4
        )


def test_gradients_pass_through_the_model(any_model: codec.Model):
    any_model.decode(any_model.encode(image(16, 16)))  # in inference mode, first
    x = (chw(image(16, 16))[None] / 255).requires_grad_()
    any_model.reconstruct(x).square().mean().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    for part in (any_model.encoder, any_model.decoder):
        gradients = [p.grad for p in part.parameters()]
        assert all(gradient is not None for gradient in gradients)
        assert any(float(g.abs().sum()) > 0 for g in gradients if g is not None)


def test_vectors_pass_gradients_to_a_learned_codebook(tmp_path: Path):
    model = codec.load(make_model(tmp_path / "vq", replace(TOKENIZER, quantizer="vq"), None))
    model.vectors(model.encode(image(16, 16))).sum().backward()
    gradient = dict(model.quantizer.named_parameters())["codebook"].grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


def test_pixels_are_reconstructed_with_gradients(tmp_path: Path):
    settings = replace(
        TOKENIZER,
        quantizer="pixels",
        downsample=1,
        fold=1,
        codebook_size=256,
        code_dim=3,
        levels=3,
        normalize=False,
        network="folded",
    )
    model = codec.load(make_model(tmp_path / "pixels", settings, None))
    x = (chw(image(8, 8))[None] / 255).requires_grad_()
    found = model.reconstruct(x)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)
    found.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("use", ["encode", "decode", "sample", "outside"])
def test_parts_can_be_trained_whatever_came_before(toy: codec.Model, use: str):
    if use == "outside":
        with torch.inference_mode():
            toy.encode(image(16, 16))
            toy.decode(toy.encode(image(16, 16)))
            toy.sample(1)
    else:
        {
            "encode": lambda: toy.encode(image(16, 16)),
            "decode": lambda: toy.decode(toy.encode(image(16, 16))),
            "sample": lambda: toy.sample(1),
        }[use]()
    z = toy.encoder(torch.zeros(1, 3, 16, 16))
    toy.decoder(toy.quantizer(z).vectors).sum().backward()
    for part in (toy.encoder, toy.decoder):
        assert all(p.grad is not None for p in part.parameters())
    assert not any(p.is_inference() for p in toy.prior.parameters())


# Decoding files and arrays


def test_decode_takes_files_bytes_and_arrays(deep: codec.Model, tmp_path: Path):
    codes = deep.encode(image(20, 32))
    wanted = deep.decode(codes)
    path = tmp_path / "x.npz"
    vqtok.write_codes(path, codes)
    packed = tmp_path / "packed.npz"
    vqtok.write_codes(packed, deep.pack(codes))
    given = [path, str(path), path.read_bytes(), packed, deep.pack(codes), codes.indices]
    given += [codes.indices[0], codes.indices.astype(np.int64), np.asfortranarray(codes.indices)]
    given += [codes.indices.astype(order) for order in (">u2", "<u2", ">i8")]
    for one in given:
        assert (deep.decode(one) == wanted).all()
        assert (deep.decode_all(one)[0] == wanted).all()
        assert (deep.vectors(one) == deep.vectors(codes)).all()


@pytest.mark.parametrize("levels", [2.0, 1.5, "2", 0, 4, (1,)])
def test_a_number_of_levels_is_a_whole_number(deep: codec.Model, levels: Any):
    """2.0 and "2" gave a TypeError of torch's or NumPy's."""
    codes = deep.encode(image(20, 32))
    tensor = torch.from_numpy(codes.indices.astype(np.int64))
    for call in (
        lambda: deep.encode(image(20, 32), levels=levels),
        lambda: deep.decode(codes, levels),
        lambda: deep.decode(tensor, levels),
        lambda: codes.first_levels(levels),
        lambda: deep.sample(1, 12, levels=levels),
    ):
        with pytest.raises(UsageError, match=f"not {re.escape(str(levels))}"):
            call()
    assert deep.decode(codes, np.int64(2)).shape == (20, 32, 3)  # type: ignore[arg-type]


def test_sizes_are_pairs_of_any_integers(toy: codec.Model):
    indices = toy.encode_batch([image(18, 32)] * 2).indices
    wanted = toy.codes(indices, ((18, 32), (18, 32)))
    for sizes in ([[18, 32]] * 2, np.array([[18, 32]] * 2), [(np.int64(18), np.uint16(32))] * 2):
        assert toy.codes(indices, sizes) == wanted
    for bad in ((18, 32), [(18, 32)], [(18.0, 32)] * 2, [(18, 32, 3)] * 2, [(18, 33)] * 2, "ab"):
        with pytest.raises(UsageError) as caught:
            toy.codes(indices, bad)
        assert "give the (H, W) of each image" in caught.value.fix


def test_complete_takes_what_decode_takes(toy: codec.Model, tmp_path: Path):
    codes = toy.encode(image(20, 32))
    vqtok.write_codes(tmp_path / "x.npz", codes)
    wanted = toy.complete(codes, "top:0.5", seed=3)
    for given in (tmp_path / "x.npz", codes.indices, codes.indices[0], toy.pack(codes)):
        assert toy.complete(given, "top:0.5", seed=3) == wanted
    with pytest.raises(UsageError, match="an image, not codes"):
        toy.complete(image(20, 32), "top:0.5")
    for n in (0, -1, 1.5, True, "2"):
        with pytest.raises(UsageError, match="cannot complete"):
            toy.complete(codes, "top:0.5", n)  # type: ignore[arg-type]


NO_CODES: dict[str, Any] = {
    "missing file": "x.npz",
    "photo": np.zeros((20, 32, 3), np.uint8),
    "floats": np.zeros((1, 1, 3, 4)),
    "bytes": b"nonsense",
    "pair": (np.zeros((1, 3, 4), np.int64), "name"),
    "nothing": None,
    "number": 3,
    "list": [1, 2],
}


@pytest.mark.parametrize("given", NO_CODES.values(), ids=NO_CODES)
def test_what_holds_no_codes(toy: codec.Model, given: Any):
    calls: list[Callable[[Any], Any]] = [toy.decode, toy.decode_all, toy.vectors]
    for call in [*calls, lambda given: toy.complete(given, "top:0.5")]:
        with pytest.raises(VqtokError):
            call(given)


# Sizes


def test_one_side_is_a_size(toy: codec.Model):
    assert toy.sample(1, size=12)[0].shape == (12, 12, 3)
    assert toy.sample_codes(1, np.int64(12)).sizes == ((12, 12),)  # type: ignore[arg-type]
    assert toy.sample_codes(1, [8, 12]).sizes == ((8, 12),)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["12", (12,), (8, 12, 3), 12.0, (8.0, 12), (None, 3), True, {}])
def test_what_is_no_size(toy: codec.Model, size: Any):
    with pytest.raises(UsageError, match="is no size"):
        toy.sample(1, size)


@pytest.mark.parametrize("n", [1.5, "2", True, None])
def test_what_is_no_number_of_images(toy: codec.Model, n: Any):
    with pytest.raises(UsageError, match="cannot sample"):
        toy.sample(n)


# Devices


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("cuda:1", "cuda:1"),
        ("cuda", "cuda"),
        (0, "cuda:0"),
        (1, "cuda:1"),
        (torch.device("cuda", 1), "cuda:1"),
        (torch.device("cpu"), "cpu"),
        ("cpu:0", "cpu"),
        ("auto", "cuda"),
        ("", "cuda"),
        (None, "cuda"),
    ],
)
def test_names_of_devices(two_gpus: None, given: Device, found: str):
    assert str(codec.pick_device(given)) == found


@pytest.mark.parametrize("given", [2, -1, "cuda:2", "cuda:", "cuda:x", "cuda:-1", "gpu", "xpu"])
def test_devices_that_are_not_there(two_gpus: None, given: Any):
    with pytest.raises(UsageError, match="there is no device"):
        codec.pick_device(given)


@pytest.mark.parametrize("given", [True, 1.0, b"cpu", ["cpu"]])
def test_what_names_no_device(two_gpus: None, given: Any):
    with pytest.raises(UsageError, match="names no device"):
        codec.pick_device(given)


def test_a_number_is_no_processor(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no cuda device"):
        codec.load("toy", device=0)
    assert codec.load("toy", torch.device("cpu")).device == torch.device("cpu")


def test_several_processes_share_no_gpu(two_gpus: None, monkeypatch: pytest.MonkeyPatch):
    from vqtok import distributed

    monkeypatch.setattr(distributed, "world_size_from_env", lambda: 2)
    with pytest.raises(UsageError, match="cannot share cuda:1"):
        distributed.local_device(torch.device("cuda:1"))


# Copies


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
@pytest.mark.parametrize("used", ["fresh", "encoded", "all"])
def test_a_model_can_be_copied(
    toy: codec.Model, again: Callable[[codec.Model], codec.Model], used: str
):
    if used != "fresh":
        toy.encode(image(20, 30))
    if used == "all":
        toy.sample(1)
        toy.pack(toy.encode(image(20, 30)))
    copied = again(toy)
    codes = toy.encode(image(20, 30))
    assert copied.encode(image(20, 30)) == codes
    assert (copied.decode(codes) == toy.decode(codes)).all()
    assert (copied.sample(1, seed=2)[0] == toy.sample(1, seed=2)[0]).all()
    assert to_bytes(copied.pack(codes)) == to_bytes(toy.pack(codes))
    assert repr(copied) == repr(toy)


@pytest.mark.slow
def test_an_entropy_coder_is_copied_with_its_model():
    model = codec.load(model_registry.bundled_models() / "photo")
    codes = model.encode(image(16, 16))
    packed = to_bytes(model.pack(codes))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert to_bytes(again.pack(codes)) == packed
        assert again.unpack(again.pack(codes)) == codes


def test_a_deep_copy_keeps_changes_to_itself(toy: codec.Model):
    with torch.no_grad():
        next(toy.decoder.parameters()).mul_(2)
    copied = copy.deepcopy(toy)
    codes = toy.encode(image(20, 30))
    assert (copied.decode(codes) == toy.decode(codes)).all()
    with torch.no_grad():
        next(copied.decoder.parameters()).mul_(2)
    assert (copied.decode(codes) != toy.decode(codes)).any()


# Torch's defaults


@pytest.fixture(params=[torch.float64, torch.float16, torch.bfloat16])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def references(model: Path) -> dict[str, Any]:
    toy = codec.load("toy")
    codes = toy.encode(image(20, 30))
    return {
        "codes": codes,
        "image": toy.decode(codes),
        "sample": toy.sample_codes(2, seed=4),
        "completed": toy.complete(codes, "top:0.5"),
        "vectors": toy.vectors(codes),
    }


def test_a_callers_default_dtype_changes_nothing(
    model: Path, references: dict[str, Any], default_dtype: None
):
    toy = codec.load("toy")
    codes = toy.encode(image(20, 30))
    assert codes == references["codes"]
    assert (toy.decode(codes) == references["image"]).all()
    assert toy.sample_codes(2, seed=4) == references["sample"]
    assert toy.complete(codes, "top:0.5") == references["completed"]
    assert torch.equal(toy.vectors(codes), references["vectors"])
    assert toy.reconstruct(chw(image(16, 16))[None]).dtype == torch.float32


# Errors for callers of the library


def test_errors_of_the_library_speak_of_arguments(toy: codec.Model, tmp_path: Path):
    other = codec.load(make_model(tmp_path / "other", seed=1))
    bare = codec.load(make_model(tmp_path / "bare", prior=None))
    codes = toy.encode(image(20, 30))
    vqtok.write_codes("a.npz", codes)
    calls: list[Callable[[], Any]] = [
        lambda: other.decode(codes),
        lambda: bare.sample(1),
        lambda: codec.load("toy", "mps"),
        lambda: vqtok.write_codes("a.npz", codes),
        lambda: vqtok.load("nothing"),
    ]
    for call in calls:
        with pytest.raises(VqtokError) as caught:
            call()
        assert " --" not in caught.value.fix.replace("vqtok train --stage", ""), caught.value.fix
        assert "-f" not in caught.value.fix
    with pytest.raises(ModelError) as caught:
        other.decode(codes)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.fix) == (str(caught.value), caught.value.fix)
    assert again.command_fix == caught.value.command_fix != again.fix


LIBRARY = ("codec", "codes", "images", "model_registry.py", "weights.py", "bulk/dataset.py")


def raised_in_the_library() -> Iterator[tuple[str, ast.Call]]:
    """Errors that a call of the library may raise, by file and line."""
    package = Path(vqtok.__file__).parent
    paths = [path for name in LIBRARY for path in (package / name).rglob("*.py")]
    paths += [package / name for name in LIBRARY if name.endswith(".py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
                yield f"{path.relative_to(package)}:{node.lineno}", node


@pytest.mark.slow
def test_no_advice_to_callers_names_an_option_of_the_command():
    """Whole commands may be named; options alone stand in the third argument, for the command."""
    found = []
    for where, call in raised_in_the_library():
        if len(call.args) != 2:
            continue
        texts = [n.value for n in ast.walk(call.args[1]) if isinstance(n, ast.Constant)]
        text = "".join(text for text in texts if isinstance(text, str))
        if re.search(r"(^|\s)--?[a-z]", text) and "vqtok " not in text:
            found.append((where, text))
    assert not found


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.zeros((1, 1, 5, 8), np.int64), "of type '<i8'"),
        (np.zeros((1, 1, 5, 8), np.float32), "of type '<f4'"),
        (np.zeros((1, 1, 5, 8), ">u2"), "of type '>u2'"),
        (np.asfortranarray(np.zeros((2, 1, 5, 8), np.uint8)), "in Fortran order"),
    ],
)
def test_files_that_numpy_wrote_say_how_to_write_them(
    toy: codec.Model, indices: np.ndarray, message: str
):
    """Their indices are whole: to download them again would give the same."""
    vqtok.write_codes("a.npz", toy.encode(image(20, 30)))
    np.savez("b.npz", indices=indices, meta=np.load("a.npz")["meta"])
    with pytest.raises(FormatError, match=message) as caught:
        toy.decode("b.npz")
    assert "model.codes(indices, sizes)" in caught.value.fix
    assert "download" not in caught.value.fix
    codes = toy.codes(indices.astype(np.int64))
    for given in (indices.astype(np.int64), indices.astype(np.float64)):
        with pytest.raises(FormatError) as caught:
            replace(codes, indices=given)
        assert "astype('uint8')" in caught.value.fix


def test_the_tensors_of_the_docs(toy: codec.Model, monkeypatch: pytest.MonkeyPatch):
    text = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
    block = re.search(r"```python\n(import torch, vqtok\n.*?)```", text, re.DOTALL)
    assert block is not None
    monkeypatch.setattr(vqtok, "load", lambda *_, **__: toy, raising=False)
    names: dict[str, Any] = {}
    exec(block[1].replace("250", "30").replace("levels=4", "levels=1"), names)
    assert names["x"].grad is not None
    assert names["codes"] == toy.encode_batch(names["x"].detach())
    assert names["y"].shape == (8, 3, 32, 32)
    assert names["z"].shape[0] == 8
