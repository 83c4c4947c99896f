"""The loop over pictures: encode each once, decode it from each number of
levels, measure, and compare.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vqtok import metrics
from vqtok.codec import Model
from vqtok.codes import Codes, choice, counted, to_bytes
from vqtok.data import Dataset, whole
from vqtok.errors import InputError, UsageError
from vqtok.evaluate.baseline_coders import grid_bytes
from vqtok.evaluate.comparator import SMALLEST, Judge
from vqtok.evaluate.reference_codecs import CODECS, Rival, title, writable
from vqtok.evaluate.results import Evaluation, Sums, Tally
from vqtok.losses import LPIPS
from vqtok.networks.vqvae import to_float
from vqtok.priors import Prior

BATCH_PIXELS = 2**18  # pictures of one size are encoded together up to here
BATCH_INDICES = 2**14  # and their grids are weighed by the prior together up to here
# pictures with no side beyond are icons and toys: nobody stores them as WebP one by one
PHOTO_SIDE = 64
# times our largest file: further points of the codecs' curves, which must reach our quality
CURVE = (2, 4)


@dataclass(frozen=True)
class View:
    """One picture of a comparison: who made it, from how many bytes (None: the original)."""

    name: str
    bytes: int | None
    picture: np.ndarray  # uint8 (H, W, C)


@dataclass(frozen=True)
class _Plan:
    """What is asked for."""

    levels: tuple[int, ...]  # that get a row; the last is L
    codec_levels: tuple[int, ...]
    codecs: tuple[str, ...] | None  # None: by the size of the first picture

    @property
    def middle(self) -> int:
        """The number of levels at whose bytes a sheet shows the codecs."""
        return self.codec_levels[(len(self.codec_levels) - 1) // 2]


def evaluate(
    model: Model,
    dataset: Dataset,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    show: Callable[[list[View]], None] | None = None,
    skip: Callable[[InputError], None] | None = None,
    *,
    levels: Sequence[int] | None = None,
    lpips: LPIPS | None = None,
    codecs: Sequence[str] | None = None,
) -> Evaluation:
    """Encodes the first `limit` pictures of a data set whole, decodes them from their first n
    levels for each n, and measures.

    `levels` are the numbers of levels to measure, by default each from 1 to L; L is measured in any
    case. `codecs` are those to compare with at the same bytes, by default all where the first
    picture has more than PHOTO_SIDE pixels a side, else none.
    `progress` gets pictures done and in all, `show` the views of each picture: the original, ours,
    the codecs'. Pictures that cannot be read are left out and counted, and `skip` gets their
    errors. Raises InputError when none is left, UsageError where the model has fewer levels, and
    where the model's prior is not its own, ModelError: before the work.
    """
    plan = _plan(model, levels, codecs)
    total = len(dataset) if limit is None else min(limit, len(dataset))
    prior = model.prior if model.folder.prior is not None else None
    sums = Sums(model.config.codebook_size, plan.levels, prior is not None)
    judge = Judge(lpips, model.device)
    for pictures, labels in _groups(model, dataset, total, sums, skip):
        if plan.codecs is None:
            plan = replace(plan, codecs=CODECS if min(pictures[0].shape[:2]) > PHOTO_SIDE else ())
        codes = model.encode_batch(pictures)
        _add_grids(sums, prior, codes, labels)
        for i, picture in enumerate(pictures):
            one = replace(codes, indices=codes.indices[i : i + 1], sizes=codes.sizes[i : i + 1])
            views = _add_picture(model, judge, plan, sums, picture, one)
            if show is not None:
                show(views)
        if progress is not None:
            progress(sums.pictures + sums.skipped, total)
    if not sums.pictures:
        raise InputError(
            f"no picture of {dataset.name} can be read",
            "check that the files are whole and are pictures",
        )
    return sums.result(_notes(sums, plan, lpips))


def _plan(model: Model, levels: Sequence[int] | None, codecs: Sequence[str] | None) -> _Plan:
    L = model.config.levels
    for n in levels or ():
        if not 1 <= n <= L:
            raise UsageError(
                f"the model {model.name} has {counted(L)}, there is nothing to measure at {n}",
                choice(L),
            )
    for codec in codecs or ():
        if codec not in CODECS:
            raise UsageError(
                f"there is no codec {codec!r} to compare with", f"choose from {', '.join(CODECS)}"
            )
    chosen = tuple(sorted({*levels, L})) if levels else tuple(range(1, L + 1))
    powers = tuple(n for n in chosen if levels or n == L or n & (n - 1) == 0)
    return _Plan(chosen, powers, None if codecs is None else tuple(dict.fromkeys(codecs)))


def _groups(
    model: Model,
    dataset: Dataset,
    total: int,
    sums: Sums,
    skip: Callable[[InputError], None] | None,
) -> Iterator[tuple[list[np.ndarray], list[int]]]:
    """Neighboring pictures of one size, and their labels:
    class numbers where the prior knows these classes, else -1.
    """
    labeled = model.folder.prior is not None and dataset.labels == model.labels
    pictures: list[np.ndarray] = []
    labels: list[int] = []
    for i in range(total):
        try:
            picture = whole(dataset, i, model.config.channels)
            model.check_size(*picture.shape[:2])
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


def _add_grids(sums: Sums, prior: Prior | None, codes: Codes, labels: list[int]) -> None:
    """Which codes are used at each level, and the bits that a level would take if it were coded
    with the prior's probabilities.
    """
    for level, counts in enumerate(sums.counts):
        counts += np.bincount(codes.indices[:, level].ravel(), minlength=len(counts))
    sums.indices += codes.indices[:, 0].size
    if prior is None or not prior.fits(*codes.indices.shape[2:]):
        sums.has_prior = False  # of some pictures it says nothing, so of all together neither
        return
    device = next(prior.parameters()).device
    indices = torch.from_numpy(codes.indices.astype(np.int64)).to(device)
    batch = max(1, BATCH_INDICES // indices[0].numel())
    with torch.inference_mode():
        for some, of in zip(
            indices.split(batch), torch.tensor(labels, device=device).split(batch), strict=True
        ):
            nats = prior.nats(some, of).transpose(0, 1).flatten(1)  # (L, B*h*w)
            # on the CPU: MPS has no float64
            sums.coded += nats.cpu().double().sum(1).numpy() / np.log(2)


def _add_picture(
    model: Model, judge: Judge, plan: _Plan, sums: Sums, picture: np.ndarray, codes: Codes
) -> list[View]:
    """Measures one picture, uint8 (H, W, C), whose codes have all levels, from its first n,
    and as the codecs show it.
    """
    views, sizes = [View("original", None, picture)], {}
    for n, tally in sums.levels.items():
        part = codes.first_levels(n)
        output = model.output(part, 0)  # (1, C, H, W)
        decoded, sizes[n] = model.to_picture(output), len(to_bytes(part))
        tally.add(judge.quality(picture, decoded), sizes[n], codes.pixels)
        tally.add_coded(_coded(model, part))
        if n in plan.codec_levels:
            views.append(
                View(counted(n) if len(sums.counts) > 1 else model.name, sizes[n], decoded)
            )
        if n == model.config.levels:
            _add_errors(model, sums, picture, decoded, output)
    return views + [
        view
        for codec in plan.codecs or ()
        for view in _add_codec(judge, plan, sums, codec, picture, sizes)
    ]


def _coded(model: Model, codes: Codes) -> dict[str, int]:
    """Bytes of the grids of one picture by coder;
    of the integer prior alone, and of the file that it makes.
    """
    sizes = grid_bytes(codes)
    if model.entropy_coder is not None:
        packed = model.pack(codes)
        sizes |= {"integer": sum(map(len, packed.streams)), "compact": len(to_bytes(packed))}
    return sizes


def _add_errors(
    model: Model, sums: Sums, picture: np.ndarray, decoded: np.ndarray, output: torch.Tensor
) -> None:
    """Sums for the error over the variance, and for the bits per dimension."""
    sums.values += picture.size
    sums.squared += metrics.squared_error(picture, decoded)
    counts = np.bincount(picture.ravel(), minlength=256).tolist()
    sums.sum += sum(value * count for value, count in enumerate(counts))
    sums.sum_squares += sum(value * value * count for value, count in enumerate(counts))
    x = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].to(model.device)  # (1, C, H, W)
    with torch.inference_mode():
        sums.nats += float(model.network.likelihood.nll(output, to_float(x))) * picture.size


def _add_codec(
    judge: Judge, plan: _Plan, sums: Sums, codec: str, picture: np.ndarray, sizes: dict[int, int]
) -> Iterator[View]:
    """Measures what a codec makes of the picture at the bytes of our files, {levels: bytes}.

    Yields the view for a sheet.
    """
    if not writable(codec):
        return
    rival = Rival(codec, picture, judge)
    last = plan.levels[-1]
    for n, times in [(n, 1) for n in plan.codec_levels] + [(last, times) for times in CURVE]:
        attempt = rival.best(times * sizes[n])
        if attempt is None:
            sums.unwritten[codec] = sums.unwritten.get(codec, 0) + 1
            return
        tally = sums.codecs.setdefault((codec, n, times), Tally())
        tally.add(rival.quality(attempt), attempt.bytes, picture.shape[0] * picture.shape[1])
        tally.over += attempt.bytes > times * sizes[n]
        if (n, times) == (plan.middle, 1):
            yield View(title(codec), attempt.bytes, rival.shown(attempt))


def _notes(sums: Sums, plan: _Plan, lpips: LPIPS | None) -> tuple[str, ...]:
    notes = [
        f"this Pillow cannot write {title(codec)}: left out"
        for codec in plan.codecs or ()
        if not writable(codec)
    ]
    notes += [
        f"{title(codec)} does not take {count} of the pictures: left out"
        for codec, count in sums.unwritten.items()
    ]
    small = sum(quality.lpips is None for quality in sums.all_levels.qualities)
    if lpips is not None and small:
        notes.append(
            f"LPIPS leaves out {small} of {sums.pictures} pictures: "
            f"it needs {SMALLEST} pixels a side"
        )
    for (codec, n, _), tally in sums.codecs.items():
        if tally.over:
            at = f"{title(codec)} at the bytes of {counted(n)}"
            notes.append(
                f"{at}: for {tally.over} of {len(tally.qualities)} pictures its smallest file "
                "is larger, and was taken"
            )
    return tuple(notes)
