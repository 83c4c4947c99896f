"""Runs the one training loop, of tokenizer and priors: schedule, checkpoints, resume, log.jsonl."""

import json
import math
import time
from collections.abc import Hashable
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtok import distributed, images
from vqtok.config import OPTIMIZERS, StageConfig
from vqtok.errors import TrainingError
from vqtok.threads import one_thread
from vqtok.train import state
from vqtok.train.context import RunContext, Status
from vqtok.train.draws import mixed_seed
from vqtok.train.ema import WeightAverage
from vqtok.train.graph import GraphedStep, to_device
from vqtok.train.log import append_line, cut_log
from vqtok.train.runtime import (
    READ_EVERY,
    DeviceScalar,
    fused,
    keep_memory,
    set_rate,
    step_if,
    sync_free,
)
from vqtok.train.saver import Saver
from vqtok.train.state import LOG_FILE
from vqtok.train.task import Step, Task, Validation
from vqtok.train.window import DeviceWindow, stacked
from vqtok.weights import save_weights as save_weights

SAVE_SECONDS = 120  # a killed run loses two minutes at most
SKIPPED_MAX = 10  # steps in a row: one bad batch is bad luck, ten are a network that has broken
_SUMS = ("steps", "skipped")  # of a window: counts, of which there is no mean


def learning_rate(config: StageConfig, step: int) -> float:
    """Returns a step's learning rate: a linear rise over the first `warmup` steps, times the
    schedule, which falls from 1 to 0.
    """
    rise, done = min(1.0, (step + 1) / max(1, config.warmup)), step / config.steps
    left = (
        0.5 * (1 + math.cos(math.pi * done))
        if config.schedule == "cosine"
        else min(1.0, (1 - done) / config.cooldown)
    )
    return config.learning_rate * rise * left


def train(task: Task, config: StageConfig, run: RunContext, resume: bool) -> bool:
    """Trains until `config.steps` are done or `run.stop` says so;
    returns whether the stage is finished.

    Writes NAME.safetensors (best by validation, but see Validation.keep) and NAME.state.safetensors
    (to resume) in the run's folder. A step whose loss, gradient or figures are not finite is done
    without any update, and counted. Raises TrainingError after ten of them in a row, and where a
    validation or a weight is not finite; the files of the last good step stay.
    Of several processes (`distributed`) the first alone writes, validates and reports.
    """
    # shapes never change: the fastest algorithm is looked for once
    keep_memory()
    torch.backends.cudnn.benchmark = run.device.type == "cuda"
    with one_thread(task.one_thread and run.device.type == "cpu"):
        return _Trainer(task, config, run).train(resume)


