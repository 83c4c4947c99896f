"""Training as a library: runs that stop and go on, the loop, numbers that
are none, and what is said.
"""

import json
import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from train_helpers import Interrupt, contents, data_threads, go, log, recipe_for

from vqtok import codec, config, weights
from vqtok import train as training
from vqtok.config import Recipe, StageConfig
from vqtok.data import Shapes
from vqtok.errors import OutputError, TrainingError
from vqtok.train import draws, loop, state

# Stopping and going on


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantizer", "precision"), [("ema", "fp32"), ("vq", "fp32"), ("ema", "bf16"), ("vq", "bf16")]
)
def test_stopped_and_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, quantizer: str, precision: str
) -> None:
    data = Shapes(24)
    recipe = recipe_for(
        data, tokenizer={"quantizer": quantizer, "restart": 0.5, "decay": 0.5}, precision=precision
    )
    assert go(tmp_path / "whole", recipe, data)
    out = tmp_path / "pieces"
    # before the first step: k-means is already done
    assert not go(out, recipe, data, stop=training.Stop(deadline=0.0))
    for stage, step in (
        ("tokenizer", 3),
        ("tokenizer", 4),
        ("tokenizer", 7),
        ("indices", 24),
        ("prior", 2),
        ("prior", 3),
    ):
        assert not go(out, recipe, data, Interrupt(stage, step), resume=True)
        assert not data_threads()
    assert go(out, recipe, data, resume=True)
    assert contents(out) == contents(tmp_path / "whole")
    assert log(out) == log(tmp_path / "whole")
    restarts = sum(line["restarts"] for line in log(out) if line["stage"] == "tokenizer")
    assert restarts > 0, "the test is to cover dead codes"


def test_resumed_moments_keep_the_memory_layout_of_their_weights(tmp_path: Path) -> None:
    """Fused Adam walks weight and moment by address;
    a moment in another layout gives wrong steps without any error.
    """
    network = nn.Conv2d(4, 4, 3).to(  # type: ignore[call-overload]
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.rand(1, 4, 5, 5)).sum().backward()
    optimizer.step()
    tensors = state.tensors_of([state.Learner(network, optimizer)], {"extra": torch.ones(1)})
    state.save_state(tmp_path / "a.safetensors", tensors, state.Progress(step=1))
    again = torch.optim.AdamW(network.parameters(), fused=True)
    state.load_state(
        tmp_path / "a.safetensors", [state.Learner(network, again)], {"extra": torch.zeros(1)}
    )
    moment = again.state[network.weight]["exp_avg"]
    assert moment.stride() == network.weight.stride() != moment.contiguous().stride()
    assert torch.equal(moment, optimizer.state[network.weight]["exp_avg"])


