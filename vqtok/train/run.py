"""Fills in a run's spec and opens its data and folder: a new run, a resumed one, or a prior for a
tokenizer.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import PIL

from vqtok import config, distributed, files, losses, model_registry, quantizers, weights
from vqtok.codec.loading import has_bf16, pick_device
from vqtok.config import Recipe, TokenizerConfig
from vqtok.data import ArrayData, DataOptions, Dataset, ImageFiles, Shapes, open_data
from vqtok.errors import InputError, OutputError, TrainingError, UsageError, VqtokError
from vqtok.train import state
from vqtok.train.shards import CodesData, check_codes, is_codes, refuse_codes, tokenizer_for
from vqtok.train.spec import RunSpec, spec_from_json, spec_to_json
from vqtok.train.state import RECIPE_FILE, RUN_FILE

FORMAT = 1
_ENTROPY_FILES = r"entropy(\.state)?\.safetensors"
_PRIOR_FILES = (
    r"prior(\.state)?\.safetensors|indices\.state\.safetensors|prior-\d{6,}\.png|samples\.png"
)
_TOKENIZER_FILES = r"tokenizer(\.state)?\.safetensors|tokenizer-\d{6,}\.png"
_RUN_FILES = (
    rf"run\.json|recipe\.toml|log\.jsonl|README\.md|{_TOKENIZER_FILES}|{_PRIOR_FILES}|"
    rf"{_ENTROPY_FILES}"
)
_AGAIN = "start anew with -f/--force"

# of the prior: the tokenizer and the data decide them
DERIVED = ("codebook_size", "levels", "labels", "rows", "columns")
# Settings that may differ from those that a run, or the tokenizer before it, was trained with; a
# name covers all that begin with it.
_FREE = {
    "resume": ("tokenizer_training.steps", "prior_training.steps", "entropy_training.steps"),
    "prior": ("prior", "entropy", "precision", "data.prior_size", "sampling"),
    "init": tuple(
        f"tokenizer.{name}" for name in ("level_dropout", "beta", "decay", "restart", "likelihood")
    ),
}


def choose_run(request: RunSpec, resume: bool) -> tuple[RunSpec, Dataset]:
    """Resumes the run in the request's folder, or fills in a new prior for its tokenizer, or a new
    run.
    """
    if resume:
        return resume_run(request.folder, request)
    prior = request.stage in ("prior", "entropy")
    spec, dataset = new_prior_run(request.folder, request) if prior else new_run(request)
    check_outside(request.folder, spec.data, dataset)
    return spec, dataset


def open_run(request: RunSpec, say: Callable[[str], None]) -> tuple[RunSpec, Dataset]:
    """Fills in a run and makes its folder ready; returns the run and its data.

    `resume` is then set also where a torchrun starts the command again. All processes of a run
    call this alike.
    """

    def decide() -> bytes:
        again = not request.resume and is_restart_of(request.folder)
        if not (request.resume or again):
            check_free(request.folder, request.stage, request.force)
        return b"again" if again else b"resume" if request.resume else b""

    def make_ready() -> bytes:
        if how:
            save_run(request.folder, spec)
        else:
            create_run(request.folder, spec, request.stage, request.force)
        return b""

    how = distributed.broadcast_bytes(decide)
    if how == b"again":  # a run that goes on has its preset and its first weights already
        request = replace(request, preset=None, init="")
        say(f"A process of this run has ended: it goes on from what is saved in {request.folder}.")
    spec, dataset = broadcast_spec(lambda: choose_run(request, bool(how)))
    check_processes(spec.recipe, request.stage, distributed.world_size())
    distributed.broadcast_bytes(make_ready)
    # the first process sends the others what run.json keeps, and nothing else
    asked = {name: getattr(request, name) for name in ("folder", "stage", "force")}
    return replace(spec, **asked, resume=bool(how)), dataset


def check_free(folder: Path, stage: str, force: bool) -> None:
    """Raises OutputError where training `stage` anew would replace something and
    `force` does not allow that.
    """
    old = sorted(path.name for path in _replaced(folder, stage))
    if stage in ("prior", "entropy"):
        old = [name for name in old if name.startswith(stage)]
    if old and not force:
        what = (
            "a prior"
            if stage == "prior"
            else "an entropy prior"
            if stage == "entropy"
            else "a run"
            if RUN_FILE in old
            else old[0]
        )
        raise OutputError(
            f"{folder} holds {what} already",
            "go on with --resume, replace it with -f/--force, or choose another -o",
        )


def create_run(folder: Path, spec: RunSpec, stage: str, force: bool) -> None:
    """Makes the run's folder, or the start of a new prior in it, and removes what the new run
    replaces. Errors as `check_free`.
    """
    clear_run(folder, stage, force)
    save_run(folder, spec)


def clear_run(folder: Path, stage: str, force: bool) -> None:
    """Removes what training `stage` anew would replace. Errors as `check_free`."""
    check_free(folder, stage, force)
    try:
        for path in _replaced(folder, stage):
            path.unlink()
    except OSError as error:
        raise OutputError(
            f"cannot empty {folder}: {error.strerror}", "choose another folder with -o"
        ) from None


def save_run(folder: Path, spec: RunSpec) -> None:
    """Writes what `load_run` reads, and takes away what a killed run was writing."""
    files.remove_stale(folder)
    run = {"format": FORMAT, **spec.kept(), "pillow": PIL.__version__}
    del run["recipe"]
    files.write_bytes(folder / RECIPE_FILE, config.to_toml(spec.recipe).encode(), force=True)
    files.write_bytes(folder / RUN_FILE, (json.dumps(run) + "\n").encode(), force=True)


def is_restart_of(folder: Path) -> bool:
    """Whether the run in a folder is of the torchrun that starts this command:
    it does so again where a process has ended.

    To be asked of the first process. Without an --rdzv-id of its own a torchrun is known by
    its process number only, which another may have had before: then it must also say that it
    starts the command again.
    """
    job = distributed.torchrun_job()
    try:
        return (
            job != ""
            and load_run(folder).job == job
            and (distributed.is_restart() or not job.startswith("process "))
        )
    except TrainingError:
        return False


@contextmanager
def resumable() -> Iterator[None]:
    """Advises `--resume`, inside the block, where a file cannot be written: another folder is no
    way out of a run.
    """
    try:
        yield
    except OutputError as error:
        raise OutputError(
            str(error), "free some space, or allow writing there, then go on with --resume"
        ) from None


def load_run(folder: Path) -> RunSpec:
    """Reads what `save_run` wrote; TrainingError where the folder holds
    no run, or a damaged one.
    """
    path = folder / RUN_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        newer = run["format"] > FORMAT
        data, images = str(run["data"]), int(run["pictures"])
        command, compiled = str(run.get("command", "")), bool(run.get("compiled", False))
        perceptual, init, job = (str(run.get(name, "")) for name in ("perceptual", "init", "job"))
        codes = {str(key): str(value) for key, value in run.get("codes", {}).items()}
        options, digest = DataOptions.of(**run.get("options", {})), str(run.get("digest", ""))
        pillow = str(run.get("pillow", ""))
    except (FileNotFoundError, NotADirectoryError):
        raise TrainingError(
            f"{folder} holds no run to resume", "leave --resume out to start one"
        ) from None
    except OSError as error:
        raise TrainingError(
            f"cannot read {path}: {error.strerror}", "check its permissions"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise TrainingError(f"{path} is damaged", _AGAIN) from None
    if newer:
        raise TrainingError(f"the run in {folder} was started by a newer vqtok", "upgrade vqtok")
    recipe = _recipe(folder / RECIPE_FILE)
    texts = (command, compiled, perceptual, init, codes, job, options, digest, pillow)
    return RunSpec(recipe, data, images, *texts, folder=folder)


def _recipe(path: Path) -> Recipe:
    try:
        return Recipe().override(config.read_recipe(path), str(path))
    except VqtokError as error:
        raise TrainingError(f"the recipe of this run is damaged: {error}", _AGAIN) from None


def _replaced(folder: Path, stage: str) -> list[Path]:
    """Lists the files that a new run, or a new prior, writes itself; others in the folder are the
    user's own.
    """
    pattern = {"prior": _PRIOR_FILES, "entropy": _ENTROPY_FILES}.get(stage, _RUN_FILES)
    try:
        return [path for path in folder.iterdir() if re.fullmatch(pattern, path.name)]
    except (FileNotFoundError, NotADirectoryError):
        # the latter is reported when the first file is written
        return []
    except OSError as error:
        raise OutputError(
            f"cannot look into {folder}: {error.strerror}", "choose another folder with -o"
        ) from None


def new_run(request: RunSpec) -> tuple[RunSpec, Dataset]:
    """Fills in a new run: the preset for the data, changed by the values that were asked for."""
    dataset = _open(request.data, request.options)
    refuse_codes(dataset)
    recipe = preset_for(dataset, request.preset)
    tokenizer = _for_values(recipe.tokenizer, request.values.get("tokenizer", {}))
    recipe = replace(recipe, tokenizer=_for_channels(tokenizer, dataset.channels))
    before = _init_tokenizer(request.init)
    if before is not None:
        recipe = replace(recipe, tokenizer=before)
    recipe = fit_to_data(recipe.override(request.values, request.origin), dataset)
    if before is not None:
        _check_same_network(before, recipe.tokenizer, request.init)
    if (
        request.perceptual
        and recipe.losses.perceptual == 0
        and "perceptual" not in request.values.get("losses", {})
    ):
        # who gives the file wants its loss
        recipe = replace(recipe, losses=replace(recipe.losses, perceptual=1.0))
    if recipe.tokenizer_training.freeze_encoder and before is None:
        raise UsageError(
            "freeze_encoder keeps an encoder and a codebook, and there are none yet",
            "name the model that has them: --init MODEL",
        )
    # here, before `create_run` clears the folder, and so is the next
    quantizers.check_quantizer(recipe.tokenizer)
    losses.Criterion(recipe.losses, request.perceptual_path, recipe.data.size)
    return _make_spec(recipe, dataset, request), dataset


def _for_values(tokenizer: TokenizerConfig, values: Mapping[str, Any]) -> TokenizerConfig:
    """Drops a preset's own shape of the decoder where the values ask for another network.

    The decoder then mirrors the encoder, as in presets without such a shape.
    """
    given = {"decoder_widths", "decoder_depths"} & values.keys()
    other = {"downsample", "width", "decoder_blocks", "shortcut", "network"} & values.keys()
    if given or not other:
        return tokenizer
    return replace(tokenizer, decoder_widths=(), decoder_depths=())


def _init_tokenizer(model: str) -> TokenizerConfig | None:
    """Reads the settings of the tokenizer whose weights a run starts from; "" is none."""
    return weights.tokenizer_config(model_registry.find_model(model).tokenizer) if model else None


def _for_channels(tokenizer: TokenizerConfig, channels: int) -> TokenizerConfig:
    """Changes a tokenizer to images of that many channels; a tokenizer of pixels has a level for
    each.
    """
    more = {"levels": channels, "code_dim": channels} if tokenizer.is_pixels else {}
    return replace(tokenizer, channels=channels, **more)


def _check_same_network(before: TokenizerConfig, after: TokenizerConfig, model: str) -> None:
    """Raises UsageError where weights of one do not fit the other: all but what training alone
    reads must be equal.
    """
    names = (f.name for f in fields(before) if getattr(before, f.name) != getattr(after, f.name))
    fixed = _fixed([f"tokenizer.{name}" for name in names], "init")
    changed = [name.removeprefix("tokenizer.") for name in fixed]
    if changed:
        raise UsageError(
            f"the weights of {model} do not fit another {', '.join(changed)}",
            "leave that out, or leave --init out",
        )


def resume_run(folder: Path, request: RunSpec) -> tuple[RunSpec, Dataset]:
    """Fills in the run in a folder; only its numbers of steps may change, and where its data lies.

    TrainingError for anything else.
    """
    if request.preset is not None:
        raise UsageError(
            "--preset does not go with --resume",
            "leave it out: the run goes on with its own recipe",
        )
    before = load_run(folder)
    recipe = before.recipe.override(request.values, request.origin)
    other = _fixed(changed_settings(before.recipe, recipe), "resume")
    if other:
        raise TrainingError(
            f"the run in {folder} was started with another {', '.join(other)}",
            "leave that out, or start a new run",
        )
    options = before.options if request.options == DataOptions() else request.options
    dataset = _open(request.data or before.data, options)
    if (len(dataset), dataset.labels) != (before.pictures, recipe.prior.labels):
        raise TrainingError(
            f"the run in {folder} was started on "
            f"{_describe_data(before.pictures, recipe.prior.labels)}, but {dataset.name} has "
            f"{_describe_data(len(dataset), dataset.labels)}",
            "give it the same data",
        )
    if before.digest not in ("", dataset.digest()):
        raise TrainingError(
            f"the run in {folder} was started on other images than those in {dataset.name}: "
            "their number is the same, names or sizes are not",
            "give it the same data, or start a new run",
        )
    _note_other_pillow(dataset, before.pillow)
    again = replace(
        request,
        recipe=recipe,
        data=_absolute(request.data) or before.data,
        pictures=before.pictures,
        command=before.command or request.command,
        compiled=before.compiled or request.compiled,
        perceptual=_absolute(request.perceptual) or before.perceptual,
        init=before.init,
        codes=before.codes,
        job=distributed.torchrun_job(),
        options=options,
        digest=before.digest or dataset.digest(),
        pillow=before.pillow,
    )
    return again, dataset


def _note_other_pillow(dataset: Dataset, before: str) -> None:
    """Says where images are decoded by another Pillow than so far: 13.0.0 and others resize in
    another order of passes, by one gray level. (Equal bits are promised under one version only.)
    """
    if before in ("", PIL.__version__) or not isinstance(dataset, ArrayData | ImageFiles):
        return
    note = (
        f"The run began with Pillow {before}, and this is {PIL.__version__}: images may differ by "
        "a gray level, so that the result is not bit by bit that of a run without a stop."
    )
    dataset.notes = (*dataset.notes, note)


def new_prior_run(folder: Path, request: RunSpec) -> tuple[RunSpec, Dataset]:
    """Fills in a new prior for the tokenizer in a folder, be it of a run or of a model without one.

    The tokenizer's settings stay.
    """
    path = tokenizer_for(folder, Path(request.data) if request.data else None)
    if (folder / state.RUN_FILE).exists():
        return _next_prior_run(folder, request)
    meta = weights.read_meta(path, "tokenizer")
    tokenizer = weights.tokenizer_config(path)
    dataset = _open(request.data, request.options)
    check_codes(dataset, path)
    preset = preset_for(dataset, request.preset or ("pixels" if tokenizer.is_pixels else None))
    size = meta["record"].get("size", 16 * tokenizer.downsample)
    base = replace(preset, tokenizer=tokenizer, data=replace(preset.data, size=size))
    recipe = base.override(request.values, request.origin)
    _refuse(
        [name for name in changed_settings(base, recipe) if name.startswith("tokenizer")], folder
    )
    return _make_spec(fit_to_data(recipe, dataset), dataset, request), dataset


def _next_prior_run(folder: Path, request: RunSpec) -> tuple[RunSpec, Dataset]:
    """Fills in a new prior in a run's folder. All settings that the tokenizer depends on stay, so
    that the run can still be resumed.
    """
    if request.preset is not None:
        raise UsageError(
            f"--preset does not go with the run in {folder}",
            "leave it out: the prior is made by the recipe of that run",
        )
    before = load_run(folder)
    recipe = before.recipe.override(request.values, request.origin)
    _refuse(_fixed(changed_settings(before.recipe, recipe), "prior"), folder)
    given = request.data or request.options != DataOptions()
    options = request.options if given else before.options
    dataset = _open(request.data or before.data, options)
    check_codes(dataset, tokenizer_for(folder, Path(request.data) if request.data else None))
    request = replace(request, data=request.data or before.data, options=options)
    return _make_spec(fit_to_data(recipe, dataset), dataset, request), dataset


def _fixed(changed: list[str], kind: str) -> list[str]:
    return [name for name in changed if not name.startswith(_FREE[kind])]


def _refuse(changed: list[str], folder: Path) -> None:
    if changed:
        raise TrainingError(
            f"the tokenizer in {folder} was trained with another {', '.join(changed)}",
            "leave that out, or train anew",
        )


def broadcast_spec(begin: Callable[[], tuple[RunSpec, Dataset]]) -> tuple[RunSpec, Dataset]:
    """Sends the spec that `begin` makes in the first process to all others, which need no access to
    the run's folder.

    Each opens the data by itself.

    InputError where it is not what the first one sees. Errors of `begin` are raised in all.
    """
    mine: list[tuple[RunSpec, Dataset]] = []

    def make() -> bytes:
        mine.append(begin())
        return spec_to_json(mine[0][0])

    told = distributed.broadcast_bytes(make)
    if mine:
        return mine[0]
    spec = spec_from_json(told)
    dataset = _open(spec.data, spec.options)
    seen = (len(dataset), dataset.labels, dataset.digest())
    if seen != (spec.pictures, spec.recipe.prior.labels, spec.digest):
        raise InputError(
            f"process {distributed.rank()} finds {_describe_data(len(dataset), dataset.labels)} in "
            f"{dataset.name}, but the first one "
            f"{_describe_data(spec.pictures, spec.recipe.prior.labels)}",
            "give each machine the same data at the same place",
        )
    return spec, dataset


def preset_for(dataset: Dataset, name: str | None = None) -> Recipe:
    """Returns the named preset, or the one for the data; for small images of one size, with crops
    of that size, and in fp32 where this machine does not compute in bf16 itself.
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
    if recipe.precision == "bf16" and not has_bf16(pick_device()):
        # by a processor that has no instructions for it a step takes 4 to 8 times as long
        recipe = replace(recipe, precision="fp32")
    return recipe


