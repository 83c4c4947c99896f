"""Checkpoints with the VQ-VAE paper's network, whatever their tensors are called.

Programs that share it: sonnet's example, zalandoresearch's notebook and its copies, MishaLaskin's
and ritheshkumar95's, and many more. Shapes and order give the layers; what they leave open is a
`Variant`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from vqtok.config import TokenizerConfig
from vqtok.errors import FormatError, UsageError
from vqtok.interop.ranges import PixelRange

_LEAVES = {"w": "weight", "b": "bias", "kernel": "weight"}
_LEAF = re.compile(r"(.*?)\.?(weight|bias|running_mean|running_var)")
# of the moving averages that only training looks at
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|avg|average|hidden|cluster|counts?|n)(?:[._\d]|$)", re.I)
_CODES = re.compile(r"emb|codebook|code_book|quant|(?:^|[._])vq|dictionary|codes", re.I)
_POST = re.compile(r"post|from_vq|unproject|after|decode", re.I)
_TRANSPOSED = re.compile(r"trans|inverse|deconv|conv_?t(?:[._\d]|$)|tr_conv|(?:^|[._])up", re.I)
_EPSILON = 1e-5  # of PyTorch's batch normalization
_OTHER = "import a VQ-VAE with the paper's network, or one of those in docs/interoperate.md"


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
                f"{self.origin} holds a network that vqtok has no room for: {error}", _OTHER
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
        """Whether a ReLU stands between layers i and i + 1.

        Numbers in one Sequential tell; else the paper's places.
        """
        (kind, convs), (following, others) = items[i], items[i + 1]
        gap = _gap(convs[-1], others[0])
        if gap is not None and (gap > 1 or not _in_stack(convs[-1], others[0])):
            return gap - 1 - convs[-1].norms * (not kind.startswith("block")) > 0
        if kind.startswith("block"):
            return not following.startswith("block") and (variant.relu or side == "decoder")
        if following.startswith("block") or following == "point" or kind == "point":
            return kind in ("down", "up") and following.startswith("block")
        return True


def _gap(a: Conv, b: Conv) -> int | None:
    """Returns how far apart the numbers of two layers are in the Sequential that holds both, if
    any.
    """
    for x, y in zip(a.parts, b.parts, strict=False):
        if x != y:
            both = x.isdecimal() and y.isdecimal()
            return int(y) - int(x) if both else None
    return None


def _in_stack(a: Conv, b: Conv) -> bool:
    """Whether a's number beside b's is that of a module of several blocks, which may end in a ReLU
    of its own: a has two more numbers below it, of the block and in it.
    """
    level = next(i for i, (x, y) in enumerate(zip(a.parts, b.parts, strict=False)) if x != y)
    return sum(part.isdecimal() for part in a.parts[level + 1 :]) >= 2


def _put(tensors: dict[str, np.ndarray], name: str, conv: Conv, transposed: bool = False) -> None:
    size = conv.weight.shape[1 if transposed else 0]
    tensors[f"{name}.weight"] = conv.weight
    tensors[f"{name}.bias"] = np.zeros(size, conv.weight.dtype) if conv.bias is None else conv.bias


def looks_like_paper(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the tensors are an encoder and a decoder of 4x4 convolutions, and nothing deeper."""
    strided = [
        name for name, value in tensors.items() if value.ndim == 4 and 4 in _kernel(name, value)
    ]
    sides = {_side(_tidy(name)) for name in strided}
    return {"encoder", "decoder"} <= sides


def _kernel(name: str, value: np.ndarray) -> tuple[int, int]:
    tf = _tidy(name).endswith(".weight") and not name.endswith("weight")
    return (value.shape[0], value.shape[1]) if tf else (value.shape[2], value.shape[3])


