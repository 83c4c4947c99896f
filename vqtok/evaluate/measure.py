"""Loops over images: encodes each once, decodes it from each number of levels, measures and
compares.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vqtok import metrics
from vqtok.bulk import CodesDataset
from vqtok.codec import Model
from vqtok.codes import Codes, Compact, Encoded, count_levels, levels_fix, to_bytes
from vqtok.data import Dataset, read_whole
from vqtok.errors import InputError, UsageError
from vqtok.evaluate.baseline_coders import grid_bytes
from vqtok.evaluate.classes import class_numbers, number_note
from vqtok.evaluate.comparator import SMALLEST, Comparator, count_exact
from vqtok.evaluate.dists import DISTS
from vqtok.evaluate.fid import ENOUGH, ORIGINAL, PATCH, FIDMeter, Inception
from vqtok.evaluate.reference_codecs import CODECS, USUAL, ReferenceCodec, writable
from vqtok.evaluate.results import Evaluation, RunningTotals, Totals
from vqtok.losses import LPIPS
from vqtok.networks.vqvae import to_float
from vqtok.plots import CODEC_TITLES
from vqtok.priors import Prior

BATCH_PIXELS = 2**18  # images of one size are encoded together up to here
BATCH_INDICES = 2**14  # and their grids are weighed by the prior together up to here
# images with no side beyond are icons and toys: nobody stores them as WebP one by one
PHOTO_SIDE = 64
# times our largest file: further points of the codecs' curves, which must reach our quality
CURVE = (2, 4)


@dataclass(frozen=True)
class View:
    """One image of a comparison: its maker, and the bytes of its file (None: the original)."""

    name: str
    bytes: int | None
    image: np.ndarray  # uint8 (H, W, C)


@dataclass(frozen=True)
class _MeasurePlan:
    """Choices of one evaluation."""

    levels: tuple[int, ...]  # that get a row; the last is L
    codec_levels: tuple[int, ...]
    codecs: tuple[str, ...] | None  # None: by the size of the first image

    @property
    def middle(self) -> int:
        """Returns the number of levels at whose bytes a sheet shows the codecs."""
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
    dists: DISTS | None = None,
    fid: Inception | None = None,
    codecs: Sequence[str] | None = None,
) -> Evaluation:
    """Encodes the first `limit` images of a data set whole, decodes them from their first n
    levels for each n, and measures.

    `levels` are the numbers of levels to measure, by default each from 1 to L; L is measured in any
    case. `codecs` are those to compare with at the bytes of compact files, or of plain ones where
    the model has no entropy prior; by default all where the first image has more than PHOTO_SIDE
    pixels a side, else none. `lpips`, `dists` and `fid` are the networks of these measures.
    `progress` gets images done and in all, `show` the views of each image: the original, ours,
    the codecs'. Images that cannot be read are left out and counted, and `skip` gets their
    errors. Raises InputError when none is left, UsageError where the model has fewer levels, and
    where the model's prior is not its own, ModelError: before the work.
    """
    plan = _plan(model, levels, codecs)
    total = len(dataset) if limit is None else min(limit, len(dataset))
    prior = model.prior if model.folder.prior is not None else None
    meter = None if fid is None else FIDMeter(fid, model.device)
    sums = RunningTotals(model.config.codebook_size, plan.levels, prior is not None, meter)
    comparator = Comparator(lpips, model.device, dists)
    for images, labels, _ in groups(model, dataset, total, sums, skip):
        if plan.codecs is None:
            plan = replace(plan, codecs=USUAL if min(images[0].shape[:2]) > PHOTO_SIDE else ())
        codes = model.encode_batch(images)
        add_grids(sums, prior, codes, labels)
        for i, image in enumerate(images):
            one = replace(codes, indices=codes.indices[i : i + 1], sizes=codes.sizes[i : i + 1])
            views = _add_image(model, comparator, plan, sums, image, one)
            if show is not None:
                show(views)
        if progress is not None:
            progress(sums.images + sums.skipped, total)
    if not sums.images:
        raise InputError(
            f"no image of {dataset.name} can be read",
            "check that the files are whole and are images",
        )
    notes = _notes(sums, plan, comparator)
    return sums.result(
        notes if prior is None else (*number_note(dataset.labels, model.labels), *notes)
    )


def evaluate_codes(
    model: Model,
    data: CodesDataset,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    levels: Sequence[int] | None = None,
) -> Evaluation:
    """Measures the first `limit` images of codes shards, whose originals are not there: use of the
    codes, and bits of the grids by coder. What compares with an original is None.

    `levels` and `progress` as in `evaluate`. Raises UsageError where the shards hold fewer levels,
    and InputError where they hold no image.
    """
    held = data.manifest.levels
    for n in levels or ():
        if not 1 <= n <= held:
            raise UsageError(
                f"{data.folder} holds {count_levels(held)}, there is nothing to measure at {n}",
                levels_fix(held),
            )
    chosen = sorted({*levels, held}) if levels else range(1, held + 1)
    prior = model.prior if model.folder.prior is not None else None
    sums = RunningTotals(model.config.codebook_size, tuple(chosen), prior is not None)
    total = len(data) if limit is None else min(limit, len(data))
    data.use_coder(model.entropy_coder)
    for shard in data.shards:
        for _, one in data.images(shard):
            if sums.images == total:
                break
            add_grids(sums, prior, one, [-1])
            packed = None if model.entropy_coder is None else model.pack_levels(one)
            for n, totals in sums.levels.items():
                part = one.first_levels(n)
                totals.add(None, len(to_bytes(part)), one.pixels)
                totals.add_coded(_coded(part, None if packed is None else packed(n)))
            if progress is not None:
                progress(sums.images, total)
    if not sums.images:
        raise InputError(f"{data.folder} holds no encoded image", "its .jsonl files say why")
    sums.skipped = data.failed
    note = "codes shards hold no originals: quality is not measured (give the images for that)"
    return sums.result((note,))


def _plan(model: Model, levels: Sequence[int] | None, codecs: Sequence[str] | None) -> _MeasurePlan:
    L = model.config.levels
    for n in levels or ():
        if not 1 <= n <= L:
            raise UsageError(
                f"the model {model.name} has {count_levels(L)}, there is nothing to measure at {n}",
                levels_fix(L),
            )
    for codec in codecs or ():
        if codec not in CODECS:
            raise UsageError(
                f"there is no codec {codec!r} to compare with", f"choose from {', '.join(CODECS)}"
            )
    chosen = tuple(sorted({*levels, L})) if levels else tuple(range(1, L + 1))
    powers = tuple(n for n in chosen if levels or n == L or n & (n - 1) == 0)
    return _MeasurePlan(chosen, powers, None if codecs is None else tuple(dict.fromkeys(codecs)))


def groups(
    model: Model,
    dataset: Dataset,
    total: int,
    sums: RunningTotals,
    skip: Callable[[InputError], None] | None,
) -> Iterator[tuple[list[np.ndarray], list[int], list[int]]]:
    """Groups neighboring images of one size, with the prior's labels of them, -1 where it does not
    know these classes, and the data's own classes.
    """
    numbers = None if model.folder.prior is None else class_numbers(dataset.labels, model.labels)
    images: list[np.ndarray] = []
    labels: list[int] = []
    targets: list[int] = []
    for i in range(total):
        try:
            image = read_whole(dataset, i, model.config.channels)
            model.check_size(*image.shape[:2])
        except InputError as error:
            sums.skipped += 1
            if skip is not None:
                skip(error)
            continue
        full = (len(images) + 1) * image.shape[0] * image.shape[1] > BATCH_PIXELS
        if images and (full or image.shape != images[0].shape):
            yield images, labels, targets
            images, labels, targets = [], [], []
        images.append(image)
        target = dataset.label(i)
        labels.append(numbers[target] if numbers is not None and target >= 0 else -1)
        targets.append(target)
    if images:
        yield images, labels, targets


def add_grids(sums: RunningTotals, prior: Prior | None, codes: Codes, labels: list[int]) -> None:
    """Counts the codes used at each level, and each level's bits under the prior."""
    for level, counts in enumerate(sums.counts):
        counts += np.bincount(codes.indices[:, level].ravel(), minlength=len(counts))
    sums.indices += codes.indices[:, 0].size
    if prior is None or not prior.has_likelihood or not prior.fits(*codes.indices.shape[2:]):
        sums.has_prior = False  # of some images it says nothing, so of all together neither
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


