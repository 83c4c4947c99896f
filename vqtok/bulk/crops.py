"""Resizes, crops, moves and mirrors images before they are encoded.

One rule resizes everything: Lanczos over all pixels that a new pixel stands for (antialiased), in
one step from the file's pixels, as in training.
"""

import re
import zlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vqtok.errors import InputError, UsageError
from vqtok.images.read import MAX_PIXELS, DecodedImage, checked

TEN_MARGIN = 1.1  # of `ten`: short side of what the five crops are taken from, in crops
RANDOM_LEAST = 0.8  # of `random`: side of the smallest square, in short sides of the image
MOVE_MOST = 16  # of `moved`: the part of the short side by which a copy is moved at most
_COPIES_MAX = 1000
_SIDE_MAX = 1 << 16
_SCALE, _TOP, _LEFT, _MOVE = range(101, 105)  # streams of random numbers
_CROP = re.compile(r"center|ten|random:(\d{1,6})")
# a box in an image: left, top, right, bottom, in pixels
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Crops:
    """Settings for resizing, cropping, moving and mirroring; the default leaves an image as it is.

    - `size`: squares of that side, of which `crop` says where they lie and how many there are:
      `center`, the largest square in the middle; `ten`, the corners and the middle of a square of
      1.1 sides, and the same mirrored; `random:N`, squares of 0.8 to 1 times the image's short
      side, anywhere, by `seed` and the image's name
    - `max_size`: the long side is shrunk to that, where it is longer
    - `moved`: each of these is followed, after all others, by that many copies, moved by up to a
      sixteenth of the short side along each axis, by `seed` and the image's name. What is missing
      at an edge is the mirror image of what is there
    - `flip`: each copy is followed, after all others, by its mirror image
    """

    size: int | None = None
    crop: str = "center"
    flip: bool = False
    max_size: int | None = None
    seed: int = 0
    moved: int = 0

    @classmethod
    def of(
        cls,
        size: int | None = None,
        crop: str | None = None,
        flip: bool = False,
        max_size: int | None = None,
        seed: int | None = None,
        moved: int = 0,
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
        if not 0 <= moved <= _COPIES_MAX:
            raise UsageError(f"--moved is {moved}", f"give 0 to {_COPIES_MAX} copies")
        if seed is not None and not (moved or chosen.startswith("random")):
            raise UsageError(
                "--seed is for random crops and moved copies",
                "give --crop random:N or --moved N, or leave it out",
            )
        return cls(size, chosen, flip, max_size, seed or 0, moved)

    @property
    def is_none(self) -> bool:
        """Whether images stay as they are."""
        return self == AS_THEY_ARE

    @property
    def copies(self) -> int:
        """Returns how many images are made of each."""
        crops = 5 if self.crop == "ten" else int(self.crop.partition(":")[2] or 1)
        return crops * (1 + self.moved) * (1 + self.mirrored)

    @property
    def mirrored(self) -> bool:
        """Whether mirror images are among the copies."""
        return self.flip or self.crop == "ten"

    def describe(self) -> str:
        """Returns all settings in a few words, '' for none; equal settings give equal words."""
        words = [
            f"size {self.size}, {self.crop}" if self.size is not None else "",
            f"{self.moved} moved" if self.moved else "",
            f"seed {self.seed}" if self.moved or self.crop.startswith("random") else "",
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
        if self.moved:
            found = np.concatenate([found, self._move(found, name)])
        if self.mirrored:
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
        count = int(self.crop.partition(":")[2])
        scale, down, across = (self._draw(stream, name, count) for stream in (_SCALE, _TOP, _LEFT))
        sides = short * (RANDOM_LEAST + (1 - RANDOM_LEAST) * scale)
        boxes = zip(sides, across * (W - sides), down * (H - sides), strict=True)
        return [(float(x), float(y), float(x + s), float(y + s)) for s, x, y in boxes]

    def _move(self, found: np.ndarray, name: str) -> np.ndarray:
        """Returns copies of images uint8 (n, H, W, C), moved: uint8 (n * moved, H, W, C).

        Raises InputError where they would hold more pixels than an image may have.
        """
        n, H, W, _ = found.shape
        if n * self.moved * H * W > MAX_PIXELS:
            raise InputError(
                f"{n * self.moved:,} moved copies of {W}x{H} hold more than {MAX_PIXELS:,} pixels",
                "give fewer with --moved, or --size or --max-size",
            )
        most = max(1, min(H, W) // MOVE_MOST)
        steps = 2 * most + 1
        # every place in a square but its middle, which moves nothing
        place = (self._draw(_MOVE, name, n * self.moved) * (steps * steps - 1)).astype(np.int64)
        place += place >= steps * steps // 2
        wide = np.pad(found, ((0, 0), (most, most), (most, most), (0, 0)), "symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(wide, (H, W), (1, 2))  # n, y, x, C, H, W
        moved = windows[np.arange(n).repeat(self.moved), place // steps, place % steps]
        return np.ascontiguousarray(moved.transpose(0, 2, 3, 1))

    def _draw(self, stream: int, name: str, count: int) -> np.ndarray:
        """Draws numbers from 0 to 1, float64 (count,), by seed and name."""
        from vqtok.data import counter_rng  # here: the package brings all readers of data sets

        first = np.uint64(zlib.crc32(name.encode("utf-8", "surrogateescape"))) << np.uint64(32)
        return counter_rng.uniform(self.seed, stream, first + np.arange(count, dtype=np.uint64))


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
