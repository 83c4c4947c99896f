"""Figures by level, and other codecs at the same bytes."""

import io
import lzma
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PRIOR, TOKENIZER, image, make_model
from PIL import Image

from vqtok import codec, codes, images, losses, metrics
from vqtok.data.dataset import ArrayData
from vqtok.errors import UsageError
from vqtok.evaluate import (
    CodecRow,
    baseline_coders,
    comparator,
    evaluate,
    measure,
    reference_codecs,
)
from vqtok.evaluate.results import bpp_needed
from vqtok.losses import lpips as losses_lpips

PIXELS = np.stack([image(70, 90, seed=seed) for seed in range(2)])
LEVELS = 4


def data(pixels: np.ndarray = PIXELS) -> ArrayData:
    return ArrayData("toys", pixels)


@pytest.fixture
def model(tmp_path: Path) -> codec.Model:
    """Four levels of 16 codes, with a prior over all of them."""
    tokenizer = replace(TOKENIZER, levels=LEVELS, normalize=False)
    return codec.load(
        make_model(tmp_path / "four", tokenizer, replace(PRIOR, levels=LEVELS, labels=()))
    )


@pytest.fixture(scope="module")
def lpips() -> losses.LPIPS:
    """AlexNet with weights of chance: a distance, if no human's."""
    torch.manual_seed(0)
    network = losses.LPIPS(losses_lpips.ALEX)
    with torch.no_grad():
        for head in network.heads:
            head.uniform_()
    return network


def distance(network: losses.LPIPS, a: np.ndarray, b: np.ndarray) -> float:
    x, y = (torch.from_numpy(p.transpose(2, 0, 1)[None] / 127.5 - 1).float() for p in (a, b))
    return float(network(x, y))


# Levels


@pytest.mark.slow
def test_each_level_against_independent_computations(model: codec.Model, lpips: losses.LPIPS):
    result = evaluate(model, data(), lpips=lpips, codecs=[])
    grids = [model.encode(p) for p in PIXELS]
    pixels = 2 * 70 * 90
    assert [row.levels for row in result.levels] == [1, 2, 3, 4]
    indices = torch.from_numpy(np.concatenate([grid.indices for grid in grids]).astype(np.int64))
    with torch.no_grad():
        odds = model.prior(indices).double().log_softmax(-1).gather(-1, indices[..., None])[
            ..., 0
        ] / -math.log(2)  # (2, L, h, w)
    for row in result.levels:
        n = row.levels
        parts = [replace(grid, indices=grid.indices[:, :n]) for grid in grids]
        shown = [model.decode(part) for part in parts]
        pairs = list(zip(PIXELS, shown, strict=True))
        assert row.psnr == pytest.approx(np.mean([metrics.psnr(a, b) for a, b in pairs]))
        assert row.ssim == pytest.approx(np.mean([metrics.ssim(a, b) for a, b in pairs]))
        assert row.ms_ssim == pytest.approx(np.mean([metrics.ms_ssim(a, b) for a, b in pairs]))
        assert row.lpips == pytest.approx(
            np.mean([distance(lpips, a, b) for a, b in pairs]), rel=1e-4
        )
        assert row.bpp == pytest.approx(2 * n * 18 * 23 * 4 / pixels)
        assert row.bpp_packed == pytest.approx(
            8 * sum(len(codes.to_bytes(part)) for part in parts) / pixels
        )
        assert row.bpp_coded == pytest.approx(float(odds[:, :n].sum()) / pixels, rel=1e-5)
        used = np.concatenate([grid.indices[:, n - 1].ravel() for grid in grids])
        assert row.usage == len(set(used.tolist())) / 16
        assert row.perplexity == pytest.approx(
            metrics.usage_perplexity(np.bincount(used, minlength=16))[1]
        )
    assert len({row.ms_ssim for row in result.levels}) == LEVELS


@pytest.mark.slow
def test_the_figures_of_all_levels_are_those_of_the_last_row(
    model: codec.Model, lpips: losses.LPIPS
):
    result = evaluate(model, data(), lpips=lpips, codecs=[])
    last = result.levels[-1]
    for key in ("psnr", "ssim", "ms_ssim", "lpips", "bpp", "bpp_packed", "bpp_coded"):
        assert getattr(result, key) == getattr(last, key) is not None
    assert result.usage == pytest.approx(np.mean([row.usage for row in result.levels]))
    assert result.perplexity == pytest.approx(
        math.prod(row.perplexity for row in result.levels) ** (1 / LEVELS)
    )


