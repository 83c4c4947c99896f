"""`vqtok train`: which flag reaches which setting of the recipe, and the plan of --dry-run."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from cli_helpers import fingerprints, runner, small, train
from test_criterion import lpips_tensors

from vqtok import train as training
from vqtok.cli import app
from vqtok.config import Recipe, read_recipe
from vqtok.losses.lpips import ALEX

# The recipe

FLAGS: list[tuple[list[str], str, Any]] = [
    (["--steps", "7"], "tokenizer_training.steps", 7),
    (["--prior-steps", "8"], "prior_training.steps", 8),
    (["--entropy-steps", "5"], "entropy_training.steps", 5),
    (["--batch", "9"], "tokenizer_training.batch", 9),
    (["--learning-rate", "0.02"], "tokenizer_training.learning_rate", 0.02),
    (["--size", "24"], "data.size", 24),
    (["--quantizer", "vq"], "tokenizer.quantizer", "vq"),
    (["--codebook-size", "32"], "tokenizer.codebook_size", 32),
    (["--codebook-size", "33"], "prior.codebook_size", 33),
    (["--code-dim", "5"], "tokenizer.code_dim", 5),
    (["--no-normalize"], "tokenizer.normalize", False),
    (["--normalize"], "tokenizer.normalize", True),
    (["--downsample", "8"], "tokenizer.downsample", 8),
    (["--beta", "0.5"], "tokenizer.beta", 0.5),
    (["--likelihood", "bce"], "tokenizer.likelihood", "bce"),
    (["--width", "12"], "tokenizer.width", 12),
    (["--levels", "3", "--no-normalize"], "tokenizer.levels", 3),
    (["--levels", "3", "--no-normalize"], "prior.levels", 3),
    (["--level-dropout", "0.3"], "tokenizer.level_dropout", 0.3),
    (["--ms-ssim", "0.3"], "losses.ms_ssim", 0.3),
    (["--adversarial", "0.3"], "losses.adversarial", 0.3),
    (["--optimizer", "adamw"], "tokenizer_training.optimizer", "adamw"),
    (["--ema", "0.3"], "tokenizer_training.ema", 0.3),
    (["--perceptual", "lpips.safetensors"], "losses.perceptual", 1.0),
    (["--perceptual", "lpips.safetensors", "--perceptual-weight", "0.3"], "losses.perceptual", 0.3),
    (["--precision", "bf16"], "precision", "bf16"),
    (["--seed", "0"], "seed", 0),
    (["--set", "prior.width=20"], "prior.width", 20),
    (["--set", "prior.width=20", "--set", "prior.layers=3"], "prior.width", 20),
    (["--set", "tokenizer.likelihood=mse"], "tokenizer.likelihood", "mse"),
    (["--width", "12", "--set", "tokenizer.width=16"], "tokenizer.width", 16),
    (["--prior", "fvsbn"], "prior.architecture", "fvsbn"),
    (["--preset", "tiny"], "data.min_scale", 1.0),
]


@pytest.mark.parametrize(
    ("flags", "key", "value"), FLAGS, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_flag_reaches_the_recipe(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    key: str,
    value: Any,
) -> None:
    plain = training.new_run(
        training.RunSpec(data="data", values=read_recipe(tmp_path / "small.toml"))
    )[0].recipe.to_dict()
    seen: list[Recipe] = []
    monkeypatch.setattr(training, "train", lambda run, data: bool(seen.append(run.spec.recipe)))
    if "--perceptual" in flags:
        Path("lpips.safetensors").write_bytes(safetensors.numpy.save(lpips_tensors(ALEX)))
    result = small("-o", "m", *flags)
    assert result.exit_code == 0, result.output
    got = seen[0].to_dict()
    assert _at(got, key) == value
    assert _at(plain, key) != value or key == "tokenizer.normalize"
    changed = {
        f"{a}.{b}"
        for a in got
        if isinstance(got[a], dict)
        for b in got[a]
        if got[a][b] != plain[a][b]
    }
    changed |= {a for a in got if not isinstance(got[a], dict) and got[a] != plain[a]}
    allowed = {key, "prior.codebook_size", "entropy.codebook_size", "tokenizer.codebook_size"}
    allowed |= {"prior.layers"} if "prior.layers=3" in flags else set()
    allowed |= (
        {"tokenizer.levels", "prior.levels", "entropy.levels", "tokenizer.normalize"}
        if "--levels" in flags
        else set()
    )
    assert changed <= allowed or "--preset" in flags
    assert Recipe().override(read_recipe(tmp_path / "m" / "recipe.toml")) == seen[0]


def _at(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def test_every_flag_of_the_recipe_is_in_the_table() -> None:
    help_text = (
        runner()
        .invoke(app, ["train", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
        .stdout
    )
    others = {
        "--output",
        "--stage",
        "--split",
        "--labels",
        "--member",
        "--range",
        "--frames",
        "--grid",
        "--network",
        "--recipe",
        "--init",
        "--resume",
        "--max-time",
        "--dry-run",
        "--device",
        "--compile",
        "--force",
        "--json",
        "--quiet",
        "--help",
    }
    listed = {
        word.strip("│,") for word in help_text.replace("/", " ").split() if word.startswith("--")
    }
    tested = {flag for flags, _, _ in FLAGS for flag in flags if flag.startswith("--")}
    assert tested <= listed
    assert listed - others - tested == set()


def test_recipe_of_a_run_makes_the_same_model_again(data: Path, tmp_path: Path) -> None:
    assert small("-o", "a", "--beta", 0.5).exit_code == 0
    assert train("data", "-o", "b", "--recipe", "a/recipe.toml").exit_code == 0
    assert fingerprints(tmp_path / "a") == fingerprints(tmp_path / "b")
    assert (tmp_path / "a" / "recipe.toml").read_bytes() == (
        tmp_path / "b" / "recipe.toml"
    ).read_bytes()


# The plan


def test_dry_run_prints_a_plan_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    result = small("-o", "m", "--dry-run")
    assert result.exit_code == 0
    for text in (
        "12 images with 2 labels",
        "parameters, 6 steps of 4",
        "4 steps of 4",
        "s a step",
        "one of 16 codes",
        "bits per pixel",
    ):
        assert text in result.stdout
    facts = json.loads(small("-o", "m", "--dry-run", "--json").stdout)
    assert facts["recipe"]["seed"] == 3
    assert set(facts["stages"]) == {"tokenizer", "prior", "entropy"}
    assert set(
        json.loads(small("--dry-run", "--json", "--stage", "tokenizer").stdout)["stages"]
    ) == {"tokenizer"}
    assert set(tmp_path.rglob("*")) == before
