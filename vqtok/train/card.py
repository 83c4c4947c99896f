"""Writes a trained model's card: what it is, how and on what it was trained, how good it is."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from vqtok import codec, files, images, plots, weights


def write_card(folder: Path, command: str) -> None:
    """Writes README.md into a model's folder from what its weights files record."""
    tokenizer = weights.read_meta(folder / "tokenizer.safetensors", "tokenizer")
    prior_path = folder / "prior.safetensors"
    prior = weights.read_meta(prior_path, "prior") if prior_path.exists() else None
    fingerprint = weights.tokenizer_fingerprint(folder / "tokenizer.safetensors")
    files.write_bytes(
        folder / "README.md",
        _text(folder, fingerprint, tokenizer, prior, command).encode(),
        force=True,
    )


def write_samples(folder: Path, device: str, seed: int) -> None:
    """Writes samples.png: four rows of samples of the prior in a model's folder, with a column for
    each of up to ten labels.
    """
    # the whole path: by a bare name a bundled model would be found first
    model = codec.load(folder.resolve(), device)
    columns = min(10, len(model.labels)) or 8
    samples = model.sample(4 * columns, seed=seed)
    captions = (
        [model.labels[i % len(model.labels)] for i in range(len(samples))] if model.labels else None
    )
    scale = max(1, 96 // max(samples[0].shape[:2]))
    images.write_image(
        folder / "samples.png", plots.sheet(samples, columns, captions, scale=scale), force=True
    )


def _text(
    folder: Path,
    fingerprint: str,
    tokenizer: dict[str, Any],
    prior: dict[str, Any] | None,
    command: str,
) -> str:
    record = tokenizer["record"]
    grid = ["grid", weights.tokenizer_config(folder / "tokenizer.safetensors").grid]
    rows: list[list[Any]] = (
        [grid, *_imported(record["imported"])]
        if "imported" in record
        else [
            ["data", f"{record['data']}, {record['pictures']:,} images"],
            grid,
            ["tokenizer", _stage(record)],
            [
                "validation",
                ", ".join(f"{key} {value:.4g}" for key, value in record["metrics"].items()),
            ],
        ]
    )
    if prior is not None:
        rows.append(["prior", _stage(prior["record"])])
        rows.append(["validation", f"{prior['record']['metrics']['bits']:.3f} bits per index"])
        if prior["config"]["labels"]:
            rows.append(["labels", ", ".join(prior["config"]["labels"])])
    if (folder / "entropy.safetensors").exists():
        entropy = weights.read_meta(folder / "entropy.safetensors", "entropy")["record"]
        rows += [
            ["entropy prior", _stage(entropy)],
            ["validation", f"{entropy['metrics']['bits']:.3f} bits per index"],
        ]
    if "imported" not in record:
        rows.append(["seed", record["seed"]])
    rows += [["machine", machine()], ["vqtok", record["version"]]]
    sheet = "\n![Samples of the prior](samples.png)\n" if (folder / "samples.png").exists() else ""
    return (
        f"# {folder.resolve().name} ({fingerprint})\n"
        f"\n{plots.markdown(['', ''], rows)}\n"
        f"Made by\n\n```\n{command}\n```\n"
        f"{sheet}"
    )


def _imported(source: dict[str, str]) -> list[list[Any]]:
    """Returns the known facts of a tokenizer that another program trained."""
    return [
        ["tokenizer", f"a {source['program']}, imported from {source['file']}"],
        ["data", "unknown"],
        ["validation", "not measured"],
    ]


def _stage(record: dict[str, Any]) -> str:
    if not record["step"]:
        return "nothing to learn"
    seconds = record["seconds"]
    time = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    return f"step {record['step']:,}, after {time} of training"


def machine() -> str:
    """Returns processor, threads and torch version in one line."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    cpu = f"{platform.machine()}, {os.cpu_count()} cores, threads: {torch.get_num_threads()}"
    return f"{gpu}{cpu}, torch {torch.__version__}"
