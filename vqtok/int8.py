"""Holds weights of convolutions in one byte each, exactly: whole numbers times a step per channel.

A weights file whose metadata has `int8` holds such a float16 tensor NAME as its whole numbers
(int8) under NAME, and its steps, one per output channel (float16), under NAME.step. Reading
multiplies them: nothing is lost, so that fingerprints and results are those of the float16
tensors. What loses something, once, is rounding weights to such numbers: `round_to_int8`.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from vqtok.errors import FormatError

STEP = ".step"
MOST = 127
_BITS = 4  # significant bits of a step: times a number of 7 bits, float16's 11 hold it exactly


def round_to_int8(weight: np.ndarray) -> np.ndarray:
    """Rounds weights (O, ...) of a convolution to float16 that `split` takes apart.

    They are off by half a step at most. A channel's step is the smallest of 4 significant bits
    with which 127 steps reach its largest weight.
    """
    wide = weight.astype(np.float64)
    largest = np.abs(wide).max(axis=tuple(range(1, wide.ndim)), keepdims=True)
    mantissa, exponent = np.frexp(largest / MOST)
    steps = np.ldexp(np.ceil(mantissa * 2**_BITS), exponent - _BITS)
    steps = np.maximum(steps, 2.0**-24)  # float16's smallest number
    return (np.rint(wide / steps) * steps + 0.0).astype(np.float16)  # + 0.0: no -0


def split(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns whole numbers (O, ...), int8, and steps (O, 1, ...), float16, of a weight (O, ...).

    Their product is the weight. ValueError where there are none: for weights that
    `round_to_int8` has not made.
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    steps = np.array([_step(channel) for channel in flat])
    steps = steps.reshape(-1, *[1] * (weight.ndim - 1))
    numbers = np.rint(weight.astype(np.float64) / steps).astype(np.int8)
    return numbers, steps.astype(np.float16)


def _step(channel: np.ndarray) -> float:
    """Finds the largest step of which all numbers of the channel are multiples."""
    smallest = np.abs(channel[channel != 0]).min(initial=np.inf)
    if not np.isfinite(smallest):
        return 1.0
    for count in range(1, MOST + 1):
        step = smallest / count
        numbers = channel / step
        if np.abs(numbers).max() > MOST:
            break
        if float(np.float16(step)) == step and (numbers == np.rint(numbers)).all():
            return step
    raise ValueError("not a tensor of round_to_int8")


def join(numbers: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Joins what `split` took apart, to float16."""
    # A damaged step may be infinite: the caller checks that tensors are finite.
    with np.errstate(over="ignore", invalid="ignore"):
        return _product(numbers, steps).astype(np.float16)


def largest(steps: np.ndarray) -> np.ndarray:
    """Returns the largest weights that numbers with these steps can be, float16."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _product(np.full(steps.shape, MOST, np.int8), steps).astype(np.float16)


def _product(numbers: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Returns numbers * steps in float32; each copy of new memory takes longer than the product."""
    found = numbers.astype(np.float32)
    found *= steps.astype(np.float32)
    return found


def pack(tensors: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Replaces the tensors of these names by their int8 and steps; ValueError as `split`."""
    packed = dict(tensors)
    for name in names:
        packed[name], packed[name + STEP] = split(tensors[name])
    return packed


def unpack(
    tensors: Mapping[str, np.ndarray], names: list[str], origin: object
) -> dict[str, np.ndarray]:
    """Undoes `pack`. FormatError where a tensor is missing or of another type or shape."""
    check(tensors, names, origin)
    plain = dict(tensors)
    for name in dict.fromkeys(names):
        plain[name] = join(plain[name], plain.pop(name + STEP))
    return plain


class Widened(Mapping[str, np.ndarray]):
    """What `unpack` gives, each tensor made when it is asked for, and float32 in place of float16:
    that takes a third of the time, and the values are the same.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], names: list[str]) -> None:
        """tensors are what `check` has passed."""
        self.tensors, self.packed = tensors, frozenset(names)
        self.names = dict.fromkeys(tensors)
        for name in self.packed:
            del self.names[name + STEP]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.packed:
            return self.tensors[name]
        return _product(self.tensors[name], self.tensors[name + STEP])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def check(tensors: Mapping[str, np.ndarray], names: list[str], origin: object) -> None:
    """Passes where `unpack` can undo `pack`; else FormatError."""
    for name in names:
        numbers, steps = tensors.get(name), tensors.get(name + STEP)
        if (
            numbers is None
            or steps is None
            or numbers.dtype != np.int8
            or steps.dtype != np.float16
        ):
            raise FormatError(
                f"{origin} lacks the int8 tensor {name}", "copy or download the file again"
            )
        if numbers.ndim < 1 or steps.shape != (len(numbers), *[1] * (numbers.ndim - 1)):
            raise FormatError(
                f"{origin}: {name} has steps of {steps.shape}", "copy or download the file again"
            )