@pytest.mark.slow
def test_kill_between_validation_and_state_leaves_no_double_lines(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    assert go(tmp_path / "whole", recipe, data)
    out = tmp_path / "killed"
    go(out, recipe, data, Interrupt("tokenizer", 6))
    # as if the line of step 8 had been written, and half of another
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "tokenizer", "step": 8}) + '\n{"stage": "tok')
    assert go(out, recipe, data, resume=True)
    assert log(out) == log(tmp_path / "whole")
    (out / "tokenizer.state.safetensors").unlink()  # killed before the first state was written
    (out / "log.jsonl").write_text(json.dumps({"stage": "tokenizer", "step": 4}) + "\n")
    assert go(out, recipe, data, resume=True)
    assert [line["step"] for line in log(out)] == [4, 8]
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_seconds_add_up_over_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    data = Shapes(24)
    recipe = recipe_for(data)
    go(tmp_path, recipe, data, Interrupt("tokenizer", 2), stage="tokenizer")
    first = state.read_state(tmp_path / "tokenizer.state.safetensors", "").record["seconds"]
    go(tmp_path, recipe, data, resume=True, stage="tokenizer")
    second = state.read_state(tmp_path / "tokenizer.state.safetensors", "").record["seconds"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 0 < first < lines[0]["seconds"] < lines[1]["seconds"] == second


@pytest.mark.slow
def test_more_steps_on_resume_train_a_new_prior_for_the_changed_tokenizer(tmp_path: Path) -> None:
    data = Shapes(24, seed=1)  # better after 40 steps than after 8
    recipe = recipe_for(data)
    assert go(tmp_path, recipe, data)
    before = codec.load(tmp_path).fingerprint
    longer = recipe.override({"tokenizer_training": {"steps": 40}})
    listener = Interrupt()
    assert go(tmp_path, longer, data, listener, resume=True)
    after = codec.load(tmp_path)
    assert after.fingerprint != before
    # a prior of the old tokenizer would raise ModelError
    assert after.sample(1)[0].shape == (32, 32, 3) or after.prior
    assert any("anew" in note for note in listener.notes)
    assert [line["step"] for line in log(tmp_path) if line["stage"] == "prior"] == [3, 6]


@pytest.mark.slow
def test_fewer_steps_than_are_done_finish_the_stage(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    go(tmp_path, recipe, data, Interrupt("tokenizer", 3))
    assert not (tmp_path / "tokenizer.safetensors").exists()
    assert go(tmp_path, recipe.override({"tokenizer_training": {"steps": 2}}), data, resume=True)
    assert codec.load(tmp_path).record["step"] == 3


@pytest.mark.slow
def test_a_run_keeps_its_recipe_and_the_seed_matters(tmp_path: Path) -> None:
    """That the recipe makes the same model again is tested by command."""
    data = Shapes(24)
    recipe = recipe_for(data, seed=7, tokenizer={"likelihood": "logistic"})
    assert go(tmp_path / "a", recipe, data, stage="tokenizer")
    assert Recipe().override(config.read_recipe(tmp_path / "a" / "recipe.toml")) == recipe
    assert go(tmp_path / "b", recipe.override({"seed": 8}), data, stage="tokenizer")
    a, b = (contents(tmp_path / name)["tokenizer.safetensors"] for name in "ab")
    assert a != b


@pytest.mark.slow
def test_stages_one_after_the_other_equal_both_at_once(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    assert go(tmp_path / "all", recipe, data)
    assert go(tmp_path / "two", recipe, data, stage="tokenizer")
    assert not (tmp_path / "two" / "prior.safetensors").exists()
    assert go(tmp_path / "two", recipe, data, stage="prior")
    assert not (tmp_path / "two" / "entropy.safetensors").exists()
    assert go(tmp_path / "two", recipe, data, stage="entropy")
    assert contents(tmp_path / "two") == contents(tmp_path / "all")


# The loop


class Toy(loop.Task):
    """One weight, pulled up by one each step; scores as given."""

    name = "tokenizer"

    def __init__(self, scores: list[float] | None = None, scale: float = 1.0) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        self.scores, self.scale = iter(scores or [1.0] * 100), scale

    def on_start(self) -> None:
        pass

    def batches(self, start: int, stop: int) -> Generator[int, None, None]:
        yield from range(start, stop)

    def forward(self, batch: int) -> loop.Step:
        return loop.Step(
            -self.scale * self.network.weight.sum(),  # type: ignore[union-attr]
            {"batch": torch.tensor(float(batch))},
        )

    def validate(self) -> loop.Validation:
        score = next(self.scores)
        return loop.Validation(score, {"score": score})

    def release(self, record: dict[str, Any]) -> weights.Weights:
        tensor = self.network.weight.detach().numpy().copy()  # type: ignore[union-attr]
        return weights.Weights({"w": tensor}, {"kind": "tokenizer", "config": {}, "record": record})


def run_in(out: Path, stop: training.Stop | None = None) -> training.RunContext:
    return training.RunContext(
        training.RunSpec(folder=out), torch.device("cpu"), stop or training.Stop()
    )


@pytest.mark.parametrize(("architecture", "starts"), [("pixelcnn", True), ("fvsbn", False)])
def test_a_prior_starts_from_the_codebook_of_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, starts: bool
) -> None:
    data, given = Shapes(8), []
    monkeypatch.setattr("vqtok.train.prior.start_from_codebooks", lambda *both: given.append(both))
    short = {f"{stage}_training": {"steps": 2} for stage in ("tokenizer", "prior", "entropy")}
    recipe = recipe_for(data, prior={"architecture": architecture}, **short)
    assert go(tmp_path, recipe, data)
    assert len(given) == starts
    for _, codebooks in given:
        assert torch.equal(codebooks, codec.load(tmp_path).codebook)
    assert go(tmp_path, recipe, data, resume=True)
    assert len(given) == starts, "a resumed prior has its weights already"


def test_learning_rate_rises_and_falls_to_zero() -> None:
    stage = StageConfig(steps=1000, learning_rate=2.0e-3, warmup=10)
    rates = [loop.learning_rate(stage, step) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-4, rel=1e-3)
    assert max(rates) == pytest.approx(2e-3, rel=1e-3)
    assert np.argmax(rates) == 9
    assert rates[500] == pytest.approx(1e-3)
    assert 0 < rates[-1] < 1e-8
    assert loop.learning_rate(replace(stage, warmup=0), 0) == 2e-3


def test_a_constant_learning_rate_falls_at_the_end() -> None:
    stage = StageConfig(
        steps=1000, learning_rate=2.0e-3, warmup=10, schedule="constant", cooldown=0.2
    )
    rates = [loop.learning_rate(stage, step) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-4, rel=1e-3)
    assert set(rates[10:800]) == {2e-3}
    assert rates[900] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(2e-3 / 200)


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
    loop.train(
        Toy([3.0, 1.0, 2.0]), StageConfig(steps=6, validate_every=2), run_in(tmp_path), resume=False
    )
    record = weights.read_meta(tmp_path / "tokenizer.safetensors")["record"]
    assert (record["step"], record["metrics"]) == (4, {"score": 1.0})
    progress = state.read_state(tmp_path / "tokenizer.state.safetensors", "").record
    assert (progress["step"], progress["best"], progress["best_step"], progress["window"]) == (
        6,
        1.0,
        4,
        {},
    )
    assert [(line["step"], line["batch"], line["val_score"]) for line in log(tmp_path)] == [
        (2, 0.5, 3.0),
        (4, 2.5, 1.0),
        (6, 4.5, 2.0),
    ]


def test_state_is_saved_between_validations_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)
    saved: list[int] = []
    monkeypatch.setattr(
        state, "save_state", lambda path, tensors, progress: saved.append(progress.step)
    )
    loop.train(Toy(), StageConfig(steps=3, validate_every=10), run_in(tmp_path), resume=False)
    assert saved == [1, 2, 3]


def test_log_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "no" / "such" / "folder")
    with pytest.raises(OutputError, match=r"log\.jsonl"):
        loop.train(Toy(), StageConfig(steps=1), run_in(tmp_path), resume=False)


