"""The study: equal time, every bit counted, and nothing done twice."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import image
from study_helpers import shrink, write_images
from train_helpers import Interrupt

from vqtok import codec, images, study, train
from vqtok.config import Recipe
from vqtok.errors import InputError, OutputError, UsageError
from vqtok.study import image_set, measure, page, table, vae
from vqtok.study import run as study_run
from vqtok.study.run import Elapsed
from vqtok.study.systems import Shape
from vqtok.study.table import Result
from vqtok.train import RunContext, Stop

VQ = study.select_systems("vq-pixelcnn")


def plan(folder: Path, **values: Any) -> study.Plan:
    data = str(write_images(folder / "data.npz"))
    return study.Plan(
        **{
            "data": data,
            "folder": folder / "out",
            "budget": 60.0,
            "systems": VQ,
            "samples": 3,
            "steps": 4,
            **values,
        }
    )


def go(plan: study.Plan, resume: bool = False, listener: Interrupt | None = None) -> study.Study:
    listener = listener or Interrupt()
    return study.run_study(plan, listener.stop, listener, torch.device("cpu"), resume)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQTOK_DATA", raising=False)
    shrink(monkeypatch)


# One system from images to the table


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, study.Study]:
    """A study of the VQ-VAE alone, four steps each."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        folder = tmp_path_factory.mktemp("study")
        return folder, go(plan(folder))


@pytest.fixture
def first(done: tuple[Path, study.Study], tmp_path: Path) -> study.Study:
    """That study, copied to tmp_path: what a second session finds."""
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    return done[1]


@pytest.mark.slow
def test_every_bit_of_a_vqvae_is_counted(done: tuple[Path, study.Study]):
    """Against the networks themselves: softmax of the prior's logits, and the logistic's integral
    over the bin of each pixel.
    """
    folder, found = done
    model = codec.load(folder / "out" / "vq-pixelcnn", "cpu")
    test = np.load(folder / "out" / "data" / "test.npy")
    x = torch.from_numpy(test).permute(0, 3, 1, 2).double() / 127.5 - 1
    with torch.no_grad():
        indices = model.network.encode(x.float())
        chances = model.prior(indices).double().log_softmax(-1)
        index_bits = -chances.gather(-1, indices[..., None]).sum() / math.log(2)
        output, own = (
            model.network.decoder(model.network.quantizer.lookup(indices)).double().chunk(2, 1)
        )
        scale = (model.likelihood.log_scale.double()[:, None, None] + own).clamp(-7, 2).exp()
        upper = torch.where(x > 1 - 1 / 255, 1.0, torch.sigmoid((x + 1 / 255 - output) / scale))
        lower = torch.where(x < -1 + 1 / 255, 0.0, torch.sigmoid((x - 1 / 255 - output) / scale))
        pixel_bits = -(upper - lower).log2().sum()
    result = found.results[0]
    assert result.bits_latents == pytest.approx(float(index_bits) / test.size, rel=1e-4)
    assert result.bits_pixels == pytest.approx(float(pixel_bits) / test.size, rel=1e-4)
    assert result.bits == result.bits_latents + result.bits_pixels
    assert result.kind == "bound, code length"


@pytest.mark.slow
def test_raw_pixels_are_exact(tmp_path: Path):
    found = go(plan(tmp_path, systems=study.select_systems("pixelcnn"))).results[0]
    model = codec.load(tmp_path / "out" / "pixelcnn", "cpu")
    test = np.load(tmp_path / "out" / "data" / "test.npy")
    planes = torch.from_numpy(test.astype(np.int64)).permute(0, 3, 1, 2)
    with torch.no_grad():
        chances = model.prior(planes).double().log_softmax(-1)
    bits = -float(chances.gather(-1, planes[..., None]).sum()) / math.log(2) / test.size
    assert found.bits == pytest.approx(bits, rel=1e-4)
    assert (found.kind, found.bits_pixels, found.symbols, found.alphabet) == (
        "exact",
        0.0,
        8 * 8 * 3,
        256,
    )
    assert found.parameters == sum(p.numel() for p in model.prior.parameters())
    assert found.tokenizer_steps == 0


