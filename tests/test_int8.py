"""Weights in one byte each: what is packed comes back bit by bit."""

from pathlib import Path

import numpy as np
import pytest

from vqtok import int8
from vqtok.errors import FormatError
from vqtok.weights import Weights, fingerprint, load_weights, save_weights


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
