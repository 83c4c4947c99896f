"""Time and bits of coding a photograph's grids with a model's integer prior, beside
the same network in floats.

    python benchmarks/coding.py [--model photo] [--height 512]
        [--width 768] [--pictures 1] [IMAGE]

Without an image the grids are random: the work is the same, the bits mean nothing.
Prints medians of five.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from vqtok import codec, model_registry, weights
from vqtok.integer_prior.arithmetic import EMBEDDING_STEP
from vqtok.priors import IntegerPrior
from vqtok.priors.integer import IntegerLinear


def median(run, times: int = 5) -> float:
    taken = []
    for _ in range(times + 1):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def float_bits(
    coder: codec.EntropyCoder, tensors: dict[str, np.ndarray], indices: np.ndarray
) -> tuple[float, float]:
    """Bits an index by the network with rounding and without:
    the same weights, activations and logits left as they are.
    """
    network = IntegerPrior(coder.config).eval()
    steps = {
        name: (module.step, module.product_step)
        for name, module in network.named_modules()
        if isinstance(module, IntegerLinear)
    }
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            module, _, part = name.rpartition(".")
            step = EMBEDDING_STEP if name == "embedding" else steps[module][part == "bias"]
            parameter.copy_(torch.from_numpy(tensors[name].astype(np.float32)) * 2.0**-step)
        rounded = float(network.bits(torch.from_numpy(indices)).mean())
        network.quantize = False
        return rounded, float(network.bits(torch.from_numpy(indices)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?")
    parser.add_argument("--model", default="photo")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--pictures", type=int, default=1)
    options = parser.parse_args()
    folder = model_registry.find_model(options.model)
    coder = codec.EntropyCoder(folder)
    assert folder.entropy is not None
    if options.image:
        indices = codec.load(options.model).encode(options.image).indices.astype(np.int64)
    else:
        f = weights.tokenizer_config(folder.tokenizer).downsample
        shape = (1, coder.config.levels, -(-options.height // f), -(-options.width // f))
        indices = np.random.default_rng(0).integers(0, coder.config.codebook_size, shape)
    indices = indices.repeat(options.pictures, axis=0)
    streams = coder.prior.encode(indices)
    assert (coder.prior.decode(streams, *indices.shape[1:]) == indices).all()
    encode = median(lambda: coder.prior.encode(indices))
    decode = median(lambda: coder.prior.decode(streams, *indices.shape[1:]))
    rounded, plain = float_bits(
        coder, weights.load_weights(folder.entropy, "entropy").tensors, indices[:1]
    )
    print(
        f"{folder.name}: grid {indices.shape}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    print(f"largest sum {coder.prior.largest_sum:,} of {1 << 24:,}; prior {coder.fingerprint}")
    print(
        f"encode {encode:.3f} s, decode {decode:.3f} s, "
        f"{1e6 * decode / indices.size:.1f} us an index"
    )
    print(
        f"stream {8 * sum(map(len, streams)) / indices.size:.4f} bits an index; "
        f"by its logits {rounded:.4f}, in floats {plain:.4f}"
    )


if __name__ == "__main__":
    main()