@pytest.mark.slow
def test_both_parts_of_a_vae_are_counted(tmp_path: Path):
    found = go(plan(tmp_path, systems=study.select_systems("vae"))).results[0]
    network = vae.load_vae(tmp_path / "out" / "vae", torch.device("cpu"))
    x = (
        torch.from_numpy(np.load(tmp_path / "out" / "data" / "test.npy"))
        .permute(0, 3, 1, 2)
        .float()
        / 127.5
        - 1
    )
    with torch.no_grad():
        mean, log_variance = network.encode(x)
        q = torch.distributions.Normal(mean, (log_variance / 2).exp())
        divergence = torch.distributions.kl_divergence(
            q, torch.distributions.Normal(0.0, 1.0)
        ).sum()
        rest = network.likelihood.nll(network.decoder(q.sample()), x)
    assert found.bits_latents == pytest.approx(
        float(divergence) / math.log(2) / x.numel(), rel=1e-3
    )
    # of other draws of z
    assert found.bits_pixels == pytest.approx(float(rest) / math.log(2), rel=0.05)
    assert (found.kind, found.symbols, found.alphabet, found.steps) == (
        "bound, ELBO",
        4 * 2 * 2,
        0,
        4,
    )
    spec, _ = train.resume_run(tmp_path / "out" / "vae", train.RunSpec())
    assert spec.recipe.tokenizer_training.steps == 4


def test_the_row_says_what_was_done(done: tuple[Path, study.Study]):
    _, found = done
    result = found.results[0]
    assert (result.steps, result.tokenizer_steps) == (4, 4)
    assert (result.pictures, result.tokenizer_pictures) == (16, 16)
    assert (result.symbols, result.alphabet, result.test_pictures, result.samples) == (
        2 * 2 * 2,
        16,
        6,
        3,
    )
    assert result.training_seconds > result.tokenizer_seconds > 0
    assert found.facts["training pictures"] == 24
    assert "test set" in found.facts["test set"]


def test_table_pages_and_samples_are_written(done: tuple[Path, study.Study]):
    folder, found = done
    out = folder / "out"
    stored = json.loads((out / page.JSON).read_text())
    assert stored["systems"][0]["bits"] == pytest.approx(found.results[0].bits)
    assert stored["seed"] == 0
    assert {anchor["system"]: anchor["bits"] for anchor in stored["anchors"]}["VQ-VAE"] == 4.67
    text = (out / page.MARKDOWN).read_text()
    assert f"{found.results[0].bits:.3f}" in text
    assert all(sentence in text for sentence in [*table.sentences(found), *table.cautions(found)])
    html = (out / page.HTML).read_text()
    assert "vq-pixelcnn" in html
    assert (html.count("<img"), html.count("<svg")) == (1, 1)
    sheet = images.read_image(measure.sheet_path(out, "vq-pixelcnn")).pixels
    assert sheet.shape == (64 + 8, 3 * 64 + 16, 3)
    assert (out / page.SHEET).exists()


def test_curves_count_every_bit(done: tuple[Path, study.Study]):
    folder, found = done
    (panel,), (result,) = page.curves(folder / "out", found), found.results
    (series,), log = (
        panel.series,
        (folder / "out" / "vq-pixelcnn" / "log.jsonl").read_text().splitlines(),
    )
    last = json.loads(log[-1])
    assert len(series.points) == len(log)
    assert series.points[-1][0] == pytest.approx(result.tokenizer_seconds + last["seconds"])
    assert series.points[-1][1] == pytest.approx(last["val_bits"] * 8 / 192 + result.bits_pixels)


def test_each_system_is_an_ordinary_run(done: tuple[Path, study.Study]):
    folder, _ = done
    run = folder / "out" / "vq-pixelcnn"
    spec, dataset = train.resume_run(run, train.RunSpec())
    assert (spec.recipe.prior_training.steps, spec.recipe.prior.labels, len(dataset)) == (
        4,
        (),
        24,
    )
    assert spec.recipe.data.flip is False
    assert len(codec.load(run, "cpu").sample(2)) == 2
    assert not (run / study_run.INDICES).exists()
    assert [json.loads(line)["stage"] for line in (run / "log.jsonl").read_text().splitlines()][
        -1
    ] == "prior"


