"""Checks and converts what a caller may give: images of many kinds, tensors of images or indices,
sizes.

Each is checked here, so that nothing wrong becomes codes in silence.
"""

import os
import re
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok import images
from vqtok.errors import UsageError
from vqtok.networks.vqvae import to_float

# images (n, C, H, W), (C, H, W) each, or uint8 (H, W, C) each
Batch = Tensor | list[Tensor] | list[np.ndarray]
SIDES = ("top", "bottom", "left", "right")
OVERSHOOT = 0.05  # how far floats may pass 0 and 1: antialiased resizing makes such values
_FIX = "give uint8, or float in [0, 1], of shape (B, C, H, W) or (C, H, W)"


def checked_images(given: Tensor, channels: int) -> Tensor:
    """Returns images (B, C, H, W), or one (C, H, W), as (B, C, H, W), uint8 or float.

    Raises UsageError for other shapes, another number of channels, other dtypes, and floats that
    are not finite or leave [0, 1] by more than OVERSHOOT.
    """
    shown = f"a tensor of {str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}"
    x = given[None] if given.ndim == 3 else given
    if x.ndim != 4 or x.numel() == 0:
        raise UsageError(f"{shown} is no batch of images", _FIX)
    if x.layout != torch.strided or x.is_meta:
        raise UsageError(f"{shown} is sparse, or without values", "give a dense tensor")
    if x.shape[1] != channels:
        place = " (channels come first)" if x.shape[3] == channels else ""
        raise UsageError(f"{shown} has {x.shape[1]} channels, the model {channels}{place}", _FIX)
    if x.dtype != torch.uint8 and not x.dtype.is_floating_point:
        raise UsageError(f"{shown} is no batch of images", _FIX)
    if x.dtype.is_floating_point:
        low, high = (float(value) for value in torch.aminmax(x.detach()))
        if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):  # false for NaN, too
            raise UsageError(f"{shown} goes from {low:.4g} to {high:.4g}", _FIX)
    return x


def _checked_list(given: list[Tensor], channels: int) -> list[Tensor]:
    """Returns images (C, H, W), each of its size, after the checks of `checked_images`.

    UsageError where they have several dtypes.
    """
    for one in given:
        if one.ndim != 3:
            raise UsageError(
                f"one image of a list has the shape {tuple(one.shape)}", "give (C, H, W) each"
            )
        checked_images(one, channels)
    if len({one.dtype for one in given}) > 1:
        raise UsageError(
            "these images have several dtypes", "give all as uint8, or all as float in [0, 1]"
        )
    return given


def scale(images: Tensor) -> Tensor:
    """Scales uint8, or float in [0, 1], of any shape to float32 in [-1, 1]; gradients pass.

    A float that is a byte divided by 255 in float32 becomes what the byte becomes, exactly: the
    product of the two rounds back to it for all 256.
    """
    if images.dtype == torch.uint8:
        return to_float(images)
    return images.float().clamp(0, 1) * 255 / 127.5 - 1


def pad(images: Tensor, multiple: int) -> Tensor:
    """Repeats the last row and column of (B, C, H, W) until H and W are multiples."""
    H, W = images.shape[2:]
    if H % multiple == 0 == W % multiple:
        return images
    return F.pad(images, (0, -W % multiple, 0, -H % multiple), mode="replicate")