def read_paper(tensors: Mapping[str, np.ndarray], origin: str) -> PaperFile:
    """Recognizes the network. FormatError where it is another, or cannot be told."""
    known = next(
        (k for k in KNOWN if all(any(m in _tidy(n) for n in tensors) for m in k.marks)), None
    )
    convs, rest = _convolutions(tensors, origin)
    sides: dict[str, list[Conv]] = {"encoder": [], "decoder": [], "": []}
    for conv in convs:
        sides[_side(conv.stem)].append(conv)
    for conv in sides[""]:  # between the sides: into the codes, or out of them
        sides["decoder" if _POST.search(conv.stem) else "encoder"].append(conv)
    encoder = _encoder(sides["encoder"], origin)
    _check_order(encoder, origin)
    dim = encoder[-1][1][-1].weight.shape[0]
    codebook = _codebook(rest, dim, origin)
    decoder, square = _decoder(sides["decoder"], dim, encoder[0][1][0].weight.shape[1], origin)
    _check_order(decoder, origin)
    downs, ups = (
        sum(kind == wanted for kind, _ in side)
        for side, wanted in ((encoder, "down"), (decoder, "up"))
    )
    if downs != ups:
        raise FormatError(
            f"{origin} halves the resolution {downs} times and doubles it {ups} times", _OTHER
        )
    notes = []
    if any(conv.norms for conv in convs):
        notes.append("batch normalization is folded into the convolutions before it")
    if square is not None and known is None:
        kind = "transposed" if _TRANSPOSED.search(square) else "plain"
        notes.append(f"{square} is read as a {kind} 3x3 convolution, as its name says")
    name = known.name if known else "VQ-VAE with the paper's network"
    return PaperFile(name, tuple(encoder), tuple(decoder), codebook, known, origin, tuple(notes))


def _tidy(name: str) -> str:
    """Returns a tensor's name with dots, and PyTorch's leaves: sonnet has "encoder/enc_1/w:0"."""
    name = re.sub(r":\d+$", "", name).replace("/", ".")
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{_LEAVES.get(leaf, leaf)}" if stem else leaf


def _side(name: str) -> str:
    """Returns encoder or decoder, by a tensor's name; "" where that says neither."""
    for part in name.split("."):
        found = re.match(r"_*(enc|dec)(?:oder)?(?:[._\d]|$)", part, re.I)
        if found:
            return {"enc": "encoder", "dec": "decoder"}[found[1].lower()]
    return ""


def _natural(stem: str) -> list[tuple[int, int, str]]:
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", stem) if p]


