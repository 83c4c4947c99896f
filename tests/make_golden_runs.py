"""Writes the larger golden files of format 1: runs, models, codes and shards of tiny networks.

They are kept for ever, and were written by the first build of format 1 (commit e43cba2): run this
only to add files for a new format number. `python tests/make_golden_runs.py FOLDER` makes the
folder, which must not exist. It uses the command line and the public names, except in `stop`.
"""

import io
import itertools
import json
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path

import numpy as np
import torch
from cli_helpers import ok, run
from conftest import image
from PIL import Image
from train_helpers import Interrupt, go

import vqtok
from vqtok import train as training
from vqtok.codes import form as codes_form
from vqtok.codes import read_any_codes

TINY = {
    "tokenizer.downsample": 4,
    "tokenizer.fold": 2,
    "tokenizer.width": 4,
    "tokenizer.encoder_blocks": 1,
    "tokenizer.decoder_blocks": 1,
    "tokenizer.codebook_size": 8,
    "tokenizer.code_dim": 4,
    "tokenizer.levels": 1,
    "tokenizer.normalize": "false",
    "data.size": 16,
    "data.prior_size": 16,
    "data.validation": 0.25,
    "data.validation_max": 2,
    "prior.width": 4,
    "prior.layers": 2,
    "entropy.embedding": 4,
    "entropy.width": 8,
    "entropy.blocks": 1,
    "entropy.rank": 4,
    # as the preset was when the files were made
    "tokenizer.shortcut": "false",
    "tokenizer_training.optimizer": "adamw",
    "tokenizer_training.ema": 0.0,
    "precision": "fp32",
    "sampling.guidance": 1.0,
}
FAST = {"batch": 4, "warmup": 2, "validate_every": 4, "learning_rate": 0.01}
TINY |= {
    f"{stage}_training.{key}": value
    for stage, (key, value) in itertools.product(("tokenizer", "prior", "entropy"), FAST.items())
}
TOKENIZERS: dict[str, dict[str, object]] = {
    "vq": {
        "tokenizer.quantizer": "vq",
        "tokenizer.normalize": "true",
        "tokenizer.shortcut": "true",
    },
    "simvq": {"tokenizer.quantizer": "simvq", "tokenizer.likelihood": "heteroscedastic"},
    "fsq": {"tokenizer.quantizer": "fsq", "tokenizer.likelihood": "bce", "tokenizer.levels": 2},
    "lfq": {"tokenizer.quantizer": "lfq", "tokenizer.likelihood": "logistic"},
    "classic": {
        "tokenizer.network": "classic",
        "tokenizer.stages": "[4, 4, 8]",
        "tokenizer.attention": "[1, 3]",
        "tokenizer.groups": 2,
        "tokenizer.z_channels": 3,
        "tokenizer.fold": 1,
        "tokenizer.shortcut": "false",
        "tokenizer.likelihood": "l1",
    },
}
PRIORS: dict[str, dict[str, object]] = {
    "pixelrnn": {"prior.architecture": "pixelrnn"},
    "transformer": {"prior.architecture": "transformer", "prior.width": 8, "prior.heads": 2},
    "fvsbn": {"prior.architecture": "fvsbn", "data.prior_size": 8},
    "masked": {"prior.architecture": "masked", "prior.width": 8, "prior.heads": 2},
    "logistic": {"prior.output": "logistic", "prior.mixtures": 2, "prior.kernel": 5},
}
DATA = "/data/golden.npz"  # what run.json says in place of a path of this machine


def settings(*more: Mapping[str, object], only: str = "") -> list[str]:
    values: dict[str, object] = dict(TINY)
    for part in more:
        values |= part
    return [
        word
        for key, value in values.items()
        if key.startswith(only) or key not in TINY or value != TINY[key]
        for word in ("--set", f"{key}={value}")
    ]


