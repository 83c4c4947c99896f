"""Resizes, crops and mirrors images before they are encoded.

One rule resizes everything: Lanczos over all pixels that a new pixel stands for (antialiased), in
one step from the file's pixels, as in training.
"""

import re
import zlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vqtok.errors import UsageError
from vqtok.images.read import DecodedImage, checked

TEN_MARGIN = 1.1  # of `ten`: short side of what the five crops are taken from, in crops
RANDOM_LEAST = 0.8  # of `random`: side of the smallest square, in short sides of the image
_COPIES_MAX = 1000
_SIDE_MAX = 1 << 16
_SCALE, _TOP, _LEFT = range(101, 104)  # streams of random numbers
_CROP = re.compile(r"center|ten|random:(\d{1,6})")
# a box in an image: left, top, right, bottom, in pixels
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Crops:
    """Settings for resizing, cropping and mirroring; the default leaves an image as it is.

    - `size`: squares of that side, of which `crop` says where they lie and how many there are:
      `center`, the largest square in the middle; `ten`, the corners and the middle of a square of
      1.1 sides, and the same mirrored; `random:N`, squares of 0.8 to 1 times the image's short
      side, anywhere, by `seed` and the image's name
    - `max_size`: the long side is shrunk to that, where it is longer
    - `flip`: each copy is followed, after all others, by its mirror image
    """

    size: int | None = None
    crop: str = "center"
    flip: bool = False
    max_size: int | None = None
    seed: int = 0

    @classmethod
    def of(
        cls,
        size: int | None = None,
        crop: str | None = None,
        flip: bool = False,
        max_size: int | None = None,
        seed: int | None = None,
    ) -> "Crops":
        """Makes settings of what the command takes. Raises UsageError."""
        for name, side in (("--size", size), ("--max-size", max_size)):
            if side is not None and not 1 <= side <= _SIDE_MAX:
                raise UsageError(f"{name} is {side}", f"give 1 to {_SIDE_MAX} pixels")
        if crop is not None and size is None:
            raise UsageError("--crop does not say how large", "give --size too, like --size 256")
        if size is not None and max_size is not None:
            raise UsageError(
                "--max-size does not go with --size", "leave it out: all crops have one size"
            )
        chosen = crop or "center"
        match = _CROP.fullmatch(chosen)
        if match is None or (match[1] and not 1 <= int(match[1]) <= _COPIES_MAX):
            raise UsageError(
                f"--crop is {chosen!r}",
                f"choose center, ten, or random:N with N from 1 to {_COPIES_MAX}",
            )
        if chosen == "ten" and flip:
            raise UsageError(
                "--crop ten holds the mirrored crops already", "leave --flip out: it adds them"
            )
        if seed is not None and not chosen.startswith("random"):
            raise UsageError("--seed is for random crops", "give --crop random:N, or leave it out")
        return cls(size, chosen, flip, max_size, seed or 0)

    @property
    def is_none(self) -> bool:
        """Whether images stay as they are."""
        return self == AS_THEY_ARE

    @property
    def copies(self) -> int:
        """Returns how many images are made of each."""
        if self.crop == "ten":
            return 10
        return (int(self.crop.partition(":")[2] or 1)) * (1 + self.flip)

    def describe(self) -> str:
        """Returns all settings in a few words, '' for none; equal settings give equal words."""
        words = [
            f"size {self.size}, {self.crop}" if self.size is not None else "",
            f"seed {self.seed}" if self.crop.startswith("random") else "",
            "flip" if self.flip else "",
            f"at most {self.max_size}" if self.max_size is not None else "",
        ]
        return ", ".join(filter(None, words))

    def apply(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """Returns the copies, uint8 (n, H, W, C), of an image uint8 (H, W, C).

        `name` draws the random crops: it does not matter which images are encoded with it.
        """
        H, W = pixels.shape[:2]
        if self.size is not None:
            found = _resize(pixels, self._boxes(H, W, name), (self.size, self.size))
        elif self.max_size is not None and max(H, W) > self.max_size:
            scale = self.max_size / max(H, W)
            small = max(1, round(H * scale)), max(1, round(W * scale))
            found = _resize(pixels, [(0, 0, W, H)], small)
        else:
            found = pixels[None]
        if self.flip or self.crop == "ten":
            return np.concatenate([found, found[:, :, ::-1]])
        return found

    def cut(self, image: DecodedImage, name: str) -> DecodedImage:
        """Returns an image with its copies (n, H, W, C) as pixels; without settings, the image as
        it is.
        """
        if self.is_none:
            return image
        note = self.note(*image.pixels.shape[:2])
        notes = (*image.notes, note) if note else image.notes
        return replace(image, pixels=self.apply(image.pixels, name), notes=notes)

    def note(self, H: int, W: int) -> str:
        """Returns what to say of an image that the crops enlarge; '' for others."""
        largest = min(H, W) / (TEN_MARGIN if self.crop == "ten" else 1)
        enlarged = self.size is not None and largest < self.size
        return f"enlarged from {W}x{H}" if enlarged else ""

    def _boxes(self, H: int, W: int, name: str) -> list[Box]:
        """Returns where the crops lie in an image of H x W, followed by their mirror images."""
        short = min(H, W)
        left, top = (W - short) / 2, (H - short) / 2
        if self.crop == "center":
            # on whole pixels: an image that has the size is copied
            left, top = float(int(left)), float(int(top))
            return [(left, top, left + short, top + short)]
        if self.crop == "ten":
            side = short / TEN_MARGIN
            far = short - side
            places = [(0, 0), (far, 0), (0, far), (far, far), (far / 2, far / 2)]
            return [(left + x, top + y, left + x + side, top + y + side) for x, y in places]
        from vqtok.data import counter_rng  # here: the package brings all readers of data sets

        count = int(self.crop.partition(":")[2])
        at = (np.uint64(zlib.crc32(name.encode("utf-8", "surrogateescape"))) << np.uint64(32)) + (
            np.arange(count, dtype=np.uint64)
        )
        scale, down, across = (
            counter_rng.uniform(self.seed, stream, at) for stream in (_SCALE, _TOP, _LEFT)
        )
        sides = short * (RANDOM_LEAST + (1 - RANDOM_LEAST) * scale)
        boxes = zip(sides, across * (W - sides), down * (H - sides), strict=True)
        return [(float(x), float(y), float(x + s), float(y + s)) for s, x, y in boxes]


def _resize(pixels: np.ndarray, boxes: list[Box], size: tuple[int, int]) -> np.ndarray:
    """Returns the parts of an image uint8 (H, W, C), each at the same size (h, w): uint8 (n, h, w,
    C).
    """
    H, W, C = pixels.shape
    h, w = size
    image = Image.fromarray(checked(pixels))
    found = np.empty((len(boxes), h, w, C), np.uint8)
    for place, (left, top, right, bottom) in zip(found, boxes, strict=True):
        box = (max(left, 0.0), max(top, 0.0), min(right, float(W)), min(bottom, float(H)))
        if right - left == w and bottom - top == h and left == int(left) and top == int(top):
            place[:] = pixels[int(top) : int(top) + h, int(left) : int(left) + w]
            continue
        small = image.resize((w, h), Image.Resampling.LANCZOS, box=box)
        place[:] = np.asarray(small).reshape(h, w, C)
    return found


AS_THEY_ARE = Crops()
