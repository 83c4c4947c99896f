"""Checkpoints with the VQ-VAE paper's network, whatever their tensors are called.

Programs that share it: sonnet's example, zalandoresearch's notebook and its copies, MishaLaskin's
and ritheshkumar95's, and many more. Shapes and order give the layers; what they leave open is a
`Variant`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from vqtok.config import TokenizerConfig
from vqtok.errors import FormatError, UsageError
from vqtok.interop.paper_layers import TRANSPOSED, check_order, decoder_layers, encoder_layers
from vqtok.interop.paper_tensors import (
    CODES,
    OTHER_NETWORK,
    Conv,
    Item,
    in_stack,
    number_gap,
    read_convolutions,
    side_of,
    tidy_name,
)
from vqtok.interop.ranges import PixelRange

# of the moving averages that only training looks at
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|avg|average|hidden|cluster|counts?|n)(?:[._\d]|$)", re.I)
_POST = re.compile(r"post|from_vq|unproject|after|decode", re.I)


@dataclass(frozen=True)
class Variant:
    """Properties of such a network that shapes do not tell."""

    inplace: bool = True  # blocks compute relu(x) + f(x): their first ReLU works in place
    relu: bool = True  # a ReLU follows the residual blocks of the encoder
    output: str = "none"  # what the decoder ends in: none, tanh or sigmoid

    @property
    def name(self) -> str:
        """Returns the name that `--variant` takes."""
        blocks = "inplace" if self.inplace else "plain"
        return f"{blocks},{'relu' if self.relu else 'linear'},{self.output}"


VARIANTS = tuple(
    Variant(inplace, relu, output)
    for output, inplace, relu in product(("none", "tanh", "sigmoid"), (True, False), (True, False))
)


def parse_variant(text: str) -> Variant:
    """Reads a variant's name. UsageError where there is none of that name."""
    found = next((variant for variant in VARIANTS if variant.name == text), None)
    if found is None:
        raise UsageError(
            f"there is no variant {text[:60]!r} of the paper's network",
            "write inplace or plain, relu or linear, and none, tanh or sigmoid: inplace,relu,none",
        )
    return found


@dataclass(frozen=True)
class Known:
    """A program whose tensors are recognized by name, and the properties that its code fixes."""

    name: str
    marks: tuple[str, ...]  # parts of names, all of which are there
    variant: Variant
    input_range: str  # of its own examples


KNOWN = (
    Known(
        "zalandoresearch VQ-VAE",
        ("_encoder._conv_1.", "_vq_vae._embedding.", "_decoder._conv_trans_1."),
        Variant(),
        "-0.5:0.5",
    ),
    Known(
        "MishaLaskin VQ-VAE",
        ("encoder.conv_stack.", "vector_quantization.embedding.", "decoder.inverse_conv_stack."),
        Variant(),
        "-1:1",
    ),
    Known(
        "ritheshkumar95 VQ-VAE",
        ("encoder.1.running_mean", "codebook.embedding.weight", "decoder.0.block."),
        Variant(relu=False, output="tanh"),
        "-1:1",
    ),
    Known(
        "sonnet VQ-VAE", ("res3x3_0.", "res1x1_0.", "dec_1."), Variant(inplace=False), "-0.5:0.5"
    ),
)


@dataclass(frozen=True)
class PaperFile:
    """A file's network: layers of both sides, and the codebook (K, D)."""

    program: str
    encoder: tuple[Item, ...]
    decoder: tuple[Item, ...]
    codebook: np.ndarray
    known: Known | None
    origin: str = ""  # the file, for errors
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Returns the channels of the images, 1 or 3."""
        return self.encoder[0][1][0].weight.shape[1]

    def convert(
        self, variant: Variant, pixels: PixelRange, beta: float, settings: Mapping[str, object]
    ) -> tuple[TokenizerConfig, dict[str, np.ndarray]]:
        """Returns settings and tensors of our network, without the likelihood's.

        FormatError where vqtok has no room for such a network.
        """
        tensors: dict[str, np.ndarray] = {"quantizer.codebook": self.codebook}
        encoder = self._lay(self.encoder, variant, "encoder", tensors)
        decoder = self._lay(self.decoder, variant, "decoder", tensors)
        size, dim = self.codebook.shape
        halvings = sum(kind == "down" for kind, _ in self.encoder)
        unit = (pixels.mean, pixels.std) == ((0.5,), (0.5,))
        try:
            config = TokenizerConfig(
                channels=self.channels,
                downsample=2**halvings,
                fold=1,
                width=max(4, min(2048, self.encoder[0][1][0].weight.shape[0])),
                encoder_blocks=sum(kind.startswith("block") for kind, _ in self.encoder),
                decoder_blocks=sum(kind.startswith("block") for kind, _ in self.decoder),
                shortcut=False,
                quantizer="vq",
                codebook_size=size,
                code_dim=dim,
                beta=beta,
                network="paper",
                encoder_layers=encoder,
                decoder_layers=decoder,
                input_mean=() if unit else pixels.mean,
                input_std=() if unit else pixels.std,
                normalize=bool(settings["normalize"]),
                distance=str(settings.get("distance", "l2")),
            )
        except UsageError as error:
            raise FormatError(
                f"{self.origin} holds a network that vqtok has no room for: {error}", OTHER_NETWORK
            ) from None
        return config, tensors

    def _lay(
        self, items: tuple[Item, ...], variant: Variant, side: str, tensors: dict[str, np.ndarray]
    ) -> tuple[str, ...]:
        """Names the layers of a side, and adds their tensors."""
        specs: list[str] = []
        ours = f"{side}.layers"
        for i, (kind, convs) in enumerate(items):
            if kind.startswith("block"):
                if variant.inplace:
                    specs.append("relu")
                _put(tensors, f"{ours}.{len(specs)}.first", convs[0])
                _put(tensors, f"{ours}.{len(specs)}.second", convs[1])
                specs.append(f"{kind} {convs[0].weight.shape[0]}")
            else:
                _put(tensors, f"{ours}.{len(specs)}", convs[0], transposed=kind == "up")
                out = convs[0].weight.shape[1 if kind == "up" else 0]
                specs.append(f"{kind} {out}")
            if i + 1 < len(items) and self._has_relu(items, i, variant, side):
                specs.append("relu")
        after_blocks = items[-1][0].startswith("block")
        if side == "encoder" and after_blocks and variant.relu:
            specs.append("relu")
        if side == "decoder" and variant.output != "none":
            specs.append(variant.output)
        return tuple(specs)

    def _has_relu(self, items: tuple[Item, ...], i: int, variant: Variant, side: str) -> bool:
        """Whether there is a ReLU between layers i and i + 1.

        Numbers in one Sequential tell; else the paper's places.
        """
        (kind, convs), (following, others) = items[i], items[i + 1]
        gap = number_gap(convs[-1], others[0])
        if gap is not None and (gap > 1 or not in_stack(convs[-1], others[0])):
            return gap - 1 - convs[-1].norms * (not kind.startswith("block")) > 0
        if kind.startswith("block"):
            return not following.startswith("block") and (variant.relu or side == "decoder")
        if following.startswith("block") or following == "point" or kind == "point":
            return kind in ("down", "up") and following.startswith("block")
        return True


def _put(tensors: dict[str, np.ndarray], name: str, conv: Conv, transposed: bool = False) -> None:
    size = conv.weight.shape[1 if transposed else 0]
    tensors[f"{name}.weight"] = conv.weight
    tensors[f"{name}.bias"] = np.zeros(size, conv.weight.dtype) if conv.bias is None else conv.bias


def looks_like_paper(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the tensors are an encoder and a decoder of 4x4 convolutions, and nothing deeper."""
    strided = [
        name for name, value in tensors.items() if value.ndim == 4 and 4 in _kernel(name, value)
    ]
    sides = {side_of(tidy_name(name)) for name in strided}
    return {"encoder", "decoder"} <= sides


