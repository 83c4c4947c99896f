"""Hostile files: mutated codes, weights, images and archives, each read in a
forked worker under a watchdog.

    python benchmarks/fuzz.py --kind codes --count 200000 --seed 0 # plain, packed and coded,
        by a prior made on the spot
    python benchmarks/fuzz.py --kind coded --count 10000 # streams coded by a bundled
        model's prior (--model photo)
    python benchmarks/fuzz.py --kind bombs --count 200 # codes files that unpack to many MB
    python benchmarks/fuzz.py --kind weights --count 50000
    python benchmarks/fuzz.py --kind images --count 20000
    python benchmarks/fuzz.py --kind archives --count 10000
    python benchmarks/fuzz.py --kind codes --seed 0 --first 4711 --count 1 --keep /tmp/case # one
        case again, and its bytes

A case passes where it gives a valid result or a VqtokError, within 5 s of processor time (beyond
what the decoding of the grid takes that a coded stream claims) and twice the memory that an honest
file of its claims needs (and 16 MiB), and writes nothing.
For codes with a checksum a valid result is one equal to an original. Exits 1 on a finding.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import machine, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from attacks import harness
from attacks.archives import Archives
from attacks.codes_files import CodesBombs, CodesFiles
from attacks.image_files import Images
from attacks.weights_files import WeightsFiles

from vqtok import codec


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kind",
        choices=("codes", "coded", "bombs", "weights", "pictures", "archives"),
        required=True,
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--model", default="photo", help="of --kind coded")
    parser.add_argument("--keep", type=Path, help="write the bytes of the first case to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vqtok-fuzz-") as folder:
        kind = _kind(options.kind, options.model, Path(folder))
        if options.keep:
            options.keep.write_bytes(harness.make(kind, options.seed, options.first).data)
        begin = time.perf_counter()
        report = harness.fuzz(kind, options.count, options.seed, options.first, _progress(begin))
    show(report, f"{options.kind}, seed {options.seed}", time.perf_counter() - begin)
    sys.exit(1 if report.findings else 0)


def _coded(model: str) -> CodesFiles:
    """Two images' codes at three levels; every stream is coded by the model's own prior."""
    loaded = codec.load(model)
    assert loaded.entropy_coder is not None, "the model has no entropy prior"
    rows, columns = np.mgrid[:64, :96]
    images = [
        np.stack([rows * a, columns * b, rows + columns], -1).astype(np.uint8)
        for a, b in ((2, 1), (1, 2))
    ]
    kind = CodesFiles(loaded.entropy_coder, [loaded.encode(image, levels=3) for image in images])
    coded = [stream for stream in kind.streams if stream[0] & 1]
    assert coded
    kind.streams, kind.compacts = coded, [one for one in kind.compacts if one.prior]
    return kind


def _kind(name: str, model: str, folder: Path) -> harness.Kind:
    makers: dict[str, Callable[[], harness.Kind]] = {
        "codes": CodesFiles,
        "coded": lambda: _coded(model),
        "bombs": CodesBombs,
        "weights": lambda: WeightsFiles(folder),
        "pictures": Images,
        "archives": lambda: Archives(folder),
    }
    return makers[name]()


def _progress(begin: float) -> Callable[[int, harness.Report], None]:
    last, told = [begin], [0]

    def tell(number: int, report: harness.Report) -> None:
        for found in report.findings[told[0] :]:
            told[0] += 1
            print(f"  FOUND in case {found[0]}: {found[1]}", file=sys.stderr, flush=True)
        if time.perf_counter() - last[0] > 30:
            last[0] = time.perf_counter()
            rate = report.total / (last[0] - begin)
            print(
                f"  {report.total} cases, {rate:.0f}/s, "
                f"{len(report.findings)} findings, at {number}",
                file=sys.stderr,
                flush=True,
            )

    return tell


def show(report: harness.Report, title: str, seconds: float) -> None:
    rows = [[outcome, str(count)] for outcome, count in report.outcomes.most_common()]
    print(
        machine(),
        f"\n{title}: {report.total} cases in {seconds:.0f} s, {report.total / seconds:.0f}/s\n",
    )
    print(table(["outcome", "cases"], rows))
    print(f"\nslowest: case {report.slowest[1]}, {report.slowest[0]:.2f} s of processor time")
    print(
        f"most memory: case {report.largest[1]}, "
        f"{report.largest[0] / 2**20:.0f} MiB beyond what the worker held before"
    )
    print(f"findings: {len(report.findings)}")
    for number, what in report.findings[:50]:
        print(f"  case {number}: {what}")


if __name__ == "__main__":
    main()