# Numbers that are none (steps that are skipped: test_train_robust.py)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_validation_that_is_not_finite_stops(tmp_path: Path, score: float) -> None:
    with pytest.raises(TrainingError, match="validation at step 4"):
        loop.train(
            Toy([1.0, score]),
            StageConfig(steps=6, validate_every=2),
            run_in(tmp_path),
            resume=False,
        )
    assert weights.read_meta(tmp_path / "tokenizer.safetensors")["record"]["step"] == 2


def test_weights_beyond_float16_are_not_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Toy()
    monkeypatch.setattr(
        task, "release", lambda record: weights.Weights({"w": np.array([np.inf], np.float16)}, {})
    )
    with pytest.raises(TrainingError, match="w leaves the range of float16 at step 1"):
        loop.train(task, StageConfig(steps=1), run_in(tmp_path), resume=False)
    assert not (tmp_path / "tokenizer.safetensors").exists()


# What is said


@pytest.mark.slow
def test_sentence_tells_about_dead_codes(tmp_path: Path) -> None:
    data = Shapes(24)
    listener = Interrupt()
    go(
        tmp_path,
        recipe_for(data, tokenizer={"restart": 0.9, "decay": 0.5}),
        data,
        listener,
        stage="tokenizer",
    )
    assert any(
        "a dead code was moved onto a vector of the batch" in sentence
        for sentence in listener.sentences
    )
    quiet = Interrupt()
    go(
        tmp_path / "no",
        recipe_for(data, tokenizer={"restart": 0.0}),
        data,
        quiet,
        stage="tokenizer",
    )
    assert all(
        "no code was restarted" in sentence and "of 16 codes are in use" in sentence
        for sentence in quiet.sentences
    )


@pytest.mark.slow
def test_statuses_count_the_steps_and_hold_real_figures(tmp_path: Path) -> None:
    data = Shapes(24)
    listener, metrics = Interrupt(), []
    hear = listener.status

    def status(status: training.Status) -> None:
        hear(status)
        # of the window as it is now: none are made for who does not ask
        metrics.append(status.metrics)

    listener.status = status  # type: ignore[method-assign]
    go(tmp_path, recipe_for(data), data, listener)
    mine = [status for status in listener.statuses if status.stage == "tokenizer"]
    assert [(status.step, status.steps) for status in mine] == [(i, 8) for i in range(1, 9)]
    assert all(0 < found["usage"] <= 1 and found["psnr"] < 60 for found in metrics[:8])
    assert mine[-1].seconds_left == 0
    assert mine[0].images_per_second > 0


def test_the_seed_of_a_step_is_fixed() -> None:
    """On NumPy 1.26 too, which shifts no uint64 by an int."""
    seeds = [draws.mixed_seed(*words) for words in ((0, 0), (3, 1), (2**31, 7))]
    expected = [7896617691693857887, 5712964121383671236, 6270596980727757337]
    assert seeds == expected, "or old runs no longer resume"