class _Trainer:
    def __init__(self, task: Task, config: StageConfig, run: RunContext) -> None:
        self.task, self.config, self.run = task, config, run
        self.state_path = run.folder / f"{task.name}.state.safetensors"
        self.best_path = run.folder / f"{task.name}.safetensors"
        self.log_path = run.folder / LOG_FILE
        self.progress = state.Progress()
        self.counts = torch.zeros(task.codes, dtype=torch.int64, device=run.device)
        parameters = [p for p in task.network.parameters() if p.requires_grad]
        self.parameters = parameters
        self.average = WeightAverage(task.network, config.ema, task.frozen) if config.ema else None
        self.rate = DeviceScalar(run.device, config.learning_rate)
        self.optimizer: torch.optim.Optimizer = OPTIMIZERS[config.optimizer].load()(
            parameters, self.rate.value, betas=(0.9, 0.99), weight_decay=0.0, **fused(run.device)
        )
        self.free = sync_free(run.device)
        self.saver = Saver(run.device, beside=self.free)
        self.window = DeviceWindow(run.device)
        self.phase: Hashable = None
        alone = run.device.type == "cuda" and distributed.world_size() == 1
        self.graph = (
            GraphedStep(self._launch, run.device, run.listener.note, self._drop_gradients)
            if alone
            else None
        )
        self.known: dict[str, float] = {}  # what a progress line shows, as of the last look
        self.learners = [state.Learner(task.network, self.optimizer), *task.learners()]

    def train(self, resume: bool) -> bool:
        progress = (
            state.load_state(self.state_path, self.learners, self._extra_tensors())
            if resume
            else None
        )
        if progress is not None:
            self.progress = progress
        else:
            torch.manual_seed(mixed_seed(self.run.seed, 0))
            self.task.on_start()
            self._sync_weights()
            if self.average is not None:
                self.average.reset()
        if distributed.is_main_process():
            cut_log(self.log_path, self.task.name, self.progress.step)
        self.window = DeviceWindow(self.run.device, self.progress.skipped_in_a_row)
        try:
            if self.progress.step < self.config.steps:
                self._loop()
            elif self.progress.best is None:  # `steps` was lowered below the first validation
                self._validate(0.0)
                self._save()
        finally:
            self.saver.finish()
        return self.progress.step >= self.config.steps

    def _loop(self) -> None:
        progress, config = self.progress, self.config
        first, started, saved = progress.step, time.monotonic(), time.monotonic()
        before = progress.seconds
        self.task.network.train()
        with closing(self.task.batches(first, config.steps)) as batches:
            for batch in batches:
                if self.run.stop.agree():
                    self._look()
                    self._save()
                    return
                self._step(batch)
                now = time.monotonic()
                progress.seconds = before + now - started
                rate = (progress.step - first) / max(now - started, 1e-9)
                self._report(rate)
                validates = (
                    progress.step % config.validate_every == 0 or progress.step == config.steps
                )
                saves = validates or now - saved > SAVE_SECONDS
                if saves:
                    self._look()
                if validates:
                    self._validate(rate)
                if saves:
                    self._save()
                    saved = time.monotonic()

    def _step(self, batch: Any) -> None:
        step = self.progress.step
        torch.manual_seed(mixed_seed(self.run.seed, step + 1))
        self.rate.set(learning_rate(self.config, step))
        set_rate(self.optimizer, self.rate)
        if self.average is not None:
            self.average.schedule(step + 1)
        phase = self.task.schedule(step)
        if self.free:
            self._unseen_step(batch, phase)
        else:
            self._seen_step(batch)

    def _seen_step(self, batch: Any) -> None:
        """Runs a step that reads its loss and gradients from the device before anything changes."""
        progress = self.progress
        result, shown, checked = self._gradients(batch)
        # one wait for the device
        seen = dict(zip(checked, stacked(checked.values()).tolist(), strict=True))
        progress.step += 1
        if not all(map(math.isfinite, seen.values())):
            self._skip(seen)
            return
        more = {name: float(value) for name, value in self._update(result, None).items()}
        progress.skipped_in_a_row = 0
        for name, value in {**{name: seen[name] for name in shown}, **more, "steps": 1}.items():
            progress.window[name] = progress.window.get(name, 0) + value

    def _unseen_step(self, batch: Any, phase: Hashable) -> None:
        """Runs a step without waiting for the device, which itself decides whether anything may
        change.
        """
        if phase != self.phase:
            self._look()  # other figures follow
            self.phase = phase
        if self.graph is not None and phase is not None:
            self.graph(batch, phase)
        else:
            self._launch(to_device(batch, self.run.device))
        self.progress.step += 1
        if self.progress.step % READ_EVERY == 0:
            self._look()

    def _launch(self, batch: Any) -> None:
        """Runs the part of a step that a CUDA graph can hold."""
        result, shown, checked = self._gradients(batch)
        ok = torch.isfinite(stacked(checked.values())).all()
        more = self._update(result, ok)
        self.window.add({name: checked[name] for name in shown} | more, checked, ok)

    def _gradients(self, batch: Any) -> tuple[Step, list[str], dict[str, Tensor]]:
        """Computes a step's result and gradients; returns the names of the figures to show, and all
        that must be finite.
        """
        # bfloat16 reaches as far as float32: no gradient fades to 0 that a scale (GradScaler) would
        # save, as float16's would.
        # A graph would hold autocast's cache of weights for ever.
        with torch.autocast(
            self.run.device.type, torch.bfloat16, enabled=self.run.bf16, cache_enabled=not self.free
        ):
            result = self.task.forward(batch)
        result.loss.backward()
        result = self._all_reduce(result)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        shown = {"loss": result.loss, **result.metrics}
        return result, list(shown), shown | {"gradient norm": norm} | self.task.auxiliary_step()

    def _update(self, result: Step, ok: Tensor | None) -> dict[str, Tensor]:
        """Updates weights, averages and codebooks unless `ok` is false; returns more figures."""
        step_if(self.optimizer, ok)
        self.optimizer.zero_grad(set_to_none=True)
        figures = self.task.after_step(ok)
        if self.average is not None:
            self.average.update(ok)
        if result.indices is not None:
            chosen = result.indices.flatten()
            counts = torch.zeros_like(self.counts).scatter_add_(0, chosen, torch.ones_like(chosen))
            distributed.all_reduce_sum(counts)
            self.counts += counts if ok is None else counts * ok
        return figures

    def _drop_gradients(self) -> None:
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)

    def _look(self) -> None:
        """Reads the figures of the steps since the last look into the window; raises TrainingError
        where too many of these steps were skipped.
        """
        if not self.free:
            return
        progress, read = self.progress, self.window.read()
        for name, value in {**read.figures, "steps": read.learned, "skipped": read.skipped}.items():
            if value or name in read.figures:
                progress.window[name] = progress.window.get(name, 0) + value
        progress.skipped_in_a_row = read.in_a_row
        self.known = self._window_means() | self._summary()[0]
        if read.longest >= SKIPPED_MAX:
            raise self._spoiled(
                f"{read.longest} steps in a row, the last of them by step {progress.step},",
                read.spoiled,
            )

    def _all_reduce(self, result: Step) -> Step:
        """Averages gradients, loss and metrics over all processes.

        DistributedDataParallel is not used: its hooks would need exceptions for the passes of the
        discriminator, and for parameters that a step does not use.
        """
        if distributed.world_size() == 1:
            return result
        distributed.all_reduce_mean(*(p.grad for p in self.parameters if p.grad is not None))
        means = {
            "loss": result.loss.detach().float(),
            **{name: value.detach().float() for name, value in result.metrics.items()},
        }
        # the loss may be one of the metrics
        means = {name: value.clone() for name, value in means.items()}
        distributed.all_reduce_mean(*means.values())
        return replace(result, loss=means.pop("loss"), metrics=means)

    def _sync_weights(self) -> None:
        """Gives all processes the weights of the first, as machines may round differently."""
        for learner in self.learners:
            distributed.broadcast(learner.weights().values())

    def _skip(self, figures: dict[str, float]) -> None:
        """Counts a step that must not change anything:
        weights, moments, averages, codebook and adversary stay as they are.
        """
        progress = self.progress
        self.optimizer.zero_grad(set_to_none=True)
        progress.skipped_in_a_row += 1
        progress.window["skipped"] = progress.window.get("skipped", 0) + 1
        if progress.skipped_in_a_row == SKIPPED_MAX:
            raise self._spoiled(
                f"{SKIPPED_MAX} steps in a row, the last of them step {progress.step},", figures
            )

    def _spoiled(self, steps: str, figures: dict[str, float]) -> TrainingError:
        bad = ", ".join(
            f"the {name} is {value:g}"
            for name, value in figures.items()
            if not math.isfinite(value)
        )
        return self._diverged(f"{steps} are not finite: {bad}")

    def _diverged(self, what: str) -> TrainingError:
        setting = f"{self.task.name}_training.learning_rate"
        lower = f"--set {setting}={self.config.learning_rate / 3:.1g}"
        return TrainingError(
            f"{self.task.name}: {what}",
            f"the last good checkpoint is kept; start anew with a lower rate: {lower}",
        )

    def _window_means(self) -> dict[str, float]:
        window = self.progress.window
        steps = max(window.get("steps", 1), 1)
        return {name: value / steps for name, value in window.items() if name not in _SUMS}

    def _summary(self) -> tuple[dict[str, float], str]:
        """Returns the task's own summary, where a step of the window has taught anything, and how
        many steps have not.
        """
        window = self.progress.window
        extra, sentence = (
            self.task.window_summary(window, self.counts) if window.get("steps") else ({}, "")
        )
        skipped = int(window.get("skipped", 0))
        if skipped:
            steps = "1 step was" if skipped == 1 else f"{skipped} steps were"
            sentence = f"{sentence} {steps} skipped: a loss or gradient was not finite.".lstrip()
        return {**extra, "skipped": skipped}, sentence

    def _report(self, rate: float) -> None:
        if not distributed.is_main_process():
            return
        left = (self.config.steps - self.progress.step) / rate
        images = rate * self.config.batch
        self.run.listener.status(
            Status(
                self.task.name, self.progress.step, self.config.steps, images, left, self._figures
            )
        )

    def _figures(self) -> dict[str, float]:
        """Returns what a progress line shows of the window so far; on a GPU, as far as it has been
        read.
        """
        figures = dict(self.known) if self.free else self._window_means() | self._summary()[0]
        figures.pop("skipped", None)
        return figures

    def _validate(self, rate: float) -> None:
        self._sync_weights()
        if not distributed.is_main_process():
            self._forget_window()
            return
        with self.average.applied() if self.average is not None else nullcontext():
            self._validate_weights(rate)

    def _validate_weights(self, rate: float) -> None:
        """Validates the network as it is, and keeps it if it is the best so far."""
        progress, task = self.progress, self.task
        task.network.eval()
        with torch.no_grad():
            validation = task.validate()
        task.network.train()
        if not all(map(math.isfinite, (validation.score, *validation.metrics.values()))):
            raise self._diverged(
                f"the validation at step {progress.step} gives {validation.score:g}"
            )
        extra, sentence = self._summary()
        line = {
            "stage": task.name,
            "step": progress.step,
            **self._window_means(),
            **extra,
            **{f"val_{name}": value for name, value in validation.metrics.items()},
            "learning_rate": learning_rate(self.config, progress.step - 1),
            "seconds": round(progress.seconds, 1),
            "pictures_per_second": round(rate * self.config.batch, 1),
        }
        if validation.keep or progress.best is None or validation.score < progress.best:
            self._release(validation)
        self._forget_window()
        append_line(self.log_path, json.dumps(line) + "\n")
        if validation.sheet is not None:
            images.write_image(
                self.run.folder / f"{task.name}-{progress.step:06d}.png",
                validation.sheet,
                force=True,
            )
        self.run.listener.validated(task.name, line, sentence)

    def _forget_window(self) -> None:
        self.progress.window = {}
        self.counts.zero_()

    def _release(self, validation: Validation) -> None:
        """Writes the best weights so far.

        The state follows: after a kill in between, resuming comes here again.
        """
        progress = self.progress
        weights = self.task.release(
            {
                "step": progress.step,
                "seconds": round(progress.seconds, 1),
                "metrics": validation.metrics,
            }
        )
        for name, array in weights.tensors.items():
            if not np.isfinite(array).all():
                raise self._diverged(
                    f"the tensor {name} leaves the range of {array.dtype} at step {progress.step}"
                )
        self.saver.write(lambda: save_weights(self.best_path, weights, force=True))
        progress.best, progress.best_step = validation.score, progress.step

    def _save(self) -> None:
        if distributed.is_main_process():
            tensors = self.saver.snapshot(state.tensors_of(self.learners, self._extra_tensors()))
            progress = replace(self.progress, window=dict(self.progress.window))
            self.saver.write(lambda: state.save_state(self.state_path, tensors, progress))

    def _extra_tensors(self) -> dict[str, Tensor]:
        """Returns tensors that a resumed run needs besides its learners; they share memory with
        their owners.
        """
        return {
            "window.counts": self.counts,
            **(self.average.tensors if self.average is not None else {}),
        }
