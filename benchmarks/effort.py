"""What `encode --effort` gains: PSNR, LPIPS, compact bits per pixel and seconds, by effort.

    python benchmarks/effort.py ../shared/data/dev/*.png --crop 256 --lpips lpips_alex.safetensors

Each image is encoded at each effort with the same number of levels; `--crop` takes the middle
only, as the highest efforts take some 100 times as long as the lowest. Means over the images.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import vqtok
from vqtok import codes, images, metrics
from vqtok.losses.lpips import LPIPS, load_lpips


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--efforts", default="0,1,2,3,4,6,9")
    parser.add_argument("--goals", default="looks,psnr")
    parser.add_argument("--crop", type=int, default=0)
    parser.add_argument("--compact", action="store_true", help="mind the bytes of compact files")
    parser.add_argument("--lpips", type=Path)
    given = parser.parse_args()
    model = vqtok.load(given.model)
    lpips = load_lpips(given.lpips) if given.lpips else None
    pixels = [middle(images.from_any(path).pixels, given.crop) for path in given.images]
    print(f"{len(pixels)} images, {given.levels} levels, {torch.get_num_threads()} threads")
    print(f"{'effort':>6}  {'goal':5}  {'PSNR':>6}  {'LPIPS':>6}  {'bpp':>6}  {'s':>7}")
    for effort in map(int, given.efforts.split(",")):
        for goal in given.goals.split(",") if effort > 3 else ["-"]:
            begin = time.process_time()
            made = [
                model.encode(
                    p,
                    levels=given.levels,
                    effort=effort,
                    goal=goal.replace("-", "looks"),
                    compact=given.compact,
                )
                for p in pixels
            ]
            seconds = time.process_time() - begin
            rows = [measure(model, *pair, lpips) for pair in zip(made, pixels, strict=True)]
            psnr, distance, bpp = np.mean(rows, 0)
            each = seconds / len(pixels)
            print(f"{effort:6}  {goal:5}  {psnr:6.2f}  {distance:6.4f}  {bpp:6.4f}  {each:7.2f}")


def middle(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image (H, W, C), at most side x side; all of it for side 0."""
    for axis, length in enumerate(image.shape[:2]):
        start = max(0, (length - side) // 2) if side else 0
        image = image.take(range(start, min(length, start + (side or length))), axis)
    return image


def measure(
    model: vqtok.Model, made: vqtok.Codes, image: np.ndarray, lpips: LPIPS | None
) -> tuple[float, float, float]:
    """PSNR, LPIPS (NaN without weights) and bits per pixel of the compact file."""
    decoded = model.decode(made)
    a, b = (torch.from_numpy(x).permute(2, 0, 1)[None] / 127.5 - 1 for x in (decoded, image))
    with torch.inference_mode():
        distance = float(lpips(a, b)) if lpips else float("nan")
    size = len(codes.Encoded.of(made, model.pack(made)).data)
    return metrics.psnr(decoded, image), distance, 8 * size / made.pixels


if __name__ == "__main__":
    main()
