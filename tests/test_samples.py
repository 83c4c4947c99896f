"""Samples measured: by a classifier, against what is known of toy sets, and as typed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import fails, ok, save, size_of
from conftest import image, make_model

from vqtok import codec
from vqtok.data import Dataset, open_data
from vqtok.data.dataset import ArrayData
from vqtok.errors import UsageError
from vqtok.evaluate import classifier, measure_samples, train_judge
from vqtok.evaluate.classes import class_numbers
from vqtok.evaluate.samples import SampleScores, copied, precision_recall, score_samples

NAMES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "STEPS", 30)
    monkeypatch.setattr(classifier, "BATCH", 24)
    monkeypatch.setattr(classifier, "WIDTHS", (8, 16))


def stripes(n: int, seed: int = 0, height: int = 16, width: int = 20) -> ArrayData:
    """Images whose class is the color channel that is bright."""
    draw = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    pixels = draw.integers(0, 90, (n, height, width, 3))
    pixels[np.arange(n), :, :, targets] += 120
    return ArrayData("stripes", pixels.astype(np.uint8), targets, NAMES, (), "train")


class Known(codec.Model):
    """A model whose samples are test images of `stripes`, of the class asked for plus `off`."""

    off = 0

    def decode_all(self, codes: object, levels: int | None = None) -> list[np.ndarray]:
        if len(codes) == len(self._drawn):  # type: ignore[arg-type]
            return self._drawn
        return super().decode_all(codes, levels)

    def sample_codes(  # type: ignore[override]
        self, n: int = 1, size: object = None, **options: object
    ):
        real = stripes(3 * n, seed=77)
        self._drawn = [real.image(i + self.off) for i in range(n)]
        return super().sample_codes(n, **options)  # type: ignore[arg-type]


@pytest.fixture
def known(model: Path) -> Known:
    loaded = codec.load("toy")
    loaded.__class__ = Known
    loaded._drawn = []  # type: ignore[attr-defined]
    return loaded  # type: ignore[return-value]


@pytest.mark.slow
def test_samples_of_the_class_asked_for_are_seen(known: Known):
    train, test = stripes(90), stripes(60, seed=1)
    judge = train_judge(known, train, test)
    assert judge.accuracy > 0.95
    scores, shown = score_samples(judge, known, 30, show=4)
    assert scores.accuracy == 1
    assert scores.by_class == dict.fromkeys(NAMES, 1.0)
    assert [one.asked for one in shown] == ["cat", "dog", "eel", "cat"] == [o.seen for o in shown]
    assert min(scores.precision, scores.recall, scores.precision_real, scores.recall_real) > 0.5
    assert 0.2 < scores.copies < 0.8
    known.off = 1
    assert score_samples(judge, known, 30)[0].accuracy == 0
    # named by number, as IDX files have them
    numbered = [
        ArrayData("n", part._pixels, part._targets, ("0", "1", "2"), (), "train")
        for part in (train, test)
    ]
    known.off = 0
    by_number, by_number_shown = score_samples(train_judge(known, *numbered), known, 30, show=3)
    assert by_number.accuracy == 1
    assert "0 = cat" in by_number.notes[0]
    # the sheet names them as the prior does
    assert [one.seen for one in by_number_shown] == ["cat", "dog", "eel"]
    assert not scores.notes


@pytest.mark.slow
def test_the_classifier_is_decided_by_the_seed():
    pool = classifier.read_pool(stripes(40), 3, (16, 20))
    a, b, c = (classifier.train_classifier(pool, seed).judge(pool.pixels)[1] for seed in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.slow
def test_bits_and_ceiling_of_test_images(model: Path):
    """The bits are those that `evaluate` finds; the decoded accuracy sees what decoding does."""
    from vqtok.evaluate import evaluate

    toy, train, test = codec.load("toy"), stripes(30), stripes(12, seed=1)
    judge = train_judge(toy, train, test)
    scores, _ = measure_samples(judge, toy, test, 6)
    whole = evaluate(toy, test)
    assert whole.bpp_coded is not None
    assert scores.bits == pytest.approx(whole.bpp_coded * 16)  # f 4: 16 pixels a token
    decoded = [toy.decode(toy.encode(test.image(i))) for i in range(12)]
    seen, _ = judge.classifier.judge(np.stack(decoded))
    assert scores.accuracy_decoded == pytest.approx(np.mean(seen == np.arange(12) % 3))


def test_what_is_said_of_samples(capsys: pytest.CaptureFixture[str]):
    """How sure a figure is, how they were drawn, and whether the judge is any good."""
    from vqtok.cli import samples

    figures = dict.fromkeys(("precision", "recall", "precision_real", "recall_real"), 0.5)
    found = SampleScores(100, 0.75, 0.9, None, **figures, copies=0.5, bits=None, by_class={})
    plain = {"temperature": [1.0], "top_p": [None], "top_k": None, "guidance": 1.0}
    samples._print(found, "toy", "data", plain)
    said = capsys.readouterr()
    lines = {line.strip().split("  ")[0]: line for line in said.out.splitlines()}
    assert "90.0% ± 5.9%" in lines["samples seen as the class asked for"]
    assert "50.0% ± 9.8%" in lines["precision: samples that look like test images"]
    assert lines["recall of training images"].strip().endswith("50.0%")
    assert "as learned" in lines["drawn with"]
    assert "names 75% of the test images right" in said.err
    samples._print(replace(found, classifier=0.8), "toy", "data", {**plain, "top_k": 5})
    said = capsys.readouterr()
    assert "top-k 5" in said.out
    assert not said.err


def test_precision_and_recall():
    draw = np.random.default_rng(0)
    real = draw.normal(0, 1, (200, 4)).astype(np.float32)
    same = draw.normal(0, 1, (200, 4)).astype(np.float32)
    assert min(precision_recall(real, same)) > 0.8
    assert precision_recall(real, real + 100) == (0, 0)
    one = real[:1] + 0.01 * draw.normal(0, 1, (200, 4)).astype(np.float32)  # all alike
    precision, recall = precision_recall(real, one)
    assert precision > 0.9
    assert recall < 0.1
    wide = (same * 10).astype(np.float32)  # few are like real images
    precision, recall = precision_recall(real, wide)
    assert precision < 0.2
    assert recall > 0.5


def test_radius_is_that_of_the_third_neighbor():
    real = np.array([[0.0], [1], [2], [3], [100]], np.float32)
    # of 0 the third nearest other is 3 away; of 100 it is 99
    points = np.array([[-3.0], [-3.1], [199], [199.1]], np.float32)
    assert precision_recall(real, points)[0] == 0.5


def test_copies_show():
    draw = np.random.default_rng(0)
    train, test, new = (draw.normal(0, 1, (n, 6)).astype(np.float32) for n in (900, 300, 400))
    assert copied(new, train, test) == pytest.approx(0.5, abs=0.05)
    # a copied image is in one of the three parts
    assert copied(train[:400] + 1e-4, train, test) == pytest.approx(2 / 3, abs=0.05)
    assert copied(test[:100], train, test) < 0.05
    assert copied(train[:100], train[:300], test) > 0.95


def test_class_numbers():
    labels = ("shirt", "shoe", "bag")
    assert class_numbers(("bag", "shirt"), labels) == [2, 0]
    assert class_numbers(("0", "2"), labels) == [0, 2]
    assert class_numbers(("0", "3"), labels) is None
    assert class_numbers(("bag", "hat"), labels) is None
    assert class_numbers((), labels) is None
    assert class_numbers(("1", "2"), ("5", "2")) is None  # names that are numbers are names


@pytest.mark.slow
def test_data_without_labels_and_without_test_images(model: Path, tmp_path: Path):
    """The classifier then tells quarter turns, and some images are held out."""
    for i in range(30):
        save(f"plain/{i:02}.png", image(16, 16 + 8 * (i % 2), seed=i))
    toy = codec.load("toy")
    parts: list[Dataset] = [open_data(tmp_path / "plain", part) for part in ("train", "test")]
    judge = train_judge(toy, *parts)
    assert (len(judge.train), len(judge.test)) == (27, 3)
    assert judge.turned
    scores, shown = measure_samples(judge, toy, parts[1], 6, show=2)
    assert scores.accuracy is None is scores.accuracy_decoded
    assert scores.bits is not None
    assert 0 <= scores.precision <= 1
    assert len(shown) == 2
    assert any("held out" in note for note in scores.notes)


@pytest.mark.slow
def test_one_sample_is_too_few(known: Known):
    judge = train_judge(known, stripes(12), stripes(6, seed=1))
    with pytest.raises(UsageError, match="too few"):
        score_samples(judge, known, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_as_typed():
    for part, count in (("train", 24), ("test", 9)):
        data = stripes(count, seed=len(part))
        for i in range(count):
            save(f"data/{part}/{NAMES[data.label(i)]}/{i}.png", data.image(i))
    done = ok("eval", "data", "--samples", "12", "--sheet", "s.png", "--json", "--seed", "3")
    assert "Training a classifier on the images of data" in done.stderr
    assert "12 samples, each above the training image nearest to it -> s.png" in done.stderr
    found = json.loads(done.stdout)
    assert found["samples"] == 12
    assert set(found["by_class"]) == set(NAMES)
    assert found["model"] == "toy"
    again = ok("eval", "data", "--samples", "12", "--json", "--seed", "3").stdout
    assert {**found, "seed": 3} == json.loads(again)
    width, height = size_of("s.png")
    assert width >= 10 * 20 * 3
    assert height >= 4 * 16 * 3  # two rows of samples, each above its nearest images
    # how they are drawn changes what is found
    cold = json.loads(ok("eval", "data", "--samples", "12", "--json", "--temperature", "0").stdout)
    assert cold["recall"] <= found["recall"]
    assert (cold["drawn"]["temperature"], cold["drawn"]["guidance"]) == ([0], 1)
    shown = ok("eval", "data", "--samples", "12", "--top-p", "0.5", "--guidance", "2").stdout
    for words in (
        "seen as the class asked for",
        "recall of training images",
        "token of test images",
        "by class",
        "drawn with",
        "top-p 0.5, guidance 2",
        "±",
    ):
        assert words in shown


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--guidance", "2"), "add --samples"),
        (("--seed", "2"), "add --samples"),
        (("--samples", "4", "--levels", "1"), "leave one of them out"),
        (("--samples", "4", "--split", "train"), "leave one of them out"),
        (("--samples", "4", "--temperature", "warm"), "write a number"),
        (("--samples", "4", "--model", "bare"), "has no prior"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, words: tuple[str, ...], said: str):
    make_model(tmp_path / "models" / "bare", prior=None)
    save("data/a.png", image(16, 16))
    assert said in fails("eval", "data", *words, code=1 if "bare" in words else 2)
