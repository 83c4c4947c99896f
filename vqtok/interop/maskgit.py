"""MaskGIT's VQGAN as PyTorch programs have it: the tokenizer of RAR and open-muse.

It is VQGAN's network without attention, with three differences, which all become weights of
VQGAN's layers: it halves the resolution by means of 2x2 positions, it has no bias in its blocks,
and where a block changes the number of channels, it adds a linear function of its own output, not
of its input.

Source: github.com/bytedance/1d-tokenizer, modeling/modules/maskgit_vqgan.py.
"""

from collections.abc import Mapping

import numpy as np

from vqtok.config import TokenizerConfig
from vqtok.errors import FormatError
from vqtok.interop.options import Converted, ImportOptions
from vqtok.interop.pieces import CHANNELS_MAX, DIMENSIONS_MAX, Pieces, residual_block
from vqtok.interop.trial import distance_settings

NAME = "MaskGIT-VQGAN"
GROUPS = 32  # of its normalizations, by its code
OWN_RANGE, ASKS = "0:1", False


def fits(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the tensors are such a tokenizer's."""
    return any(name.endswith(".upsample_conv.weight") for name in tensors) and any(
        name.startswith("encoder.down.") for name in tensors
    )


def convert(tensors: Mapping[str, np.ndarray], options: ImportOptions, origin: str) -> Converted:
    """Settings and tensors of our network. FormatError, UsageError."""
    distance = distance_settings(options, normalize=False)
    pieces = Pieces(tensors, origin)
    count = pieces.count("encoder.down.#.block.0.conv1.weight")
    blocks = pieces.count("encoder.down.0.block.#.conv1.weight")
    middle = pieces.count("encoder.mid.#.conv1.weight")
    if not count or not middle:
        raise FormatError(f"{origin} has no residual blocks in its encoder", "copy it again")
    out: dict[str, np.ndarray] = {}
    first = pieces.layer("encoder.first", "encoder.conv_in", out)
    stages = []
    for i in range(count):
        for j in range(blocks):
            _block(pieces, f"encoder.stages.{i}.blocks.{j}", f"encoder.down.{i}.block.{j}", out)
        stages.append(len(out[f"encoder.stages.{i}.blocks.0.conv1.weight"]))
        pieces.check_at_most(stages[i], CHANNELS_MAX, "channels")
        if i < count - 1:
            _mean_of_four(f"encoder.stages.{i}.resample", stages[i], out)
    order = ["before", "after", *(f"more.{j}" for j in range(middle - 2))]
    for side in ("encoder", "decoder"):
        for j in range(middle):
            _block(pieces, f"{side}.middle.{order[j]}", f"{side}.mid.{j}", out)
        pieces.layer(f"{side}.norm", f"{side}.norm_out", out, 1)
    last = pieces.layer("encoder.last", "encoder.conv_out", out)
    if last.shape[2:] == (1, 1):  # as a 3x3 convolution that looks at its middle alone
        out["encoder.last.weight"] = np.pad(last, ((0, 0), (0, 0), (1, 1), (1, 1)))
    codebook = pieces.get("quantize.embedding.weight", 2)
    size, dim = codebook.shape
    pieces.check_at_most(dim, DIMENSIONS_MAX, "dimensions of a code")
    out["quantizer.codebook"] = codebook
    for side in ("encoder", "decoder"):  # it has no such layer: one that changes nothing
        out[f"{side}.project.weight"] = np.eye(dim, dtype=np.float32)[:, :, None, None]
        out[f"{side}.project.bias"] = np.zeros(dim, np.float32)
    pieces.layer("decoder.first", "decoder.conv_in", out)
    pieces.layer("decoder.last", "decoder.conv_out", out)
    for i in range(count):
        ours = f"decoder.stages.{count - 1 - i}"
        for j in range(blocks):
            _block(pieces, f"{ours}.blocks.{j}", f"decoder.up.{i}.block.{j}", out)
        if i:
            pieces.layer(f"{ours}.resample", f"decoder.up.{i}.upsample_conv", out)
    pieces.finish("encoder.", "decoder.", "quantize.")
    settings = TokenizerConfig(
        channels=first.shape[1],
        downsample=2 ** (count - 1),
        fold=1,
        width=stages[0],
        encoder_blocks=blocks,
        decoder_blocks=blocks,
        shortcut=False,
        quantizer="vq",
        codebook_size=size,
        code_dim=dim,
        beta=0.25 if options.beta is None else options.beta,
        network="classic",
        stages=tuple(stages),
        groups=GROUPS,
        z_channels=dim,
        middle_blocks=middle,  # type: ignore[call-arg]
        **distance,
    )
    return Converted(NAME, settings, out)


def _block(pieces: Pieces, ours: str, theirs: str, out: dict[str, np.ndarray]) -> None:
    """Takes a residual block. Where it has a shortcut S, it is y + S y for what its convolutions
    give: the last of them becomes (1 + S) times itself, and x is added zero times.
    """
    residual_block(pieces, ours, theirs, out, "nin_shortcut")
    if f"{ours}.shortcut.weight" not in out:
        return
    shortcut = out[f"{ours}.shortcut.weight"]
    outputs, inputs = out[f"{ours}.conv2.weight"].shape[0], out[f"{ours}.conv1.weight"].shape[1]
    bias = out[f"{ours}.conv2.bias"], out[f"{ours}.shortcut.bias"]
    if shortcut.shape != (outputs, outputs, 1, 1) or any(len(b) != outputs for b in bias):
        raise FormatError(
            f"{pieces.origin}: the shortcut of {theirs} is of shape {shortcut.shape}",
            "import a MaskGIT-VQGAN as its program saves it",
        )
    factor = np.eye(outputs) + shortcut[:, :, 0, 0].astype(np.float64)
    conv = out[f"{ours}.conv2.weight"]
    out[f"{ours}.conv2.weight"] = np.tensordot(factor, conv.astype(np.float64), 1).astype(
        np.float32
    )
    out[f"{ours}.conv2.bias"] = (factor @ bias[0].astype(np.float64) + bias[1]).astype(np.float32)
    out[f"{ours}.shortcut.weight"] = np.zeros((outputs, inputs, 1, 1), np.float32)
    out[f"{ours}.shortcut.bias"] = np.zeros(outputs, np.float32)


def _mean_of_four(ours: str, channels: int, out: dict[str, np.ndarray]) -> None:
    """Adds the 3x3 convolution of stride 2, padded at the right and bottom, that takes the mean of
    2x2 positions of each channel.
    """
    weight = np.zeros((channels, channels, 3, 3), np.float32)
    every = np.arange(channels)
    weight[every, every, :2, :2] = 0.25
    out[f"{ours}.weight"], out[f"{ours}.bias"] = weight, np.zeros(channels, np.float32)
