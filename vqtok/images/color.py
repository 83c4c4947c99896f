"""Converts color modes, profiles and transparency to 8-bit gray or sRGB, and parses names of
colors.
"""

import io
import re
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from vqtok.errors import UsageError

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Splits an image into L, RGB, CMYK or LAB, and its transparency (mode L, 255 opaque) where it
    has some.
    """
    if not image.has_transparency_data:
        return image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB"), None
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = image.getchannel("A")
    return image.convert("RGB"), alpha if alpha.getextrema() != (255, 255) else None


def to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Converts an image in L or RGB to sRGB; a profile that is broken, or of another kind of color,
    counts as none.
    """
    transform = _transform(profile or b"", image.mode) if profile or image.mode == "LAB" else None
    if transform is not None:
        from PIL import ImageCms

        notes.append("colors converted to sRGB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None  # None only for work in place
        return converted.convert("L") if image.mode == "L" else converted
    if image.mode == "CMYK":
        notes.append("CMYK turned into RGB without a color profile")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Any | None:
    """Returns PIL's transform from a color profile to sRGB; None when it changes nothing, is
    broken, or PIL has no ImageCms.

    Whether the profile is sRGB is seen by what it does to 4913 colors:
    descriptions are not to be trusted.
    """
    try:
        from PIL import ImageCms

        given = (
            ImageCms.createProfile("LAB")
            if mode == "LAB"
            else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        )
        transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode in ("L", "RGB"):
            axis = np.linspace(0, 255, 17).astype(np.uint8)
            cube = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(17, -1, 3)  # (17, 289, 3)
            probe = Image.fromarray(cube).convert(mode)
            after = np.asarray(ImageCms.applyTransform(probe, transform), dtype=int)
            if np.abs(after - np.asarray(probe.convert("RGB"), dtype=int)).max() <= 2:
                return None
        return transform
    except Exception:  # a broken profile, of a kind unknown to littlecms, or for another mode
        return None


def lay_over(
    image: Image.Image, alpha: Image.Image | None, background: Color, notes: list[str]
) -> Image.Image:
    if alpha is None:
        return image
    notes.append(f"transparency laid over {_color_name(background)}")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=alpha)
    return canvas


def _color_name(color: Color) -> str:
    names = {WHITE: "white", (0, 0, 0): "black"}
    return names.get(color, "#{:02x}{:02x}{:02x}".format(*color))


def parse_color(text: str) -> Color:
    """Parses '#fff', '#ffffff', a CSS name or 'r,g,b' to (red, green, blue). Raises UsageError."""
    parts = re.fullmatch(r"\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*", text)
    try:
        color = tuple(map(int, parts.groups())) if parts else ImageColor.getrgb(text.strip())
    except ValueError:
        color = ()
    if len(color) != 3 or max(color) > 255:
        raise UsageError(f"{text!r} is no color", "write it like white, #ffffff or 255,255,255")
    return color[0], color[1], color[2]
