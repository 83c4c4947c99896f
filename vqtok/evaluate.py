"""How good a model is on pictures: distortion, codebook use, and bits."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vqtok import metrics
from vqtok.codec import Model
from vqtok.codes import Codes, to_bytes
from vqtok.data import Dataset, whole
from vqtok.errors import InputError
from vqtok.priors import cross_entropy
from vqtok.vqvae import to_float

BATCH_PIXELS = 2**18        # pictures of one size are encoded together up to here


@dataclass(frozen=True)
class Evaluation:
    """Figures over a set of pictures. Means over pictures, but for `normalized_error`, `bpp` and `bits_per_dim`, which weigh pixels."""

    pictures: int
    skipped: int                    # unreadable ones
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
        self.sum = self.sum_squares = self.raw = self.coded = self.nats = 0.0


def evaluate(
    model: Model,
    dataset: Dataset,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    show: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> Evaluation:
    """Encodes and decodes the first `limit` pictures of a data set whole, and measures.

    `show` gets each original and reconstruction, uint8 (H, W, C). Unreadable pictures are counted and left out; InputError when
    none is left.
    """
    total = len(dataset) if limit is None else min(limit, len(dataset))
    sums, done = _Totals(model.config.codebook_size), 0
    has_prior = model.folder.prior is not None
    for pictures, labels in _groups(model, dataset, total, sums):
        codes = model.encode_batch(pictures)
        _add_bits(model, sums, pictures, codes, labels, has_prior)
        for picture, decoded in zip(pictures, model.decode_all(codes), strict=True):
            _add_quality(sums, picture, decoded)
            if show is not None:
                show(picture, decoded)
        done += len(pictures)
        if progress is not None:
            progress(done, total)
    if not done:
        raise InputError(f"no picture of {dataset.name} can be read", "check that the files are whole and are pictures")
    return _result(sums, done, has_prior)


def _groups(model: Model, dataset: Dataset, total: int, sums: _Totals) -> Iterator[tuple[list[np.ndarray], list[int]]]:
    """Neighboring pictures of one size, and their labels."""
    pictures: list[np.ndarray] = []
    labels: list[int] = []
    for i in range(total):
        try:
            picture = whole(dataset, i, model.config.channels)
        except InputError:
            sums.skipped += 1
            continue
        full = (len(pictures) + 1) * picture.shape[0] * picture.shape[1] > BATCH_PIXELS
        if pictures and (full or picture.shape != pictures[0].shape):
            yield pictures, labels
            pictures, labels = [], []
        pictures.append(picture)
        labels.append(dataset.label(i) if dataset.labels == _labels(model) else -1)
    if pictures:
        yield pictures, labels


def _labels(model: Model) -> tuple[str, ...]:
    return model.labels if model.folder.prior is not None else ()


def _add_bits(
    model: Model, sums: _Totals, pictures: list[np.ndarray], codes: Codes, labels: list[int], has_prior: bool
) -> None:
    sums.counts += np.bincount(codes.indices.ravel(), minlength=len(sums.counts))
    sums.raw += codes.bits
    for i in range(len(codes)):
        one = Codes(codes.indices[i : i + 1], codes.model, codes.fingerprint, codes.codebook_size, codes.downsample,
                    codes.channels, codes.sizes[i : i + 1])      # fmt: skip
        sums.packed += len(to_bytes(one))
    indices = torch.from_numpy(codes.indices.astype(np.int64)).to(model.device)
    if has_prior:
        given = torch.tensor(labels, device=model.device)
        sums.coded += float(cross_entropy(model.prior, indices, given, batch=max(1, 2**14 // indices[0].numel())).sum())
    with torch.inference_mode():
        output = model.network.decoder(model.network.quantizer.lookup(indices))
        for i, picture in enumerate(pictures):
            height, width = picture.shape[:2]
            x = to_float(torch.from_numpy(picture.transpose(2, 0, 1).copy()).to(model.device))[None]
            sums.nats += float(model.network.likelihood.nll(output[i : i + 1, :, :height, :width], x)) * picture.size


def _add_quality(sums: _Totals, picture: np.ndarray, decoded: np.ndarray) -> None:
    sums.quality.append((metrics.psnr(picture, decoded), metrics.ssim(picture, decoded), metrics.ms_ssim(picture, decoded)))
    sums.pixels += picture.shape[0] * picture.shape[1]
    sums.values += picture.size
    sums.squared += metrics.squared_error(picture, decoded)
    values = picture.astype(np.float64)
    sums.sum += float(values.sum())
    sums.sum_squares += float((values * values).sum())


def _result(sums: _Totals, done: int, has_prior: bool) -> Evaluation:
    usage, perplexity = metrics.usage_perplexity(sums.counts)
    psnr, ssim, ms_ssim = (float(v) for v in np.array(sums.quality).mean(0))
    variance = sums.sum_squares / sums.values - (sums.sum / sums.values) ** 2
    return Evaluation(
        pictures=done, skipped=sums.skipped, psnr=psnr, ssim=ssim, ms_ssim=ms_ssim,
        normalized_error=metrics.normalized_error(sums.squared, variance, sums.values) if variance > 0 else math.nan,
        usage=usage, perplexity=perplexity,
        bpp=metrics.bits_per_pixel(sums.raw, sums.pixels), bpp_packed=metrics.bits_per_pixel(8 * sums.packed, sums.pixels),
        bpp_coded=metrics.bits_per_pixel(sums.coded, sums.pixels) if has_prior else None,
        bits_per_dim=(sums.nats / math.log(2) + sums.coded) / sums.values if has_prior else None,
    )     # fmt: skip
