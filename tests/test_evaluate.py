"""Figures against independent computations on a toy set."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PRIOR, TOKENIZER, image, make_model
from PIL import Image

from vqtok import codec, codes, metrics
from vqtok.data import open_data
from vqtok.data.dataset import ArrayData
from vqtok.errors import InputError, ModelError
from vqtok.evaluate import Evaluation, comparator, evaluate

LABELS = ("cat", "dog", "eel")
PIXELS = np.stack([image(10, 14, seed=seed) for seed in range(7)])
TARGETS = np.arange(7) % 3


def data(labels: tuple[str, ...] = LABELS, pixels: np.ndarray = PIXELS) -> ArrayData:
    return ArrayData("toys", pixels, TARGETS[: len(pixels)] if labels else None, labels)


@pytest.fixture
def toy(model: Path) -> codec.Model:
    return codec.load("toy")


def coded_bits(model: codec.Model, found: codes.Codes, label: int) -> float:
    """-log2 p of one grid, from the whole table of probabilities."""
    indices = torch.from_numpy(found.indices.astype(np.int64))
    with torch.no_grad():
        odds = model.prior(indices, torch.tensor([label])).double().softmax(-1)[0, 0]  # (h, w, K)
    _, _, h, w = indices.shape
    return -sum(math.log2(odds[i, j, indices[0, 0, i, j]]) for i in range(h) for j in range(w))


def pixel_bits(model: codec.Model, found: codes.Codes, original: np.ndarray) -> float:
    """-log2 p(x | z): for each value the logistic mass of its bin, in float64;
    the lowest and highest bin take the tails.
    """
    with torch.no_grad():
        mean = (
            model.network.decode(torch.from_numpy(found.indices.astype(np.int64)))[0]
            .double()
            .numpy()
        )
    scale = np.exp(model.network.likelihood.log_scale.detach().double().numpy())
    total = 0.0
    for (row, column, channel), value in np.ndenumerate(original):
        x, m, s = value / 127.5 - 1, mean[channel, row, column], scale[channel]
        above = 1.0 if value == 255 else 1 / (1 + math.exp(-(x + 1 / 255 - m) / s))
        below = 0.0 if value == 0 else 1 / (1 + math.exp(-(x - 1 / 255 - m) / s))
        total -= math.log2(above - below)
    return total


@pytest.mark.slow
def test_figures_against_independent_computations(toy: codec.Model):
    result = evaluate(toy, data())
    grids = [toy.encode(p) for p in PIXELS]
    decoded = np.stack([toy.decode(grid) for grid in grids])
    error = (PIXELS.astype(float) - decoded) ** 2
    assert (result.pictures, result.skipped) == (7, 0)
    assert result.psnr == pytest.approx(
        np.mean([10 * math.log10(255**2 / e.mean()) for e in error])
    )
    assert result.ssim == pytest.approx(
        np.mean([metrics.ssim(a, b) for a, b in zip(PIXELS, decoded, strict=True)])
    )
    assert result.ms_ssim == pytest.approx(
        np.mean([metrics.ms_ssim(a, b) for a, b in zip(PIXELS, decoded, strict=True)])
    )
    assert result.normalized_error == pytest.approx(error.mean() / PIXELS.astype(float).var())
    counts = Counter(int(i) for grid in grids for i in grid.indices.ravel())
    p = np.array(list(counts.values())) / sum(counts.values())
    assert result.usage == len(counts) / 16
    assert result.perplexity == pytest.approx(2 ** -(p * np.log2(p)).sum())
    pixels, values = 7 * 10 * 14, 7 * 10 * 14 * 3
    assert result.bpp == pytest.approx(7 * 3 * 4 * 4 / pixels)  # 3x4 codes of 4 bits
    assert result.bpp_packed == pytest.approx(
        8 * sum(len(codes.to_bytes(grid)) for grid in grids) / pixels
    )
    coded = sum(
        coded_bits(toy, grid, int(label)) for grid, label in zip(grids, TARGETS, strict=True)
    )
    assert result.bpp_coded == pytest.approx(coded / pixels, rel=1e-5)
    seen = sum(
        pixel_bits(toy, grid, original) for grid, original in zip(grids, PIXELS, strict=True)
    )
    assert result.bits_per_dim == pytest.approx((coded + seen) / values, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 9, 300])
def test_bounds_are_those_of_draws_one_by_one(count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comparator, "DRAWS_AT_ONCE", 7 * count)  # 1,000 is no multiple of 7
    found = [comparator.Quality(psnr, 0.5, 0.5, None) for psnr in np.linspace(20, 40, count) ** 2]
    values, rng = np.array([quality.psnr for quality in found]), np.random.default_rng(0)
    means = [rng.choice(values, count).mean() for _ in range(1000)]
    assert comparator.intervals(found)["psnr"] == tuple(np.percentile(means, (2.5, 97.5)))


def test_classes_are_known_by_their_names(toy: codec.Model):
    names = ("eel", "dog", "cat")
    grids = [toy.encode(p) for p in PIXELS]
    numbers = [toy.labels.index(names[int(t)]) for t in TARGETS]
    coded = sum(coded_bits(toy, grid, n) for grid, n in zip(grids, numbers, strict=True))
    result = evaluate(toy, data(names))
    assert result.bpp_coded == pytest.approx(coded / (7 * 140), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [(), ("cat", "dog", "fox")])
def test_labels_count_only_where_the_prior_knows_these_classes(
    toy: codec.Model, labels: tuple[str, ...]
):
    grids = [toy.encode(p) for p in PIXELS]
    result = evaluate(toy, data(labels))
    assert result.bpp_coded == pytest.approx(
        sum(coded_bits(toy, grid, -1) for grid in grids) / (7 * 140), rel=1e-5
    )
    assert result.bpp_coded != evaluate(toy, data()).bpp_coded


def test_without_a_prior_there_are_no_coded_bits(tmp_path: Path):
    bare = codec.load(make_model(tmp_path / "bare", prior=None))
    result = evaluate(bare, data())
    assert (result.bpp_coded, result.bits_per_dim) == (None, None)
    assert result.psnr is not None
    assert result.psnr > 0


def test_a_prior_of_another_tokenizer_is_told_before_the_work(model: Path, tmp_path: Path):
    other = make_model(tmp_path / "other", seed=1)
    (model / "prior.safetensors").write_bytes((other / "prior.safetensors").read_bytes())
    with pytest.raises(ModelError, match="another tokenizer"):
        evaluate(
            codec.load("toy"), data(), progress=lambda done, total: pytest.fail("it has begun")
        )


@pytest.mark.slow
def test_limit_show_and_progress(toy: codec.Model):
    shown, steps = [], []
    result = evaluate(toy, data(), 3, lambda *step: steps.append(step), shown.append)
    assert result.pictures == 3
    assert steps[-1] == (3, 3)
    for (original, decoded), given in zip(shown, PIXELS[:3], strict=True):
        assert (original.name, original.bytes, decoded.name) == ("original", None, "toy")
        assert (original.image == given).all()
        assert (decoded.image == toy.decode(toy.encode(given))).all()
        assert decoded.bytes == len(codes.to_bytes(toy.encode(given)))
    assert evaluate(toy, data(), 99).pictures == 7


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(image(8 + i, 12, seed=i)).save(path / name)
    return path


@pytest.mark.slow
def test_unreadable_images_are_counted_and_told(toy: codec.Model, tmp_path: Path):
    place = folder(tmp_path / "some", "a.png", "c.png")
    whole = evaluate(toy, open_data(place))
    (place / "b.png").write_bytes(b"no image")
    (place / "d.png").write_bytes((place / "a.png").read_bytes()[:60])
    told: list[InputError] = []
    result = evaluate(toy, open_data(place), skip=told.append)
    assert result == replace(whole, skipped=2)
    assert ["b.png" in str(told[0]), "d.png" in str(told[1])] == [True, True]


def test_nothing_readable_is_an_error(toy: codec.Model, tmp_path: Path):
    place = folder(tmp_path / "some", "a.png", "b.png")
    dataset = open_data(place)  # has looked at the first: now it goes bad
    for file in place.iterdir():
        file.write_bytes(b"gone")
    with pytest.raises(InputError, match="no image of"):
        evaluate(toy, dataset)


def without_prior(result: Evaluation) -> Evaluation:
    """The figures that no rounding of the prior's sums can change."""
    rows = tuple(replace(row, bpp_coded=0) for row in result.levels)
    return replace(result, bpp_coded=0, bits_per_dim=0, levels=rows)