@pytest.mark.slow
def test_chosen_levels_and_all(model: codec.Model):
    whole = evaluate(model, data(), codecs=[])
    some = evaluate(model, data(), levels=[2, 1, 2], codecs=[])
    assert some == replace(whole, levels=tuple(whole.levels[i] for i in (0, 1, 3)))
    for wrong in (0, 5):
        with pytest.raises(UsageError, match="has 4 levels") as raised:
            evaluate(model, data(), levels=[1, wrong])
        assert "1 to 4" in raised.value.fix


# LPIPS


@pytest.mark.slow
def test_lpips_of_gray_models_repeats_the_channel(tmp_path: Path, lpips: losses.LPIPS):
    gray = codec.load(make_model(tmp_path / "gray", replace(TOKENIZER, channels=1), None))
    luma = np.asarray(Image.fromarray(PIXELS[0]).convert("L"))[None, ..., None]
    result = evaluate(gray, data(luma), lpips=lpips, codecs=["jpeg", "webp", "avif"])
    shown = gray.decode(gray.encode(luma[0]))
    assert result.lpips == pytest.approx(
        distance(lpips, luma[0].repeat(3, 2), shown.repeat(3, 2)), rel=1e-4
    )
    assert {row.codec for row in result.codecs} == {"jpeg", "webp", "avif"}


@pytest.mark.slow
def test_images_too_small_for_lpips_are_left_out_with_a_note(
    model: codec.Model, lpips: losses.LPIPS
):
    small = evaluate(model, data(PIXELS[:, :63]), lpips=lpips)
    assert small.lpips is None
    assert "LPIPS leaves out 2 of 2 images: it needs 64 pixels a side" in small.notes
    assert evaluate(model, data(PIXELS[:1, :64]), lpips=lpips, codecs=[]).lpips is not None


@pytest.mark.slow
def test_no_lpips_without_its_network(model: codec.Model):
    result = evaluate(model, data(), codecs=[])
    assert (result.lpips, result.levels[0].lpips, result.notes) == (None, None, ())


# Codecs


def jpeg_bytes(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, optimize=True, progressive=True)
    return file.getvalue()


@pytest.mark.slow
def test_jpeg_by_trying_everything():
    """Every scale at every quality: what fits and looks best by MS-SSIM
    among the best of each scale.
    """
    original = PIXELS[0]
    rival = reference_codecs.ReferenceCodec(
        "jpeg", original, comparator.Comparator(None, torch.device("cpu"))
    )
    tried = {}
    for divisor in (1, 2, 4):
        reduced = images.resize_to(original, round(70 / divisor), round(90 / divisor))
        tried |= {(divisor, q): jpeg_bytes(reduced, q) for q in range(1, 96)}
    seen = set()
    for budget in (600, 800, 1200, 2000, 4000):
        fitting = [
            max(q for (d, q), file in tried.items() if d == divisor and len(file) <= budget)
            for divisor in (1, 2, 4)
            if len(tried[divisor, 1]) <= budget
        ]
        candidates = list(zip((1, 2, 4)[-len(fitting) :], fitting, strict=True))
        scores = {}
        for divisor, q in candidates:
            decoded = Image.open(io.BytesIO(tried[divisor, q])).resize(
                (90, 70), Image.Resampling.BICUBIC
            )
            scores[divisor, q] = metrics.ms_ssim(original, np.asarray(decoded))
        attempt = rival.best(budget)
        assert attempt is not None
        assert (attempt.divisor, attempt.quality) == max(scores, key=lambda key: scores[key])
        assert attempt.bytes == len(tried[attempt.divisor, attempt.quality]) <= budget
        assert rival.quality(attempt).ms_ssim == pytest.approx(max(scores.values()))
        seen.add(attempt.divisor)
    assert len(seen) > 1  # else the scales are no test


@pytest.mark.slow
def test_with_lpips_the_scale_is_the_one_of_the_lowest(lpips: losses.LPIPS):
    original = PIXELS[0]
    rival = reference_codecs.ReferenceCodec(
        "webp", original, comparator.Comparator(lpips, torch.device("cpu"))
    )
    budgets = (300, 600, 1500)
    for budget in budgets:
        attempt = rival.best(budget)
        assert attempt is not None
        others = [rival._largest(divisor, budget) for divisor in (1, 2, 4)]
        found = {a: distance(lpips, original, rival.shown(a)) for a in others if a is not None}
        assert attempt == min(found, key=lambda a: found[a])
        assert rival.quality(attempt).lpips == pytest.approx(found[attempt], rel=1e-4)


