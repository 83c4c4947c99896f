"""Trains models: images to a model folder.

The tokenizer first, then both priors on the indices it gives.
"""

from itertools import islice

import numpy as np

from vqtok import distributed, weights
from vqtok.codec import to_device, tokenizer_from_weights
from vqtok.config import ENTROPY_CODES_MAX, Recipe
from vqtok.data import Dataset, split_indices
from vqtok.errors import InputError, TrainingError
from vqtok.files import human_count
from vqtok.networks.vqvae import VQVAE
from vqtok.train import loop
from vqtok.train.context import Listener, RunContext, Status, Stop
from vqtok.train.grids import Grids, encode_dataset, load_grids, save_grids
from vqtok.train.plan import plan
from vqtok.train.prior import EntropyTask, PriorTask
from vqtok.train.run import (
    broadcast_spec,
    check_free,
    check_outside,
    check_processes,
    check_settable,
    choose_run,
    create_run,
    is_restart_of,
    merge,
    new_prior_run,
    new_run,
    open_run,
    resumable,
    resume_run,
    save_run,
)
from vqtok.train.runtime import keep_memory
from vqtok.train.shards import CodesData, copy_tokenizer, refuse_codes
from vqtok.train.spec import RunSpec
from vqtok.train.tokenizer import TokenizerTask, write_pixel_tokenizer

__all__ = [
    "STAGES",
    "Listener",
    "RunContext",
    "RunSpec",
    "Status",
    "Stop",
    "broadcast_spec",
    "check_free",
    "check_outside",
    "check_processes",
    "check_settable",
    "choose_run",
    "create_run",
    "is_restart_of",
    "merge",
    "new_prior_run",
    "new_run",
    "open_run",
    "plan",
    "resumable",
    "resume_run",
    "save_run",
    "train",
]

STAGES = ("tokenizer", "prior", "entropy", "all")
# indices of the images to train on, and of those to validate with
Parts = tuple[np.ndarray, np.ndarray]


def train(run: RunContext, dataset: Dataset) -> bool:
    """Trains the stages of `run.spec` into its folder; returns whether all of them are finished.

    After an early stop (`run.stop`), the same call with `resume` in the spec continues as if there
    had been no stop: on a CPU the result is bit-equal, given the same machine and number of
    threads. Some of CUDA's sums have no fixed order.
    Inside `distributed.process_group`, all processes of a run call this alike and share the work;
    the first needs the folder, all need the data. What comes out is the same for any number of
    them, but for rounding and for the prior's dropout.
    """
    keep_memory()
    stage = run.spec.stage
    if stage in ("tokenizer", "all"):
        refuse_codes(dataset)
    if distributed.is_main_process():
        copy_tokenizer(run.folder, dataset)
    parts = _parts(dataset, run)
    aside = len(np.setdiff1d(parts[1], parts[0]))
    kept = f"{aside:,} set aside for validation."
    kept = kept if aside else "none set aside: validation looks at training images."
    run.listener.note(f"{human_count(len(parts[0]), 'image')} to train on, {kept}")
    if stage in ("tokenizer", "all") and not _train_tokenizer(dataset, parts, run):
        return False
    return stage == "tokenizer" or _train_priors(dataset, parts, run)


def _parts(dataset: Dataset, run: RunContext) -> Parts:
    """Splits the images into those to train on and those to validate with.

    The latter are all readable; where there are none, training images stand in.
    """
    data = run.spec.recipe.data
    training, aside = split_indices(dataset, data.validation, data.validation_max, run.seed)
    validation = [i for i in aside if _readable(dataset, i)]
    if not validation:
        readable = (i for i in training if _readable(dataset, i))
        validation = list(islice(readable, data.validation_max))
    if not validation:
        raise InputError(
            f"no image of {dataset.name} can be read",
            "check that the files are whole and are images",
        )
    return training, np.array(validation, np.int64)


def _readable(dataset: Dataset, index: int) -> bool:
    if isinstance(dataset, CodesData):
        return True
    try:
        dataset.image(index)
    except InputError:
        return False
    return True


