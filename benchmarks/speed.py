"""Encoding and decoding images in memory:
megapixels a second, whether a pixel of a large image costs more, and the machine's floor.

    python benchmarks/speed.py [--model photo] [--sizes 256x256 768x512 2000x2000] [--batch 1]
        [--rounds 5] [--threads 2]

The floor is the time that one large matrix product with as many multiply-adds takes.
All take turns in one run; each figure is the median of `rounds`.
"""

import argparse

import numpy as np
import torch
from timing import Call, alternate, machine, table

from vqtok import load
from vqtok.train.plan import multiply_adds_by_part

FLOOR_SIDE = 1024
FLOOR_PRODUCTS = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="photo")
    parser.add_argument(
        "--sizes", nargs="+", default=["256x256", "768x512", "2000x2000"], help="WIDTHxHEIGHT"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model, "cpu")
    costs = multiply_adds_by_part(model.network)
    a = torch.randn(FLOOR_SIDE, FLOOR_SIDE)
    calls: dict[str, Call] = {"floor": lambda: [a @ a for _ in range(FLOOR_PRODUCTS)]}
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        draw = np.random.default_rng(0)
        images = [
            draw.integers(0, 256, (height, width, model.config.channels), np.uint8)
            for _ in range(options.batch)
        ]
        codes = model.encode_batch(images)
        calls[f"encode {size}"] = lambda images=images: model.encode_batch(images)
        calls[f"decode {size}"] = lambda codes=codes: model.decode_all(codes)
    times = alternate(calls, options.rounds)
    multiply_add = times["floor"] / (FLOOR_PRODUCTS * FLOOR_SIDE**3)
    rows = []
    for part, step in (("encoder", "encode"), ("decoder", "decode")):
        each = {
            size: times[f"{step} {size}"] / (options.batch * pixels(size)) for size in options.sizes
        }  # seconds a pixel
        least = min(each.values())
        for size, taken in each.items():
            cells = (
                f"{1e-6 / taken:.2f}",
                f"{taken * 1e9:.0f}",
                f"{taken / least:.2f}",
                f"{taken / (costs[part] * multiply_add):.2f}",
            )
            rows.append([f"{step} {size}", f"{times[f'{step} {size}']:.3f}", *cells])
    print(
        f"{machine()}, fp32, {options.model}, {options.batch} at a time; multiply-adds a pixel: "
        + ", ".join(f"{part} {costs[part] / 1e3:.0f} k" for part in ("encoder", "decoder"))
        + "\n"
    )
    print(
        table(
            ["", "seconds", "megapixels/s", "ns a pixel", "times the least", "times the floor"],
            rows,
        )
    )


def pixels(size: str) -> int:
    width, height = map(int, size.split("x"))
    return width * height


if __name__ == "__main__":
    main()
