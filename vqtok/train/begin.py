"""From what the user asks for to the recipe and the data of a run:
a new one, one that goes on, or a prior for a tokenizer.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from vqtok import config, distributed, losses, quantizers, weights
from vqtok.config import Recipe, TokenizerConfig
from vqtok.data import Dataset, Shapes, open_data
from vqtok.errors import InputError, TrainingError, UsageError
from vqtok.train import folder as folders
from vqtok.train.folder import Begun
from vqtok.train.shards import CodesData, check_codes, is_codes, refuse_codes, tokenizer_for

# of the prior: the tokenizer and the data decide them
DERIVED = ("codebook_size", "levels", "labels", "rows", "columns")
_PRIOR_SETTINGS = (
    "prior",
    "prior_training",
    "entropy",
    "entropy_training",
    "precision",
    "data.prior_size",
)


@dataclass(frozen=True)
class Wanted:
    """What the user asks for."""

    data: str | None = None  # None: the built-in shapes, or the data of the resumed run
    preset: str | None = None  # None: by the data
    values: dict[str, Any] = field(default_factory=dict)  # settings, nested as in a recipe
    origin: str = "the recipe"  # of the values, for messages
    command: str = ""
    compiled: bool = False
    perceptual: str | None = None  # file with the weights of the perceptual loss
    init: str | None = None  # model whose tokenizer's weights are the first ones


def new(wanted: Wanted) -> tuple[Begun, Dataset]:
    """A new run: the preset for the data, changed by the wanted values."""
    dataset = _open(wanted.data)
    refuse_codes(dataset)
    recipe = preset_for(dataset, wanted.preset)
    recipe = replace(recipe, tokenizer=_for_channels(recipe.tokenizer, dataset.channels))
    before = _first_tokenizer(wanted.init)
    if before is not None:
        recipe = replace(recipe, tokenizer=before)
    recipe = fit_to_data(recipe.override(wanted.values, wanted.origin), dataset)
    if before is not None:
        _check_same_network(before, recipe.tokenizer, str(wanted.init))
    if (
        wanted.perceptual
        and recipe.losses.perceptual == 0
        and "perceptual" not in wanted.values.get("losses", {})
    ):
        # who gives the file wants its loss
        recipe = replace(recipe, losses=replace(recipe.losses, perceptual=1.0))
    quantizers.check(recipe.tokenizer)  # here, before `start` clears the folder, and so is the next
    losses.Criterion(
        recipe.losses, Path(wanted.perceptual) if wanted.perceptual else None, recipe.data.size
    )
    return _begun(recipe, dataset, wanted), dataset


def _first_tokenizer(model: str | None) -> TokenizerConfig | None:
    """The settings of the tokenizer whose weights a run starts from."""
    return None if model is None else weights.tokenizer_config(weights.find(model).tokenizer)


def _for_channels(tokenizer: TokenizerConfig, channels: int) -> TokenizerConfig:
    """The tokenizer for pictures of that many channels; of the identity each is a level."""
    more = {"levels": channels, "code_dim": channels} if tokenizer.identity else {}
    return replace(tokenizer, channels=channels, **more)


def _check_same_network(before: TokenizerConfig, after: TokenizerConfig, model: str) -> None:
    """UsageError where weights of one do not fit the other:
    all but what only training looks at must be equal.
    """
    free = ("level_dropout", "beta", "decay", "restart", "likelihood")
    changed = [
        f.name
        for f in fields(before)
        if f.name not in free and getattr(before, f.name) != getattr(after, f.name)
    ]
    if changed:
        raise UsageError(
            f"the weights of {model} do not fit another {', '.join(changed)}",
            "leave that out, or leave --init out",
        )


def resumed(folder: Path, wanted: Wanted) -> tuple[Begun, Dataset]:
    """The run in a folder; only its numbers of steps may change, and where its data lies.

    TrainingError for anything else.
    """
    if wanted.preset is not None:
        raise UsageError(
            "--preset does not go with --resume",
            "leave it out: the run goes on with its own recipe",
        )
    before = folders.continued(folder)
    recipe = before.recipe.override(wanted.values, wanted.origin)
    other = [
        name for name in changed_settings(before.recipe, recipe) if not name.endswith(".steps")
    ]
    if other:
        raise TrainingError(
            f"the run in {folder} was started with another {', '.join(other)}",
            "leave that out, or start a new run",
        )
    dataset = _open(wanted.data or before.data)
    if (len(dataset), dataset.labels) != (before.pictures, recipe.prior.labels):
        raise TrainingError(
            f"the run in {folder} was started on "
            f"{_described(before.pictures, recipe.prior.labels)}, but {dataset.name} has "
            f"{_described(len(dataset), dataset.labels)}",
            "give it the same data",
        )
    data = _absolute(wanted.data) if wanted.data else before.data
    perceptual = _absolute(wanted.perceptual) if wanted.perceptual else before.perceptual
    compiled = before.compiled or wanted.compiled
    command = before.command or wanted.command
    again = Begun(
        recipe, data, before.pictures, command, compiled, perceptual, before.init, distributed.job()
    )
    return again, dataset


def prior_for(folder: Path, wanted: Wanted) -> tuple[Begun, Dataset]:
    """A new prior for the tokenizer in a folder, be it of a run or of a model without one.

    The tokenizer's settings stay.
    """
    path = tokenizer_for(folder, Path(wanted.data) if wanted.data else None)
    if (folder / folders.RUN_FILE).exists():
        return _next_prior(folder, wanted)
    meta = weights.read_meta(path, "tokenizer")
    tokenizer = weights.tokenizer_config(path)
    dataset = _open(wanted.data)
    check_codes(dataset, path)
    preset = preset_for(dataset, wanted.preset or ("pixels" if tokenizer.identity else None))
    size = meta["record"].get("size", 16 * tokenizer.downsample)
    base = replace(preset, tokenizer=tokenizer, data=replace(preset.data, size=size))
    recipe = base.override(wanted.values, wanted.origin)
    _refuse(
        [name for name in changed_settings(base, recipe) if name.startswith("tokenizer")], folder
    )
    return _begun(fit_to_data(recipe, dataset), dataset, wanted), dataset


def _next_prior(folder: Path, wanted: Wanted) -> tuple[Begun, Dataset]:
    """A new prior in a run's folder: all that the tokenizer depends on stays, so that the
    run can still be resumed.
    """
    if wanted.preset is not None:
        raise UsageError(
            f"--preset does not go with the run in {folder}",
            "leave it out: the prior is made by the recipe of that run",
        )
    before = folders.continued(folder)
    recipe = before.recipe.override(wanted.values, wanted.origin)
    changed = changed_settings(before.recipe, recipe)
    _refuse([name for name in changed if not name.startswith(_PRIOR_SETTINGS)], folder)
    dataset = _open(wanted.data or before.data)
    check_codes(dataset, tokenizer_for(folder, Path(wanted.data) if wanted.data else None))
    return _begun(
        fit_to_data(recipe, dataset), dataset, replace(wanted, data=wanted.data or before.data)
    ), dataset


def _refuse(changed: list[str], folder: Path) -> None:
    if changed:
        raise TrainingError(
            f"the tokenizer in {folder} was trained with another {', '.join(changed)}",
            "leave that out, or train anew",
        )


def agreed(begin: Callable[[], tuple[Begun, Dataset]]) -> tuple[Begun, Dataset]:
    """What `begin` gives in the first process, in all: no other needs the run's folder.

    Each opens the data by itself.

    InputError where it is not what the first one sees. Errors of `begin` are raised in all.
    """
    mine: list[tuple[Begun, Dataset]] = []

    def make() -> bytes:
        mine.append(begin())
        return folders.to_json(mine[0][0])

    told = distributed.from_first(make)
    if mine:
        return mine[0]
    begun = folders.from_json(told)
    dataset = _open(begun.data)
    if (len(dataset), dataset.labels) != (begun.pictures, begun.recipe.prior.labels):
        raise InputError(
            f"process {distributed.rank()} finds {_described(len(dataset), dataset.labels)} in "
            f"{dataset.name}, but the first one "
            f"{_described(begun.pictures, begun.recipe.prior.labels)}",
            "give each machine the same data at the same place",
        )
    return begun, dataset


def preset_for(dataset: Dataset, name: str | None = None) -> Recipe:
    """The named preset, or the one for the data;
    for small pictures of one size, with crops of that size.
    """
    size = getattr(dataset, "size", None)
    small = size is not None and size[0] == size[1] <= 64
    if name is None:
        name = "tiny" if isinstance(dataset, Shapes) else "cifar" if small else "photo"
    if name not in config.PRESETS:
        raise UsageError(
            f"there is no preset {name!r}", f"choose one of {', '.join(config.PRESETS)}"
        )
    recipe = config.PRESETS[name]
    if small and size is not None and size[0] % recipe.tokenizer.downsample == 0:
        recipe = replace(recipe, data=replace(recipe.data, size=size[0], prior_size=size[0]))
    return recipe


def fit_to_data(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with what is not the user's to choose:
    the prior's class names are the data's, both priors' K and L the tokenizer's.
    """
    tokenizer = recipe.tokenizer
    prior = replace(
        recipe.prior,
        labels=dataset.labels,
        codebook_size=tokenizer.codebook_size,
        levels=tokenizer.levels,
    )
    entropy = replace(
        recipe.entropy, codebook_size=tokenizer.codebook_size, levels=tokenizer.levels
    )
    return replace(recipe, prior=prior, entropy=entropy)


