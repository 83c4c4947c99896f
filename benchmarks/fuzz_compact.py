"""Mutates the `stream` of a compact file of a real model: each must give the same codes or a FormatError or ModelError.

    python benchmarks/fuzz_compact.py [--model photo] [--count 10000] [--seed 0]
"""

import argparse
import collections
import resource
import time

import numpy as np

from vqtok import codec
from vqtok.codes.compact import from_stream, to_stream
from vqtok.errors import FormatError, ModelError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = codec.load(options.model)
    coder, draw = model.entropy_coder, np.random.default_rng(options.seed)
    assert coder is not None, "the model has no entropy prior"
    rows, columns = np.mgrid[:64, :96]
    pictures = [np.stack([rows * a, columns * b, rows + columns], -1).astype(np.uint8) for a, b in ((2, 1), (1, 2))]
    originals = [model.encode(picture, levels=3) for picture in pictures]
    streams = [to_stream(coder.pack(one)) for one in originals]
    assert all(from_stream(stream).prior for stream in streams)
    told: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for number in range(options.count):
        stream = bytearray(streams[number % 2])
        at = int(draw.integers(len(stream)))
        kind = ("flipped", "cut", "extended")[number % 3]
        if kind == "flipped":
            stream[at] ^= 1 << int(draw.integers(8))
        elif kind == "cut":
            del stream[at : at + int(draw.integers(1, 9))]
        else:
            stream[at:at] = draw.bytes(int(draw.integers(1, 9)))
        begin = time.perf_counter()
        try:
            found = coder.unpack(from_stream(bytes(stream)))
            same = np.array_equal(found.indices, originals[number % 2].indices)
            told["the same indices" if same else "OTHER INDICES"] += 1
        except (FormatError, ModelError) as error:
            told[type(error).__name__] += 1
        slowest = max(slowest, time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.count} mutations, seed {options.seed}: {dict(told)}; slowest {slowest:.3f} s; peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
