"""Training that goes on: steps that are not finite change nothing and are counted, and
ten in a row stop the run.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from train_helpers import Interrupt, contents, data_threads, go, log, recipe_for

from vqtok import codec, quantizers, weights
from vqtok import train as training
from vqtok.config import TokenizerConfig
from vqtok.data import Shapes
from vqtok.errors import OutputError, TrainingError
from vqtok.networks.vqvae import VQVAE
from vqtok.train import adversary, loop, state
from vqtok.train import log as train_log
from vqtok.train.tokenizer import Batch, TokenizerTask

QUANTIZERS = ["ema", "vq", "simvq", "fsq", "lfq"]
TEN = {"tokenizer_training": {"steps": 24, "validate_every": 24}}


def spoil_images(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """NaN in the images of these steps: it goes through encoder, codebook, decoder,
    losses and discriminator.
    """
    forward, place = TokenizerTask.forward, TokenizerTask._to_device

    def spoiled(self: TokenizerTask, batch: Batch) -> loop.Step:
        if batch[0] in steps:
            with monkeypatch.context() as patch:
                patch.setattr(
                    TokenizerTask,
                    "_to_device",
                    lambda self, images: place(self, images) * math.nan,
                )
                return forward(self, batch)
        return forward(self, batch)

    monkeypatch.setattr(TokenizerTask, "forward", spoiled)


def spoil_loss(monkeypatch: pytest.MonkeyPatch, kind: Any, calls: set[int], spoil: Any) -> None:
    """Changes what these calls of a task's forward give, counted from 1."""
    forward, count = kind.forward, iter(range(1, 10**6))

    def spoiled(self: Any, batch: Any) -> loop.Step:
        step = forward(self, batch)
        return spoil(step) if next(count) in calls else step

    monkeypatch.setattr(kind, "forward", spoiled)


def nan_loss(step: loop.Step) -> loop.Step:
    return replace(step, loss=step.loss * math.nan)


class Endless(torch.autograd.Function):
    """Adds nothing to the loss, and a gradient without end."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.inf


def endless_gradient(step: loop.Step) -> loop.Step:
    return replace(step, loss=Endless.apply(step.loss))  # type: ignore[arg-type]


# A step that is skipped leaves no trace


@pytest.mark.parametrize(("quantizer", "levels"), [*((name, 1) for name in QUANTIZERS), ("ema", 2)])
def test_batch_of_nan_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str, levels: int
) -> None:
    """The state after the skipped step is that of the step before, in every tensor:
    weights, moments, averages, codebook, adversary.
    """
    data = Shapes(24)
    recipe = recipe_for(
        data,
        tokenizer={
            "quantizer": quantizer,
            "levels": levels,
            "normalize": levels == 1,
            "restart": 0.5,
        },
        losses={"adversarial": 0.5, "adversarial_start": 0.1},
        tokenizer_training={"ema": 0.9},
    )
    spoil_images(monkeypatch, {6})
    assert not go(tmp_path / "before", recipe, data, Interrupt("tokenizer", 6), stage="tokenizer")
    assert not go(tmp_path / "after", recipe, data, Interrupt("tokenizer", 7), stage="tokenizer")
    name = "tokenizer.state.safetensors"
    before, after = contents(tmp_path / "before")[name], contents(tmp_path / "after")[name]
    records = before.pop("record"), after.pop("record")
    assert any(key.startswith("adversary.optimizer.") for key in before)
    assert before == after
    assert (
        records[0]
        | {"step": 7, "skipped_in_a_row": 1, "window": records[0]["window"] | {"skipped": 1}}
        == records[1]
    )


@pytest.mark.parametrize("kind", [training.PriorTask, training.EntropyTask])
@pytest.mark.parametrize("spoil", [nan_loss, endless_gradient])
def test_priors_skip_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, spoil: Any
) -> None:
    data = Shapes(24)
    recipe = recipe_for(data, entropy_training={"steps": 6, "validate_every": 3})
    spoil_loss(monkeypatch, kind, {2}, spoil)
    listener = Interrupt()
    assert go(tmp_path, recipe, data, listener)
    lines = [line for line in log(tmp_path) if line["stage"] == kind.name]
    assert [line["skipped"] for line in lines] == [1, 0]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert [
        sentence
        for sentence in listener.sentences
        if "1 step was skipped: a loss or gradient was not finite." in sentence
    ]
    codec.load(tmp_path)


@pytest.mark.parametrize("what", ["loss", "gradient", "metric", "discriminator"])
def test_whatever_is_not_finite_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    data = Shapes(24)
    recipe = recipe_for(data, losses={"adversarial": 0.5, "adversarial_start": 0.1})
    spoils = {
        "loss": nan_loss,
        "gradient": endless_gradient,
        "metric": lambda step: replace(
            step, metrics=step.metrics | {"mse": torch.tensor(math.inf)}
        ),
    }
    if what in spoils:
        spoil_loss(monkeypatch, TokenizerTask, {3}, spoils[what])
    else:
        spoil_discriminator(monkeypatch)
    assert go(tmp_path, recipe, data, stage="tokenizer")
    lines = log(tmp_path)
    assert [line["skipped"] for line in lines] == [1, 0]
    assert all(
        math.isfinite(value)
        for line in lines
        for value in line.values()
        if isinstance(value, float)
    )
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


def spoil_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third loss of the discriminator is infinite, and nothing else."""
    hinge, count = adversary.discriminator_hinge, iter(range(1, 10**6))
    monkeypatch.setattr(
        adversary,
        "discriminator_hinge",
        lambda *scores: hinge(*scores) * (math.inf if next(count) == 3 else 1),
    )