def changed_settings(old: Recipe, new: Recipe) -> list[str]:
    """Names of the settings that differ, like seed or prior.width."""
    changed = []
    for name, value in old.to_dict().items():
        other = new.to_dict()[name]
        if isinstance(value, dict):
            changed += [f"{name}.{key}" for key in value if value[key] != other[key]]
        elif value != other:
            changed.append(name)
    return changed


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Nested settings in one; the later ones win."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, Mapping) and isinstance(whole.get(key), Mapping)
            whole[key] = merge([whole[key], dict(value)]) if both else value
    return whole


def check_processes(recipe: Recipe, stage: str, count: int) -> None:
    """Raises UsageError where a batch of the stage cannot be shared by that many
    processes in equal parts.

    A batch is that of all processes together, so that a recipe gives the same
    model for any number of them.
    """
    for name in ("tokenizer", "prior", "entropy"):
        batch = getattr(recipe, f"{name}_training").batch
        if stage in (name, "all") and batch % count:
            fix = (
                "choose a multiple, like --set "
                f"{name}_training.batch={-(-batch // count) * count}, or "
                "another number of processes"
            )
            raise UsageError(
                f"the {name}'s batch of {batch} cannot be shared equally by {count} processes", fix
            )


def check_settable(values: Mapping[str, Any]) -> None:
    """Raises UsageError for settings of the priors that would be overruled by
    the tokenizer and the data.
    """
    for name, key in product(("prior", "entropy"), DERIVED):
        part = values.get(name)
        if isinstance(part, Mapping) and key in part:
            owner = "data" if key in ("labels", "rows", "columns") else "tokenizer"
            raise UsageError(f"{name}.{key} cannot be set: it is the {owner}'s", "leave it out")


def _begun(recipe: Recipe, dataset: Dataset, wanted: Wanted) -> Begun:
    init = str(weights.find(wanted.init).tokenizer.absolute()) if wanted.init else ""
    perceptual = _absolute(wanted.perceptual)
    return Begun(
        recipe,
        _absolute(wanted.data),
        len(dataset),
        wanted.command,
        wanted.compiled,
        perceptual,
        init,
        distributed.job(),
    )


def _open(data: str | None) -> Dataset:
    return (
        CodesData(Path(data))
        if data and is_codes(Path(data))
        else open_data(Path(data) if data else None)
    )


def _absolute(data: str | None) -> str:
    return os.path.abspath(data) if data else ""


def _described(pictures: int, labels: tuple[str, ...]) -> str:
    return (
        f"{pictures:,} pictures with {len(labels)} labels ({', '.join(labels[:3])}...)"
        if labels
        else f"{pictures:,} pictures"
    )