# Going on


@pytest.mark.slow
def test_what_is_finished_stays(first: study.Study, tmp_path: Path):
    weights = tmp_path / "out" / "vq-pixelcnn" / "prior.safetensors"
    before = weights.stat().st_mtime_ns
    listener = Interrupt()
    assert go(plan(tmp_path), True, listener).results == first.results
    assert listener.statuses == []
    assert weights.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.usefixtures("first")
def test_what_was_finished_before_stays_in_the_table(tmp_path: Path):
    both = go(plan(tmp_path, systems=study.select_systems("vq-fvsbn")), True).results
    assert [result.system for result in both] == ["vq-fvsbn", "vq-pixelcnn"]
    assert both[0].bits_pixels == both[1].bits_pixels  # one tokenizer, trained once
    assert both[0].tokenizer_seconds == both[1].tokenizer_seconds
    other = go(plan(tmp_path, systems=study.select_systems("vq-fvsbn"), seed=1), True).results
    assert [result.system for result in other] == ["vq-fvsbn"]


def test_a_study_outlives_new_settings():
    """A setting that comes later, at the value that stands for how it was before, changes no
    digest; any other value does.
    """
    table = {"width": 8, "steps": 5, "network": "folded", "stages": ()}
    assert study_run._counted(table) == {"width": 8}
    assert study_run._counted({**table, "network": "classic"}) == {"width": 8, "network": "classic"}
    assert study_run._counted({"shortcut": False}) == {"shortcut": False}


@pytest.mark.slow
def test_other_settings_train_anew(first: study.Study, tmp_path: Path):
    before, again = first.results[0], go(plan(tmp_path, seed=1), True).results[0]
    assert again.settings != before.settings
    assert again.bits != before.bits


@pytest.mark.slow
@pytest.mark.usefixtures("first")
def test_other_measurements_keep_the_weights(tmp_path: Path):
    listener = Interrupt()
    assert go(plan(tmp_path, samples=2), True, listener).results[0].samples == 2
    assert listener.statuses == []


class AtOnce(Interrupt):
    """Asks for a stop after the first step of a stage:
    a bar of the study shows seconds, not steps.
    """

    def status(self, status: train.Status) -> None:
        super().status(status)
        if status.stage == self.at[0]:
            self.stop.signal = 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer-vq: tokenizer", "vq-pixelcnn: prior"])
def test_an_interrupted_study_ends_as_if_it_had_not_been(tmp_path: Path, stage: str):
    whole = go(plan(tmp_path / "whole")).results[0]
    with pytest.raises(study.Interrupted):
        go(plan(tmp_path), listener=AtOnce(stage))
    after = go(plan(tmp_path), True).results[0]
    assert (after.bits, after.steps, after.tokenizer_steps) == (whole.bits, 4, 4)


def test_a_study_is_not_replaced_unasked(done: tuple[Path, study.Study]):
    with pytest.raises(OutputError, match="holds a study already"):
        study.check_free(done[0] / "out", False)
    study.check_free(done[0] / "out", True)


# The budget