def train(out: str, *words: object, data: str = "data.npz") -> None:
    """`vqtok train` as typed, whose words are written down in the run's folder."""
    line = ["train", data, "-o", out, "--device", "cpu", *map(str, words)]
    sys.argv = ["vqtok", *line]
    ok(*line)
    path = Path(out, "run.json")
    begun = json.loads(path.read_text())
    path.write_text(json.dumps(begun | {"data": DATA}) + "\n")


def make_data() -> None:
    pixels = np.stack([image(16, 16, seed=i) for i in range(16)])
    np.savez_compressed("data.npz", x_train=pixels, y_train=np.arange(16) % 2)


def stop(folder: str, stage: str, step: int) -> None:
    """Goes on with a run up to a step between two validations."""
    spec, dataset = training.resume_run(Path(folder), training.RunSpec(data="data.npz"))
    halt = Interrupt(stage, step)
    assert not go(Path(folder), spec.recipe, dataset, halt, resume=True, stage=stage)


def make_runs() -> None:
    """`run` has a tokenizer and priors that were stopped halfway, `stopped` half a tokenizer."""
    steps = ("--steps", 8, "--prior-steps", 4, "--entropy-steps", 60)
    more: dict[str, object] = {
        "tokenizer.levels": 2,
        "entropy_training.validate_every": 30,
        "entropy_training.learning_rate": 0.02,
    }
    train("run", "--preset", "tiny", *steps, *settings(more))
    for stage in ("prior", "entropy"):
        later = ("--prior-steps", 8, "--entropy-steps", 90, "--max-time", "0s")
        train("run", "--resume", "--stage", stage, *later)
    stop("run", "prior", 6)
    more = {
        "tokenizer_training.optimizer": "muon",
        "tokenizer_training.ema": 0.9,
        "tokenizer.restart": 0.5,
    }
    begin = ("--stage", "tokenizer", "--steps")
    train("stopped", "--preset", "tiny", *begin, 8, *settings(more))
    train("stopped", "--resume", *begin, 16, "--max-time", "0s")
    stop("stopped", "tokenizer", 10)
    for name, stage in (("run", "all"), ("stopped", "tokenizer")):
        shutil.copytree(name, f"finished-{name}")
        train(f"finished-{name}", "--resume", "--stage", stage)
        shutil.copy(f"finished-{name}/log.jsonl", f"{name}.finished.jsonl")


def make_models() -> None:
    """A tokenizer of each kind, and a prior of each kind for the tokenizer of `run`."""
    Path("tokenizers").mkdir()
    for name, more in TOKENIZERS.items():
        train(name, "--preset", "tiny", "--stage", "tokenizer", "--steps", 8, *settings(more))
        shutil.copy(f"{name}/tokenizer.safetensors", f"tokenizers/{name}.safetensors")
    pixels = ("--preset", "pixels", "--stage", "tokenizer", "--codebook-size", 16)
    train("pixels", *pixels, "--set", "data.size=16")
    shutil.copy("pixels/tokenizer.safetensors", "tokenizers/pixels.safetensors")
    Path("priors").mkdir()
    for name, more in PRIORS.items():
        shutil.copytree("run", name, ignore=shutil.ignore_patterns("prior*", "entropy*"))
        words = ("--stage", "prior", "--prior-steps", 24)
        train(name, *words, *settings(more, only="prior"))
        shutil.copy(f"{name}/prior.safetensors", f"priors/{name}.safetensors")


