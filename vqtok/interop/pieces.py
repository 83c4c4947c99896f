"""Takes the tensors of a checkpoint one by one, under the names of its program."""

from collections.abc import Mapping

import numpy as np

from vqtok.errors import FormatError

COPY_AGAIN = "copy or download the file again"
CHANNELS_MAX, DIMENSIONS_MAX = 2048, 1024  # as in `config.tokenizer`


class Pieces:
    """A checkpoint's tensors, and which of them have been taken."""

    def __init__(self, tensors: Mapping[str, np.ndarray], origin: str) -> None:
        """`origin` is the file, for errors."""
        self.tensors, self.origin = tensors, origin
        self.taken: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self.tensors

    def count(self, template: str) -> int:
        """How many numbers from 0 on # in a name may be."""
        number = 0
        while self.has(template.replace("#", str(number))):
            number += 1
        return number

    def get(self, name: str, ndim: int) -> np.ndarray:
        """Takes a tensor with so many axes. FormatError where it is missing, or another."""
        if name not in self.tensors:
            raise FormatError(f"{self.origin} lacks the tensor {name[:100]}", COPY_AGAIN)
        value = self.tensors[name]
        if value.ndim != ndim or value.dtype.kind != "f" or not value.size:
            raise FormatError(
                f"{self.origin}: tensor {name[:100]} is {value.dtype} of shape {value.shape}, not "
                f"numbers with {ndim} axes",
                COPY_AGAIN,
            )
        self.taken.add(name)
        return value

    def layer(
        self, ours: str, theirs: str, out: dict[str, np.ndarray], ndim: int = 4
    ) -> np.ndarray:
        """Takes weight and bias of a layer under our name; a bias that is missing is zeros. Returns
        the weight.
        """
        weight = self.get(f"{theirs}.weight", ndim)
        out[f"{ours}.weight"] = weight
        bias = f"{theirs}.bias"
        out[f"{ours}.bias"] = (
            self.get(bias, 1) if self.has(bias) else np.zeros(len(weight), weight.dtype)
        )
        return weight

    def check_at_most(self, value: int, most: int, what: str) -> None:
        """FormatError where what the file claims would make larger tensors than it holds itself."""
        if value > most:
            raise FormatError(
                f"{self.origin} has {value} {what}, and vqtok's network at most {most}",
                "import another checkpoint",
            )

    def finish(self, *prefixes: str, ignored: tuple[str, ...] = ()) -> None:
        """FormatError where a tensor with one of the prefixes has not been taken."""
        left = sorted(
            name
            for name in self.tensors
            if name.startswith(prefixes) and name not in self.taken and not name.endswith(ignored)
        )
        if left:
            raise FormatError(
                f"{self.origin} has the tensor {left[0][:100]}, which vqtok's network has no place "
                "for",
                "import another checkpoint",
            )


def residual_block(
    pieces: Pieces, ours: str, theirs: str, out: dict[str, np.ndarray], shortcut: str
) -> None:
    """Takes a block with two normalizations and two 3x3 convolutions (`networks.vqgan`)."""
    for part, ndim in (("norm1", 1), ("conv1", 4), ("norm2", 1), ("conv2", 4)):
        pieces.layer(f"{ours}.{part}", f"{theirs}.{part}", out, ndim)
    if pieces.has(f"{theirs}.{shortcut}.weight"):
        pieces.layer(f"{ours}.shortcut", f"{theirs}.{shortcut}", out)
