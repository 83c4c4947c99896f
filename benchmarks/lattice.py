"""How much of a lattice a model's even areas show, in gray levels, by the number of its levels.

    python benchmarks/lattice.py IMAGES... [--model photo] [--levels 1,8] [--period 4]

The error of a reconstruction (mean over its channels) is taken at all places whose 15x15
surroundings in the original deviate by less than 2 gray levels, less its own mean over 15x15, and
averaged by (row mod 4, column mod 4) over all images. The figure is the largest of these 16 means
less the smallest: 0 where no place of the lattice is favored.
"""

import argparse
from pathlib import Path

import numpy as np

import vqtok
from vqtok import images

WINDOW = 15
EVEN = 2.0  # gray levels: the largest deviation of surroundings that count as even


def box_mean(x: np.ndarray) -> np.ndarray:
    """The mean over WINDOW x WINDOW of x (H, W), (H - WINDOW + 1, W - WINDOW + 1), in float64."""
    sums = np.pad(x.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    n = WINDOW
    return (sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]) / n**2


def phases(original: np.ndarray, decoded: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the error and numbers of places by (row, column) mod period;
    images are uint8 (H, W, C).
    """
    gray = original.astype(np.float64).mean(2)
    error = (decoded.astype(np.float64) - original).mean(2)
    even = box_mean(gray**2) - box_mean(gray) ** 2 < EVEN**2
    edge = WINDOW // 2
    rest = error[edge:-edge, edge:-edge] - box_mean(error)
    rows, columns = (np.arange(edge, edge + n) % period for n in even.shape)
    place = (rows[:, None] * period + columns)[even]
    sums = np.bincount(place, rest[even], period**2)
    return sums, np.bincount(place, minlength=period**2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model", default="photo")
    parser.add_argument("--levels", default="1,8")
    parser.add_argument("--period", type=int, default=4)
    options = parser.parse_args()
    model = vqtok.load(options.model)
    levels = [int(n) for n in options.levels.split(",")]
    totals = {n: np.zeros((2, options.period**2)) for n in levels}
    for path in options.images:
        original = images.read_image(Path(path)).pixels
        codes = model.encode(original)
        for n in levels:
            totals[n] += phases(original, model.decode(codes, levels=n), options.period)
    for n, (sums, counts) in totals.items():
        means = sums / np.maximum(counts, 1)
        print(
            f"{n} levels: {means.max() - means.min():.3f} gray levels, "
            f"{int(counts.sum()):,} even places"
        )


if __name__ == "__main__":
    main()