def _kernel(name: str, value: np.ndarray) -> tuple[int, int]:
    tf = tidy_name(name).endswith(".weight") and not name.endswith("weight")
    return (value.shape[0], value.shape[1]) if tf else (value.shape[2], value.shape[3])


def read_paper(tensors: Mapping[str, np.ndarray], origin: str) -> PaperFile:
    """Recognizes the network. Raises FormatError for another network, and where it is ambiguous."""
    known = next(
        (k for k in KNOWN if all(any(m in tidy_name(n) for n in tensors) for m in k.marks)), None
    )
    convs, rest = read_convolutions(tensors, origin)
    sides: dict[str, list[Conv]] = {"encoder": [], "decoder": [], "": []}
    for conv in convs:
        sides[side_of(conv.stem)].append(conv)
    for conv in sides[""]:  # between the sides: into the codes, or out of them
        sides["decoder" if _POST.search(conv.stem) else "encoder"].append(conv)
    encoder = encoder_layers(sides["encoder"], origin)
    check_order(encoder, origin)
    dim = encoder[-1][1][-1].weight.shape[0]
    codebook = _codebook(rest, dim, origin)
    decoder, square = decoder_layers(
        sides["decoder"], dim, encoder[0][1][0].weight.shape[1], origin
    )
    check_order(decoder, origin)
    downs, ups = (
        sum(kind == wanted for kind, _ in side)
        for side, wanted in ((encoder, "down"), (decoder, "up"))
    )
    if downs != ups:
        raise FormatError(
            f"{origin} halves the resolution {downs} times and doubles it {ups} times",
            OTHER_NETWORK,
        )
    notes = []
    if any(conv.norms for conv in convs):
        notes.append("batch normalization is folded into the convolutions before it")
    if square is not None and known is None:
        kind = "transposed" if TRANSPOSED.search(square) else "plain"
        notes.append(f"{square} is read as a {kind} 3x3 convolution, as its name says")
    name = known.name if known else "VQ-VAE with the paper's network"
    return PaperFile(name, tuple(encoder), tuple(decoder), codebook, known, origin, tuple(notes))


def _codebook(rest: Mapping[str, np.ndarray], dim: int, origin: str) -> np.ndarray:
    """Returns the codes (K, D). FormatError where there is none, or more than one."""
    found = {
        name: value
        for name, value in rest.items()
        if value.ndim == 2 and dim in value.shape and not _AVERAGE.search(name)
    }
    named = {name: value for name, value in found.items() if CODES.search(name)}
    if len(named or found) != 1:
        what = "no codebook" if not found else f"{len(found)} that could be its codebook"
        raise FormatError(
            f"{origin} holds {what} of {dim} dimensions{_list(found)}",
            "give a VQ-VAE with one codebook",
        )
    ((name, value),) = (named or found).items()
    square = value.shape[0] == value.shape[1]
    if value.shape[1] == dim and not (square and not name.endswith("weight")):
        return value
    if square:
        raise FormatError(
            f"{origin}: {name} is {dim}x{dim}, and its rows or its columns could be the codes",
            "save it as nn.Embedding does, under a name that ends in .weight: one row a code",
        )
    return np.ascontiguousarray(value.T)


def _list(found: Mapping[str, np.ndarray]) -> str:
    return f": {', '.join(sorted(found))[:120]}" if found else ""
