"""The folder of a run: damaged files, what `create_run` replaces, and which recipes may go on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_model
from train_helpers import SMALL, Interrupt, go, recipe_for, truncate, write_images

from vqtok import codec, config, weights
from vqtok import train as training
from vqtok.data import DataOptions, Shapes
from vqtok.errors import InputError, OutputError, TrainingError, UsageError
from vqtok.train import run as train_run

# Damaged files


def _rewrite(path: Path, **record: Any) -> None:
    stored = weights.load_weights(path, "state")
    weights.save_weights(
        path,
        weights.Weights(stored.tensors, {**stored.meta, "record": {**stored.record, **record}}),
    )


def _drop_shape(path: Path) -> None:
    stored = weights.load_weights(path, "state")
    weights.save_weights(
        path,
        weights.Weights({**stored.tensors, "window.counts": np.zeros(3, np.int64)}, stored.meta),
    )


def _wrong_moment(path: Path) -> None:
    stored = weights.load_weights(path, "state")
    name = next(name for name in stored.tensors if name.endswith("weight.exp_avg"))
    weights.save_weights(
        path, weights.Weights({**stored.tensors, name: np.zeros(3, np.float32)}, stored.meta)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged or truncated"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: _rewrite(path, step="4"), "is damaged"),
        (lambda path: _rewrite(path, more=1), "is damaged"),
        (lambda path: _rewrite(path, window={"loss": "x"}), "is damaged"),
        (_drop_shape, "another network"),
        (_wrong_moment, "is damaged"),
    ],
)
def test_damaged_state_is_told(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    go(tmp_path, recipe, data, Interrupt("tokenizer", 2))
    damage(tmp_path / "tokenizer.state.safetensors")
    with pytest.raises(TrainingError, match=message):
        go(tmp_path, recipe, data, resume=True)


def test_damaged_run_files_are_told(tmp_path: Path) -> None:
    recipe = recipe_for(Shapes(24))
    training.create_run(
        tmp_path, training.RunSpec(recipe, "/data", 24, "vqtok train", True), "all", False
    )
    assert train_run.load_run(tmp_path) == training.RunSpec(
        recipe, "/data", 24, "vqtok train", True
    )
    good = (tmp_path / "run.json").read_text()
    for text in (
        "",
        "[]",
        "{}",
        "7",
        good[:20],
        good.replace("24", '"x"'),
        good.replace('"format": 1', '"format": "1"'),
        "[" * 99999,
    ):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(TrainingError, match="damaged"):
            train_run.load_run(tmp_path)
    (tmp_path / "run.json").write_text(good.replace('"format": 1', '"format": 2'))
    with pytest.raises(TrainingError, match="newer") as caught:
        train_run.load_run(tmp_path)
    assert caught.value.fix == "upgrade vqtok"
    # as written before `command` was kept
    (tmp_path / "run.json").write_text('{"format": 1, "data": "", "pictures": 24}')
    assert train_run.load_run(tmp_path) == training.RunSpec(recipe, "", 24)
    for text in ("seed = ", "sead = 1", "seed = -1", "[tokenizer]\nwidth = 'x'"):
        (tmp_path / "recipe.toml").write_text(text)
        with pytest.raises(TrainingError, match="recipe of this run is damaged"):
            train_run.load_run(tmp_path)
    (tmp_path / "recipe.toml").unlink()
    with pytest.raises(TrainingError, match="recipe"):
        train_run.load_run(tmp_path)
    for place in (tmp_path / "nothing", tmp_path / "run.json"):
        with pytest.raises(TrainingError, match="holds no run to resume"):
            train_run.load_run(place)


# The folder


def test_start_replaces_its_own_files_only(tmp_path: Path) -> None:
    spec = training.RunSpec(recipe_for(Shapes(24)), "", 24)
    training.create_run(tmp_path, spec, "all", False)
    own = (
        "README.md",
        "log.jsonl",
        "tokenizer-000004.png",
        "prior.state.safetensors",
        "samples.png",
        "indices.state.safetensors",
    )
    others = ("notes.txt", "cat.png", "mine.safetensors", "tokenizer.py")
    for name in (*own, *others):
        (tmp_path / name).write_text("x")
    with pytest.raises(OutputError, match="holds a run already"):
        training.create_run(tmp_path, spec, "all", False)
    assert (tmp_path / "log.jsonl").exists()
    training.create_run(tmp_path, spec, "all", True)
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "recipe.toml", *others}


def test_start_does_not_overwrite_a_readme_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(OutputError, match=r"holds README\.md already"):
        training.create_run(
            tmp_path, training.RunSpec(recipe_for(Shapes(24)), "", 24), "all", False
        )
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot write"):
            training.create_run(
                place, training.RunSpec(recipe_for(Shapes(24)), "", 24), "all", False
            )


# Recipes


def test_resume_allows_other_steps_and_another_place_of_the_data_only(tmp_path: Path) -> None:
    place = write_images(tmp_path / "data", {"a/1.png": 1, "b/2.png": 2, "b/3.png": 3})
    spec, _ = training.new_run(
        training.RunSpec(data=str(place), values=SMALL, command="vqtok train")
    )
    training.create_run(tmp_path / "run", spec, "all", False)
    longer, _ = training.resume_run(
        tmp_path / "run", training.RunSpec(values={"prior_training": {"steps": 99}})
    )
    assert longer == replace(spec, recipe=spec.recipe.override({"prior_training": {"steps": 99}}))
    place.rename(tmp_path / "moved")
    moved, _ = training.resume_run(tmp_path / "run", training.RunSpec(data=str(tmp_path / "moved")))
    assert moved == replace(spec, data=str(tmp_path / "moved"))
    for values, name in (
        ({"seed": 5}, "seed"),
        ({"tokenizer": {"beta": 1}}, "tokenizer.beta"),
        ({"data": {"flip": False}}, "data.flip"),
    ):
        with pytest.raises(TrainingError, match=f"started with another {name}"):
            training.resume_run(tmp_path / "run", training.RunSpec(values=values))
    with pytest.raises(UsageError, match="--preset"):
        training.resume_run(tmp_path / "run", training.RunSpec(preset="tiny"))
    with pytest.raises(InputError, match="there is no"):
        training.resume_run(tmp_path / "run", training.RunSpec())
    other = write_images(tmp_path / "other", {"a/1.png": 1, "c/2.png": 2, "c/3.png": 3})
    with pytest.raises(TrainingError, match="with 2 labels"):
        training.resume_run(tmp_path / "run", training.RunSpec(data=str(other)))
    fewer = write_images(tmp_path / "fewer", {"a/1.png": 1, "b/2.png": 2})
    with pytest.raises(TrainingError, match=r"started on 3 images .* has 2 images"):
        training.resume_run(tmp_path / "run", training.RunSpec(data=str(fewer)))


@pytest.mark.slow
def test_prior_takes_over_the_tokenizer_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_images(tmp_path / "data", {"a/1.png": 1, "b/2.png": 2})
    spec, data = training.new_run(training.RunSpec(data="data", values=SMALL))
    assert spec.data == str(place)
    assert go(tmp_path / "run", spec.recipe, data, stage="tokenizer")
    train_run.save_run(tmp_path / "run", spec)
    monkeypatch.chdir("/")  # the data is found from everywhere
    wider, data = training.new_prior_run(
        tmp_path / "run", training.RunSpec(values={"prior": {"width": 12}})
    )
    assert wider == replace(spec, recipe=spec.recipe.override({"prior": {"width": 12}}))
    with pytest.raises(TrainingError, match=r"another tokenizer\.width"):
        training.new_prior_run(
            tmp_path / "run", training.RunSpec(values={"tokenizer": {"width": 12}})
        )
    with pytest.raises(UsageError, match="--preset"):
        training.new_prior_run(tmp_path / "run", training.RunSpec(preset="tiny"))
    assert go(tmp_path / "run", wider.recipe, data, stage="prior")
    with pytest.raises(OutputError, match="holds a prior already"):
        go(tmp_path / "run", wider.recipe, data, stage="prior")
    assert codec.load(tmp_path / "run").prior.config.width == 12
    assert codec.load(tmp_path / "run").labels == ("a", "b")


@pytest.mark.slow
def test_prior_for_a_model_that_is_no_run(tmp_path: Path) -> None:
    out = make_model(tmp_path / "m", prior=None)
    spec, data = training.new_prior_run(
        out,
        training.RunSpec(preset="tiny", values={k: SMALL[k] for k in ("prior", "prior_training")}),
    )
    assert spec.recipe.tokenizer == codec.load(out).config
    assert spec.recipe.prior.codebook_size == 16
    with pytest.raises(TrainingError, match=r"another tokenizer\.beta"):
        training.new_prior_run(out, training.RunSpec(values={"tokenizer": {"beta": 1}}))
    with pytest.raises(TrainingError, match="holds no tokenizer"):
        training.new_prior_run(tmp_path / "nothing", training.RunSpec())
    small = Shapes(24)
    assert go(out, spec.recipe, small, stage="prior")
    assert codec.load(out).labels == data.labels == small.labels


@pytest.mark.slow
def test_prior_of_another_tokenizer_config_is_refused(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    assert go(tmp_path, recipe, data, stage="tokenizer")
    with pytest.raises(TrainingError, match="is not the recipe's"):
        go(
            tmp_path,
            recipe.override({"tokenizer": {"beta": 1.0}}),
            data,
            stage="prior",
            resume=True,
        )
    with pytest.raises(TrainingError, match="holds no tokenizer"):
        go(tmp_path / "empty", recipe, data, stage="prior")


def test_settings_merge_and_the_derived_ones_are_refused() -> None:
    assert training.merge([{"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}}, {"d": 5, "e": 6}]) == {
        "a": {"b": 4, "c": 2},
        "d": 5,
        "e": 6,
    }
    for key in ("labels", "codebook_size", "levels"):
        with pytest.raises(UsageError, match=f"prior.{key} cannot be set"):
            training.check_settable({"prior": {key: 1}})
    training.check_settable({"prior": {"width": 8}, "seed": 1})


def test_settings_that_only_fit_together_do_not_fail_one_by_one() -> None:
    spec, _ = training.new_run(
        training.RunSpec(values={"data": {"size": 30}, "tokenizer": {"downsample": 2, "fold": 2}})
    )
    assert spec.recipe.data.size == 30


# The photo preset's decoder


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({}, True),
        ({"levels": 4, "code_dim": 16}, True),
        ({"downsample": 8}, False),
        ({"width": 32}, False),
        ({"decoder_blocks": 2}, False),
    ],
)
def test_another_network_than_the_preset_has_a_decoder_like_its_encoder(
    values: dict[str, Any], kept: bool
) -> None:
    request = training.RunSpec(preset="photo", values={"tokenizer": values})
    spec, _ = training.new_run(request)
    assert (spec.recipe.tokenizer.decoder_widths == (48, 96, 192, 256)) is kept


def test_a_decoder_that_is_asked_for_stays() -> None:
    shape = {"decoder_widths": [8, 16], "decoder_depths": [1, 1]}
    values = {"tokenizer": {"downsample": 8, **shape}}
    spec, _ = training.new_run(training.RunSpec(preset="photo", values=values))
    assert spec.recipe.tokenizer.decoder_stages == [(8, 1), (16, 1)]


# The data of a run


def test_shapes_have_a_recipe_of_five_minutes() -> None:
    """What a bare `vqtok train` does, measured by benchmarks/shapes.py."""
    recipe = train_run.preset_for(Shapes(24))
    assert recipe == config.PRESETS["tiny"]
    tokenizer, stage = recipe.tokenizer, recipe.tokenizer_training
    assert (tokenizer.downsample, tokenizer.codebook_size, tokenizer.code_dim) == (4, 256, 8)
    # ends at 1/2 of the resolution: at 1/4 shapes were blurs
    assert tokenizer.decoder_stages == [(32, 2), (64, 1)]
    assert (stage.optimizer, stage.steps, stage.batch) == ("muon", 1500, 32)
    assert (recipe.prior_training.steps, recipe.prior_training.batch) == (3600, 32)
    assert recipe.sampling.changes() == {"guidance": 3.0, "temperature": 0.8, "top_p": 0.9}


@pytest.mark.parametrize("name", ["tiny", "cifar", "photo"])
def test_presets_take_bf16_where_the_machine_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for there, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(train_run, "has_bf16", lambda device, there=there: there)
        assert train_run.preset_for(Shapes(24), name).precision == precision
        request = training.RunSpec(preset=name, values={"precision": "bf16"})
        assert training.new_run(request)[0].recipe.precision == "bf16"  # what is asked for counts


def test_resume_on_other_images_of_equal_number_is_refused(tmp_path: Path) -> None:
    place = write_images(tmp_path / "data", {"1.png": 1, "2.png": 2})
    request = training.RunSpec(data=str(place), values=SMALL)
    training.create_run(tmp_path / "run", training.new_run(request)[0], "all", False)
    again, _ = training.resume_run(tmp_path / "run", training.RunSpec())
    assert again.digest
    renamed = write_images(tmp_path / "renamed", {"1.png": 1, "3.png": 2})
    resized = write_images(tmp_path / "resized", {"1.png": 1, "2.png": 2})
    (resized / "2.png").write_bytes((resized / "2.png").read_bytes() + b"x")
    for other in (renamed, resized):
        with pytest.raises(TrainingError, match="on other images"):
            training.resume_run(tmp_path / "run", training.RunSpec(data=str(other)))
    before = tmp_path / "run" / "run.json"  # of a version that kept no digest
    run = json.loads(before.read_text())
    del run["digest"], run["options"]
    before.write_text(json.dumps(run))
    training.resume_run(tmp_path / "run", training.RunSpec(data=str(renamed)))


def test_resume_on_other_arrays_is_refused(tmp_path: Path) -> None:
    images = np.repeat(np.arange(4, dtype=np.uint8), 256).reshape(4, 16, 16)
    np.save(tmp_path / "a.npy", images)
    np.save(tmp_path / "b.npy", images[::-1])
    request = training.RunSpec(data=str(tmp_path / "a.npy"), values=SMALL)
    training.create_run(tmp_path / "run", training.new_run(request)[0], "all", False)
    training.resume_run(tmp_path / "run", training.RunSpec())
    with pytest.raises(TrainingError, match="on other images"):
        training.resume_run(tmp_path / "run", training.RunSpec(data=str(tmp_path / "b.npy")))


def test_what_was_said_of_the_data_stays(tmp_path: Path) -> None:
    place = write_images(tmp_path / "data", {"a/1.png": 1, "b/2.png": 2, "c/3.png": 3})
    options = DataOptions.of(["test=c"], "none")
    request = training.RunSpec(data=str(place), values=SMALL, options=options)
    training.create_run(tmp_path / "run", training.new_run(request)[0], "all", False)
    again, dataset = training.resume_run(tmp_path / "run", training.RunSpec())
    assert (again.options, len(dataset), dataset.labels) == (options, 2, ())
    told = train_run.spec_from_json(train_run.spec_to_json(again))
    assert told == again


def test_a_model_among_its_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_images(tmp_path / "data", {"1.png": 1, "2.png": 2})
    _, dataset = training.new_run(training.RunSpec(data=str(place), values=SMALL))
    monkeypatch.chdir(place)
    for folder, data in ((place / "x" / "y", str(place)), (Path("m"), "."), (place, str(place))):
        with pytest.raises(UsageError, match="lies in the folder of images") as caught:
            training.check_outside(folder, data, dataset)
        assert "data-model" in caught.value.fix
    training.check_outside(tmp_path / "data-model", str(place), dataset)
    training.check_outside(tmp_path, str(place), dataset)