def _convolutions(
    tensors: Mapping[str, np.ndarray], origin: str
) -> tuple[list[Conv], dict[str, np.ndarray]]:
    """Returns all convolutions in natural order of their names, and the tensors that are none."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    rest: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        tidy = _tidy(name)
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
        elif _CODES.search(stem) and weight is None:
            rest |= {f"{stem}.{leaf}": value for leaf, value in layer.items()}
        elif not stem and weight is None:
            continue
        else:
            raise FormatError(
                f"{origin}: {stem[:80]} is no convolution, and no batch normalization with its "
                "running mean",
                _OTHER,
            )
    for stem, norm in norms.items():
        before = _before(stem, convs)
        if before is None:
            raise FormatError(
                f"{origin}: the batch normalization {stem[:80]} does not follow a convolution "
                "directly",
                _OTHER,
            )
        convs[before] = _folded(convs[before], norm, origin)
    return sorted(convs.values(), key=lambda conv: _natural(conv.stem)), rest


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
            f"{origin}: the batch normalization after {conv.stem} does not fit", _OTHER
        )
    factor = norm.get("weight", np.ones(len(mean))) / np.sqrt(variance + _EPSILON)
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    bias = (0 if conv.bias is None else conv.bias.astype(np.float64)) - mean
    bias = bias * factor + norm.get("bias", np.zeros(len(mean)))
    weight = conv.weight.astype(np.float64) * factor.reshape(shape)
    return Conv(conv.stem, weight.astype(np.float32), bias.astype(np.float32), 1)


def _is_transposed(conv: Conv) -> bool:
    return _side(conv.stem) == "decoder" and conv.kernel == 4


def _blocks(convs: list[Conv], origin: str) -> tuple[list[Item], list[Conv]]:
    """Returns the residual blocks, and the convolutions that are in none."""
    strided = {conv.stem.rpartition(".")[0] for conv in convs if conv.kernel == 4}
    groups: dict[tuple[str, str], list[Conv]] = {}
    rest = []
    for conv in convs:
        parent, _, last = conv.stem.rpartition(".")
        if conv.kernel == 4 or not parent or (parent in strided and "res" not in last):
            rest.append(conv)
        else:
            groups.setdefault((parent, ""), []).append(conv)
    for (parent, _), members in list(groups.items()):
        if len(members) > 2:  # all blocks of a side in one module: res3x3_0, res1x1_0, ...
            del groups[parent, ""]
            for conv in members:
                number = re.findall(r"\d+", conv.stem.rpartition(".")[2])
                groups.setdefault((parent, number[-1] if number else ""), []).append(conv)
    blocks: list[Item] = []
    for (parent, _), members in groups.items():
        members.sort(key=lambda conv: (-conv.kernel, _natural(conv.stem)))
        if len(members) == 1:
            rest.append(members[0])
            continue
        first, second = members[0], members[-1]
        fits = (
            len(members) == 2
            and first.kernel == 3
            and second.kernel in (1, 3)
            and first.weight.shape[1] == second.weight.shape[0]
            and first.weight.shape[0] == second.weight.shape[1]
        )
        if not fits:
            raise FormatError(
                f"{origin}: {parent[:80]} is no residual block of a 3x3 and a 1x1 convolution",
                _OTHER,
            )
        blocks.append(("block" if second.kernel == 1 else "block3", (first, second)))
    blocks.sort(key=lambda item: _natural(item[1][0].stem))
    rest.sort(key=lambda conv: _natural(conv.stem))
    return blocks, rest


def _encoder(convs: list[Conv], origin: str) -> list[Item]:
    """Returns the layers of the encoder: halvings, 3x3 convolutions, residual blocks, 1x1
    convolutions.
    """
    blocks, rest = _blocks(convs, origin)
    items: list[Item] = []
    downs = _chain([conv for conv in rest if conv.kernel == 4], (1, 3), origin)
    items += [("down", (conv,)) for conv in downs]
    threes = [conv for conv in rest if conv.kernel == 3]
    # a 3x3 convolution outside the encoder, or after the blocks in its Sequential, ends it
    late = [
        conv
        for conv in threes
        if _side(conv.stem) == "" or (blocks and (_gap(blocks[-1][1][0], conv) or 0) > 0)
    ]
    for conv in threes:
        if conv not in late:
            items.append(("conv", (conv,)))
    items += blocks
    items += [("conv", (conv,)) for conv in late]
    items += [("point", (conv,)) for conv in rest if conv.kernel == 1]
    _check_chain(items, downs[0].weight.shape[1], origin)
    other = [conv.stem for conv in rest if conv.kernel not in (1, 3, 4)]
    if other:
        raise FormatError(f"{origin}: {other[0][:80]} is no 1x1, 3x3 or 4x4 convolution", _OTHER)
    return items


def _decoder(
    convs: list[Conv], dim: int, channels: int, origin: str
) -> tuple[list[Item], str | None]:
    """Returns the layers of the decoder (1x1 and 3x3 convolutions, residual blocks, doublings), and
    the name of a 3x3 convolution that could as well be a transposed one.
    """
    blocks, rest = _blocks(convs, origin)
    ups = [conv for conv in rest if conv.kernel == 4]
    threes = [conv for conv in rest if conv.kernel == 3]
    other = [conv.stem for conv in rest if conv.kernel not in (1, 3, 4)]
    if other or not ups:
        named = f"{other[0][:80]} is no 1x1, 3x3 or 4x4 convolution" if other else "no doublings"
        raise FormatError(f"{origin}: {named}", _OTHER)
    last = [conv for conv in threes if conv.weight.shape[0] == channels and len(threes) > 1]
    items: list[Item] = [("point", (conv,)) for conv in rest if conv.kernel == 1]
    current = items[-1][1][0].weight.shape[0] if items else dim
    square = None
    for conv in threes:
        if conv in last:
            continue
        out, into = conv.weight.shape[:2]
        transposed = into != current and out == current
        if out == into == current:
            square = conv.stem
            transposed = bool(_TRANSPOSED.search(conv.stem))
        if transposed:  # of stride 1: a convolution with the kernel turned around
            weight = np.ascontiguousarray(conv.weight.swapaxes(0, 1)[:, :, ::-1, ::-1])
            conv = replace(conv, weight=weight)
        items.append(("conv", (conv,)))
        current = conv.weight.shape[0]
    items += blocks
    turned = [replace(conv, weight=conv.weight.swapaxes(0, 1)) for conv in ups]
    chained = _chain(turned, (current,), origin)
    items += [("up", (replace(conv, weight=conv.weight.swapaxes(0, 1)),)) for conv in chained]
    items += [("conv", (conv,)) for conv in last]
    _check_chain(items, dim, origin)
    final = items[-1]
    out = final[1][0].weight.shape[1 if final[0] == "up" else 0]
    if out != channels:
        raise FormatError(
            f"{origin}: the decoder ends in {out} channels, not in the {channels} of the images",
            _OTHER,
        )
    return items, square


def _chain(convs: list[Conv], starts: tuple[int, ...], origin: str) -> list[Conv]:
    """Convolutions (out, in, 4, 4) so ordered that each takes what the one before gives; natural
    order of their names where several fit.
    """
    left, ordered = list(convs), []
    allowed: tuple[int, ...] = starts
    while left:
        fits = [conv for conv in left if conv.weight.shape[1] in allowed]
        if not fits:
            raise FormatError(
                f"{origin}: {left[0].stem[:80]} takes {left[0].weight.shape[1]} channels, and none "
                "of the layers before it gives so many",
                _OTHER,
            )
        ordered.append(fits[0])
        left.remove(fits[0])
        allowed = (fits[0].weight.shape[0],)
    if not ordered:
        raise FormatError(f"{origin} has no 4x4 convolutions in its encoder", _OTHER)
    return ordered


def _check_chain(items: list[Item], channels: int, origin: str) -> None:
    """Raises FormatError where a layer does not take the channels that the one before gives."""
    for kind, convs in items:
        out, into = convs[0].weight.shape[:2]
        out, into = (into, out) if kind == "up" else (out, into)
        if into != channels:
            raise FormatError(
                f"{origin}: {convs[0].stem[:80]} takes {into} channels, and the layer before it "
                f"gives {channels}",
                _OTHER,
            )
        channels = channels if kind.startswith("block") else out


def _check_order(items: list[Item], origin: str) -> None:
    """Raises FormatError where the numbers of a Sequential say another order."""
    for i, (_, convs) in enumerate(items):
        for _, others in items[i + 1 :]:
            gap = _gap(convs[-1], others[0])
            if gap is not None and gap < 0:
                raise FormatError(
                    f"{origin}: {others[0].stem[:80]} stands before {convs[-1].stem[:80]}, which "
                    "is not the order of the paper's network",
                    _OTHER,
                )


def _codebook(rest: Mapping[str, np.ndarray], dim: int, origin: str) -> np.ndarray:
    """Returns the codes (K, D). FormatError where there is none, or more than one."""
    found = {
        name: value
        for name, value in rest.items()
        if value.ndim == 2 and dim in value.shape and not _AVERAGE.search(name)
    }
    named = {name: value for name, value in found.items() if _CODES.search(name)}
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