class Clock:
    """A trainer that takes a given time for a step, and the clock that it goes by."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.seconds, self.rates = 0.0, seconds, list[float]()
        self.done = Elapsed(0, 0.0)
        self.run = RunContext(train.RunSpec(folder=folder), torch.device("cpu"), Stop())
        monkeypatch.setattr(study_run.time, "monotonic", lambda: self.now)
        monkeypatch.setattr("vqtok.train.loop.time.monotonic", lambda: self.now)
        monkeypatch.setattr(study_run, "elapsed", lambda folder, stage: self.done)

    def train(self, recipe: Recipe) -> bool:
        steps = recipe.prior_training.steps
        while self.done.steps < steps and not self.run.stop.agree():
            self.rates.append(train.loop.learning_rate(recipe.prior_training, self.done.steps))
            self.now += self.seconds
            self.done = Elapsed(self.done.steps + 1, self.done.seconds + self.seconds)
        return self.done.steps >= steps


def test_the_schedule_ends_with_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = Clock(tmp_path, monkeypatch, 0.05)
    recipe = study_run.train_for(
        clock.train, Recipe(), clock.run, "prior", 60.0, table="prior_training"
    )
    assert 58 < clock.done.seconds <= 60
    assert recipe.prior_training.steps == clock.done.steps
    assert clock.rates[-1] < 1e-4 * max(clock.rates)
    assert all(
        after < 1.0001 * before
        for before, after in zip(clock.rates[100:], clock.rates[101:], strict=False)
    )


def test_a_machine_that_slows_down_is_stopped_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock(tmp_path, monkeypatch, 0.05)
    original = clock.train

    def slower(recipe: Recipe) -> bool:
        clock.seconds *= 1.5
        return original(recipe)

    recipe = study_run.train_for(slower, Recipe(), clock.run, "prior", 60.0, table="prior_training")
    assert clock.done.seconds < 62
    assert recipe.prior_training.steps == clock.done.steps


@pytest.mark.parametrize("part", [1, 2, 5, 6])
def test_a_machine_that_speeds_up_gets_more_steps(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Other work took most of it in the first parts:
    the steps planned then are done long before the time is over.
    """
    clock, parts = Clock(tmp_path, monkeypatch, 0.5), iter(range(100))
    original = clock.train

    def faster(recipe: Recipe) -> bool:
        clock.seconds = 0.02 if next(parts) >= part else 0.5
        return original(recipe)

    study_run.train_for(faster, Recipe(), clock.run, "prior", 60.0, table="prior_training")
    assert 0.92 * 60 < clock.done.seconds <= 60.5


def test_time_of_an_earlier_session_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = Clock(tmp_path, monkeypatch, 0.05)
    clock.done = Elapsed(600, 30.0)
    study_run.train_for(clock.train, Recipe(), clock.run, "prior", 60.0, table="prior_training")
    assert 28 < clock.now <= 30


# Images


def test_test_images_are_the_datas_own(tmp_path: Path):
    path = write_images(tmp_path / "a.npz")
    found = image_set.prepare(path, tmp_path, 4, 0)
    assert (found.train, len(found.test), found.shape) == (24, 4, Shape(8, 3))
    own = {image(8, 8, seed=1000 + i).tobytes() for i in range(6)}
    assert {p.tobytes() for p in found.test} < own
    assert image_set.prepare(path, tmp_path, 4, 0).digest == found.digest


def test_images_are_set_aside_where_there_are_none(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.stack([image(8, 8, seed=i) for i in range(30)]))
    found = image_set.prepare(tmp_path / "a.npy", tmp_path / "out", 100, 0)
    training = {p.tobytes() for p in np.load(found.path)}
    assert (len(training), len(found.test)) == (27, 3)
    assert not training & {p.tobytes() for p in found.test}


def test_gray_images_stay_gray(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.stack([image(8, 8, 1, seed=i) for i in range(30)]))
    assert image_set.prepare(tmp_path / "a.npy", tmp_path / "out", 3, 0).shape == Shape(8, 1)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (68, 68), (10, 10)])
def test_images_that_no_study_can_use(tmp_path: Path, height: int, width: int):
    np.save(tmp_path / "a.npy", np.stack([image(height, width, seed=i) for i in range(20)]))
    with pytest.raises(UsageError, match=f"{width}x{height}"):
        image_set.prepare(tmp_path / "a.npy", tmp_path / "out", 3, 0)


def test_images_of_several_sizes(tmp_path: Path):
    for i in range(12):
        images.write_image(tmp_path / "in" / f"{i}.png", image(8, 8 + 4 * (i == 7), seed=i))
    with pytest.raises(UsageError, match="12x8"):
        image_set.prepare(tmp_path / "in", tmp_path / "out", 3, 0)