@pytest.mark.slow
def test_sizes_may_differ_and_large_batches_are_split(
    toy: codec.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dataset = open_data(folder(tmp_path / "mixed", "a.png", "b.png", "c.png"))
    assert evaluate(toy, dataset).bpp == pytest.approx(4 * (6 + 9 + 9) / (12 * (8 + 9 + 10)))
    whole = evaluate(toy, data())
    sizes = []
    encode = codec.Model.encode_batch
    monkeypatch.setattr(
        codec.Model, "encode_batch", lambda self, p: sizes.append(len(p)) or encode(self, p)
    )
    monkeypatch.setattr("vqtok.evaluate.measure.BATCH_PIXELS", 3 * 140)
    monkeypatch.setattr("vqtok.evaluate.measure.BATCH_INDICES", 13)
    parts = evaluate(toy, data())
    assert sizes == [3, 3, 1]
    assert parts.bpp_coded == pytest.approx(whole.bpp_coded)
    assert without_prior(parts) == without_prior(whole)


@pytest.mark.slow
def test_gray_model_on_color_data(tmp_path: Path):
    tokenizer = replace(TOKENIZER, channels=1)
    gray = codec.load(make_model(tmp_path / "gray", tokenizer, replace(PRIOR, labels=())))
    result = evaluate(gray, data())
    assert result.bits_per_dim is not None
    luma = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in PIXELS])[..., None]
    assert result.psnr == pytest.approx(evaluate(gray, data(pixels=luma)).psnr)


def test_images_that_never_vary(toy: codec.Model):
    flat = np.full((3, 8, 8, 3), 77, np.uint8)
    result = evaluate(toy, data(pixels=flat))
    assert result.normalized_error == math.inf  # no mean color to be better than
    assert result.psnr is not None
    assert math.isfinite(result.psnr)