def to_dtype(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales float in [-1, 1] to that dtype in [0, 1]. Values outside are cut off."""
    return images.float().clamp(-1, 1).add_(1).mul_(0.5).to(dtype)


def as_batch(
    given: Iterable[Any] | Tensor,
    channels: int,
    background: images.Color,
    value_range: images.Range | None = None,
) -> tuple[Batch, images.Range | None]:
    """Checks the images of a batch, and reads those that are files; returns them, and the values
    that became 0 and 255, where these are the same in all.

    Each is of a kind that `images.from_any` takes, or all are tensors (C, H, W); an array
    (n, H, W, C) or a tensor (n, C, H, W) holds n of them. Raises InputError, UsageError.
    """
    if isinstance(given, Tensor):
        return checked_images(given, channels), None
    if not _is_list(given):
        what = f"a {type(given).__name__}"
        if isinstance(given, np.ndarray):
            what = f"an array of {given.dtype} {given.shape}"
        raise UsageError(f"{what} is no list of images", "give a list, or use encode for one image")
    listed = list(given)
    if any(isinstance(image, Tensor) for image in listed):
        if not all(isinstance(image, Tensor) for image in listed):
            raise UsageError(
                "some of these images are tensors and some are not", "give all of one kind"
            )
        return _checked_list(listed, channels), None
    found = [_pixels(image, channels, background, value_range) for image in listed]
    ranges = {one_range for _, one_range in found}
    return [pixels for pixels, _ in found], ranges.pop() if len(ranges) == 1 else None


def _is_list(given: object) -> bool:
    if isinstance(given, np.ndarray):
        return given.ndim == 4
    one = isinstance(given, str | bytes | bytearray | memoryview | os.PathLike | dict)
    return isinstance(given, Iterable) and not one


def _pixels(
    image: Any, channels: int, background: images.Color, value_range: images.Range | None
) -> tuple[np.ndarray, images.Range | None]:
    """Converts an image of any kind but a tensor to uint8 (H, W, C); returns it, and the values
    that became 0 and 255.
    """
    ready = (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == channels
        and image.size > 0
    )
    if ready:  # bulk encoding gives such: no copy
        return image, None
    found = images.from_any(image, channels, background, value_range)
    if found.narrow is not None and found.range is not None and value_range is None:
        used, wanted = images.show_range(found.narrow), images.suggest([found.narrow])
        warnings.warn(
            f"an image has values {used}, and {images.show_range(found.range)} became 0 to 255: "
            f"give one range for all, such as value_range={wanted}",
            stacklevel=5,
        )
    return found.pixels, found.range


def size_of(image: np.ndarray | Tensor) -> tuple[int, int]:
    """Returns (H, W) of an array (H, W, C) or a tensor (C, H, W)."""
    H, W = image.shape[1:] if isinstance(image, Tensor) else image.shape[:2]
    return int(H), int(W)


def floats(batch: Batch, rows: slice, columns: slice, f: int, device: torch.device) -> Tensor:
    """Cuts a part out of the images of a batch: float32 (n, C, H, W) in [-1, 1], channels last,
    on the device, with the edge repeated until f divides H and W.
    """
    if isinstance(batch, Tensor):
        x = scale(pad(batch[:, :, rows, columns].to(device), f))
    elif isinstance(batch[0], Tensor):
        cut = [image[None, :, rows, columns] for image in batch]
        x = scale(torch.cat([pad(part.to(device), f) for part in cut]))  # type: ignore[union-attr]
    else:
        cropped = [p[rows, columns] for p in batch]
        padded = np.stack([images.pad(p, f) for p in cropped])  # type: ignore[arg-type]
        # padded is (n, H, W, C)
        x = to_float(torch.from_numpy(padded).to(device).permute(0, 3, 1, 2))
    return x.contiguous(memory_format=torch.channels_last)


def check_indices(indices: np.ndarray | Tensor, codebook_size: int, model: str) -> None:
    """Raises UsageError unless these are integers (n, L, h, w) from 0 to K - 1."""
    named, shape = indices.dtype, tuple(indices.shape)
    if isinstance(named, np.dtype):
        named = named.newbyteorder("=")  # any byte order
    dtype = str(named).removeprefix("torch.")
    if len(shape) != 4 or 0 in shape or not re.fullmatch(r"u?int\d+", dtype):
        raise UsageError(
            f"indices of {dtype} in the shape {shape} are no index grids",
            "give integers (n, L, h, w): images, levels, rows, columns",
        )
    if isinstance(indices, Tensor):
        indices = indices.to(torch.int64)  # torch has no min of uint16
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= codebook_size:
        raise UsageError(
            f"these indices go from {low} to {high}",
            f"the model {model} has 0 to {codebook_size - 1}",
        )


def as_sizes(sizes: Iterable[Any]) -> tuple[Any, ...]:
    """Returns pairs (H, W) of any integers, or the rows of an array, as tuples of ints; what is no
    integer stays as it is.
    """
    pairs = [tuple(size) if isinstance(size, Iterable) else size for size in sizes]
    return tuple(
        tuple(int(side) if is_integer(side) else side for side in pair)
        if isinstance(pair, tuple)
        else pair
        for pair in pairs
    )


def as_size(size: Any) -> tuple[int, int]:
    """Returns (H, W), of a pair or of one side for both. Raises UsageError."""
    sides = (size, size) if is_integer(size) else size
    if (
        not isinstance(sides, list | tuple | np.ndarray)
        or len(sides) != 2
        or not all(is_integer(side) for side in sides)
    ):
        raise UsageError(f"{size!r} is no size", "give (height, width) in pixels, or one side")
    return int(sides[0]), int(sides[1])


def is_integer(value: object) -> bool:
    """Whether it is an int of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Whether it is an integer of 1 or more."""
    return is_integer(value) and value > 0


def parse_keep(keep: str, h: int, w: int) -> tuple[slice, slice]:
    """Returns the rows and columns of an h x w grid that SIDE:PART keeps: at least one, and never
    all.

    Raises UsageError.
    """
    side, _, number = str(keep).partition(":")
    try:
        part = float(number)
    except ValueError:
        part = -1.0
    if side not in SIDES or not 0 < part < 1:
        raise UsageError(
            f"cannot keep {keep!r}", "write it like top:0.5; sides are top, bottom, left and right"
        )
    length = h if side in ("top", "bottom") else w
    if length == 1:
        raise UsageError(
            f"nothing is left to invent: the grid is {h} high and {w} wide",
            "complete a larger image, or keep another side",
        )
    count = min(max(1, round(part * length)), length - 1)
    whole = slice(None)
    return {
        "top": (slice(0, count), whole),
        "bottom": (slice(h - count, h), whole),
        "left": (whole, slice(0, count)),
        "right": (whole, slice(w - count, w)),
    }[side]