def write_arrays(path: str, **arrays: np.ndarray) -> None:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def make_codes() -> None:
    """Codes files of all forms, what they hold by NumPy alone, and what decodes from them."""
    Path("codes").mkdir()
    coded, plain = vqtok.load("run", "cpu"), vqtok.load("stopped", "cpu")
    whole = {
        "two-sizes": coded.encode_batch([image(47, 61, seed=1), image(45, 64, seed=2)]),
        "one-size": coded.encode_batch([image(32, 32, seed=i) for i in range(12)]),
        "first-level": coded.encode(image(70, 50, seed=3), levels=1),
        "bit-packed": plain.encode_batch([image(21, 22, seed=4), image(21, 22, seed=5)]),
    }
    for name, found in whole.items():
        model = plain if name == "bit-packed" else coded
        vqtok.write_codes(Path(f"codes/{name}.npz"), model.pack(found))
        packed = read_any_codes(Path(f"codes/{name}.npz"))
        assert codes_form(packed) == ("coded" if model is coded else "packed"), "a weak prior"
        vqtok.write_codes(Path(f"codes/{name}.plain.npz"), found)
    for name in ("run", "stopped", *TOKENIZERS, "pixels"):
        model = vqtok.load(name, "cpu")
        found = model.encode(image(23, 30, seed=6))
        indices, decoded = found.indices, model.decode(found)
        write_arrays(f"codes/decoded.{name}.npz", indices=indices, decoded=decoded)
    for name in ("run", *PRIORS):
        model = vqtok.load(name, "cpu")
        drawn = model.sample_codes(6, seed=1).indices
        model.prior.double()
        assert (model.sample_codes(6, seed=1).indices == drawn).all(), "a draw is too close to call"
        write_arrays(f"codes/drawn.{name}.npz", indices=drawn)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_shards() -> None:
    """Shards of a tar of one size, of one of several sizes with a damaged file, and of a folder."""
    sizes = ((16, 16), (20, 27), (16, 16), (9, 30))
    members = {
        "even.tar": {f"{i}.png": png(image(16, 16, seed=i)) for i in range(5)},
        "mixed.tar": {f"{i}.png": png(image(*sizes[i % 4], seed=i)) for i in range(5)},
    }
    members["mixed.tar"]["damaged.png"] = b"\x89PNG and no more"
    for name, files in members.items():
        with tarfile.open(name, "w") as archive:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    for i in range(3):
        Path(f"loose/{'ab'[i % 2]}").mkdir(parents=True, exist_ok=True)
        Path(f"loose/{'ab'[i % 2]}/{i}.png").write_bytes(png(image(16, 16, seed=10 + i)))
    for name, more in (("shards", ()), ("shards-compact", ("--compact",))):
        words = ("--bulk", "-o", name, "-m", "run", "--shard-size", "3", "--workers", "0", "-q")
        done = run("encode", "even.tar", "mixed.tar", "loose", *words, *more)
        assert done.exit_code == 1, done.output  # the damaged one
    expected = {}
    for name, files in members.items():
        for path, content in files.items():
            if path != "damaged.png":
                expected[f"{name}/{path}"] = vqtok.load("run", "cpu").encode(content).indices[0]
    for path in sorted(Path("loose").rglob("*.png")):
        expected[path.relative_to("loose").as_posix()] = (
            vqtok.load("run", "cpu").encode(path).indices[0]
        )
    write_arrays("shards.expected.npz", **expected)


def make_names() -> None:
    """The tensors in the state of a run with a discriminator, which is too large to keep."""
    from safetensors import safe_open

    more = {"losses.adversarial": 0.1, "losses.adversarial_start": 0.0}
    train("adversary", "--preset", "tiny", "--stage", "tokenizer", "--steps", 2, *settings(more))
    with safe_open("adversary/tokenizer.state.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    shown = {name: [value.dtype.name, *value.shape] for name, value in tensors.items()}
    Path("adversary.json").write_text(json.dumps(shown, indent=0) + "\n")


KEPT = (
    "data.npz",
    "run",
    "stopped",
    "run.finished.jsonl",
    "stopped.finished.jsonl",
    "tokenizers",
    "priors",
    "codes",
    "shards",
    "shards-compact",
    "shards.expected.npz",
    "even.tar",
    "mixed.tar",
    "loose",
    "adversary.json",
)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    folder = folder.resolve()
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work, chdir(work):
        for make in (make_data, make_runs, make_models, make_codes, make_shards, make_names):
            make()
        for name in KEPT:
            shutil.move(name, folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
