"""Measures samples: does a classifier see the class asked for, how precise and how complete are
they, and are they copies of training images?

Precision and recall are those of Kynkaanniemi et al. 2019 (arXiv 1904.06991), in the features of
the classifier: it knows this data, where networks of photographs do not.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from vqtok.codec import Model
from vqtok.data import Dataset, counter_rng, split_indices
from vqtok.errors import UsageError
from vqtok.evaluate.classes import class_numbers, number_note
from vqtok.evaluate.classifier import (
    Classifier,
    Pool,
    fit_to,
    judged_size,
    quarter_turns,
    read_pool,
    train_classifier,
)
from vqtok.evaluate.measure import add_grids, groups
from vqtok.evaluate.results import RunningTotals

NEIGHBORS = 3  # the k of precision and recall
CHUNK = 200  # samples drawn together, or once all labels where those are more
ROWS_AT_ONCE = 1000  # of a table of distances
HELD_OUT, HELD_OUT_MAX = 0.1, 2000  # kept from the classifier where data has no test images
_SUBSET = 104  # a kind of draw
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SampleScores:
    """Figures of samples. Parts of 1, but for `bits`; None where nothing can be said."""

    samples: int
    classifier: float  # its accuracy on test images
    accuracy: float | None  # samples in which it sees the class asked for
    accuracy_decoded: float | None  # test images, encoded and decoded, in which it sees theirs
    precision: float  # samples that lie where test images lie
    recall: float  # test images that lie where samples lie
    precision_real: float  # both of training images in place of samples: what is reached at best
    recall_real: float
    copies: float  # samples nearer to a training image than to a test image, of equally many
    bits: float | None  # a token of test images, by the prior
    by_class: dict[str, float]  # accuracy, by the class asked for
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Shown:
    """One sample beside the training image that is nearest to it; uint8 (H, W, C) both."""

    sample: np.ndarray
    nearest: np.ndarray
    asked: str  # the label, "" for none
    seen: str  # by the classifier


@dataclass(frozen=True)
class Judge:
    """A classifier, and the real images that samples are compared with."""

    classifier: Classifier
    train: Pool
    test: Pool
    train_features: np.ndarray  # float32 (N, F)
    test_features: np.ndarray  # float32 (M, F)
    size: tuple[int, int]  # at which images are judged
    turned: bool  # whether the classes are quarter turns: the data has no others
    accuracy: float  # on test images
    seed: int
    notes: tuple[str, ...]


def train_judge(
    model: Model,
    train: Dataset,
    test: Dataset,
    *,
    seed: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Judge:
    """Trains a classifier on the training images, and looks at all of them and at the first `limit`
    test images.

    Where the data tells no test images apart, some are held out. Where it has no classes, the
    classifier learns to tell by how many quarter turns an image is turned (Gidaris et al. 2018,
    arXiv 1803.07728): its features say what is shown all the same. Raises InputError.
    """
    size, channels = judged_size(*model.native_size), model.config.channels
    notes = number_note(train.labels, model.labels)
    pool = read_pool(train, channels, size)
    if train.split is None and test.split is None and len(pool) > 1:
        kept, aside = split_indices(train, HELD_OUT, HELD_OUT_MAX, seed)
        if len(pool) < len(train):  # numbers of images that can be read, then
            kept, aside = np.arange(len(pool))[len(aside) :], np.arange(len(aside))
        pool, tested = pool.select(kept), pool.select(aside)
        notes.append(
            f"the data has no test images: {len(tested)} are held out from the classifier, "
            "and the model may have learned them"
        )
    else:
        tested = read_pool(test, channels, size, limit)
    learned, asked, turned = pool, tested, not pool.names
    if turned:
        notes.append("no labels: the classifier tells quarter turns, and samples have no class")
        learned, asked = quarter_turns(pool), quarter_turns(tested)
    classifier = train_classifier(learned, seed, mirror=channels == 3, progress=progress)
    right = (
        classifier.judge(asked.pixels)[0][asked.targets >= 0] == asked.targets[asked.targets >= 0]
    )
    accuracy = float(right.mean()) if len(right) else 0.0
    return Judge(
        classifier=classifier,
        train=pool,
        test=tested,
        train_features=classifier.judge(pool.pixels)[1],
        test_features=classifier.judge(tested.pixels)[1],
        size=size,
        turned=turned,
        accuracy=accuracy,
        seed=seed,
        notes=tuple(notes),
    )


def score_samples(
    judge: Judge,
    model: Model,
    n: int,
    *,
    seed: int = 0,
    show: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[SampleScores, list[Shown]]:
    """Draws n samples, all labels in turn, and measures them; options as in `Model.sample_codes`.

    Returns the figures but for `bits` and `accuracy_decoded`, which `score_test` has, and the first
    `show` samples with their nearest training images.
    """
    samples, asked = draw(model, n, seed, progress, **options)
    pixels = np.stack([fit_to(image, judge.size) for image in samples])
    seen, features = judge.classifier.judge(pixels)
    classes = class_numbers(judge.train.names, model.labels)
    wanted = _wanted(classes, asked)
    known = wanted >= 0
    right = seen == wanted
    by_class = {
        model.labels[label]: float(right[asked == label].mean())
        for label in np.unique(asked[known]).tolist()
    }
    count = min(n, len(judge.test), len(judge.train))
    some = [
        values[counter_rng.permutation(judge.seed, _SUBSET, len(values))[:count]]
        for values in (judge.test_features, judge.train_features, features)
    ]
    nearest = _nearest(features[:show], judge.train_features)[1] if show else []
    shown = [
        Shown(
            samples[i],
            judge.train.pixels[of],
            model.labels[asked[i]] if asked[i] >= 0 else "",
            "" if judge.turned else _name(judge.train.names, classes, model.labels, seen[i]),
        )
        for i, of in enumerate(nearest)
    ]
    precision, recall = precision_recall(some[0], some[2])
    precision_real, recall_real = precision_recall(some[0], some[1])
    scores = SampleScores(
        samples=n,
        classifier=judge.accuracy,
        accuracy=float(right[known].mean()) if known.any() else None,
        accuracy_decoded=None,
        precision=precision,
        recall=recall,
        precision_real=precision_real,
        recall_real=recall_real,
        copies=copied(features, judge.train_features, judge.test_features, judge.seed),
        bits=None,
        by_class=by_class,
        notes=judge.notes,
    )
    return scores, shown


def score_test(
    judge: Judge, model: Model, test: Dataset, limit: int | None = None
) -> tuple[float | None, float | None]:
    """Returns the bits a token that the prior needs for the first `limit` test images, and in what
    part of them, encoded and decoded, the classifier sees their class: what samples can reach.
    """
    total = len(test) if limit is None else min(limit, len(test))
    sums = RunningTotals(model.config.codebook_size, (model.config.levels,), True)
    right, classes = [], class_numbers(tuple(test.labels), judge.train.names)
    for images, labels, targets in groups(model, test, total, sums, None):
        codes = model.encode_batch(images)
        add_grids(sums, model.prior, codes, labels)
        decoded = [fit_to(image, judge.size) for image in model.decode_all(codes)]
        seen = judge.classifier.judge(np.stack(decoded))[0]
        right += [
            s == classes[t]
            for s, t in zip(seen.tolist(), targets, strict=True)
            if classes is not None and t >= 0
        ]
    tokens = sums.indices * model.config.levels
    bits = float(sums.coded.sum()) / tokens if sums.has_prior and tokens else None
    return bits, None if judge.turned or not right else float(np.mean(right))


def measure_samples(
    judge: Judge, model: Model, test: Dataset, n: int, limit: int | None = None, **more: Any
) -> tuple[SampleScores, list[Shown]]:
    """Measures n samples, and with the test images what they can reach; options as in
    `score_samples`.
    """
    scores, shown = score_samples(judge, model, n, **more)
    bits, decoded = score_test(judge, model, test, limit)
    return replace(scores, bits=bits, accuracy_decoded=decoded), shown


def draw(
    model: Model, n: int, seed: int, progress: Progress | None = None, **options: Any
) -> tuple[list[np.ndarray], np.ndarray]:
    """Draws n samples of all labels in turn: images, and the numbers of their labels, int64 (n,),
    -1 for none.

    Those of the first chunk are what `vqtok sample` draws with that seed.
    """
    if n < 2:
        raise UsageError(f"{n} samples are too few to be measured", "ask for 2 or more")
    labels = len(model.labels)
    chunk = max(1, CHUNK // labels) * labels if labels else CHUNK
    images: list[np.ndarray] = []
    for number, start in enumerate(range(0, n, chunk)):
        count = min(chunk, n - start)
        # 2**32 apart: no chunk repeats that of a neighboring seed
        codes = model.sample_codes(count, seed=seed + number * 2**32, **options)
        images += model.decode_all(codes)
        if progress is not None:
            progress(start + count, n)
    return images, np.arange(n) % labels if labels else np.full(n, -1)


def _wanted(classes: list[int] | None, asked: np.ndarray) -> np.ndarray:
    """Returns the classifier's classes, int64 (n,), of the prior's labels; -1 where it knows none.

    `classes` are the prior's labels of the classifier's classes.
    """
    if classes is None:
        return np.full(len(asked), -1)
    back = {label: number for number, label in enumerate(classes)}
    return np.array([back.get(label, -1) for label in asked.tolist()], np.int64)


def _name(
    names: tuple[str, ...], classes: list[int] | None, labels: tuple[str, ...], number: int
) -> str:
    """Returns the prior's name of a class, or the data's own where the prior knows none."""
    return names[number] if classes is None else labels[classes[number]]


def precision_recall(real: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    """Computes the part of the samples (n, F) within the real images' manifold, and the part of the
    real images (m, F) within that of the samples.

    The manifold of points is all that is no farther from one of them than its NEIGHBORS-th nearest
    of the others is (eq. 1 of the paper).
    """
    return _within(samples, real), _within(real, samples)


def _within(points: np.ndarray, others: np.ndarray) -> float:
    """Returns the part of the points within the manifold of the others."""
    k = min(NEIGHBORS, len(others) - 1)
    radii = np.concatenate([np.partition(rows, k, axis=1)[:, k] for rows in _rows(others, others)])
    return float(
        np.mean(np.concatenate([(rows <= radii).any(1) for rows in _rows(points, others)]))
    )


def copied(samples: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int = 0) -> float:
    """Returns the part of the samples whose nearest training image is nearer than the nearest test
    image, where there are as many of both: about one half, unless training images are copied.

    All training images take part, as many at a time as there are test images: it is the mean over
    these parts. A tie counts as half.
    """
    count = min(len(train), len(test))
    to_test = _nearest(samples, test[counter_rng.permutation(seed, _SUBSET, len(test))[:count]])[0]
    order = counter_rng.permutation(seed, _SUBSET + 1, len(train))
    found = []
    for start in range(0, len(train) - count + 1, count):
        to_train = _nearest(samples, train[order[start : start + count]])[0]
        found.append(np.mean((to_train < to_test) + 0.5 * (to_train == to_test)))
    return float(np.mean(found))


def _nearest(points: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distance to the nearest of the others, and its number, (n,) each."""
    rows = list(_rows(points, others))
    return (
        np.concatenate([part.min(1) for part in rows]),
        np.concatenate([part.argmin(1) for part in rows]),
    )


def _rows(points: np.ndarray, others: np.ndarray) -> list[np.ndarray]:
    """Computes distances (n, m), in parts of ROWS_AT_ONCE rows."""
    of = torch.from_numpy(others)
    return [
        torch.cdist(part, of, compute_mode="donot_use_mm_for_euclid_dist").numpy()
        for part in torch.from_numpy(points).split(ROWS_AT_ONCE)
    ]
