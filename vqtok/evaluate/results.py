"""Holds the results of an evaluation, and the running sums behind them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from vqtok import metrics
from vqtok.evaluate.baseline_coders import TITLES, zero_order_bits
from vqtok.evaluate.comparator import Quality, count_exact, intervals, mean_quality
from vqtok.evaluate.fid import ORIGINAL, FIDMeter


@dataclass(frozen=True)
class LevelRow:
    """Figures of the first n levels of codes.

    Means over images, but for the bits per pixel, which weigh pixels.
    """

    levels: int  # n
    bpp: float  # raw indices: log2 K each
    bpp_plain: float  # plain codes files as written, one an image
    bpp_coded: float | None  # what the prior's cross-entropy allows; None without a prior
    psnr: float | None  # dB; this and the following: None where only codes are measured
    ssim: float | None
    ms_ssim: float | None
    lpips: float | None  # None where its weights are not given
    usage: float  # of level n alone: part of its codes used at all
    perplexity: float  # of level n alone
    # bpp with which each codec is as good; None beyond its curve
    needs: dict[str, float | None] = field(default_factory=dict)
    # compact files as written, one an image; None without an entropy prior
    bpp_compact: float | None = None
    # bpp of the same grids by coder: see `baseline_coders.TITLES`
    coders: dict[str, float] = field(default_factory=dict)
    exact: int = 0  # images that equal their originals: `psnr` leaves them out
    dists: float | None = None  # None where its weights are not given
    fid: float | None = None  # likewise
    # 95 % bounds of the means over images, by measure: see `comparator.intervals`
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def bpp_packed(self) -> float:
        """The old name of `bpp_plain`: nothing is packed in plain files."""
        return self.bpp_plain


@dataclass(frozen=True)
class CodecRow:
    """Figures of another codec; its file of each image is at most `times` as large as the codes
    file of the first n levels, compact where the model has an entropy prior.
    """

    codec: str
    levels: int  # n
    times: int  # 1: at the same bytes; more: further points of the codec's curve
    bpp: float  # of its files
    psnr: float
    ssim: float
    ms_ssim: float
    lpips: float | None
    over: int  # images whose smallest file is larger still, and was taken
    exact: int = 0  # this and the following as in LevelRow
    dists: float | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Figures over a set of images, for all levels together, and by level.

    Means over images, but for `normalized_error`, `bits_per_dim` and the bits per
    pixel, which weigh pixels. `psnr` leaves out images that equal their originals.
    """

    pictures: int  # that were measured
    skipped: int  # that could not be read
    psnr: float | None  # dB; this and the following: None where only codes are measured
    ssim: float | None
    ms_ssim: float | None
    lpips: float | None  # None where its weights are not given
    normalized_error: float | None  # mean squared error over the variance of the pixels
    usage: float  # part of the codes of all levels used at all
    perplexity: float  # of several levels: the geometric mean
    bpp: float  # raw indices: log2 K each
    bpp_plain: float  # plain codes files as written, one an image
    bpp_coded: float | None  # what the prior's cross-entropy allows; None without a prior
    # -log2 p(x, z) over all values: the prior's bits and the likelihood's
    bits_per_dim: float | None
    levels: tuple[LevelRow, ...]
    codecs: tuple[CodecRow, ...]
    notes: tuple[str, ...]  # what a reader of the figures should know: what was left out, and why
    dists: float | None = None
    fid: float | None = None  # of all levels
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def bpp_packed(self) -> float:
        """The old name of `bpp_plain`: nothing is packed in plain files."""
        return self.bpp_plain

    def to_json(self) -> dict[str, Any]:
        """What `vqtok eval --json` prints; programs that read it know `bpp_plain` as bpp_packed."""
        values = asdict(self)
        values["levels"] = [row | {"bpp_packed": row["bpp_plain"]} for row in values["levels"]]
        return values | {"bpp_packed": self.bpp_plain}


@dataclass
class Totals:
    """Sums over the images of one coder at one rate."""

    qualities: list[Quality] = field(default_factory=list)
    images: int = 0
    bytes: int = 0
    pixels: int = 0
    over: int = 0
    coded: dict[str, int] = field(default_factory=dict)  # bytes by coder

    def add(self, quality: Quality | None, bytes_: int, pixels: int) -> None:
        """Adds an image; without a quality where its original is not there."""
        self.qualities += [] if quality is None else [quality]
        self.images += 1
        self.bytes += bytes_
        self.pixels += pixels

    def add_coded(self, sizes: dict[str, int]) -> None:
        """Adds the bytes of one image's grids, by coder."""
        for name, size in sizes.items():
            self.coded[name] = self.coded.get(name, 0) + size

    @property
    def bpp(self) -> float:
        return metrics.bits_per_pixel(8 * self.bytes, self.pixels)