def test_window_of_skipped_steps_only_has_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Shapes(24)
    spoil_images(monkeypatch, set(range(4)))
    listener = Interrupt()
    assert go(tmp_path, recipe_for(data), data, listener, stage="tokenizer")
    first, second = log(tmp_path)
    assert (first["skipped"], second["skipped"]) == (4, 0)
    assert not {"loss", "psnr", "usage"} & set(first)
    assert {"loss", "psnr", "usage", "val_psnr"} <= set(second)
    assert listener.sentences[0] == "4 steps were skipped: a loss or gradient was not finite."


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_quantizers_give_indices_for_vectors_that_are_not_finite(kind: str) -> None:
    """What a skipped step chose is not used, but choosing must not crash, nor leave the codebook's
    range on a GPU's later lookup.
    """
    it = quantizers.build_quantizer(
        replace(TokenizerConfig(), quantizer=kind, codebook_size=16, code_dim=4, levels=1)
    )
    it.initialize(torch.randn(64, 4))
    for value in (math.nan, math.inf, -math.inf):
        found = it.train()(torch.full((1, 4, 2, 2), value))
        assert found.indices.shape == (1, 1, 2, 2)


# Ten in a row


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_ten_in_a_row_stop_and_keep_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    data = Shapes(24)
    many = {"steps": 40, "validate_every": 6}
    recipe = recipe_for(data, tokenizer_training=many, prior_training=many)
    spoil_loss(
        monkeypatch,
        TokenizerTask if stage == "tokenizer" else training.PriorTask,
        {2, *range(8, 99)},
        nan_loss,
    )
    message = (
        rf"^{stage}: 10 steps in a row, the last of them step 17, are not finite: the loss is nan, "
        r"the gradient norm is nan$"
    )
    with pytest.raises(TrainingError, match=message) as caught:
        go(tmp_path, recipe, data)
    assert f"--set {stage}_training.learning_rate=0.003" in caught.value.fix
    assert not data_threads()  # although the traceback still holds the frames of the loop
    kept = state.read_state(tmp_path / f"{stage}.state.safetensors", "")
    assert kept.record["step"] == 12  # of the validation in between, which saw good weights
    assert kept.record["skipped_in_a_row"] == 5
    assert all(np.isfinite(value).all() for value in kept.tensors.values())
    stored = weights.load_weights(tmp_path / f"{stage}.safetensors", stage)
    assert all(np.isfinite(value).all() for value in stored.tensors.values())
    assert not list(tmp_path.glob(".vqtok*"))
    monkeypatch.undo()
    # the cause is gone: a failing GPU, a file that was mended
    assert go(tmp_path, recipe, data, resume=True)
    assert [line["skipped"] for line in log(tmp_path) if line["stage"] == stage] == [
        1,
        5,
        0,
        0,
        0,
        0,
        0,
    ]


