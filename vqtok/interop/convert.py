"""Converts a checkpoint to the weights of a tokenizer with the classic network; names and shapes
of its tensors give the settings.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from vqtok import weights
from vqtok._version import __version__
from vqtok.config import TokenizerConfig
from vqtok.errors import FormatError, UsageError
from vqtok.interop import diffusers, layout, llamagen, taming
from vqtok.interop.layout import Layout
from vqtok.interop.read import Checkpoint
from vqtok.meta_init import init_empty_weights
from vqtok.networks.vqvae import VQVAE

# A new source is a file with its names, and one entry here.
LAYOUTS = (taming.LAYOUT, llamagen.LAYOUT, diffusers.LAYOUT)
_COPY_AGAIN = "copy or download the file again"
LOG_SCALE = math.log(0.1)  # of the likelihood, as training starts with it: no source has one


def convert_checkpoint(checkpoint: Checkpoint, normalize: bool | None = None) -> weights.Weights:
    """Makes a tokenizer of a checkpoint.

    `normalize`: whether its codes are on the unit sphere; None: as its program has it.

    FormatError where the checkpoint holds no network that vqtok knows, or not all of it, or more;
    InputError where a file beside it is missing.
    """
    path = checkpoint.path
    found = next(
        (
            known
            for known in LAYOUTS
            if any(name.startswith(known.mark) for name in checkpoint.tensors)
        ),
        None,
    )
    if found is None:
        raise FormatError(
            f"{path} holds no tokenizer that vqtok knows",
            "give one of taming-transformers, LlamaGen (VQ-8, VQ-16) or diffusers (VQModel)",
        )
    theirs = {found.rename(name): value for name, value in checkpoint.tensors.items()}
    normalize = found.normalize if normalize is None else normalize
    settings = _settings(found, theirs, found.groups(path.parent), normalize, str(path))
    tensors = _taken(found, theirs, settings, str(path))
    source = {
        "program": found.name,
        "file": "".join(c if c.isprintable() else "_" for c in path.name),
    }
    record = {
        "imported": source,
        "data": f"unknown: imported, a {found.name}",
        "metrics": {},
        "version": __version__,
    }
    return weights.Weights(
        tensors, {"format": 1, "kind": "tokenizer", "config": asdict(settings), "record": record}
    )


def _settings(
    found: Layout, theirs: Mapping[str, np.ndarray], groups: int, normalize: bool, origin: str
) -> TokenizerConfig:
    """Reads the settings off names and shapes. FormatError where vqtok has no such network."""
    blocks, attention = (
        found.positions(layout.STAGE_BLOCKS, theirs),
        found.positions(layout.STAGE_ATTENTION, theirs),
    )
    count = len({stage for stage, _ in blocks})
    middle = any(name.startswith(found.parts[layout.MIDDLE_ATTENTION] + ".") for name in theirs)

    def shape(name: str) -> tuple[int, ...]:
        name = found.theirs(name, count)
        if name not in theirs:
            raise FormatError(f"{origin} lacks the tensor {name}", _lacking(name))
        return (*theirs[name].shape, 0, 0)[:2]

    if not count:
        raise FormatError(f"{origin} has no residual blocks in its encoder", _COPY_AGAIN)
    stages = tuple(shape(f"encoder.stages.{i}.blocks.0.conv1.weight")[0] for i in range(count))
    size, dim = shape(layout.CODEBOOK)
    try:
        return TokenizerConfig(
            channels=shape(layout.FIRST)[1],
            downsample=2 ** (count - 1),
            fold=1,
            width=stages[0],
            encoder_blocks=len({block for _, block in blocks}),
            shortcut=False,
            decoder_blocks=len(
                {block for _, block in found.positions(layout.DECODER_BLOCKS, theirs)}
            ),
            quantizer="vq",
            codebook_size=size,
            code_dim=dim,
            normalize=normalize,
            network="classic",
            stages=stages,
            attention=tuple(
                sorted({stage for stage, _ in attention} | ({count} if middle else set()))
            ),
            groups=groups,
            z_channels=shape("encoder.last.weight")[0],
        )
    except UsageError as error:
        raise FormatError(
            f"{origin} holds a network that vqtok has no room for: {error}",
            "import another checkpoint",
        ) from None


def _lacking(name: str) -> str:
    if name.startswith("quantize."):
        return (
            "vqtok imports vector quantizers only: no continuous autoencoders, "
            "and no Gumbel quantizers"
        )
    return _COPY_AGAIN


def _taken(
    found: Layout, theirs: Mapping[str, np.ndarray], settings: TokenizerConfig, origin: str
) -> dict[str, np.ndarray]:
    """Checks their tensors, and returns them under our names.

    FormatError where one is missing, too many, or of a wrong shape.
    """
    with init_empty_weights():
        shapes = {
            name: tuple(value.shape) for name, value in VQVAE(settings).release_state().items()
        }
    scale = shapes.pop("likelihood.log_scale")
    names = {name: found.theirs(name, len(settings.stages)) for name in shapes}
    more = sorted(set(found.needed(theirs)) - set(names.values()))
    if more:
        raise FormatError(
            f"{origin} has the tensor {more[0][:100]}, which vqtok's network has no place for",
            "import another checkpoint",
        )
    own = {
        name: _flat(theirs[name], shapes[ours]) for ours, name in names.items() if name in theirs
    }
    for name, array in own.items():
        if array.dtype.kind != "f":
            raise FormatError(
                f"{origin}: tensor {name} is of type {array.dtype}", "save it as float32 or float16"
            )
    weights.check_tensors(own, {name: shapes[ours] for ours, name in names.items()}, origin)
    return {
        **{ours: own[name] for ours, name in names.items()},
        "likelihood.log_scale": np.full(scale, LOG_SCALE, np.float32),
    }


def _flat(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Drops the last axes of a 1x1 convolution where we have a linear layer."""
    return (
        array[:, :, 0, 0]
        if len(shape) == 2 and array.ndim == 4 and array.shape[2:] == (1, 1)
        else array
    )