def fit_to_data(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Sets what is not the user's to choose: the prior's class names are the data's, both priors' K
    and L the tokenizer's.
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
    """Names the settings that differ, like seed or prior.width."""
    changed = []
    for name, value in old.to_dict().items():
        other = new.to_dict()[name]
        if isinstance(value, dict):
            changed += [f"{name}.{key}" for key in value if value[key] != other[key]]
        elif value != other:
            changed.append(name)
    return changed


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Merges nested settings; later ones win."""
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


def _make_spec(recipe: Recipe, dataset: Dataset, request: RunSpec) -> RunSpec:
    init = str(model_registry.find_model(request.init).tokenizer.absolute()) if request.init else ""
    frozen = recipe.tokenizer_training.freeze_encoder
    codes = weights.kept_codes(weights.load_weights(Path(init), "tokenizer")) if frozen else {}
    return replace(
        request,
        recipe=recipe,
        data=_absolute(request.data),
        pictures=len(dataset),
        perceptual=_absolute(request.perceptual),
        init=init,
        codes=codes,
        job=distributed.torchrun_job(),
        digest=dataset.digest(),
    )


def _open(data: str, options: DataOptions) -> Dataset:
    place = files.as_path(data) if data else None
    return CodesData(place) if place and is_codes(place) else open_data(place, options=options)


def check_outside(folder: Path, data: str, dataset: Dataset) -> None:
    """Raises UsageError where the run's folder lies among the images: its sheets would be taken for
    some of them.
    """
    if not isinstance(dataset, ImageFiles) or not os.path.isdir(data):
        return
    inside = Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(data))
    if inside:
        raise UsageError(
            f"the model's folder {folder} lies in the folder of images {data}: the sheets that "
            "training writes would be taken for images",
            f"choose one beside it: -o {os.path.relpath(os.path.abspath(data) + '-model')}",
        )


def _absolute(data: str) -> str:
    return (data if files.is_url(data) else os.path.abspath(data)) if data else ""


def _describe_data(images: int, labels: tuple[str, ...]) -> str:
    return (
        f"{images:,} images with {len(labels)} labels ({', '.join(labels[:3])}...)"
        if labels
        else f"{images:,} images"
    )