def test_no_file_is_written_twice(monkeypatch: pytest.MonkeyPatch):
    made = []
    save = Image.Image.save
    monkeypatch.setattr(
        Image.Image,
        "save",
        lambda self, *a, **k: made.append((self.size, k["quality"])) or save(self, *a, **k),
    )
    rival = reference_codecs.ReferenceCodec(
        "jpeg", PIXELS[0], comparator.Comparator(None, torch.device("cpu"))
    )
    for budget in (500, 1000, 1000, 2000, 100):
        rival.best(budget)
    assert len(made) == len(set(made)) < 70


@pytest.mark.slow
def test_codec_rows_keep_to_the_bytes_of_our_files(model: codec.Model):
    result = evaluate(model, data())
    assert {(row.codec, row.levels, row.times) for row in result.codecs} == {
        (name, n, times)
        for name in ("jpeg", "webp", "avif")
        for n, times in ((1, 1), (2, 1), (4, 1), (4, 2), (4, 4))
    }
    grids = [model.encode(p) for p in PIXELS]
    for row in result.codecs:
        if row.codec == "avif":  # the slowest, and like the others
            continue
        budgets = [
            row.times * len(codes.to_bytes(replace(grid, indices=grid.indices[:, : row.levels])))
            for grid in grids
        ]
        rivals = [
            reference_codecs.ReferenceCodec(
                row.codec, p, comparator.Comparator(None, torch.device("cpu"))
            )
            for p in PIXELS
        ]
        found = [rival.best(budget) for rival, budget in zip(rivals, budgets, strict=True)]
        assert row.bpp == pytest.approx(
            8 * sum(attempt.bytes for attempt in found if attempt) / (2 * 70 * 90)
        )
        assert row.over == sum(
            attempt.bytes > budget
            for attempt, budget in zip(found, budgets, strict=True)
            if attempt
        )
        assert row.ms_ssim == pytest.approx(
            np.mean([r.quality(a).ms_ssim for r, a in zip(rivals, found, strict=True) if a])
        )
    assert sum(row.over for row in result.codecs if row.times > 1) == 0


@pytest.mark.slow
def test_images_that_come_back_exactly_are_counted_and_leave_the_mean_psnr_finite(
    model: codec.Model,
):
    pixels = PIXELS.copy()
    pixels[1] = 128  # a flat image, which the codecs keep
    result = evaluate(model, data(pixels), codecs=["jpeg", "webp"])
    alone = evaluate(model, data(pixels[:1]), codecs=["jpeg", "webp"])
    for row, one in zip(result.codecs, alone.codecs, strict=True):
        assert row.exact == 1
        assert one.exact == 0
        assert row.psnr == one.psnr  # of the image that differs
        assert row.ms_ssim == pytest.approx((one.ms_ssim + 1) / 2)
    assert "JPEG keeps up to 1 of 2 images exactly: its PSNR is of the others" in result.notes
    assert not any("vqtok keeps" in note for note in result.notes)
    assert all(math.isfinite(row.psnr or math.nan) and row.exact == 0 for row in result.levels)
    both = evaluate(model, data(pixels[[1, 1]]), codecs=["jpeg"])
    assert {(row.psnr, row.exact) for row in both.codecs} == {(math.inf, 2)}


@pytest.mark.slow
def test_levels_are_coded_once(model: codec.Model, monkeypatch: pytest.MonkeyPatch):
    coded = []

    class Coder:
        def pack_levels(self, found: codes.Codes):
            coded.append(found.levels)
            return lambda count: codes.to_compact(found.first_levels(count))

    monkeypatch.setattr(codec.Model, "entropy_coder", Coder())
    result = evaluate(model, data(), codecs=[])
    assert coded == [LEVELS, LEVELS]  # once an image
    for row in result.levels:
        parts = [model.encode(p, levels=row.levels) for p in PIXELS]
        size = sum(len(codes.Encoded.of(one, codes.to_compact(one)).data) for one in parts)
        assert row.bpp_compact == pytest.approx(8 * size / (2 * 70 * 90))


@pytest.mark.slow
def test_codecs_get_the_bytes_of_compact_files_where_there_are(
    model: codec.Model, monkeypatch: pytest.MonkeyPatch
):
    class Coder:
        def pack_levels(self, found: codes.Codes):
            return lambda count: codes.to_compact(found.first_levels(count))

    # a plain file in which JPEG could be much better
    monkeypatch.setattr(measure, "to_bytes", lambda part: b"x" * 100_000)
    monkeypatch.setattr(codec.Model, "entropy_coder", Coder())
    result = evaluate(model, data(), levels=[4], codecs=["jpeg"])
    assert result.codecs[0].times == 1
    compact = result.levels[0].bpp_compact
    assert compact is not None
    assert compact * 0.9 < result.codecs[0].bpp <= compact or result.codecs[0].over


