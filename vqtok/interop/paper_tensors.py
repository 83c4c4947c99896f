"""Names and convolutions of a checkpoint with the paper's network, under any names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vqtok.errors import FormatError

_LEAVES = {"w": "weight", "b": "bias", "kernel": "weight"}
_LEAF = re.compile(r"(.*?)\.?(weight|bias|running_mean|running_var)")
CODES = re.compile(r"emb|codebook|code_book|quant|(?:^|[._])vq|dictionary|codes", re.I)
_EPSILON = 1e-5  # of PyTorch's batch normalization
OTHER_NETWORK = "import a VQ-VAE with the paper's network, or one of those in docs/interoperate.md"


@dataclass(frozen=True)
class Conv:
    """A convolution of the file, its batch normalization folded in."""

    stem: str  # its name without weight and bias
    weight: np.ndarray
    bias: np.ndarray | None
    norms: int = 0  # how many layers after it were folded in

    @property
    def kernel(self) -> int:
        return self.weight.shape[2]

    @property
    def parts(self) -> list[str]:
        return self.stem.split(".")


Item = tuple[str, tuple[Conv, ...]]  # kind of a layer as in `config.paper`, and its convolutions


def number_gap(a: Conv, b: Conv) -> int | None:
    """Returns how far apart the numbers of two layers are in the Sequential that holds both, if
    any.
    """
    for x, y in zip(a.parts, b.parts, strict=False):
        if x != y:
            both = x.isdecimal() and y.isdecimal()
            return int(y) - int(x) if both else None
    return None


def in_stack(a: Conv, b: Conv) -> bool:
    """Whether a's number beside b's is that of a module of several blocks, which may end in a ReLU
    of its own: a has two more numbers below it, of the block and in it.
    """
    level = next(i for i, (x, y) in enumerate(zip(a.parts, b.parts, strict=False)) if x != y)
    return sum(part.isdecimal() for part in a.parts[level + 1 :]) >= 2


def tidy_name(name: str) -> str:
    """Returns a tensor's name with dots, and PyTorch's leaves: sonnet has "encoder/enc_1/w:0"."""
    name = re.sub(r":\d+$", "", name).replace("/", ".")
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{_LEAVES.get(leaf, leaf)}" if stem else leaf


def side_of(name: str) -> str:
    """Returns encoder or decoder, by a tensor's name; "" where that says neither."""
    for part in name.split("."):
        found = re.match(r"_*(enc|dec)(?:oder)?(?:[._\d]|$)", part, re.I)
        if found:
            return {"enc": "encoder", "dec": "decoder"}[found[1].lower()]
    return ""


def natural_key(stem: str) -> list[tuple[int, int, str]]:
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", stem) if p]


def read_convolutions(
    tensors: Mapping[str, np.ndarray], origin: str
) -> tuple[list[Conv], dict[str, np.ndarray]]:
    """Returns all convolutions in natural order of their names, and the tensors that are none."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    rest: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        tidy = tidy_name(name)
        found = _LEAF.fullmatch(tidy)
        if found is None or (found[2] == "weight" and value.ndim == 2):
            rest[tidy] = value
            continue
        if value.ndim == 4 and not name.endswith("weight"):  # TensorFlow's order of the axes
            value = np.ascontiguousarray(value.transpose(3, 2, 0, 1))
        layers.setdefault(found[1], {})[found[2]] = value
    convs: dict[str, Conv] = {}
    norms: dict[str, dict[str, np.ndarray]] = {}
    for stem, layer in layers.items():
        weight = layer.get("weight")
        if weight is not None and weight.ndim == 4:
            convs[stem] = Conv(stem, weight, layer.get("bias"))
        elif "running_mean" in layer and "running_var" in layer:
            norms[stem] = layer
        elif CODES.search(stem) and weight is None:
            rest |= {f"{stem}.{leaf}": value for leaf, value in layer.items()}
        elif not stem and weight is None:
            continue
        else:
            raise FormatError(
                f"{origin}: {stem[:80]} is no convolution, and no batch normalization with its "
                "running mean",
                OTHER_NETWORK,
            )
    for stem, norm in norms.items():
        before = _before(stem, convs)
        if before is None:
            raise FormatError(
                f"{origin}: the batch normalization {stem[:80]} does not follow a convolution "
                "directly",
                OTHER_NETWORK,
            )
        convs[before] = _folded(convs[before], norm, origin)
    return sorted(convs.values(), key=lambda conv: natural_key(conv.stem)), rest


def _before(stem: str, convs: Mapping[str, Conv]) -> str | None:
    """Returns the convolution that a batch normalization follows: the number before its own in one
    Sequential, or bn1 beside conv1.
    """
    parent, _, last = stem.rpartition(".")
    if last.isdecimal():
        wanted = ".".join(filter(None, (parent, str(int(last) - 1))))
        return wanted if wanted in convs else None
    number = re.sub(r"\D", "", last)
    beside = [
        s
        for s in convs
        if s.rpartition(".")[0] == parent and re.sub(r"\D", "", s.rpartition(".")[2]) == number
    ]
    return beside[0] if len(beside) == 1 else None


def _folded(conv: Conv, norm: Mapping[str, np.ndarray], origin: str) -> Conv:
    """Returns the convolution with the batch normalization after it: (x - mean) / std * weight +
    bias.
    """
    mean, variance = (norm[leaf].astype(np.float64) for leaf in ("running_mean", "running_var"))
    axis = 1 if len(mean) == conv.weight.shape[1] and _is_transposed(conv) else 0
    if conv.weight.shape[axis] != len(mean) or conv.norms:
        raise FormatError(
            f"{origin}: the batch normalization after {conv.stem} does not fit", OTHER_NETWORK
        )
    factor = norm.get("weight", np.ones(len(mean))) / np.sqrt(variance + _EPSILON)
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    bias = (0 if conv.bias is None else conv.bias.astype(np.float64)) - mean
    bias = bias * factor + norm.get("bias", np.zeros(len(mean)))
    weight = conv.weight.astype(np.float64) * factor.reshape(shape)
    return Conv(conv.stem, weight.astype(np.float32), bias.astype(np.float32), 1)


def _is_transposed(conv: Conv) -> bool:
    return side_of(conv.stem) == "decoder" and conv.kernel == 4
