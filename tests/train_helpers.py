"""What the tests of training share: a recipe of seconds, a listener that stops a run,
and what a run left behind.
"""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import image

from vqtok import images, weights
from vqtok import train as training
from vqtok.config import Recipe, TokenizerConfig
from vqtok.data import Dataset
from vqtok.train import run as train_run

SMALL: dict[str, Any] = {
    "tokenizer": {
        "downsample": 4,
        "width": 8,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "codebook_size": 16,
        "code_dim": 4,
    },
    "prior": {"width": 8, "layers": 2},
    "data": {"size": 16, "prior_size": 16, "validation_max": 4, "flip": True},
    "tokenizer_training": {
        "steps": 8,
        "batch": 4,
        "warmup": 2,
        "validate_every": 4,
        "learning_rate": 0.01,
    },
    "entropy": {"embedding": 4, "width": 8, "blocks": 1, "rank": 4},
    "entropy_training": {"steps": 2, "batch": 4, "warmup": 1, "validate_every": 2},
    "prior_training": {
        "steps": 6,
        "batch": 4,
        "warmup": 2,
        "validate_every": 3,
        "learning_rate": 0.01,
    },
}


def recipe_for(dataset: Dataset, **values: Any) -> Recipe:
    base = replace(Recipe(), tokenizer=replace(TokenizerConfig(), channels=dataset.channels))
    return train_run.fit_to_data(base.override(training.merge([SMALL, values])), dataset)


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
    out: Path,
    recipe: Recipe,
    dataset: Dataset,
    listener: Interrupt | None = None,
    stop: training.Stop | None = None,
    perceptual: Path | None = None,
    **options: Any,
) -> bool:
    listener = listener or Interrupt()
    spec = training.RunSpec(
        recipe, "", len(dataset), perceptual=str(perceptual or ""), folder=out, **options
    )
    if not spec.resume:
        training.create_run(out, spec, spec.stage, force=False)
    run = training.RunContext(spec, torch.device("cpu"), stop or listener.stop, listener)
    return training.train(run, dataset)


def log(out: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl without what tells the time."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "pictures_per_second")}
        for line in lines
    ]


def contents(out: Path) -> dict[str, Any]:
    """All tensors of all weights files, byte by byte, and their records without times."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*.safetensors")):
        stored = weights.load_weights(
            path, path.name.split(".")[-2] if ".state." in path.name else path.stem
        )
        found[path.name] = {
            name: (value.dtype.str, value.shape, value.tobytes())
            for name, value in stored.tensors.items()
        }
        found[path.name]["record"] = {k: v for k, v in stored.record.items() if k != "seconds"}
    return found


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vqtok-data")]


def write_images(out: Path, names: dict[str, int]) -> Path:
    for name, seed in names.items():
        images.write_image(out / name, image(20, 24, seed=seed))
    return out


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