def _train_tokenizer(dataset: Dataset, parts: Parts, run: RunContext) -> bool:
    recipe = run.spec.recipe
    if recipe.tokenizer.is_pixels:
        write_pixel_tokenizer(recipe, dataset, parts, run)
        return True
    task = TokenizerTask(recipe, dataset, parts, run, run.spec.compiled)
    return loop.train(task, recipe.tokenizer_training, run, run.spec.resume)


def _train_priors(dataset: Dataset, parts: Parts, run: RunContext) -> bool:
    recipe, stage, resume = run.spec.recipe, run.spec.stage, run.spec.resume
    network, fingerprint = _released_tokenizer(run)
    if network.config != recipe.tokenizer:
        raise TrainingError(
            f"the tokenizer in {run.folder} is not the recipe's",
            "train the prior with the recipe of its tokenizer",
        )
    grids = _all_grids(network, fingerprint, recipe, dataset, run)
    if grids is None:
        return False
    split_grids = _split_grids(
        grids, parts, recipe.data.flip and not isinstance(dataset, CodesData)
    )
    codebooks = network.quantizer.codebooks().detach().float()
    if stage != "entropy" and not loop.train(
        PriorTask(recipe, dataset, fingerprint, split_grids, run, codebooks),
        recipe.prior_training,
        run,
        resume,
    ):
        return False
    if stage == "prior":
        return True
    if recipe.tokenizer.codebook_size > ENTROPY_CODES_MAX:
        run.listener.note(
            f"No entropy prior: it takes at most {ENTROPY_CODES_MAX} codes. "
            "Compact files are bit-packed."
        )
        return True
    task = EntropyTask(
        recipe,
        dataset,
        fingerprint,
        split_grids,
        run,
        codebooks,
    )
    return loop.train(task, recipe.entropy_training, run, resume)


def _all_grids(
    network: VQVAE, fingerprint: str, recipe: Recipe, dataset: Dataset, run: RunContext
) -> Grids | None:
    """Returns the grids of all images, from codes shards, from the run's folder or encoded now;
    None after an early stop.
    """
    if isinstance(dataset, CodesData):
        dataset.check_tokenizer(network.config, fingerprint, run.folder)
        if recipe.data.flip and not dataset.mirrored:
            run.listener.note("These codes have no mirror images (vqtok encode --flip makes them).")
        return dataset.grids
    path, mirror = run.folder / "indices.state.safetensors", recipe.data.flip
    grids = load_grids(path, fingerprint, len(dataset) * (2 if mirror else 1))
    if grids is not None:
        return grids
    if distributed.is_main_process() and path.exists():
        run.listener.note("The tokenizer has changed: its priors start anew.")
        for name in (
            "prior.state.safetensors",
            "prior.safetensors",
            "entropy.state.safetensors",
            "entropy.safetensors",
        ):
            (run.folder / name).unlink(missing_ok=True)
    run.listener.note(
        f"Encoding {len(dataset):,} images{' and their mirror images' if mirror else ''}."
    )
    grids = encode_dataset(network, dataset, mirror, run)
    if grids is not None:
        save_grids(path, grids, fingerprint)
    return grids


def _split_grids(grids: Grids, parts: Parts, mirror: bool) -> tuple[Grids, Grids]:
    """Splits the grids for training and validation. Mirror images are for training alone, or
    validation would see half its images twice.
    """
    if not mirror:
        return grids.select(parts[0]).known(), grids.select(parts[1]).known()
    return grids.select(np.concatenate([2 * parts[0], 2 * parts[0] + 1])).known(), grids.select(
        2 * parts[1]
    ).known()


def _released_tokenizer(run: RunContext) -> tuple[VQVAE, str]:
    """Loads the tokenizer as `vqtok encode` will use it, rounded to float16: the prior must know
    the indices that users get.
    """
    path = run.folder / "tokenizer.safetensors"
    stored = distributed.broadcast_weights(
        lambda: weights.load_weights(path, "tokenizer") if path.exists() else None
    )
    if stored is None:
        raise TrainingError(f"{run.folder} holds no tokenizer", "train one first: --stage all")
    fingerprint = weights.codes_fingerprint(stored)  # first: the network takes the tensors away
    return to_device(tokenizer_from_weights(stored, path), run.device), fingerprint
