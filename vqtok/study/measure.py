"""Measures how well a trained system predicts unseen images, and how fast it samples."""

import hashlib
import math
import time
from collections.abc import Callable
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
    """Computes -log2 p of images uint8 (n, H, W, C) in float32: of their indices by the prior, and
    of the pixels given those by the decoder.

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
    """Converts uint8 (n, H, W, C) to float (n, C, H, W) in [-1, 1], channels last."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return to_float(x).contiguous(memory_format=torch.channels_last)


def result_digest(trained: str, test_images: int, samples: int) -> str:
    """Hashes what a result depends on; `trained` is the digest of its training."""
    return hashlib.sha256(f"{trained} {test_images} {samples}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Subject:
    """A trained network, ready to be measured."""

    kind: str  # exact, or what kind of bound
    shown: str  # what its samples are
    parameters: int
    symbols: int
    alphabet: int
    bits: Callable[[np.ndarray], Bits]
    sample: Callable[[], list[np.ndarray]]


def measure(context: StudyContext, system: System, trained: TrainingRecord, samples: int) -> Result:
    """Measures a trained system, draws its samples into samples-SYSTEM.png, writes its result."""
    load = _load_vae if system.tokenizer == vae.NAME else _load_model
    subject, test = load(context, system, samples), context.images.test
    context.listener.note(f"Weighing {len(test):,} test images.")
    found = subject.bits(test)
    context.listener.note(f"Drawing {samples} samples.")
    start = time.perf_counter()
    drawn = subject.sample()
    seconds = time.perf_counter() - start
    sheet = plots.sheet(drawn, SHEET_COLUMNS, gap=GAP, scale=scale_of(len(drawn[0])))
    images.write_image(sheet_path(context.folder, system.name), sheet, force=True)
    result = Result(
        settings=result_digest(trained.settings, len(test), samples),
        system=system.name,
        what=system.what,
        parameters=subject.parameters,
        symbols=subject.symbols,
        alphabet=subject.alphabet,
        bits_latents=found.latents,
        bits_pixels=found.pixels,
        kind=subject.kind,
        test_pictures=len(test),
        samples=samples,
        sample_seconds=seconds,
        shown=subject.shown,
        training_seconds=trained.all_seconds,
        tokenizer_seconds=trained.tokenizer_seconds + trained.encoding_seconds,
        steps=trained.steps,
        pictures=trained.steps * trained.batch,
        tokenizer_steps=trained.tokenizer_steps,
        tokenizer_pictures=trained.tokenizer_steps * trained.tokenizer_batch,
        precision=trained.precision,
    )
    table.write_result(context.folder / system.name, result)
    return result


def _load_model(context: StudyContext, system: System, samples: int) -> _Subject:
    """Loads a tokenizer, which may be the identity, and its prior."""
    # the whole path: by a bare name a bundled model would be found first
    model = codec.load((context.folder / system.name).resolve(), context.device.type)

    def look(_done: int, _total: int) -> None:
        if context.stop.requested:
            raise study_run.Interrupted

    raw = model.config.is_pixels
    h, w = (side // model.config.downsample for side in context.images.test.shape[1:3])
    return _Subject(
        kind="exact" if raw else CODE_LENGTH,
        shown="pixels, drawn one after another" if raw else "drawn indices, mean of p(x|z)",
        parameters=_parameters(model),
        symbols=model.config.levels * h * w,
        alphabet=model.config.codebook_size,
        bits=lambda test: bits(model, test, context.stop),
        sample=lambda: model.sample(samples, seed=context.seed, progress=look),
    )


def _load_vae(context: StudyContext, system: System, samples: int) -> _Subject:
    network = vae.load_vae(context.folder / system.name, context.device)
    h, w = (side // network.config.downsample for side in context.images.test.shape[1:3])

    def sample() -> list[np.ndarray]:
        drawn = network.sample(samples, h, w, torch.Generator().manual_seed(context.seed))
        return list(to_uint8(drawn).permute(0, 2, 3, 1).cpu().numpy())

    return _Subject(
        kind="bound, ELBO",
        shown="drawn latents, mean of p(x|z)",
        parameters=sum(tensor.numel() for tensor in network.state_dict().values()),
        symbols=network.config.code_dim * h * w,
        alphabet=0,
        bits=lambda test: vae_bits(network, test, context.seed, context.stop),
        sample=sample,
    )


def vae_bits(network: VAE, images: np.ndarray, seed: int, stop: Stop) -> Bits:
    """Estimates both parts of the negative ELBO of images uint8 (n, H, W, C), with one draw of z
    each.
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


def scale_of(side: int) -> int:
    """Returns how many times an image is enlarged in a sheet."""
    return max(1, TILE // side)


def sheet_path(folder: Path, system: str) -> Path:
    return folder / f"samples-{system}.png"


def _parameters(model: Model) -> int:
    """Counts the numbers in a model's weights files.

    The identity's are those of its palette: it has none that were learned.
    """
    tokenizer = [] if model.config.is_pixels else list(model.network.release_state().values())
    return sum(tensor.numel() for tensor in [*tokenizer, *model.prior.state_dict().values()])
