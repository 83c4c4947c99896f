"""Weights in one byte each: what is packed comes back bit by bit."""

from pathlib import Path

import numpy as np
import pytest

from vqtok import int8
from vqtok.errors import FormatError
from vqtok.weights import (
    Packed,
    Weights,
    fingerprint,
    load_packed,
    load_weights,
    save_weights,
)


def weight(shape: tuple[int, ...], scale: float = 0.05) -> np.ndarray:
    return np.random.default_rng(0).normal(0, scale, shape).astype(np.float16)


def weights_of(tensors: dict[str, np.ndarray], names: list[str]) -> Weights:
    return Weights(tensors, {"kind": "tokenizer", "config": {}, "record": {}, "int8": names})


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.05, 3.0])
def test_rounding_is_near_and_packing_exact(scale: float) -> None:
    given = weight((24, 16, 3, 3), scale)
    given[3] = 0
    rounded = int8.round_to_int8(given)
    numbers, steps = int8.split(rounded)
    assert (numbers.dtype, steps.dtype, steps.shape) == (np.int8, np.float16, (24, 1, 1, 1))
    assert int8.join(numbers, steps).tobytes() == rounded.tobytes()
    largest = np.abs(given.astype(float)).max((1, 2, 3), keepdims=True)
    assert (
        np.abs(rounded.astype(float) - given) <= np.maximum(largest / 127 * 0.5625, 2**-25)
    ).all()
    assert int8.round_to_int8(rounded).shape == rounded.shape


def test_a_file_holds_bytes_and_gives_back_the_float16(tmp_path: Path) -> None:
    tensors = {"a.weight": int8.round_to_int8(weight((64, 32, 3, 3))), "b": weight((5,))}
    save_weights(tmp_path / "plain.safetensors", Weights(tensors, weights_of({}, []).meta))
    save_weights(tmp_path / "packed.safetensors", weights_of(tensors, ["a.weight"]))
    loaded = load_weights(tmp_path / "packed.safetensors", "tokenizer")
    assert fingerprint(loaded.tensors) == fingerprint(tensors)
    assert sorted(loaded.tensors) == sorted(tensors)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("plain", "packed")]
    assert sizes[0] - sizes[1] > 64 * 32 * 9 - 500
    save_weights(tmp_path / "again.safetensors", loaded)
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (tmp_path / "packed.safetensors").read_bytes()


def test_what_was_not_rounded_is_not_packed() -> None:
    with pytest.raises(ValueError, match="round_to_int8"):
        int8.split(weight((4, 8, 3, 3)))


@pytest.mark.parametrize("broken", ["missing", "steps", "shape", "type", "names"])
def test_a_damaged_file_is_a_format_error(broken: str, tmp_path: Path) -> None:
    numbers, steps = int8.split(int8.round_to_int8(weight((4, 8, 3, 3))))
    tensors, names = {"a": numbers, "a.step": steps}, ["a"]
    if broken == "missing":
        del tensors["a"]
    if broken == "steps":
        del tensors["a.step"]
    if broken == "shape":
        tensors["a.step"] = steps[:2]
    if broken == "type":
        tensors["a"] = numbers.astype(np.float16)
    with pytest.raises(FormatError):
        int8.unpack(tensors, ["b"] if broken == "names" else names, "file")


@pytest.mark.parametrize("step", [np.inf, np.nan, 60000])
def test_a_step_that_is_no_size_gives_no_warning(step: float) -> None:
    numbers, steps = int8.split(int8.round_to_int8(weight((4, 8, 3, 3))))
    steps[1] = step
    assert not np.isfinite(int8.join(numbers, steps)).all()


def packed(tmp_path: Path, steps: float = 1.0) -> Packed:
    tensors = {"a.weight": int8.round_to_int8(weight((8, 4, 3, 3))), "b": weight((5,))}
    save_weights(tmp_path / "p.safetensors", weights_of(tensors, ["a.weight"]))
    found = load_packed(tmp_path / "p.safetensors", "tokenizer")
    found.tensors["a.weight.step"] *= np.float16(steps)
    return found


def test_a_file_as_it_lies_on_the_disk_gives_the_same_values_one_by_one(tmp_path: Path) -> None:
    found = packed(tmp_path)
    plain, widened = found.unpack().tensors, found.widened()
    assert list(widened) == list(plain) == ["a.weight", "b"]
    assert len(widened) == 2
    assert [widened[name].dtype for name in widened] == [np.float32, np.float16]
    assert all(np.array_equal(widened[name], plain[name]) for name in plain)


def test_a_file_as_it_lies_on_the_disk_is_checked_like_its_tensors(tmp_path: Path) -> None:
    shapes = {"a.weight": (8, 4, 3, 3), "b": (5,)}
    packed(tmp_path).check(shapes)
    with pytest.raises(FormatError, match="lacks the tensor c"):
        packed(tmp_path).check({**shapes, "c": (1,)})
    with pytest.raises(FormatError, match=r"a.weight has the shape \(8, 4, 3, 3\)"):
        packed(tmp_path).check({**shapes, "a.weight": (8, 4, 1, 1)})
    for steps in (np.nan, np.inf, 1e9):  # the last as infinity, too
        with np.errstate(over="ignore"), pytest.raises(FormatError, match="holds NaN or infinity"):
            packed(tmp_path, steps).check(shapes)
    found = packed(tmp_path)
    found.tensors["a.weight.step"][:] = 600  # finite, but 127 of them are no float16
    with pytest.raises(FormatError, match="holds NaN or infinity"):
        found.check(shapes)


def test_a_name_given_twice_is_unpacked_once(tmp_path: Path) -> None:
    found = packed(tmp_path)
    twice = int8.unpack(found.tensors, ["a.weight", "a.weight"], "x")
    assert np.array_equal(twice["a.weight"], found.unpack().tensors["a.weight"])