@pytest.mark.slow
def test_a_file_that_is_too_large_all_the_same_is_told(
    model: codec.Model, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measure, "to_bytes", lambda part: b"x" * 100)
    result = evaluate(model, data(), levels=[1], codecs=["jpeg"])
    smallest = [
        min(
            len(jpeg_bytes(images.resize_to(p, round(70 / d), round(90 / d)), 1)) for d in (1, 2, 4)
        )
        for p in PIXELS
    ]
    first = result.codecs[0]
    assert (first.levels, first.times, first.over) == (1, 1, 2)
    assert first.bpp == pytest.approx(8 * sum(smallest) / (2 * 70 * 90))
    told = ": for 2 of 2 images its smallest file is larger, and was taken"
    notes = [note for note in result.notes if note.startswith("JPEG at ")]
    assert notes[0] == f"JPEG at the bytes of 1 level{told}"
    assert f"JPEG at 2 times the bytes of 4 levels{told}" in notes
    assert len(set(notes)) == len(notes) > 2


@pytest.mark.slow
def test_codecs_by_default_for_photographs_only(model: codec.Model):
    assert evaluate(model, data(PIXELS[:1, :64])).codecs == ()
    assert evaluate(model, data(PIXELS[:1, :65]), levels=[1]).codecs != ()
    with pytest.raises(UsageError, match="no codec 'gif'"):
        evaluate(model, data(), codecs=["gif"])


def test_what_this_pillow_cannot_write_is_told(model: codec.Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "writable", lambda name: name != "avif")
    result = evaluate(model, data(), limit=1, levels=[1], codecs=["jpeg", "avif"])
    assert {row.codec for row in result.codecs} == {"jpeg"}
    assert result.notes == ("this Pillow cannot write AVIF: left out",)


@pytest.mark.slow
def test_a_size_that_a_format_does_not_take_is_left_out(model: codec.Model):
    long = np.zeros((1, 4, 70_000, 3), np.uint8)
    assert (
        reference_codecs.ReferenceCodec(
            "webp", long[0], comparator.Comparator(None, torch.device("cpu"))
        ).best(10_000)
        is None
    )
    wide = evaluate(model, data(long[:, :, : 16_500 * 4]), levels=[1], codecs=["webp"])
    assert wide.codecs == ()
    assert wide.notes == ("WebP does not take 1 of the images: left out",)


@pytest.mark.slow
def test_views_of_a_sheet(model: codec.Model):
    shown = []
    evaluate(model, data(), limit=1, show=shown.append, codecs=["jpeg", "avif"])
    assert [view.name for view in shown[0]] == [
        "original",
        "1 level",
        "2 levels",
        "4 levels",
        "JPEG",
        "AVIF",
    ]
    grid = model.encode(PIXELS[0])
    two = replace(grid, indices=grid.indices[:, :2])
    assert (shown[0][2].image == model.decode(two)).all()
    assert shown[0][2].bytes == len(codes.to_bytes(two))
    assert all(view.image.shape == PIXELS[0].shape for view in shown[0])


def test_bits_needed_for_the_same_quality():
    def row(bpp: float, ms_ssim: float, lpips: float | None) -> CodecRow:
        return CodecRow("avif", 1, 1, bpp, 20.0, 0.5, ms_ssim, lpips, 0)

    def ask(ms_ssim: float, lpips: float | None) -> comparator.Quality:
        return comparator.Quality(20.0, 0.5, ms_ssim, lpips)

    curve = [row(0.4, 0.9, 0.1), row(0.1, 0.5, 0.5), row(0.2, 0.8, 0.3)]
    assert bpp_needed(ask(0.0, 0.4), curve) == pytest.approx(math.sqrt(0.1 * 0.2))
    assert bpp_needed(ask(0.0, 0.3), curve) == pytest.approx(0.2)
    assert bpp_needed(ask(0.85, None), curve) == pytest.approx(math.sqrt(0.2 * 0.4))
    assert bpp_needed(ask(0.9, 0.05), curve) is None
    assert bpp_needed(ask(0.9, 0.6), curve) is None


@pytest.mark.parametrize("size", [1, 64, 3000])
def test_lzma_with_a_small_dictionary_gives_the_bytes_of_its_preset(size: int):
    raw = np.random.default_rng(size).zipf(1.3, size).clip(0, 400).astype(np.uint16).tobytes()
    assert baseline_coders._lzma_bytes(raw) == len(
        lzma.compress(raw, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)
    )
