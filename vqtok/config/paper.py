"""The layers of the paper's network as text, and the range of its pixels; without PyTorch."""

import re
from typing import Any

from vqtok.config.coerce import check_range, require

_LAYER = re.compile(r"(down|up|conv|point|block|block3) ([1-9]\d{0,3})|(relu|tanh|sigmoid)")
CHANNELS_MAX, LAYERS_MAX = 4096, 256


def parse_layer(spec: str) -> tuple[str, int]:
    """Parses kind and channels of a layer like "down 64" or "relu" (0 channels). Raises UsageError
    for others.

    down and up are 4x4 convolutions that halve and double the resolution, conv is 3x3, point 1x1;
    block and block3 are residual blocks of 3x3 and 1x1 or 3x3 with so many channels inside.
    """
    found = _LAYER.fullmatch(spec)
    require(
        found is not None,
        f"{spec[:40]!r} is no layer",
        "write down, up, conv, point, block or block3 and channels, or relu, tanh, sigmoid",
    )
    assert found is not None
    if found[3]:
        return found[3], 0
    check_range("channels of a layer", int(found[2]), 1, CHANNELS_MAX)
    return found[1], int(found[2])


def layers_of(config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the layers of encoder and decoder; the decoder's are () where the network makes its
    own.
    """
    if config.encoder_layers:
        return config.encoder_layers, config.decoder_layers
    width, count = config.width, config.downsample.bit_length() - 1
    half = max(4, width // 2)
    specs: list[str] = []
    for stage in range(count):
        specs += [f"down {half if stage == 0 and count > 1 else width}", "relu"]
    specs += [f"conv {width}", *[f"block {width}"] * config.encoder_blocks, "relu"]
    return (*specs, f"point {config.code_dim}"), ()


def pixel_scale(config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Factors and shifts from pixels in [-1, 1] to those of the network, one or one a channel;
    ((), ()) where the network takes [-1, 1].
    """
    mean, std = config.input_mean, config.input_std
    scale = tuple(0.5 / s for s in std)
    return scale, tuple((0.5 - m) / s for m, s in zip(mean, std, strict=True))


def check_paper(config: Any) -> None:
    """Raises UsageError where the settings of the paper's network do not fit each other."""
    mean, std = config.input_mean, config.input_std
    require(
        len(mean) == len(std) and len(mean) in (0, 1, config.channels),
        f"input_mean and input_std have {len(mean)} and {len(std)} numbers",
        "give one of each, or one a channel",
    )
    for value in mean:
        check_range("input mean", value, -1e4, 1e4)
    for value in std:
        check_range("input std", value, 1e-4, 1e4)
    require(
        config.network != "folded" or (mean, std) == ((), ()),
        "the folded network takes pixels in [-1, 1]",
        "leave input_mean and input_std out",
    )
    if config.network != "paper":
        own = (config.encoder_layers, config.decoder_layers)
        require(
            own == ((), ()),
            "encoder_layers and decoder_layers are of the paper's network",
            "leave them out, or set network=paper",
        )
        return
    require(config.quantizer != "pixels", "pixels need no network", "leave network out")
    before, after = config.encoder_layers, config.decoder_layers
    require(
        bool(before) == bool(after),
        "encoder_layers and decoder_layers come together",
        "give both, or neither",
    )
    if not before:
        return
    require(
        max(len(before), len(after)) <= LAYERS_MAX,
        f"more than {LAYERS_MAX} layers",
        "choose fewer layers",
    )
    parsed = [[parse_layer(spec) for spec in specs] for specs in (before, after)]
    for specs, kind, end in ((parsed[0], "down", config.code_dim), (parsed[1], "up", None)):
        sizes = [size for name, size in specs if name in ("down", "up", "conv", "point")]
        factor = 2 ** sum(name == kind for name, _ in specs)
        other = sum(name in ("down", "up") and name != kind for name, _ in specs)
        require(
            factor == config.downsample and not other,
            f"these layers do not make downsample {config.downsample}",
            "there is a halving for each factor of two in the encoder, a doubling in the decoder",
        )
        require(
            bool(sizes) and (end is None or sizes[-1] == end),
            f"the encoder's layers do not end in {config.code_dim} channels",
            "set code_dim to the channels of its last convolution",
        )
