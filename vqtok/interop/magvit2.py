"""Image tokenizers of Open-MAGVIT2: lookup-free, up to 2^18 codes.

Source: github.com/TencentARC/SEED-Voken, src/Open_MAGVIT2/modules/diffusionmodules/
improved_model.py and modules/vqvae/lookup_free_quantize.py.
"""

from collections.abc import Mapping

import numpy as np

from vqtok.config import TokenizerConfig
from vqtok.errors import FormatError, UsageError
from vqtok.interop.options import Converted, ImportOptions
from vqtok.interop.pieces import Pieces, residual_block

NAME = "Open-MAGVIT2 tokenizer"
GROUPS = 32  # of its normalizations, by its code
BITS_MAX = 18
OWN_RANGE, ASKS = "-1:1", False


def fits(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the tensors are such a tokenizer's."""
    return any(name.startswith("decoder.adaptive.") for name in tensors)


def convert(tensors: Mapping[str, np.ndarray], options: ImportOptions, origin: str) -> Converted:
    """Settings and tensors of our network. FormatError, UsageError."""
    if options.distance is not None or options.normalize is not None:
        raise UsageError(
            "codes of an Open-MAGVIT2 tokenizer are signs, and have no distances",
            "leave --distance and --normalize out",
        )
    pieces = Pieces(tensors, origin)
    count = pieces.count("encoder.down.#.block.0.conv1.weight")
    blocks = pieces.count("encoder.down.0.block.#.conv1.weight")
    if not count:
        raise FormatError(f"{origin} has no residual blocks in its encoder", "copy it again")
    out: dict[str, np.ndarray] = {}
    stages = []
    first = pieces.layer("encoder.first", "encoder.conv_in", out)
    for i in range(count):
        for j in range(blocks):
            name = f"encoder.down.{i}.block.{j}"
            residual_block(pieces, f"encoder.stages.{i}.blocks.{j}", name, out, "nin_shortcut")
        stages.append(len(out[f"encoder.stages.{i}.blocks.0.conv1.weight"]))
        if i < count - 1:
            pieces.layer(f"encoder.stages.{i}.resample", f"encoder.down.{i}.downsample", out)
    for side in ("encoder", "decoder"):
        for j in range(blocks):
            residual_block(pieces, f"{side}.middle.{j}", f"{side}.mid_block.{j}", out, "none")
        pieces.layer(f"{side}.norm", f"{side}.norm_out", out, 1)
    bits = len(pieces.layer("encoder.last", "encoder.conv_out", out))
    pieces.layer("decoder.first", "decoder.conv_in", out)
    pieces.layer("decoder.last", "decoder.conv_out", out)
    for i in range(count):
        ours = f"decoder.stages.{count - 1 - i}"
        for j in range(blocks):
            name = f"decoder.up.{i}.block.{j}"
            residual_block(pieces, f"{ours}.blocks.{j}", name, out, "nin_shortcut")
        adapt = f"decoder.adapt.{count - 1 - i}"
        pieces.layer(f"{adapt}.scale", f"decoder.adaptive.{i}.gamma", out, 2)
        pieces.layer(f"{adapt}.shift", f"decoder.adaptive.{i}.beta", out, 2)
        if i:
            pieces.layer(f"{ours}.resample", f"decoder.up.{i}.upsample.conv1", out)
            for leaf in ("weight", "bias"):
                key = f"{ours}.resample.{leaf}"
                out[key] = _by_channel(out[key], origin)
    pieces.finish("encoder.", "decoder.", "quantize.")
    if not 1 <= bits <= BITS_MAX:
        raise FormatError(
            f"{origin} has codes of {bits} bits, and vqtok holds {BITS_MAX}", "import another one"
        )
    identity, zeros = np.eye(bits, dtype=np.float32), np.zeros(bits, np.float32)
    for way in ("inward", "outward"):
        out[f"quantizer.{way}.weight"], out[f"quantizer.{way}.bias"] = identity, zeros
    settings = TokenizerConfig(
        channels=first.shape[1],
        downsample=2 ** (count - 1),
        fold=1,
        width=stages[0],
        encoder_blocks=blocks,
        decoder_blocks=blocks,
        shortcut=False,
        quantizer="lfq",
        codebook_size=2**bits,
        code_dim=bits,
        normalize=False,
        beta=0.25 if options.beta is None else options.beta,
        network="magvit2",
        stages=tuple(stages),
        groups=GROUPS,
    )
    return Converted(NAME, settings, out)


def _by_channel(values: np.ndarray, origin: str) -> np.ndarray:
    """Puts the four positions that a channel becomes one after another, (4*C, ...): theirs have
    all channels of one position first.
    """
    if len(values) % 4:
        raise FormatError(
            f"{origin}: {len(values)} channels do not become 2x2 positions", "copy it again"
        )
    parts = values.reshape(4, len(values) // 4, *values.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(values.shape)