class RunningTotals:
    """Running sums over images; `levels` are those that get a row, the last of them all L."""

    def __init__(
        self,
        codebook_size: int,
        levels: Sequence[int],
        has_prior: bool,
        fid: FIDMeter | None = None,
    ) -> None:
        self.codebook_size, self.has_prior, self.fid = codebook_size, has_prior, fid
        self.levels = {n: Totals() for n in levels}
        self.codecs: dict[tuple[str, int, int], Totals] = {}  # by codec, levels and times
        self.unwritten: dict[str, int] = {}  # images that a codec does not take
        self.skipped = self.indices = self.squared = self.values = 0
        self.sum = self.sum_squares = 0  # of all values, exact: their difference is the variance
        self.nats = 0.0
        self.counts = np.zeros((max(levels), codebook_size), np.int64)
        self.coded = np.zeros(max(levels))  # bits of each level by the prior

    @property
    def all_levels(self) -> Totals:
        return self.levels[len(self.counts)]

    @property
    def images(self) -> int:
        return self.all_levels.images

    def result(self, notes: tuple[str, ...]) -> Evaluation:
        codecs = tuple(self._codec_row(*key, totals) for key, totals in sorted(self.codecs.items()))
        rows = tuple(self._row(n, totals, codecs) for n, totals in self.levels.items())
        last, each = rows[-1], [metrics.usage_perplexity(counts)[1] for counts in self.counts]
        error = None
        if self.values:
            variance = (self.values * self.sum_squares - self.sum**2) / self.values**2
            error = metrics.normalized_error(self.squared, variance, self.values)
        bits = self.nats / math.log(2) + float(self.coded.sum())
        return Evaluation(
            pictures=self.images,
            skipped=self.skipped,
            psnr=last.psnr,
            ssim=last.ssim,
            ms_ssim=last.ms_ssim,
            lpips=last.lpips,
            normalized_error=error,
            usage=float((self.counts > 0).mean()),
            perplexity=float(np.exp(np.log(each).mean())),
            bpp=last.bpp,
            bpp_plain=last.bpp_plain,
            bpp_coded=last.bpp_coded,
            bits_per_dim=bits / self.values if self.has_prior and self.values else None,
            levels=rows,
            codecs=codecs,
            notes=notes,
            dists=last.dists,
            fid=last.fid,
            intervals=last.intervals,
        )

    def _row(self, n: int, totals: Totals, codecs: Sequence[CodecRow]) -> LevelRow:
        quality = mean_quality(totals.qualities) if totals.qualities else None
        usage, perplexity = metrics.usage_perplexity(self.counts[n - 1])
        raw = self.indices * n * math.log2(self.codebook_size)
        names = dict.fromkeys(row.codec for row in codecs)
        coders = {
            name: metrics.bits_per_pixel(8 * size, totals.pixels)
            for name, size in totals.coded.items()
        }
        coders["zero_order"] = metrics.bits_per_pixel(
            sum(map(zero_order_bits, self.counts[:n])), totals.pixels
        )
        if self.has_prior:
            coders["prior"] = metrics.bits_per_pixel(float(self.coded[:n].sum()), totals.pixels)
        return LevelRow(
            levels=n,
            bpp=metrics.bits_per_pixel(raw, totals.pixels),
            bpp_plain=totals.bpp,
            bpp_coded=metrics.bits_per_pixel(float(self.coded[:n].sum()), totals.pixels)
            if self.has_prior
            else None,
            psnr=None if quality is None else quality.psnr,
            ssim=None if quality is None else quality.ssim,
            ms_ssim=None if quality is None else quality.ms_ssim,
            lpips=None if quality is None else quality.lpips,
            usage=usage,
            perplexity=perplexity,
            needs={
                name: bpp_needed(quality, [row for row in codecs if row.codec == name])
                for name in names
                if quality is not None
            },
            bpp_compact=coders.get("compact"),
            coders={name: coders[name] for name in TITLES if name in coders},
            exact=count_exact(totals.qualities),
            dists=None if quality is None else quality.dists,
            fid=None if self.fid is None else self.fid.distance(ORIGINAL, n),
            intervals=intervals(totals.qualities),
        )

    @staticmethod
    def _codec_row(codec: str, levels: int, times: int, totals: Totals) -> CodecRow:
        quality = mean_quality(totals.qualities)
        return CodecRow(
            codec,
            levels,
            times,
            totals.bpp,
            quality.psnr,
            quality.ssim,
            quality.ms_ssim,
            quality.lpips,
            totals.over,
            count_exact(totals.qualities),
            quality.dists,
            intervals(totals.qualities),
        )


def bpp_needed(quality: Quality, curve: Sequence[CodecRow]) -> float | None:
    """Returns the bits per pixel at which a codec is as good by LPIPS, or by MS-SSIM without it;
    None beyond its measured curve.

    Read off the straight line between two points of the curve over the logarithm of the bits.
    """

    def score(figures: Quality | CodecRow) -> float:
        return -figures.ms_ssim if figures.lpips is None or quality.lpips is None else figures.lpips

    points = sorted((row.bpp, score(row)) for row in curve)
    wanted = score(quality)
    for (low, worse), (high, better) in pairwise(points):
        if worse >= wanted >= better:
            part = (worse - wanted) / (worse - better) if worse > better else 0.0
            return math.exp(math.log(low) + part * math.log(high / low))
    return None
