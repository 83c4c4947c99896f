"""The card of a trained model: what it is, what it was trained on, how, and how well it does."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from vqtok import files, report, weights


def write_card(folder: Path, command: str) -> None:
    """Writes README.md into a model's folder from what its weights files record."""
    tokenizer = weights.read_meta(folder / "tokenizer.safetensors", "tokenizer")
    prior_path = folder / "prior.safetensors"
    prior = weights.read_meta(prior_path, "prior") if prior_path.exists() else None
    fingerprint = weights.tokenizer_fingerprint(folder / "tokenizer.safetensors")
    files.write_bytes(folder / "README.md", _text(folder, fingerprint, tokenizer, prior, command).encode(), force=True)


def _text(folder: Path, fingerprint: str, tokenizer: dict[str, Any], prior: dict[str, Any] | None, command: str) -> str:
    config, record = tokenizer["config"], tokenizer["record"]
    rows: list[list[Any]] = [
        ["data", f"{record['data']}, {record['pictures']:,} pictures"],
        ["grid", f"one of {config['codebook_size']} codes for {config['downsample']}x{config['downsample']} pixels"],
        ["tokenizer", _stage(record)],
        ["validation", ", ".join(f"{key} {value:.4g}" for key, value in record["metrics"].items())],
    ]
    if prior is not None:
        rows.append(["prior", _stage(prior["record"])])
        rows.append(["validation", f"{prior['record']['metrics']['bits']:.3f} bits per index"])
        if prior["config"]["labels"]:
            rows.append(["labels", ", ".join(prior["config"]["labels"])])
    rows += [["seed", record["seed"]], ["machine", machine()], ["vqtok", record["version"]], ["command", f"`{command}`"]]
    sheet = "\n![Samples of the prior](samples.png)\n" if (folder / "samples.png").exists() else ""
    return f"# {folder.resolve().name} ({fingerprint})\n\n{report.markdown(['', ''], rows)}{sheet}"


def _stage(record: dict[str, Any]) -> str:
    return f"step {record['step']:,}, after {record['seconds'] / 60:.0f} minutes of training"


def machine() -> str:
    """Processor, threads and torch version, in one line."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    cpu = f"{platform.machine()} with {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{gpu}{cpu}, torch {torch.__version__}"
