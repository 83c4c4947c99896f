"""Tries each possible reading of a checkpoint on images, to find the right one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vqtok import metrics
from vqtok.config import TokenizerConfig
from vqtok.config.coerce import check_range
from vqtok.data.shapes import Shapes
from vqtok.errors import FormatError, UsageError
from vqtok.interop.options import Converted, ImportOptions, Trial
from vqtok.interop.paper import PaperFile
from vqtok.interop.ranges import PixelRange, candidates, parse_range
from vqtok.interop.variants import VARIANTS, Variant, parse_variant
from vqtok.networks.vqvae import VQVAE, to_float, to_uint8

SIDE = 160  # of the part of an image that is tried, in pixels
CLEAR = 0.5  # dB by which the best reading has to lead
FAIR = 14.0  # dB below which a reconstruction shows nothing: a gray image has some 11


def distance_settings(options: ImportOptions, normalize: bool) -> dict[str, Any]:
    """Returns the settings `normalize` and `distance`; a program's own normalization where no
    option says.

    UsageError where the options contradict each other.
    """
    asked, distance = options.normalize, options.distance
    if distance not in (None, "l2", "dot", "cosine"):
        raise UsageError(f"distance {distance!r} is not known", "choose l2, dot or cosine")
    if asked is not None and distance is not None and asked != (distance == "cosine"):
        raise UsageError(
            f"--distance {distance} does not go with --{'' if asked else 'no-'}normalize",
            "give one of them: --normalize is --distance cosine",
        )
    if distance is None:
        return {"normalize": normalize if asked is None else asked}
    return {"normalize": distance == "cosine", "distance": "dot" if distance == "dot" else "l2"}


def convert_paper(
    file: PaperFile, options: ImportOptions, images: Sequence[np.ndarray], origin: str
) -> Converted:
    """Converts settings and tensors of a file with the paper's network.

    What the file leaves open comes from the options; else from a trial: of the pixel range on the
    user's images, of the variant on built-in ones where there are none.
    UsageError where the pixel range is not given and the images do not tell.
    """
    settings = distance_settings(options, normalize=False)
    beta = 0.25 if options.beta is None else options.beta
    check_range("beta", beta, 0.1, 2.0)
    ranges = (
        candidates(file.channels)
        if options.input_range is None
        else [parse_range(options.input_range)]
    )
    own = f" (the program's own examples: {file.known.input_range})" if file.known else ""
    _check_ranges(ranges, bool(images), file.channels, own, origin)
    variants = _variants(file, options)
    tried = images or ([_shapes(file.channels)] if len(variants) > 1 else [])
    crops = [_crop(image, file) for image in tried]
    trials: list[Trial] = []
    readings: dict[tuple[str, str], tuple[PixelRange, Variant]] = {}
    for pixels in ranges:
        for variant in variants:
            if len(variants) > 1 and variant.output not in _outputs(pixels):
                continue
            readings[pixels.name, variant.name] = pixels, variant
            if crops:
                config, tensors = file.convert(variant, pixels, beta, settings)
                trials.append(_try(config, tensors, crops, pixels.name, variant.name))
    trials.sort(key=lambda trial: -trial.psnr)
    choice, notes = _choose(file, readings, trials, bool(images), origin)
    pixels, variant = choice
    config, tensors = file.convert(variant, pixels, beta, settings)
    notes = [*file.notes, *notes]
    notes.append(f"read as {variant.name} with pixels {pixels.name}, beta {beta:g}")
    shown = tuple(_best_of_each(trials)) if images else ()
    return Converted(
        file.program, config, tensors, tuple(notes), shown, tuple(crops) if images else ()
    )


def _variants(file: PaperFile, options: ImportOptions) -> list[Variant]:
    """Lists what the file could be: what the user says, else what its program says, else all."""
    if options.variant is not None:
        return [parse_variant(options.variant)]
    if file.known is not None:
        return [file.known.variant]
    blocks = any(kind.startswith("block") for kind, _ in file.encoder + file.decoder)
    return [v for v in VARIANTS if blocks or v.inplace]


def _outputs(pixels: PixelRange) -> tuple[str, ...]:
    """Returns the last layers whose values lie in the range: sigmoid gives 0 to 1, tanh both
    signs.
    """
    if (pixels.mean, pixels.std) == ((0.0,), (1.0,)):
        return "none", "sigmoid"
    return ("none", "tanh") if pixels.mean == (0.5,) else ("none",)


def _choose(
    file: PaperFile,
    readings: Mapping[tuple[str, str], tuple[PixelRange, Variant]],
    trials: Sequence[Trial],
    asked: bool,
    origin: str,
) -> tuple[tuple[PixelRange, Variant], list[str]]:
    """Chooses the reading to take; returns it with what to say of it.

    UsageError where several pixel ranges are left and none leads clearly.
    """
    if not trials:
        return next(iter(readings.values())), []
    notes = _clear_range(trials, origin)
    best = trials[0]
    same = [t for t in trials if t.input_range == best.input_range]
    chosen = _usual(same)
    rest = [t for t in same if _encoding(t) != _encoding(chosen)]
    if rest:
        where = "the images" if asked else "built-in images"
        sure = chosen.psnr >= FAIR and chosen.psnr - rest[0].psnr >= CLEAR
        told = "shows that it is" if sure else "does not tell; taken as most copies are:"
        notes.append(
            f"{'' if sure else 'warning: '}its reconstruction of {where} {told} {chosen.variant}: "
            f"{chosen.psnr:.2f} dB, {rest[0].variant} {rest[0].psnr:.2f} dB; --variant overrides"
        )
    return readings[chosen.input_range, chosen.variant], notes


def _encoding(trial: Trial) -> str:
    """Returns the part of a variant's name that decides its indices."""
    return trial.variant.rpartition(",")[0]