def test_nine_in_a_row_do_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Shapes(24)
    spoil_images(monkeypatch, {*range(2, 11), *range(12, 21)})
    assert go(tmp_path, recipe_for(data, **TEN), data, stage="tokenizer")
    assert sum(line["skipped"] for line in log(tmp_path)) == 18


def test_stopped_and_resumed_between_skipped_steps_it_counts_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Shapes(24)
    recipe = recipe_for(data, **TEN)
    spoil_images(monkeypatch, {3, 4, 5})
    assert go(tmp_path / "whole", recipe, data, stage="tokenizer")
    assert not go(tmp_path / "pieces", recipe, data, Interrupt("tokenizer", 5), stage="tokenizer")
    assert go(tmp_path / "pieces", recipe, data, resume=True, stage="tokenizer")
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")
    assert log(tmp_path / "pieces") == log(tmp_path / "whole")
    spoil_images(monkeypatch, set(range(10, 20)))
    assert not go(tmp_path / "ten", recipe, data, Interrupt("tokenizer", 14), stage="tokenizer")
    with pytest.raises(TrainingError, match="10 steps in a row, the last of them step 20"):
        go(tmp_path / "ten", recipe, data, resume=True, stage="tokenizer")


def test_states_of_before_know_no_skipped_steps(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    go(tmp_path, recipe, data, Interrupt("tokenizer", 3), stage="tokenizer")
    path = tmp_path / "tokenizer.state.safetensors"
    old = state.read_state(path, "")
    del old.record["skipped_in_a_row"]
    weights.save_weights(path, old)
    assert go(tmp_path, recipe, data, resume=True, stage="tokenizer")


# Weights that are broken


def test_infinite_weight_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, forward = Shapes(24), VQVAE.forward

    def poisoned(self: VQVAE, images: Tensor, depths: Tensor | None = None) -> Any:
        with torch.no_grad():
            next(self.decoder.parameters()).fill_(math.inf)
        return forward(self, images, depths)

    monkeypatch.setattr(VQVAE, "forward", poisoned)
    with pytest.raises(TrainingError, match="step 10, are not finite"):
        go(tmp_path, recipe_for(data, tokenizer_training={"steps": 20, "validate_every": 20}), data)
    assert not list(tmp_path.glob("*.safetensors"))


def test_state_that_is_not_finite_never_replaces_one_that_is(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data)
    go(tmp_path, recipe, data, Interrupt("tokenizer", 3), stage="tokenizer")
    path = tmp_path / "tokenizer.state.safetensors"
    before = path.read_bytes()
    network = torch.nn.Linear(2, 2)
    with torch.no_grad():
        network.weight[0, 0] = math.nan
    learner = state.Learner(network, torch.optim.AdamW(network.parameters()))
    with pytest.raises(TrainingError, match=r"network\.weight is not finite after step 7"):
        state.save_state(path, state.tensors_of([learner], {}), state.Progress(step=7))
    assert path.read_bytes() == before


def test_log_line_that_finds_no_room_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    train_log.append_line(path, '{"a": 1}\n')
    monkeypatch.setattr(train_log.os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        train_log.append_line(path, '{"b": 2}\n')
    assert json.loads(path.read_text()) == {"a": 1}


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_rate_of_a_step_after_skipped_ones_is_that_of_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schedule goes by the step, skipped or not: the same as for the run that is resumed."""
    seen: list[float] = []
    rate = loop.learning_rate
    monkeypatch.setattr(
        loop, "learning_rate", lambda config, step: seen.append(step) or rate(config, step)
    )
    data = Shapes(24)
    spoil_images(monkeypatch, {1, 2})
    assert go(
        tmp_path,
        recipe_for(data, tokenizer_training={"validate_every": 99}),
        data,
        stage="tokenizer",
    )
    assert seen[:8] == list(range(8))