def _add_image(
    model: Model,
    comparator: Comparator,
    plan: _MeasurePlan,
    sums: RunningTotals,
    image: np.ndarray,
    codes: Codes,
) -> list[View]:
    """Measures one image, uint8 (H, W, C), decoded from its first n levels for each n, and as the
    codecs show it.
    """
    views, sizes = [View(ORIGINAL, None, image)], {}
    if sums.fid is not None:
        sums.fid.add(ORIGINAL, image)
    packed = None if model.entropy_coder is None else model.pack_levels(codes)
    for n, totals in sums.levels.items():
        part = codes.first_levels(n)
        output = model.output(part, 0)  # (1, C, H, W)
        decoded, plain = model.to_image(output), len(to_bytes(part))
        coded = _coded(part, None if packed is None else packed(n))
        sizes[n] = coded.get("compact", plain)
        totals.add(comparator.quality(image, decoded), plain, codes.pixels)
        totals.add_coded(coded)
        if sums.fid is not None:
            sums.fid.add(n, decoded)
        if n in plan.codec_levels:
            views.append(
                View(count_levels(n) if len(sums.counts) > 1 else model.name, sizes[n], decoded)
            )
        if n == model.config.levels:
            _add_errors(model, sums, image, decoded, output)
    return views + [
        view
        for codec in plan.codecs or ()
        for view in _add_codec(comparator, plan, sums, codec, image, sizes)
    ]