def _usual(trials: Sequence[Trial]) -> Trial:
    """Returns the best reading, or the most usual one of those that are hardly worse."""
    best = trials[0].psnr
    near = [trial for trial in trials if best - trial.psnr < CLEAR or best < FAIR]
    order = [variant.name for variant in VARIANTS]
    return min(near, key=lambda trial: order.index(trial.variant))


def _best_of_each(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the best trial of each pixel range, best first."""
    found: dict[str, Trial] = {}
    for trial in trials:
        found.setdefault(trial.input_range, trial)
    return list(found.values())


def _shapes(channels: int) -> np.ndarray:
    """Draws a built-in image of 16 shapes, uint8 (128, 128, C)."""
    tiles = Shapes(n=16, size=32).images(np.arange(16))  # (16, 32, 32, 3)
    image = tiles.reshape(4, 4, 32, 32, 3).swapaxes(1, 2).reshape(128, 128, 3)
    return image if channels == 3 else image.mean(2, keepdims=True).astype(np.uint8)


def _crop(image: np.ndarray, file: PaperFile) -> np.ndarray:
    """Cuts the middle of an image, at most SIDE pixels a side and multiples of f: uint8 (H, W,
    C).
    """
    f = 2 ** sum(kind == "down" for kind, _ in file.encoder)
    H, W = (min(SIDE, side) // f * f for side in image.shape[:2])
    if not H or not W:
        raise UsageError(f"an image to try has {f} pixels a side or more", "try a larger one")
    top, left = (image.shape[0] - H) // 2, (image.shape[1] - W) // 2
    return image[top : top + H, left : left + W]


def _try(
    config: TokenizerConfig,
    tensors: Mapping[str, np.ndarray],
    images: Sequence[np.ndarray],
    pixels: str,
    variant: str,
) -> Trial:
    """Reconstructs images by one reading of the file."""
    network = VQVAE(config).eval()
    state = {name: torch.from_numpy(np.array(v, np.float32)) for name, v in tensors.items()}
    network.load_state_dict(state, strict=False)
    made = []
    with torch.inference_mode():
        for image in images:
            x = to_float(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
            y = network.decode(network.encode(x))
            if not bool(y.isfinite().all()):
                raise FormatError(
                    "its reconstruction is not finite", "the file is damaged: copy it again"
                )
            made.append(to_uint8(y)[0].permute(1, 2, 0).numpy())
    quality = [min(99.0, metrics.psnr(a, b)) for a, b in zip(images, made, strict=True)]
    return Trial(pixels, variant, config.distance, float(np.mean(quality)), tuple(made))


def with_range(
    made: Converted,
    options: ImportOptions,
    images: Sequence[np.ndarray],
    own: str,
    asks: bool,
    origin: str,
) -> Converted:
    """The network with a pixel range: what the user says, else the program's `own`; where `asks`,
    copies of it differ, and the images have to tell.

    UsageError where nothing tells.
    """
    channels = made.settings.channels
    if options.input_range is not None:
        ranges = [parse_range(options.input_range)]
    else:
        ranges = candidates(channels) if asks else [parse_range(own)]
    _check_ranges(ranges, bool(images), channels, f" (the program's own examples: {own})", origin)
    if channels == 1:
        images = [image.mean(2, keepdims=True).astype(np.uint8) for image in images]
    crops = _corners(images, made.settings.downsample)
    trials = [
        _try(_in_range(made.settings, pixels), made.tensors, crops, pixels.name, made.program)
        for pixels in ranges
        if crops
    ]
    trials.sort(key=lambda trial: -trial.psnr)
    chosen, notes = ranges[0], list(made.notes)
    if len(ranges) > 1:
        chosen = next(r for r in ranges if r.name == trials[0].input_range)
        notes += _clear_range(trials, origin)
    if asks:
        notes.append(f"read with pixels {chosen.name}")
    return replace(
        made,
        settings=_in_range(made.settings, chosen),
        notes=tuple(notes),
        trials=tuple(trials),
        originals=tuple(crops),
    )


def _in_range(settings: TokenizerConfig, pixels: PixelRange) -> TokenizerConfig:
    unit = (pixels.mean, pixels.std) == ((0.5,), (0.5,))
    mean, std = ((), ()) if unit else (pixels.mean, pixels.std)
    return replace(settings, input_mean=mean, input_std=std)


def _check_ranges(
    ranges: Sequence[PixelRange], images: bool, channels: int, own: str, origin: str
) -> None:
    """UsageError where several ranges and no images are left, or one does not fit the channels."""
    if len(ranges) > 1 and not images:
        raise UsageError(
            f"{origin} does not say which range its pixels have{own}",
            f"give --input-range, one of {', '.join(r.name for r in ranges[:3])} or MEAN:STD; "
            "or let it be found: --try IMAGE shows the PSNR of each",
        )
    for pixels in ranges:
        if len(pixels.mean) not in (1, channels):
            raise UsageError(
                f"{pixels.name} has {len(pixels.mean)} numbers a side, and the images of {origin} "
                f"{channels} channels",
                f"give one, or {channels}",
            )


def _clear_range(trials: Sequence[Trial], origin: str) -> list[str]:
    """What to say of the best range. UsageError where it does not lead clearly."""
    best = trials[0]
    others = [trial for trial in trials if trial.input_range != best.input_range]
    if not others:
        return []
    if best.psnr < FAIR or best.psnr - others[0].psnr < CLEAR:
        close = ", ".join(f"{t.input_range} {t.psnr:.2f} dB" for t in _best_of_each(trials))
        raise UsageError(
            f"{origin} does not show which range its pixels have: {close}",
            "give --input-range, or --try another image, like those that it was trained on",
        )
    return [
        f"pixels {best.input_range}: {best.psnr:.2f} dB, against {others[0].psnr:.2f} dB of "
        f"{others[0].input_range}"
    ]


def _corners(images: Sequence[np.ndarray], f: int) -> list[np.ndarray]:
    """The corners of images, at most SIDE pixels a side and multiples of f: uint8 (H, W, C)."""
    crops = []
    for image in images:
        H, W = (min(SIDE, side) // f * f for side in image.shape[:2])
        if not H or not W:
            raise UsageError(f"an image to try has {f} pixels a side or more", "try a larger one")
        crops.append(image[:H, :W])
    return crops


def try_classic(
    made: Converted, images: Sequence[np.ndarray], distances: Sequence[str]
) -> tuple[tuple[Trial, ...], tuple[np.ndarray, ...]]:
    """Reconstructions by a VQGAN's network with each of the distances that it could have, best
    first; and the parts of the images that were tried.
    """
    crops = _corners(images, made.settings.downsample)
    trials = [
        _try(replace(made.settings, distance=distance), made.tensors, crops, "-1:1", "classic")
        for distance in distances
    ]
    return tuple(sorted(trials, key=lambda trial: -trial.psnr)), tuple(crops)
