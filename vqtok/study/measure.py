"""How well a trained system knows images that it has not seen, and how fast it invents some."""

import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqtok import codec, images, plots
from vqtok.codec import Model
from vqtok.networks.vae import VAE, divergence
from vqtok.networks.vqvae import to_float, to_uint8
from vqtok.priors import cross_entropy
from vqtok.study import run as study_run
from vqtok.study import table, vae
from vqtok.study.run import StudyContext, TrainingRecord
from vqtok.study.systems import System
from vqtok.study.table import Result
from vqtok.train import Stop

AT_ONCE = 16  # test images weighed at a time: logits of 16 raw images take 50 MB
SHEET_COLUMNS = 8
TILE, GAP = 64, 4  # pixels a side of an image in a sheet, about, and between two
CODE_LENGTH = "bound, code length"
LOG2 = math.log(2)


@dataclass(frozen=True)
class Bits:
    """Bits per dimension, means over the test images."""

    latents: float
    pixels: float


def bits(model: Model, images: np.ndarray, stop: Stop) -> Bits:
    """-log2 p of images uint8 (n, H, W, C):
    of their indices by the prior, and of the pixels given those by the decoder. In float32.

    The sum is the length of a lossless code, and with it a bound of -log2 p(x), as other
    indices could give x too; where the indices are the pixels it is -log2 p(x) itself.
    Raises budget.Interrupted.
    """
    latents = pixels = 0.0
    network = model.network
    for start in range(0, len(images), AT_ONCE):
        if stop.requested:
            raise study_run.Interrupted
        x = _floats(images[start : start + AT_ONCE], model.device)
        with torch.inference_mode():
            indices = network.encode(x)
            latents += float(cross_entropy(model.prior, indices, batch=AT_ONCE).sum())
            pixels += 0.0 if model.config.is_pixels else float(network.nll(x).double().sum()) / LOG2
    return Bits(latents / images.size, pixels / images.size)


def _floats(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (n, H, W, C) -> float (n, C, H, W) in [-1, 1], channels last."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return to_float(x).contiguous(memory_format=torch.channels_last)


def result_digest(trained: str, test_images: int, samples: int) -> str:
    """Digest of what a result depends on; `trained` is that of its training."""
    return hashlib.sha256(f"{trained} {test_images} {samples}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Measured:
    """What a network is, knows and draws."""

    bits: Bits
    kind: str
    parameters: int
    symbols: int
    alphabet: int
    seconds: float  # for the samples
    shown: str


def measure(context: StudyContext, system: System, trained: TrainingRecord, samples: int) -> Result:
    """Measures a trained system, draws its samples into
    samples-SYSTEM.png, and writes its result.
    """
    found = (_measure_vae if system.tokenizer == vae.NAME else _measure_model)(
        context, system, samples
    )
    result = Result(
        result_digest(trained.settings, len(context.images.test), samples),
        system.name,
        system.what,
        found.parameters,
        found.symbols,
        found.alphabet,
        found.bits.latents,
        found.bits.pixels,
        found.kind,
        len(context.images.test),
        samples,
        found.seconds,
        found.shown,
        trained.all_seconds,
        trained.tokenizer_seconds + trained.encoding_seconds,
        trained.steps,
        trained.steps * trained.batch,
        trained.tokenizer_steps,
        trained.tokenizer_steps * trained.tokenizer_batch,
        trained.precision,
    )
    table.write_result(context.folder / system.name, result)
    return result


def _measure_model(context: StudyContext, system: System, samples: int) -> _Measured:
    """Of a tokenizer, which may be the identity, and a prior."""
    folder, test = context.folder / system.name, context.images.test
    # the whole path: by a bare name a bundled model would be found first
    model = codec.load(folder.resolve(), context.device.type)
    context.listener.note(f"Weighing {len(test):,} test images.")
    found = bits(model, test, context.stop)
    context.listener.note(f"Drawing {samples} samples.")
    seconds = draw_samples(
        model, samples, context.seed, context.stop, sheet_path(context.folder, system.name)
    )
    kind, shown = (
        ("exact", "pixels, drawn one after another")
        if model.config.is_pixels
        else (CODE_LENGTH, "drawn indices, mean of p(x|z)")
    )
    h, w = (side // model.config.downsample for side in test.shape[1:3])
    symbols = model.config.levels * h * w
    return _Measured(
        found, kind, _parameters(model), symbols, model.config.codebook_size, seconds, shown
    )


def _measure_vae(context: StudyContext, system: System, samples: int) -> _Measured:
    network = vae.load_vae(context.folder / system.name, context.device)
    context.listener.note(f"Weighing {len(context.images.test):,} test images.")
    found = vae_bits(network, context.images.test, context.seed, context.stop)
    context.listener.note(f"Drawing {samples} samples.")
    h, w = (side // network.config.downsample for side in context.images.test.shape[1:3])
    start = time.perf_counter()
    images = (
        to_uint8(network.sample(samples, h, w, torch.Generator().manual_seed(context.seed)))
        .permute(0, 2, 3, 1)
        .cpu()
        .numpy()
    )
    seconds = time.perf_counter() - start
    write_sheet(sheet_path(context.folder, system.name), list(images))
    parameters = sum(tensor.numel() for tensor in network.state_dict().values())
    shown = "drawn latents, mean of p(x|z)"
    return _Measured(
        found, "bound, ELBO", parameters, network.config.code_dim * h * w, 0, seconds, shown
    )


def vae_bits(network: VAE, images: np.ndarray, seed: int, stop: Stop) -> Bits:
    """The two parts of the negative evidence lower bound of images uint8 (n, H, W,
    C), by one draw of z each.
    """
    latents = total = 0.0
    device = network.likelihood.log_scale.device
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(images), AT_ONCE):
            if stop.requested:
                raise study_run.Interrupted
            x = _floats(images[start : start + AT_ONCE], device)
            latents += float(divergence(*network.encode(x)).double().sum()) / LOG2
            total += float(network.bits(x).double().sum()) * x[0].numel()
    return Bits(latents / images.size, (total - latents) / images.size)


def draw_samples(model: Model, n: int, seed: int, stop: Stop, path: Path) -> float:
    """Draws n images, writes a sheet of them, and returns the seconds that drawing took."""

    def look(_done: int, _total: int) -> None:
        if stop.requested:
            raise study_run.Interrupted

    start = time.perf_counter()
    images = model.sample(n, seed=seed, progress=look)
    seconds = time.perf_counter() - start
    write_sheet(path, images)
    return seconds


def write_sheet(path: Path, samples: list[np.ndarray]) -> None:
    images.write_image(
        path,
        plots.sheet(samples, SHEET_COLUMNS, gap=GAP, scale=scale_of(len(samples[0]))),
        force=True,
    )


def scale_of(side: int) -> int:
    """How many times an image is enlarged in a sheet."""
    return max(1, TILE // side)


def sheet_path(folder: Path, system: str) -> Path:
    return folder / f"samples-{system}.png"


def _parameters(model: Model) -> int:
    """Numbers in the weights files of a model.

    The identity's are those of its palette: it has none that were learned.
    """
    tokenizer = [] if model.config.is_pixels else list(model.network.release_state().values())
    return sum(tensor.numel() for tensor in [*tokenizer, *model.prior.state_dict().values()])