def test_too_few_images(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.stack([image(8, 8, seed=i) for i in range(3)]))
    with pytest.raises(InputError, match="too few"):
        image_set.prepare(tmp_path / "a.npy", tmp_path / "out", 3, 0)


def test_data_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="there is no cifar10"):
        image_set.find_data("cifar10")
    write_images(tmp_path / "sets" / "cifar10")
    monkeypatch.setenv("VQTOK_DATA", str(tmp_path / "sets"))
    (tmp_path / "sets" / "cifar10").mkdir()
    assert image_set.find_data("cifar10") == tmp_path / "sets" / "cifar10"
    assert image_set.find_data(None) is None
    (tmp_path / "cifar10").mkdir()
    assert image_set.find_data("cifar10") == Path("cifar10")


# Sentences


def result(
    system: str, latents: float, pixels: float = 0.0, symbols: int = 3072, seconds: float = 10.0
) -> Result:
    return Result(
        "",
        system,
        "",
        10**6,
        symbols,
        256,
        latents,
        pixels,
        "bound, code length" if pixels else "exact",
        1000,
        64,
        seconds,
        "",
        600.0,
        0.0,
        100,
        1600,
        0,
        0,
        "fp32",
    )


def sentences(*found: Result) -> str:
    return " ".join(table.sentences(table.Study(found, Shape(32, 3), 64)))


def test_sentences_follow_from_the_figures():
    raw, vq = result("pixelcnn", 4.0), result("vq-pixelcnn", 0.4, 4.4, 192, 0.5)
    text = sentences(raw, vq)
    assert (
        "pixelcnn takes the fewest bits per dimension, 4.00 (exact), and vq-pixelcnn the most, "
        "4.80 (bound, code length)"
    ) in text
    assert (
        "draws 192 symbols an image where pixelcnn draws 3,072, 16 times fewer, "
        "and its 64 samples come 20.0 times faster"
    ) in text
    assert (
        "Of the 4.80 bits of vq-pixelcnn, 0.40 are for the latents and 4.40 for the pixels" in text
    )
    assert "vq-pixelcnn takes the fewest" in sentences(result("pixelcnn", 5.5), vq)


def test_what_each_took_of_the_budget_is_said_and_what_was_not_equal():
    def said(*seconds: float) -> str:
        found = [
            replace(result(name, 4.0), training_seconds=taken)
            for name, taken in zip(("pixelcnn", "vae", "fvsbn"), seconds, strict=True)
        ]
        facts = {"budget in seconds": 600.0}
        return " ".join(table.cautions(table.Study(tuple(found), Shape(32, 3), 64, facts)))

    assert "Of the 600 s they took 590 to 597." in said(590, 597, 592)
    text = said(480, 597, 700)
    assert "Of the 600 s they took 480 to 700: the time was not equal" in text
    assert "pixelcnn 80%, fvsbn 117% of the budget" in text
    assert "vae" not in text


def test_raw_pixels_have_no_latents_in_the_table():
    rows = table.Study(
        (result("pixelcnn", 4.0), result("vq-pixelcnn", 0.4, 4.4)), Shape(32, 3), 64
    ).rows()
    assert [row[3:7] for row in rows] == [
        ["4.000", "exact", "", "4.000"],
        ["4.800", "bound, code length", "0.400", "4.400"],
    ]


@pytest.mark.parametrize(("logistic", "words"), [(3.8, "saves 0.20"), (4.3, "costs 0.30")])
def test_kinship_may_go_either_way(logistic: float, words: str):
    assert words in sentences(result("pixelcnn", 4.0), result("pixelcnn-logistic", logistic))


def test_systems_are_chosen_by_name():
    assert [system.name for system in study.select_systems(" vq-pixelcnn ,vae")] == [
        "vae",
        "vq-pixelcnn",
    ]
    assert study.select_systems(None) == study.SYSTEMS
    with pytest.raises(UsageError, match="no system 'vae9'"):
        study.select_systems("vae9")
    with pytest.raises(UsageError, match="no system is named"):
        study.select_systems(",")
