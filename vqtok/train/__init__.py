"""Training: pictures to a model folder. The tokenizer first, then the prior on the indices it gives."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vqtok import config, files, weights
from vqtok.codec import load_tokenizer, place
from vqtok.config import Recipe
from vqtok.data import Dataset, Shapes, split
from vqtok.errors import OutputError, TrainingError, UsageError
from vqtok.train import loop
from vqtok.train.loop import Listener, Run, Status, Stop
from vqtok.train.plan import plan
from vqtok.train.prior import Grids, PriorTask, encode_dataset, load_grids, save_grids
from vqtok.train.tokenizer import TokenizerTask
from vqtok.vqvae import VQVAE

__all__ = [
    "STAGES", "Listener", "Run", "Status", "Stop", "changed_settings", "continued", "fit_to_data", "plan", "preset_for", "start", "train",
]     # fmt: skip

RUN_FILE, RECIPE_FILE = "run.json", "recipe.toml"
STAGES = ("tokenizer", "prior", "all")


def preset_for(dataset: Dataset, name: str | None = None) -> Recipe:
    """The named preset, or the one for the data; for small pictures of one size, with crops of that size."""
    size = getattr(dataset, "size", None)
    small = size is not None and size[0] == size[1] <= 64
    if name is None:
        name = "tiny" if isinstance(dataset, Shapes) else "cifar" if small else "photo"
    if name not in config.PRESETS:
        raise UsageError(f"there is no preset {name!r}", f"choose one of {', '.join(config.PRESETS)}")
    recipe = config.PRESETS[name]
    if small and size is not None and size[0] % recipe.tokenizer.downsample == 0:
        recipe = replace(recipe, data=replace(recipe.data, size=size[0], prior_size=size[0]))
    return recipe


def fit_to_data(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with what only the data can say: channels, class names; and the prior's K and L, which are the tokenizer's."""
    tokenizer = replace(recipe.tokenizer, channels=dataset.channels)
    prior = replace(
        recipe.prior, labels=dataset.labels, codebook_size=tokenizer.codebook_size, levels=tokenizer.levels
    )
    return replace(recipe, tokenizer=tokenizer, prior=prior)


def changed_settings(old: Recipe, new: Recipe) -> list[str]:
    """Names of the settings that differ and may not, if a run is to go on as if it had never stopped: all but the steps."""
    changed = []
    for name, value in old.to_dict().items():
        other = new.to_dict()[name]
        if not isinstance(value, dict):
            changed += [name] if value != other else []
        else:
            changed += [f"{name}.{key}" for key in value if key != "steps" and value[key] != other[key]]
    return changed


def start(folder: Path, recipe: Recipe, data: str, pictures: int, force: bool) -> None:
    """Makes the run's folder. A folder that holds a run already is refused unless `force`; then the old run's files go."""
    old = [path for path in folder.glob("*") if path.name in (RUN_FILE, RECIPE_FILE, "log.jsonl") or path.suffix == ".safetensors"]
    if old and not force:
        raise OutputError(f"{folder} holds a run already", "go on with --resume, replace it with -f/--force, or choose another -o")
    for path in old:
        path.unlink()
    files.write_bytes(folder / RECIPE_FILE, config.to_toml(recipe).encode(), force=True)
    run = {"format": 1, "data": data, "pictures": pictures}
    files.write_bytes(folder / RUN_FILE, (json.dumps(run) + "\n").encode(), force=True)


@dataclass(frozen=True)
class Continued:
    """What a run was started with."""

    recipe: Recipe
    data: str           # as given on the command line; "" for the built-in shapes
    pictures: int


def continued(folder: Path) -> Continued:
    """Reads what `start` wrote; TrainingError where the folder holds no run."""
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        values = config.read_recipe(folder / RECIPE_FILE)
        return Continued(Recipe().override(values, f"{folder / RECIPE_FILE}"), str(run["data"]), int(run["pictures"]))
    except FileNotFoundError:
        raise TrainingError(f"{folder} holds no run to resume", "leave --resume out to start one") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise TrainingError(f"{folder / RUN_FILE} is damaged", "start anew with --force") from None


def train(recipe: Recipe, dataset: Dataset, run: Run, stage: str = "all", resume: bool = False, compiled: bool = False) -> bool:
    """Trains the stages into the run's folder; returns whether all of them are finished.

    After an early stop (`run.stop`), the same call with `resume` continues as if there had been no stop: the result is
    bit-equal on the same machine with the same number of threads.
    """
    parts = split(dataset, recipe.data.validation, recipe.data.validation_max, recipe.seed)
    if len(parts[1]) == 0:
        parts = (parts[0], parts[0][: recipe.data.validation_max])
        run.listener.note("No picture is set aside: validation looks at training pictures.")
    run.listener.note(
        f"{len(parts[0]):,} pictures to train on, {len(parts[1]):,} set aside for validation."
    )
    if stage != "prior" and not _train_tokenizer(recipe, dataset, parts, run, resume, compiled):
        return False
    return stage == "tokenizer" or _train_prior(recipe, dataset, parts, run, resume)


def _train_tokenizer(
    recipe: Recipe, dataset: Dataset, parts: tuple[np.ndarray, np.ndarray], run: Run, resume: bool, compiled: bool
) -> bool:
    task = TokenizerTask(recipe, dataset, parts, run, compiled)
    return loop.train(task, recipe.tokenizer_training, run, resume)


def _train_prior(recipe: Recipe, dataset: Dataset, parts: tuple[np.ndarray, np.ndarray], run: Run, resume: bool) -> bool:
    network, fingerprint = _released_tokenizer(run)
    if network.config.codebook_size != recipe.prior.codebook_size:
        raise TrainingError(
            f"the tokenizer in {run.folder} has {network.config.codebook_size} codes, the recipe {recipe.prior.codebook_size}",
            "train the prior with the recipe of its tokenizer",
        )
    mirror, path = recipe.data.flip, run.folder / "indices.state.safetensors"
    grids = load_grids(path, fingerprint)
    if grids is None:
        run.listener.note(f"Encoding {len(dataset):,} pictures{' and their mirror images' if mirror else ''}.")
        grids = encode_dataset(network, dataset, mirror, run)
        if run.stop.due:
            return False
        save_grids(path, grids, fingerprint)
    task = PriorTask(recipe, dataset, fingerprint, _parts(grids, parts, mirror), run)
    return loop.train(task, recipe.prior_training, run, resume)


def _parts(grids: Grids, parts: tuple[np.ndarray, np.ndarray], mirror: bool) -> tuple[Grids, Grids]:
    """Training and validation grids; mirror images only to train on, or validation would see half its pictures twice."""
    if not mirror:
        return grids.take(parts[0]), grids.take(parts[1])
    return grids.take(np.concatenate([2 * parts[0], 2 * parts[0] + 1])), grids.take(2 * parts[1])


def _released_tokenizer(run: Run) -> tuple[VQVAE, str]:
    """The tokenizer as `vqtok encode` will use it, rounded to float16: the prior must know the indices that users get."""
    path = run.folder / "tokenizer.safetensors"
    if not path.exists():
        raise TrainingError(f"{run.folder} holds no tokenizer", "train one first: --stage all")
    network = place(load_tokenizer(path), run.device)
    return network, weights.tokenizer_fingerprint(path)