def _coded(codes: Codes, packed: Compact | None) -> dict[str, int]:
    """Returns the bytes of one image's grids by coder, among them the integer prior alone and the
    file that `encode --compact` writes.
    """
    sizes = grid_bytes(codes)
    if packed is not None:
        compact = Encoded.of(codes, packed)
        sizes |= {"integer": sum(map(len, packed.streams)), "compact": len(compact.data)}
    return sizes


def _add_errors(
    model: Model,
    sums: RunningTotals,
    image: np.ndarray,
    decoded: np.ndarray,
    output: torch.Tensor,
) -> None:
    """Adds to the sums for the normalized error and for the bits per dimension."""
    sums.values += image.size
    sums.squared += metrics.squared_error(image, decoded)
    counts = np.bincount(image.ravel(), minlength=256).tolist()
    sums.sum += sum(value * count for value, count in enumerate(counts))
    sums.sum_squares += sum(value * value * count for value, count in enumerate(counts))
    x = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(model.device)  # (1, C, H, W)
    with torch.inference_mode():
        sums.nats += float(model.network.likelihood.nll(output, to_float(x))) * image.size


def _add_codec(
    comparator: Comparator,
    plan: _MeasurePlan,
    sums: RunningTotals,
    codec: str,
    image: np.ndarray,
    sizes: dict[int, int],
) -> Iterator[View]:
    """Measures a codec on the image at the bytes of our files, {levels: bytes}.

    Yields the view for a sheet.
    """
    if not writable(codec):
        return
    reference = ReferenceCodec(codec, image, comparator)
    last = plan.levels[-1]
    for n, times in [(n, 1) for n in plan.codec_levels] + [(last, times) for times in CURVE]:
        attempt = reference.best(times * sizes[n])
        if attempt is None:
            sums.unwritten[codec] = sums.unwritten.get(codec, 0) + 1
            return
        totals = sums.codecs.setdefault((codec, n, times), Totals())
        totals.add(reference.quality(attempt), attempt.bytes, image.shape[0] * image.shape[1])
        totals.over += attempt.bytes > times * sizes[n]
        if (n, times) == (plan.middle, 1):
            yield View(CODEC_TITLES[codec], attempt.bytes, reference.shown(attempt))


def _notes(sums: RunningTotals, plan: _MeasurePlan, comparator: Comparator) -> tuple[str, ...]:
    notes = [
        f"this Pillow cannot write {CODEC_TITLES[codec]}: left out"
        for codec in plan.codecs or ()
        if not writable(codec)
    ]
    notes += [
        f"{CODEC_TITLES[codec]} does not take {count} of the images: left out"
        for codec, count in sums.unwritten.items()
    ]
    notes += _exact_notes(sums)
    for name, network in (("LPIPS", comparator.network), ("DISTS", comparator.dists)):
        small = sum(getattr(quality, name.lower()) is None for quality in sums.all_levels.qualities)
        if network is not None and small:
            notes.append(
                f"{name} leaves out {small} of {sums.images} images: "
                f"it needs {SMALLEST} pixels a side"
            )
    notes += _fid_notes(sums.fid)
    for (codec, n, times), totals in sums.codecs.items():
        if totals.over:
            multiple = "" if times == 1 else f"{times:g} times "
            at = f"{CODEC_TITLES[codec]} at {multiple}the bytes of {count_levels(n)}"
            notes.append(
                f"{at}: for {totals.over} of {len(totals.qualities)} images its smallest file "
                "is larger, and was taken"
            )
    return tuple(notes)


def _fid_notes(meter: FIDMeter | None) -> list[str]:
    """Says how FID was taken, and where too few images were there for it."""
    if meter is None:
        return []
    count = meter.count(ORIGINAL)
    notes = [
        f"FID of {count} patches: {PATCH}x{PATCH}, side by side and moved by half a patch, smaller "
        "images whole; to 299x299 by bilinear interpolation; pytorch-fid's network"
    ]
    if count < ENOUGH:
        notes.append(f"FID of fewer than {ENOUGH} patches compares with nothing but its like")
    return notes


def _exact_notes(sums: RunningTotals) -> list[str]:
    """Says of how many images each maker's mean PSNR is, where it kept some exactly."""
    exact: dict[str, int] = {}
    rows = [("vqtok", totals) for totals in sums.levels.values()]
    rows += [(CODEC_TITLES[codec], totals) for (codec, _, _), totals in sums.codecs.items()]
    for name, totals in rows:
        exact[name] = max(exact.get(name, 0), count_exact(totals.qualities))
    return [
        f"{name} keeps up to {count} of {sums.images} images exactly: its PSNR is of the others"
        for name, count in exact.items()
        if count
    ]
