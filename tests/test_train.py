"""Training as a library: runs that stop and go on, runs that fail, and what reaches the model from the data."""

import json
import math
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model, picture
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from vqtok import codec, config, images, weights
from vqtok import train as training
from vqtok.config import Recipe, StageConfig, TokenizerConfig
from vqtok.data import ArrayData, Dataset, Shapes, open_data
from vqtok.errors import InputError, OutputError, TrainingError, UsageError
from vqtok.train import begin, folder, loop, state
from vqtok.train.plan import multiply_adds_by_part
from vqtok.train.prior import Grids, encode_dataset, load_grids, save_grids
from vqtok.train.tokenizer import TokenizerTask
from vqtok.vqvae import VQVAE

SMALL: dict[str, Any] = {
    "tokenizer": {"downsample": 4, "width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "codebook_size": 16, "code_dim": 4},
    "prior": {"width": 8, "layers": 2},
    "data": {"size": 16, "prior_size": 16, "validation_max": 4, "flip": True},
    "tokenizer_training": {"steps": 8, "batch": 4, "warmup": 2, "validate_every": 4, "learning_rate": 0.01},
    "prior_training": {"steps": 6, "batch": 4, "warmup": 2, "validate_every": 3, "learning_rate": 0.01},
}


@pytest.fixture(autouse=True)
def _few_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtok.train.tokenizer.INITIAL_VECTORS", 256)


def recipe_for(dataset: Dataset, **values: Any) -> Recipe:
    base = replace(Recipe(), tokenizer=replace(TokenizerConfig(), channels=dataset.channels))
    return begin.fit_to_data(base.override(training.merge([SMALL, values])), dataset)


class Interrupt:
    """A listener that keeps what it hears, and asks for a stop after some step of some stage."""

    def __init__(self, stage: str = "", step: int = 0) -> None:
        self.at, self.stop = (stage, step), training.Stop()
        self.statuses: list[training.Status] = []
        self.notes: list[str] = []
        self.sentences: list[str] = []

    def status(self, status: training.Status) -> None:
        self.statuses.append(status)
        if (status.stage, status.step) == self.at:
            self.stop.signal = 2

    def validated(self, stage: str, line: dict[str, Any], sentence: str) -> None:
        self.sentences.append(sentence)

    def note(self, text: str) -> None:
        self.notes.append(text)


def go(
    out: Path, recipe: Recipe, dataset: Dataset, listener: Interrupt | None = None, stop: training.Stop | None = None, **options: Any
) -> bool:
    listener = listener or Interrupt()
    run = training.Run(out, recipe.seed, torch.device("cpu"), recipe.precision, stop or listener.stop, listener)
    if not options.get("resume"):
        training.start(out, training.Begun(recipe, "", len(dataset)), options.get("stage", "all"), force=False)
    return training.train(recipe, dataset, run, **options)


def log(out: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl without what tells the time."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "pictures_per_second")} for line in lines]


def contents(out: Path) -> dict[str, Any]:
    """All tensors of all weights files, byte by byte, and their records without times."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*.safetensors")):
        stored = weights.load(path, path.name.split(".")[-2] if ".state." in path.name else path.stem)
        found[path.name] = {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in stored.tensors.items()}
        found[path.name]["record"] = {k: v for k, v in stored.record.items() if k != "seconds"}
    return found


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vqtok-data")]


def write_pictures(out: Path, names: dict[str, int]) -> Path:
    for name, seed in names.items():
        images.write(out / name, picture(20, 24, seed=seed))
    return out


# Stopping and going on

@pytest.mark.parametrize(("quantizer", "precision"), [("ema", "fp32"), ("vq", "fp32"), ("ema", "bf16"), ("vq", "bf16")])
def test_stopped_and_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, quantizer: str, precision: str) -> None:
    data = Shapes(24)
    recipe = recipe_for(data, tokenizer={"quantizer": quantizer, "restart": 0.5, "decay": 0.5}, precision=precision)
    assert go(tmp_path / "whole", recipe, data)
    out = tmp_path / "pieces"
    assert not go(out, recipe, data, stop=training.Stop(deadline=0.0))       # before the first step: k-means is already done
    for stage, step in (("tokenizer", 3), ("tokenizer", 4), ("tokenizer", 7), ("indices", 24), ("prior", 2), ("prior", 3)):
        assert not go(out, recipe, data, Interrupt(stage, step), resume=True)
        assert not data_threads()
    assert go(out, recipe, data, resume=True)
    assert contents(out) == contents(tmp_path / "whole")
    assert log(out) == log(tmp_path / "whole")
    restarts = sum(line["restarts"] for line in log(out) if line["stage"] == "tokenizer")
    assert restarts > 0, "the test is to cover dead codes"


def test_resumed_moments_keep_the_memory_layout_of_their_weights(tmp_path: Path) -> None:
    """Fused Adam walks weight and moment by address; a moment in another layout gives wrong steps without any error."""
    network = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)      # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.rand(1, 4, 5, 5)).sum().backward()
    optimizer.step()
    state.save(tmp_path / "a.safetensors", network, optimizer, torch.zeros(1), state.Progress(step=1))
    again = torch.optim.AdamW(network.parameters(), fused=True)
    state.load(tmp_path / "a.safetensors", network, again, torch.zeros(1))
    moment = again.state[network.weight]["exp_avg"]
    assert moment.stride() == network.weight.stride() != moment.contiguous().stride()
    assert torch.equal(moment, optimizer.state[network.weight]["exp_avg"])


def test_kill_between_validation_and_state_leaves_no_double_lines(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    assert go(tmp_path / "whole", recipe, data)
    out = tmp_path / "killed"
    go(out, recipe, data, Interrupt("tokenizer", 6))
    with (out / "log.jsonl").open("a") as file:     # as if the line of step 8 had been written, and half of another
        file.write(json.dumps({"stage": "tokenizer", "step": 8}) + '\n{"stage": "tok')
    assert go(out, recipe, data, resume=True)
    assert log(out) == log(tmp_path / "whole")
    (out / "tokenizer.state.safetensors").unlink()      # killed before the first state was written
    (out / "log.jsonl").write_text(json.dumps({"stage": "tokenizer", "step": 4}) + "\n")
    assert go(out, recipe, data, resume=True)
    assert [line["step"] for line in log(out)] == [4, 8]
    assert contents(out) == contents(tmp_path / "whole")


def test_seconds_add_up_over_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    data = Shapes(24)
    recipe = recipe_for(data)
    go(tmp_path, recipe, data, Interrupt("tokenizer", 2), stage="tokenizer")
    first = state.read(tmp_path / "tokenizer.state.safetensors", "").record["seconds"]
    go(tmp_path, recipe, data, resume=True, stage="tokenizer")
    second = state.read(tmp_path / "tokenizer.state.safetensors", "").record["seconds"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 0 < first < lines[0]["seconds"] < lines[1]["seconds"] == second


def test_more_steps_on_resume_train_a_new_prior_for_the_changed_tokenizer(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    assert go(tmp_path, recipe, data)
    before = codec.load(tmp_path).fingerprint
    longer = recipe.override({"tokenizer_training": {"steps": 40}})
    listener = Interrupt()
    assert go(tmp_path, longer, data, listener, resume=True)
    after = codec.load(tmp_path)
    assert after.fingerprint != before
    assert after.sample(1)[0].shape == (32, 32, 3) or after.prior        # a prior of the old tokenizer would raise ModelError
    assert any("anew" in note for note in listener.notes)
    assert [line["step"] for line in log(tmp_path) if line["stage"] == "prior"] == [3, 6]


def test_fewer_steps_than_are_done_finish_the_stage(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    go(tmp_path, recipe, data, Interrupt("tokenizer", 3))
    assert not (tmp_path / "tokenizer.safetensors").exists()
    assert go(tmp_path, recipe.override({"tokenizer_training": {"steps": 2}}), data, resume=True)
    assert codec.load(tmp_path).record["step"] == 3


def test_recipe_of_a_run_makes_the_same_model_again(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data, seed=7, tokenizer={"likelihood": "logistic"})
    assert go(tmp_path / "a", recipe, data)
    again = Recipe().override(config.read_recipe(tmp_path / "a" / "recipe.toml"))
    assert again == recipe
    assert go(tmp_path / "b", again, data)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert go(tmp_path / "c", recipe.override({"seed": 8}), data)
    assert contents(tmp_path / "c")["tokenizer.safetensors"] != contents(tmp_path / "a")["tokenizer.safetensors"]


def test_stages_one_after_the_other_equal_both_at_once(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    assert go(tmp_path / "all", recipe, data)
    assert go(tmp_path / "two", recipe, data, stage="tokenizer")
    assert not (tmp_path / "two" / "prior.safetensors").exists()
    assert go(tmp_path / "two", recipe, data, stage="prior")
    assert contents(tmp_path / "two") == contents(tmp_path / "all")


# The loop

class Toy(loop.Task):
    """One weight, pulled up by one each step; scores as given."""

    name = "tokenizer"

    def __init__(self, scores: list[float] | None = None, scale: float = 1.0) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        self.scores, self.scale = iter(scores or [1.0] * 100), scale

    def prepare(self) -> None:
        pass

    def batches(self, start: int, stop: int) -> Generator[int, None, None]:
        yield from range(start, stop)

    def forward(self, batch: int) -> loop.Step:
        return loop.Step(-self.scale * self.network.weight.sum(), {"batch": torch.tensor(float(batch))})      # type: ignore[union-attr]

    def validate(self) -> loop.Validation:
        score = next(self.scores)
        return loop.Validation(score, {"score": score})

    def release(self, record: dict[str, Any]) -> weights.Weights:
        tensor = self.network.weight.detach().numpy().copy()      # type: ignore[union-attr]
        return weights.Weights({"w": tensor}, {"kind": "tokenizer", "config": {}, "record": record})


def run_in(out: Path, stop: training.Stop | None = None) -> training.Run:
    return training.Run(out, 0, torch.device("cpu"), stop=stop or training.Stop())


def test_learning_rate_rises_and_falls_to_zero() -> None:
    stage = StageConfig(steps=1000, learning_rate=2.0e-3, warmup=10)
    rates = [loop.learning_rate(stage, step) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-4, rel=1e-3)
    assert max(rates) == pytest.approx(2e-3, rel=1e-3)
    assert np.argmax(rates) == 9
    assert rates[500] == pytest.approx(1e-3)
    assert 0 < rates[-1] < 1e-8
    assert loop.learning_rate(replace(stage, warmup=0), 0) == 2e-3


def test_gradients_are_clipped_and_the_schedule_is_used(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    def look(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        group = optimizer.param_groups[0]
        seen.append((float(group["params"][0].grad.norm()), group["lr"]))

    handle = register_optimizer_step_pre_hook(look)
    try:
        stage = StageConfig(steps=4, clip=0.5, warmup=2)
        assert loop.train(Toy(scale=1000.0), stage, run_in(tmp_path), resume=False)
    finally:
        handle.remove()
    assert [norm for norm, _ in seen] == pytest.approx([0.5] * 4, rel=1e-4)
    assert [rate for _, rate in seen] == [loop.learning_rate(stage, step) for step in range(4)]


def test_best_weights_by_validation_are_kept(tmp_path: Path) -> None:
    loop.train(Toy([3.0, 1.0, 2.0]), StageConfig(steps=6, validate_every=2), run_in(tmp_path), resume=False)
    record = weights.read_meta(tmp_path / "tokenizer.safetensors")["record"]
    assert (record["step"], record["metrics"]) == (4, {"score": 1.0})
    progress = state.read(tmp_path / "tokenizer.state.safetensors", "").record
    assert (progress["step"], progress["best"], progress["best_step"], progress["window"]) == (6, 1.0, 4, {})
    assert [(line["step"], line["batch"], line["val_score"]) for line in log(tmp_path)] == [(2, 0.5, 3.0), (4, 2.5, 1.0), (6, 4.5, 2.0)]


def test_state_is_saved_between_validations_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)
    saved: list[int] = []
    monkeypatch.setattr(state, "save", lambda path, network, optimizer, counts, progress: saved.append(progress.step))
    loop.train(Toy(), StageConfig(steps=3, validate_every=10), run_in(tmp_path), resume=False)
    assert saved == [1, 2, 3]


def test_log_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "no" / "such" / "folder")
    with pytest.raises(OutputError, match=r"log\.jsonl"):
        loop.train(Toy(), StageConfig(steps=1), run_in(tmp_path), resume=False)


# Numbers that are none

@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    data = Shapes(24)
    recipe = recipe_for(data, tokenizer_training={"validate_every": 2}, prior_training={"validate_every": 2})
    kind = TokenizerTask if stage == "tokenizer" else training.PriorTask
    forward, calls = kind.forward, []

    def spoiled(self: Any, batch: Any) -> loop.Step:
        calls.append(1)
        step = forward(self, batch)
        return replace(step, loss=step.loss * math.nan) if len(calls) == 4 else step

    monkeypatch.setattr(kind, "forward", spoiled)
    with pytest.raises(TrainingError, match=rf"{stage}: the loss is nan .* at step 4") as caught:
        go(tmp_path, recipe, data)
    assert f"--set {stage}_training.learning_rate=0.003" in caught.value.fix
    assert not data_threads()       # although the traceback still holds the frames of the loop
    assert state.read(tmp_path / f"{stage}.state.safetensors", "").record["step"] == 2
    stored = weights.load(tmp_path / f"{stage}.safetensors", stage)
    assert stored.record["step"] == 2
    assert all(np.isfinite(value).all() for value in stored.tensors.values())
    assert not list(tmp_path.glob(".vqtok*"))


def test_infinite_weight_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, forward = Shapes(24), VQVAE.forward

    def poisoned(self: VQVAE, pictures: Tensor) -> Any:
        with torch.no_grad():
            next(self.decoder.parameters()).fill_(math.inf)
        return forward(self, pictures)

    monkeypatch.setattr(VQVAE, "forward", poisoned)
    with pytest.raises(TrainingError, match="at step 1"):
        go(tmp_path, recipe_for(data), data)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_validation_that_is_not_finite_stops(tmp_path: Path, score: float) -> None:
    with pytest.raises(TrainingError, match="validation at step 4"):
        loop.train(Toy([1.0, score]), StageConfig(steps=6, validate_every=2), run_in(tmp_path), resume=False)
    assert weights.read_meta(tmp_path / "tokenizer.safetensors")["record"]["step"] == 2


def test_weights_beyond_float16_are_not_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Toy()
    monkeypatch.setattr(task, "release", lambda record: weights.Weights({"w": np.array([np.inf], np.float16)}, {}))
    with pytest.raises(TrainingError, match="w leaves the range of float16 at step 1"):
        loop.train(task, StageConfig(steps=1), run_in(tmp_path), resume=False)
    assert not (tmp_path / "tokenizer.safetensors").exists()


# Damaged files

def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _rewrite(path: Path, **record: Any) -> None:
    stored = weights.load(path, "state")
    weights.save(path, weights.Weights(stored.tensors, {**stored.meta, "record": {**stored.record, **record}}))


def _drop_shape(path: Path) -> None:
    stored = weights.load(path, "state")
    weights.save(path, weights.Weights({**stored.tensors, "window.counts": np.zeros(3, np.int64)}, stored.meta))


def _wrong_moment(path: Path) -> None:
    stored = weights.load(path, "state")
    name = next(name for name in stored.tensors if name.endswith("weight.exp_avg"))
    weights.save(path, weights.Weights({**stored.tensors, name: np.zeros(3, np.float32)}, stored.meta))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "damaged or truncated"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: _rewrite(path, step="4"), "is damaged"),
        (lambda path: _rewrite(path, more=1), "is damaged"),
        (lambda path: _rewrite(path, window={"loss": "x"}), "is damaged"),
        (_drop_shape, "another network"),
        (_wrong_moment, "is damaged"),
    ],
)
def test_damaged_state_is_told(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    go(tmp_path, recipe, data, Interrupt("tokenizer", 2))
    damage(tmp_path / "tokenizer.state.safetensors")
    with pytest.raises(TrainingError, match=message):
        go(tmp_path, recipe, data, resume=True)


def test_damaged_run_files_are_told(tmp_path: Path) -> None:
    recipe = recipe_for(Shapes(24))
    training.start(tmp_path, training.Begun(recipe, "/data", 24, "vqtok train", True), "all", False)
    assert folder.continued(tmp_path) == training.Begun(recipe, "/data", 24, "vqtok train", True)
    good = (tmp_path / "run.json").read_text()
    for text in ("", "[]", "{}", "7", good[:20], good.replace("24", '"x"'), good.replace('"format": 1', '"format": "1"'), "[" * 99999):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(TrainingError, match="damaged"):
            folder.continued(tmp_path)
    (tmp_path / "run.json").write_text(good.replace('"format": 1', '"format": 2'))
    with pytest.raises(TrainingError, match="newer") as caught:
        folder.continued(tmp_path)
    assert caught.value.fix == "upgrade vqtok"
    (tmp_path / "run.json").write_text('{"format": 1, "data": "", "pictures": 24}')     # as written before `command` was kept
    assert folder.continued(tmp_path) == training.Begun(recipe, "", 24)
    for text in ("seed = ", "sead = 1", "seed = -1", "[tokenizer]\nwidth = 'x'"):
        (tmp_path / "recipe.toml").write_text(text)
        with pytest.raises(TrainingError, match="recipe of this run is damaged"):
            folder.continued(tmp_path)
    (tmp_path / "recipe.toml").unlink()
    with pytest.raises(TrainingError, match="recipe"):
        folder.continued(tmp_path)
    for place in (tmp_path / "nothing", tmp_path / "run.json"):
        with pytest.raises(TrainingError, match="holds no run to resume"):
            folder.continued(place)


# The folder

def test_start_replaces_its_own_files_only(tmp_path: Path) -> None:
    begun = training.Begun(recipe_for(Shapes(24)), "", 24)
    training.start(tmp_path, begun, "all", False)
    own = ("README.md", "log.jsonl", "tokenizer-000004.png", "prior.state.safetensors", "samples.png", "indices.state.safetensors")
    others = ("notes.txt", "cat.png", "mine.safetensors", "tokenizer.py")
    for name in (*own, *others):
        (tmp_path / name).write_text("x")
    with pytest.raises(OutputError, match="holds a run already"):
        training.start(tmp_path, begun, "all", False)
    assert (tmp_path / "log.jsonl").exists()
    training.start(tmp_path, begun, "all", True)
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "recipe.toml", *others}


def test_start_does_not_overwrite_a_readme_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(OutputError, match=r"holds README\.md already"):
        training.start(tmp_path, training.Begun(recipe_for(Shapes(24)), "", 24), "all", False)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot write"):
            training.start(place, training.Begun(recipe_for(Shapes(24)), "", 24), "all", False)


# Recipes

def test_resume_allows_other_steps_and_another_place_of_the_data_only(tmp_path: Path) -> None:
    place = write_pictures(tmp_path / "data", {"a/1.png": 1, "b/2.png": 2, "b/3.png": 3})
    begun, _ = training.new(training.Wanted(str(place), values=SMALL, command="vqtok train"))
    training.start(tmp_path / "run", begun, "all", False)
    longer, _ = training.resumed(tmp_path / "run", training.Wanted(values={"prior_training": {"steps": 99}}))
    assert longer == replace(begun, recipe=begun.recipe.override({"prior_training": {"steps": 99}}))
    place.rename(tmp_path / "moved")
    moved, _ = training.resumed(tmp_path / "run", training.Wanted(str(tmp_path / "moved")))
    assert moved == replace(begun, data=str(tmp_path / "moved"))
    for values, name in (({"seed": 5}, "seed"), ({"tokenizer": {"beta": 1}}, "tokenizer.beta"), ({"data": {"flip": False}}, "data.flip")):
        with pytest.raises(TrainingError, match=f"started with another {name}"):
            training.resumed(tmp_path / "run", training.Wanted(values=values))
    with pytest.raises(UsageError, match="--preset"):
        training.resumed(tmp_path / "run", training.Wanted(preset="tiny"))
    with pytest.raises(InputError, match="there is no"):
        training.resumed(tmp_path / "run", training.Wanted())
    other = write_pictures(tmp_path / "other", {"a/1.png": 1, "c/2.png": 2, "c/3.png": 3})
    with pytest.raises(TrainingError, match="with 2 labels"):
        training.resumed(tmp_path / "run", training.Wanted(str(other)))
    fewer = write_pictures(tmp_path / "fewer", {"a/1.png": 1, "b/2.png": 2})
    with pytest.raises(TrainingError, match=r"started on 3 pictures .* has 2 pictures"):
        training.resumed(tmp_path / "run", training.Wanted(str(fewer)))


def test_prior_takes_over_the_tokenizer_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_pictures(tmp_path / "data", {"a/1.png": 1, "b/2.png": 2})
    begun, data = training.new(training.Wanted("data", values=SMALL))
    assert begun.data == str(place)
    assert go(tmp_path / "run", begun.recipe, data, stage="tokenizer")
    folder.record(tmp_path / "run", begun)
    monkeypatch.chdir("/")      # the data is found from everywhere
    wider, data = training.prior_for(tmp_path / "run", training.Wanted(values={"prior": {"width": 12}}))
    assert wider == replace(begun, recipe=begun.recipe.override({"prior": {"width": 12}}))
    with pytest.raises(TrainingError, match=r"another tokenizer\.width"):
        training.prior_for(tmp_path / "run", training.Wanted(values={"tokenizer": {"width": 12}}))
    with pytest.raises(UsageError, match="--preset"):
        training.prior_for(tmp_path / "run", training.Wanted(preset="tiny"))
    assert go(tmp_path / "run", wider.recipe, data, stage="prior")
    with pytest.raises(OutputError, match="holds a prior already"):
        go(tmp_path / "run", wider.recipe, data, stage="prior")
    assert codec.load(tmp_path / "run").prior.config.width == 12
    assert codec.load(tmp_path / "run").labels == ("a", "b")


def test_prior_for_a_model_that_is_no_run(tmp_path: Path) -> None:
    out = make_model(tmp_path / "m", prior=None)
    begun, data = training.prior_for(out, training.Wanted(preset="tiny", values={k: SMALL[k] for k in ("prior", "prior_training")}))
    assert begun.recipe.tokenizer == codec.load(out).config
    assert begun.recipe.prior.codebook_size == 16
    with pytest.raises(TrainingError, match=r"another tokenizer\.beta"):
        training.prior_for(out, training.Wanted(values={"tokenizer": {"beta": 1}}))
    with pytest.raises(TrainingError, match="holds no tokenizer"):
        training.prior_for(tmp_path / "nothing", training.Wanted())
    small = Shapes(24)
    assert go(out, begun.recipe, small, stage="prior")
    assert codec.load(out).labels == data.labels == small.labels


def test_prior_of_another_tokenizer_config_is_refused(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    assert go(tmp_path, recipe, data, stage="tokenizer")
    with pytest.raises(TrainingError, match="is not the recipe's"):
        go(tmp_path, recipe.override({"tokenizer": {"beta": 1.0}}), data, stage="prior", resume=True)
    with pytest.raises(TrainingError, match="holds no tokenizer"):
        go(tmp_path / "empty", recipe, data, stage="prior")


def test_settings_merge_and_the_derived_ones_are_refused() -> None:
    assert training.merge([{"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}}, {"d": 5, "e": 6}]) == {"a": {"b": 4, "c": 2}, "d": 5, "e": 6}
    for key in ("labels", "codebook_size", "levels"):
        with pytest.raises(UsageError, match=f"prior.{key} cannot be set"):
            training.check_settable({"prior": {key: 1}})
    training.check_settable({"prior": {"width": 8}, "seed": 1})


def test_settings_that_only_fit_together_do_not_fail_one_by_one() -> None:
    begun, _ = training.new(training.Wanted(values={"data": {"size": 30}, "tokenizer": {"downsample": 2, "fold": 2}}))
    assert begun.recipe.data.size == 30


# Data

def test_grey_idx_pictures_give_a_grey_model(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    place = tmp_path / "mnist"
    place.mkdir()
    (place / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes())
    labels = np.arange(12, dtype=np.uint8) % 3
    (place / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + np.array(labels.shape, ">u4").tobytes() + labels.tobytes())
    begun, data = training.new(training.Wanted(str(place), values={**SMALL, "data": {"validation_max": 4}}))
    assert (begun.recipe.tokenizer.channels, begun.recipe.data.size, begun.recipe.precision) == (1, 28, "bf16")
    assert go(tmp_path / "run", begun.recipe, data)
    model = codec.load(tmp_path / "run")
    assert model.sample(2)[0].shape == (28, 28, 1)
    assert model.labels == ("0", "1", "2")
    assert images.read(tmp_path / "run" / "tokenizer-000008.png").pixels.ndim == 3


def test_channels_may_be_chosen(tmp_path: Path) -> None:
    begun, _ = training.new(training.Wanted(values=training.merge([SMALL, {"tokenizer": {"channels": 1}}])))
    assert begun.recipe.tokenizer.channels == 1
    assert go(tmp_path, begun.recipe, Shapes(12))
    assert codec.load(tmp_path).sample(1)[0].shape[2] == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_pictures_than_a_batch(tmp_path: Path, count: int) -> None:
    data = ArrayData("few", np.stack([picture(16, 16, seed=i) for i in range(count)]))
    listener = Interrupt()
    assert go(tmp_path, recipe_for(data), data, listener)
    assert codec.load(tmp_path).sample(1)[0].shape == (16, 16, 3)


def test_unreadable_pictures_are_left_out_and_counted(tmp_path: Path) -> None:
    names = {f"{i % 2}/{i:02}.png": i for i in range(12)}
    place = write_pictures(tmp_path / "data", names)
    for bad in (1, 4, 7):
        (place / f"{bad % 2}/{bad:02}.png").write_bytes(b"not a picture")
    data = open_data(place)
    recipe = recipe_for(data, data={"validation": 0.5, "validation_max": 6})
    listener = Interrupt()
    assert go(tmp_path / "run", recipe, data, listener)
    assert data.skipped == 3
    stored = load_grids(tmp_path / "run" / "indices.state.safetensors", codec.load(tmp_path / "run").fingerprint, 24)
    assert stored is not None
    empty = [i for i in range(24) if stored[i].size == 0]
    order = sorted(names)
    assert [order[i // 2] for i in empty] == ["0/04.png"] * 2 + ["1/01.png"] * 2 + ["1/07.png"] * 2


def test_validation_pictures_that_are_all_unreadable_are_replaced(tmp_path: Path) -> None:
    place = write_pictures(tmp_path / "data", {f"{i}.png": i for i in range(4)})
    data = open_data(place)
    recipe = recipe_for(data, data={"validation_max": 1})
    _, aside = training.split(data, recipe.data.validation, 1, recipe.seed)
    (place / f"{aside[0]}.png").write_bytes(b"")
    listener = Interrupt()
    assert go(tmp_path / "run", recipe, open_data(place), listener)
    assert any("validation looks at training pictures" in note for note in listener.notes)


def test_pictures_that_all_become_unreadable(tmp_path: Path) -> None:
    place = write_pictures(tmp_path / "data", {f"{i}.png": i for i in range(4)})
    data = open_data(place)
    for path in place.iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no picture of data can be read"):
        go(tmp_path / "run", recipe_for(data), data)


def test_data_error_in_the_middle_ends_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Shapes(24)

    def broken(self: Shapes, indices: np.ndarray) -> np.ndarray:
        raise InputError("the disk is gone", "plug it in")

    class Break(Interrupt):
        def status(self, status: training.Status) -> None:
            monkeypatch.setattr(Shapes, "pictures", broken)

    recipe = recipe_for(data, tokenizer_training={"steps": 1000})
    try:
        go(tmp_path, recipe, data, Break())
    except InputError:
        assert not data_threads()
    else:
        pytest.fail("the error is lost")


# Grids

def test_grids_are_those_that_encoding_gives(tmp_path: Path) -> None:
    model = codec.load(make_model(tmp_path / "m"))
    sizes = [(20, 30), (20, 30), (9, 5), (1, 1)]
    pixels = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    for i, picture_ in enumerate(pixels):
        images.write(tmp_path / "d" / f"{i}.png", picture_)
    listener = Interrupt()
    run = training.Run(tmp_path, 0, torch.device("cpu"), listener=listener)
    grids = encode_dataset(model.network, open_data(tmp_path / "d"), True, run)
    assert grids is not None
    for i, picture_ in enumerate(pixels):
        assert np.array_equal(grids[2 * i], model.encode(picture_).indices[0])
        assert np.array_equal(grids[2 * i + 1], model.encode(np.ascontiguousarray(picture_[:, ::-1])).indices[0])
    assert (listener.statuses[-1].step, listener.statuses[-1].steps) == (4, 4)
    assert grids.flat.dtype == np.uint8


def test_grids_on_disk(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = [draw.integers(0, 300, (1, h, w)).astype(np.uint16) for h, w in ((3, 4), (0, 0), (5, 2))]
    grids = Grids.of_list(arrays, np.array([2, -1, 0]))
    path = tmp_path / "indices.state.safetensors"
    save_grids(path, grids, "0123abcd")
    back = load_grids(path, "0123abcd", 3)
    assert back is not None
    assert all(np.array_equal(back[i], arrays[i]) for i in range(3))
    assert np.array_equal(back.known().take(np.array([1]))[0], arrays[2])
    assert back.known().labels.tolist() == [2, 0]
    assert load_grids(path, "ffffffff", 3) is None
    assert load_grids(path, "0123abcd", 4) is None
    assert load_grids(tmp_path / "none", "0123abcd", 3) is None
    save_grids(path, replace(grids, flat=grids.flat[:-1]), "0123abcd")
    with pytest.raises(TrainingError, match="damaged"):
        load_grids(path, "0123abcd", 3)
    _truncate(path)
    with pytest.raises(TrainingError, match="damaged"):
        load_grids(path, "0123abcd", 3)


# What is said

def test_sentence_tells_about_dead_codes(tmp_path: Path) -> None:
    data = Shapes(24)
    listener = Interrupt()
    go(tmp_path, recipe_for(data, tokenizer={"restart": 0.9, "decay": 0.5}), data, listener, stage="tokenizer")
    assert any("a dead code was moved onto a vector of the batch" in sentence for sentence in listener.sentences)
    quiet = Interrupt()
    go(tmp_path / "no", recipe_for(data, tokenizer={"restart": 0.0}), data, quiet, stage="tokenizer")
    assert all("no code was dead" in sentence and "of 16 codes are in use" in sentence for sentence in quiet.sentences)


def test_statuses_count_the_steps_and_hold_real_figures(tmp_path: Path) -> None:
    data = Shapes(24)
    listener = Interrupt()
    go(tmp_path, recipe_for(data), data, listener)
    mine = [status for status in listener.statuses if status.stage == "tokenizer"]
    assert [(status.step, status.steps) for status in mine] == [(i, 8) for i in range(1, 9)]
    assert all(0 < status.metrics["usage"] <= 1 and status.metrics["psnr"] < 60 for status in mine)
    assert mine[-1].seconds_left == 0
    assert mine[0].pictures_per_second > 0


# The plan

def test_multiply_adds_are_counted_by_hand() -> None:
    network = VQVAE(TokenizerConfig(downsample=4, width=8, encoder_blocks=1, decoder_blocks=0, codebook_size=16, code_dim=4))
    cells = 1 / 16      # everything happens at a quarter of the side
    costs = multiply_adds_by_part(network)
    assert costs["encoder"] == pytest.approx(cells * (48 * 8 * 9 + 2 * 8 * 8 * 9 + 8 * 4))
    assert costs["decoder"] == pytest.approx(cells * (4 * 8 * 9 + 8 * 48 * 9))


def test_plan_tells_size_and_time() -> None:
    data = Shapes(24)
    facts = training.plan(recipe_for(data), data, "all", torch.device("cpu"))
    network = VQVAE(recipe_for(data).tokenizer)
    assert facts["pictures"] == 24
    assert facts["bpp"] == 4 / 16
    entry = facts["stages"]["tokenizer"]
    assert entry["parameters"] == sum(p.numel() for p in network.parameters())
    assert entry["seconds"] == entry["seconds_per_step"] * 8 > 0
    assert list(training.plan(recipe_for(data), data, "prior", torch.device("cpu"))["stages"]) == ["prior"]
