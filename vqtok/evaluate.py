"""How good a model is on pictures: distortion, codebook use, and bits."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vqtok import metrics
from vqtok.codec import Model
from vqtok.codes import Codes, to_bytes
from vqtok.data import Dataset, whole
from vqtok.errors import InputError
from vqtok.priors import PixelCNN, cross_entropy
from vqtok.vqvae import to_float

BATCH_PIXELS = 2**18        # pictures of one size are encoded together up to here
BATCH_INDICES = 2**14       # and their grids are weighed by the prior together up to here


@dataclass(frozen=True)
class Evaluation:
    """Figures over a set of pictures. Means over pictures, but for `normalized_error`, `bpp` and `bits_per_dim`, which weigh pixels."""

    pictures: int                   # that were measured
    skipped: int                    # that could not be read
    psnr: float                     # dB
    ssim: float
    ms_ssim: float
    normalized_error: float         # mean squared error over the variance of the pixels
    usage: float                    # part of the codes used at all
    perplexity: float
    bpp: float                      # raw indices: log2 K each
    bpp_packed: float               # codes files as written, one a picture
    bpp_coded: float | None         # what the prior's cross-entropy allows; None without a prior
    bits_per_dim: float | None      # -log2 p(x, z) over all values: the prior's bits and the likelihood's


class _Totals:
    """Running sums over pictures."""

    def __init__(self, codebook_size: int) -> None:
        self.counts = np.zeros(codebook_size, np.int64)
        self.quality: list[tuple[float, float, float]] = []
        self.pixels = self.values = self.squared = self.packed = self.skipped = 0
        self.sum = self.sum_squares = 0         # of all values, exact: their difference is the variance
        self.raw = self.coded = self.nats = 0.0


def evaluate(
    model: Model,
    dataset: Dataset,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    show: Callable[[np.ndarray, np.ndarray], None] | None = None,
    skip: Callable[[InputError], None] | None = None,
) -> Evaluation:
    """Encodes and decodes the first `limit` pictures of a data set whole, and measures.

    `progress` gets pictures done and in all, `show` each original and reconstruction, uint8 (H, W, C). Pictures that cannot be
    read are left out and counted, and `skip` gets their errors. Raises InputError when none is left, and where the model's prior is
    not its own, ModelError: before the work.
    """
    total = len(dataset) if limit is None else min(limit, len(dataset))
    sums = _Totals(model.config.codebook_size)
    prior = model.prior if model.folder.prior is not None else None
    for pictures, labels in _groups(model, dataset, total, sums, skip):
        codes = model.encode_batch(pictures)
        _add_bits(sums, codes)
        if prior is not None:
            _add_coded(sums, prior, codes, labels)
        for i, picture in enumerate(pictures):
            decoded = _add_picture(model, sums, picture, model.output(codes, i))
            if show is not None:
                show(picture, decoded)
        if progress is not None:
            progress(len(sums.quality) + sums.skipped, total)
    if not sums.quality:
        raise InputError(f"no picture of {dataset.name} can be read", "check that the files are whole and are pictures")
    return _result(sums, prior is not None)


def _groups(
    model: Model, dataset: Dataset, total: int, sums: _Totals, skip: Callable[[InputError], None] | None
) -> Iterator[tuple[list[np.ndarray], list[int]]]:
    """Neighboring pictures of one size, and their labels: class numbers where the prior knows these classes, else -1."""
    labeled = model.folder.prior is not None and dataset.labels == model.labels
    pictures: list[np.ndarray] = []
    labels: list[int] = []
    for i in range(total):
        try:
            picture = whole(dataset, i, model.config.channels)
        except InputError as error:
            sums.skipped += 1
            if skip is not None:
                skip(error)
            continue
        full = (len(pictures) + 1) * picture.shape[0] * picture.shape[1] > BATCH_PIXELS
        if pictures and (full or picture.shape != pictures[0].shape):
            yield pictures, labels
            pictures, labels = [], []
        pictures.append(picture)
        labels.append(dataset.label(i) if labeled else -1)
    if pictures:
        yield pictures, labels


def _add_bits(sums: _Totals, codes: Codes) -> None:
    """Which codes are used, and what they take as they are and as files."""
    sums.counts += np.bincount(codes.indices.ravel(), minlength=len(sums.counts))
    sums.raw += codes.bits
    for i in range(len(codes)):
        sums.packed += len(to_bytes(replace(codes, indices=codes.indices[i : i + 1], sizes=codes.sizes[i : i + 1])))


def _add_coded(sums: _Totals, prior: PixelCNN, codes: Codes, labels: list[int]) -> None:
    """The bits that the codes would take if they were coded with the prior's probabilities."""
    device = next(prior.parameters()).device
    indices = torch.from_numpy(codes.indices.astype(np.int64)).to(device)
    batch = max(1, BATCH_INDICES // indices[0].numel())
    sums.coded += float(cross_entropy(prior, indices, torch.tensor(labels, device=device), batch).sum())


def _add_picture(model: Model, sums: _Totals, picture: np.ndarray, output: Tensor) -> np.ndarray:
    """Measures the decoder's output (1, C, H, W) against its original, uint8 (H, W, C). Returns what it shows, of that shape too."""
    decoded = model.to_picture(output)
    sums.quality.append((metrics.psnr(picture, decoded), metrics.ssim(picture, decoded), metrics.ms_ssim(picture, decoded)))
    sums.pixels += picture.shape[0] * picture.shape[1]
    sums.values += picture.size
    sums.squared += metrics.squared_error(picture, decoded)
    counts = np.bincount(picture.ravel(), minlength=256).tolist()
    sums.sum += sum(value * count for value, count in enumerate(counts))
    sums.sum_squares += sum(value * value * count for value, count in enumerate(counts))
    x = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].to(model.device)      # (1, C, H, W)
    with torch.inference_mode():
        sums.nats += float(model.network.likelihood.nll(output, to_float(x))) * picture.size
    return decoded


def _result(sums: _Totals, has_prior: bool) -> Evaluation:
    usage, perplexity = metrics.usage_perplexity(sums.counts)
    psnr, ssim, ms_ssim = (float(v) for v in np.array(sums.quality).mean(0))
    variance = (sums.values * sums.sum_squares - sums.sum**2) / sums.values**2
    return Evaluation(
        pictures=len(sums.quality), skipped=sums.skipped, psnr=psnr, ssim=ssim, ms_ssim=ms_ssim,
        normalized_error=metrics.normalized_error(sums.squared, variance, sums.values),
        usage=usage, perplexity=perplexity,
        bpp=metrics.bits_per_pixel(sums.raw, sums.pixels), bpp_packed=metrics.bits_per_pixel(8 * sums.packed, sums.pixels),
        bpp_coded=metrics.bits_per_pixel(sums.coded, sums.pixels) if has_prior else None,
        bits_per_dim=(sums.nats / math.log(2) + sums.coded) / sums.values if has_prior else None,
    )     # fmt: skip
