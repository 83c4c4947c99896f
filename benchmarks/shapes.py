"""Measures samples of a model of the built-in shapes: `python benchmarks/shapes.py MODEL`.

MODEL is what a bare `vqtok train` leaves. A classifier is trained on real shapes, and says in how
many samples it sees the shape asked for: drawn as the prior's file asks, and with each guidance
that is given. Also in how many decoded real shapes: what samples can reach.
"""

import argparse
import time

import numpy as np

from vqtok import codec
from vqtok.data.shapes import Shapes
from vqtok.evaluate import classifier
from vqtok.evaluate.samples import draw


def pool(shapes: Shapes) -> classifier.Pool:
    numbers = np.arange(len(shapes))
    labels = np.array([shapes.label(i) for i in numbers.tolist()])
    return classifier.Pool(shapes.images(numbers), labels, shapes.labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=600, help="samples")
    parser.add_argument("--steps", type=int, default=800, help="of the classifier")
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0])
    options = parser.parse_args()
    model = codec.load(options.model)
    classifier.STEPS = options.steps
    judge = classifier.train_classifier(pool(Shapes(20_000, seed=0)), mirror=True)
    test = pool(Shapes(2_000, seed=1))
    right = (judge.judge(test.pixels)[0] == test.targets).mean()
    print(f"classifier, {options.steps} steps: {right:.1%} of 2,000 new shapes", flush=True)
    decoded = np.stack(model.decode_all(model.encode_batch(list(test.pixels))))
    print(f"decoded: {(judge.judge(decoded)[0] == test.targets).mean():.1%}", flush=True)
    for guidance in (None, *options.guidance):
        started = time.process_time()
        images, asked = draw(model, options.n, seed=0, guidance=guidance)
        seen = judge.judge(np.stack(images))[0]
        parts = ", ".join(
            f"{name} {(seen[asked == k] == k).mean():.0%}" for k, name in enumerate(model.labels)
        )
        print(
            f"{'as its file asks' if guidance is None else f'guidance {guidance:g}'}: "
            f"{(seen == asked).mean():.1%} of {options.n} samples "
            f"({parts}), {time.process_time() - started:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
