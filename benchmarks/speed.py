"""Pictures and megapixels a second of encoding, decoding and training, beside the machine's floor for the same arithmetic.

    python benchmarks/speed.py [--model photo] [--side 256] [--batch 1] [--rounds 5]

The floor is the time that one large matrix product with as many multiply-adds takes, in the same run, alternating; each figure is
the median of `rounds`.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from vqtok import load
from vqtok.train.plan import multiply_adds_by_part


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = load(options.model, "cpu")
    side, batch = options.side, options.batch
    pictures = [np.random.default_rng(i).integers(0, 256, (side, side, model.config.channels), np.uint8) for i in range(batch)]
    codes = model.encode_batch(pictures)
    costs = multiply_adds_by_part(model.network)
    a = torch.randn(1024, 1024)
    print(f"{options.model}, {batch} of {side}x{side}, {torch.get_num_threads()} threads, fp32")
    for name, call, cost in (
        ("encode", lambda: model.encode_batch(pictures), costs["encoder"]),
        ("decode", lambda: model.decode_all(codes), costs["decoder"]),
    ):
        products = max(1, round(cost * batch * side * side / 1024**3))
        times, floors = [], []
        for _ in range(options.rounds + 1):
            times.append(seconds(call))
            floors.append(seconds(lambda k=products: [a @ a for _ in range(k)]))
        t, f = statistics.median(times[1:]), statistics.median(floors[1:]) * cost * batch * side * side / (products * 1024**3)
        rate = f"{batch / t:.2f} pictures/s, {batch * side * side / t / 1e6:.2f} megapixels/s"
        print(f"{name}: {rate}, {cost / 1e3:.0f} k multiply-adds a pixel, {t / f:.2f} times the floor")


if __name__ == "__main__":
    main()
