"""Converts a checkpoint to the weights of a tokenizer with the classic network; names and shapes
of its tensors give the settings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vqtok import weights
from vqtok._version import __version__
from vqtok.config import TokenizerConfig
from vqtok.errors import FormatError, UsageError
from vqtok.interop import (
    diffusers,
    families,
    layout,
    llamagen,
    magvit2,
    maskgit,
    paper,
    prefixes,
    ranges,
    taming,
    trial,
    vqvae2,
)
from vqtok.interop.layout import Layout
from vqtok.interop.options import Converted, ImportOptions, Trial
from vqtok.interop.read import Checkpoint
from vqtok.meta_init import init_empty_weights
from vqtok.networks.vqvae import VQVAE

# A new source is a file with its names, and one entry here.
LAYOUTS = (taming.LAYOUT, llamagen.LAYOUT, diffusers.LAYOUT)
# And those whose layers are not VQGAN's own: modules with `fits` and `convert`.
READERS = (magvit2, maskgit, vqvae2)
_COPY_AGAIN = "copy or download the file again"
LOG_SCALE = math.log(0.1)  # of the likelihood, as training starts with it: no source has one


@dataclass(frozen=True)
class Imported:
    """A checkpoint as a tokenizer, and the assumptions that were made."""

    weights: weights.Weights
    notes: tuple[str, ...] = ()  # a line each, for people
    trials: tuple[Trial, ...] = ()  # of what it could be, best first
    originals: tuple[np.ndarray, ...] = ()  # the images of the trials, uint8 (H, W, C)


def convert_checkpoint(
    checkpoint: Checkpoint,
    options: ImportOptions | None = None,
    images: Sequence[np.ndarray] = (),
) -> Imported:
    """Makes a tokenizer of a checkpoint; `images`, uint8 (H, W, 3), are reconstructed to see what
    it could be.

    FormatError where the checkpoint holds no network that vqtok knows, or not all of it, or more;
    UsageError where it does not say what it needs, or an option does not fit;
    InputError where a file beside it is missing.
    """
    options, path = options or ImportOptions(), checkpoint.path
    within = None if options.part == checkpoint.taken else options.part
    tensors, taken = prefixes.strip(checkpoint.tensors, within)
    if within is not None and taken != within and within not in taken.split("."):
        raise UsageError(f"{path} holds no weights named {within!r}", "leave --weights out")
    reader = next((one for one in READERS if one.fits(tensors)), None)
    if reader is None:
        families.check(tensors, str(path))
    found = next(
        (known for known in LAYOUTS if any(name.startswith(known.mark) for name in tensors)), None
    )
    if reader is not None:
        made = _convert_by(reader, tensors, path, options, images)
    elif found is not None:
        made = _convert_classic(found, tensors, path, options, images)
    elif paper.looks_like_paper(tensors):
        file = paper.read_paper(tensors, str(path))
        if images and images[0].shape[2] != file.channels:
            images = [image.mean(2, keepdims=True).astype(np.uint8) for image in images]
        made = trial.convert_paper(file, options, images, str(path))
    else:
        raise FormatError(
            f"{path} holds no tokenizer that vqtok knows",
            "give one of taming-transformers, LlamaGen (VQ-8, VQ-16), diffusers (VQModel) or "
            "others in docs/interoperate.md, or one with the VQ-VAE paper's network",
        )
    names = " and ".join(filter(None, (checkpoint.taken, taken)))
    notes = (f"its weights {names!r} are taken",) if names else ()
    stored = _record(made, path)
    return Imported(stored, notes + made.notes, made.trials, made.originals)


def _record(made: Converted, path: Path) -> weights.Weights:
    """Makes the weights file of a converted network, with where it comes from."""
    with init_empty_weights():
        shapes = {
            name: tuple(value.shape) for name, value in VQVAE(made.settings).release_state().items()
        }
    scale = shapes.pop("likelihood.log_scale")
    weights.check_tensors(dict(made.tensors), shapes, str(path))
    tensors = {**made.tensors, "likelihood.log_scale": np.full(scale, LOG_SCALE, np.float32)}
    file = "".join(c if c.isprintable() else "_" for c in path.name)
    record = {
        "imported": {"program": made.program, "file": file},
        "data": f"unknown: imported, a {made.program}",
        "metrics": {},
        "version": __version__,
    }
    if made.notes:
        record["imported"]["notes"] = list(made.notes)
    return weights.Weights(
        tensors,
        {"format": 1, "kind": "tokenizer", "config": asdict(made.settings), "record": record},
    )


def _convert_by(
    reader: ModuleType,
    tensors: Mapping[str, np.ndarray],
    path: Path,
    options: ImportOptions,
    images: Sequence[np.ndarray],
) -> Converted:
    """Settings and tensors by one of READERS, with the pixel range that the options say."""
    if options.variant is not None:
        raise UsageError("--variant is for the paper's network", "leave it out")
    try:
        made = reader.convert(tensors, options, str(path))
    except UsageError as error:
        if options.beta is not None or options.distance is not None:
            raise
        raise FormatError(
            f"{path} holds a network that vqtok has no room for: {error}",
            "import another checkpoint",
        ) from None
    return trial.with_range(made, options, images, reader.OWN_RANGE, reader.ASKS, str(path))


def _convert_classic(
    found: Layout,
    tensors: Mapping[str, np.ndarray],
    path: Path,
    options: ImportOptions,
    images: Sequence[np.ndarray],
) -> Converted:
    """Converts settings and tensors of a VQGAN's network."""
    if options.input_range is not None:
        pixels = ranges.parse_range(options.input_range)
        if (pixels.mean, pixels.std) != ((0.5,), (0.5,)):
            raise UsageError(
                f"a {found.name} takes pixels in -1:1, not {options.input_range}",
                "leave --input-range out",
            )
    if options.variant is not None:
        raise UsageError("--variant is for the paper's network", "leave it out")
    theirs = {found.rename(name): value for name, value in tensors.items()}
    distance = trial.distance_settings(options, found.normalize)
    settings = _settings(
        found, theirs, found.groups(path.parent), bool(distance["normalize"]), str(path)
    )
    changes: dict[str, Any] = {"distance": distance.get("distance", "l2")}
    if options.beta is not None:
        changes["beta"] = options.beta
    settings = replace(settings, **changes)
    made = Converted(found.name, settings, _taken(found, theirs, settings, str(path)))
    asked = options.distance is not None or options.normalize is not None
    either = found is taming.LAYOUT and not asked
    notes: list[str] = []
    if images:
        if settings.channels == 1:
            images = [image.mean(2, keepdims=True).astype(np.uint8) for image in images]
        distances = ["l2", "dot"] if either else [settings.distance]
        trials, originals = trial.try_classic(made, images, distances)
        made = replace(made, trials=trials, originals=originals)
        if either and trials[0].psnr - trials[-1].psnr >= trial.CLEAR:
            settings = replace(settings, distance=trials[0].distance)
            notes.append(
                f"distance {settings.distance}: {trials[0].psnr:.2f} dB, against "
                f"{trials[1].psnr:.2f} dB of {trials[1].distance}"
            )
            either = False
    if either:
        notes.append(
            "warning: an IBQ tokenizer (SEED-Voken) has the same tensors; if this is one, import "
            "it with --distance dot, else its codes are wrong. --distance l2 says that it is none"
        )
    return replace(made, settings=settings, notes=tuple(notes))


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
    shapes.pop("likelihood.log_scale")
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
    return {ours: own[name] for ours, name in names.items()}


def _flat(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Drops the last axes of a 1x1 convolution where we have a linear layer."""
    return (
        array[:, :, 0, 0]
        if len(shape) == 2 and array.ndim == 4 and array.shape[2:] == (1, 1)
        else array
    )
