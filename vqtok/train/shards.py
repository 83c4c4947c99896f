"""Gives codes shards to priors as training data: the grids are there already, and are read when a
batch needs them.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from vqtok import files, model_registry, weights
from vqtok.bulk import MANIFEST, CodesDataset
from vqtok.codes import index_dtype
from vqtok.config import TokenizerConfig
from vqtok.data import Dataset, Plain
from vqtok.data.classes import Classes, of_folders, without_root
from vqtok.data.splits import split_of_name
from vqtok.errors import InputError, TrainingError, UsageError
from vqtok.tokens.sources import read_fields
from vqtok.train.grids import Grids


def is_codes(path: Path) -> bool:
    """Whether a folder holds codes shards."""
    return (path / MANIFEST).is_file()


class CodesData(Plain):
    """Stands in for a data set of images with codes shards.

    Labels are those that the shards hold; where they hold none, folders, as with images. Where some
    images are of a split `train`, those of other splits are left out.
    """

    skipped = 0

    def __init__(self, folder: Path) -> None:
        """Raises InputError, FormatError."""
        self.codes = CodesDataset(folder)
        self.name = folder.name or str(folder)
        self.channels = self.codes.manifest.channels
        names, sizes, splits, labelled = [], [], [], False
        numbers, sources = dict[str, int](), list[int]()
        for name, line in self.codes.entries():
            labelled |= line.label is not None
            names.append(PurePosixPath(line.name).parts)
            sizes.append((line.size[1], line.size[0]))
            splits.append(line.split or split_of_name(name))
            sources.append(numbers.setdefault(name, len(numbers)))
        if not names:
            raise InputError(f"{folder} holds codes of no image", "encode some")
        self._kept = _for_training(splits)
        self._sizes = {sizes[i] for i in self._kept}
        # for `Copies`: crops and mirror images have the name of their image
        self.sources = np.unique(np.array(sources, np.int64)[self._kept], return_inverse=True)[1]
        kept_names = [names[i] for i in self._kept]
        classes = self._stored() if labelled else of_folders(without_root(kept_names))
        self.labels, self._targets = classes.labels, classes.targets
        left_out = Counter(splits[i] for i in np.setdiff1d(np.arange(len(names)), self._kept))
        counts = ", ".join(f"{count:,} of {name}" for name, count in sorted(left_out.items()))
        different = int(self.sources.max()) + 1
        copied = 1 < different < len(self) and (
            f"{len(self):,} copies of {different:,} images: of an image set aside for validation, "
            "the first copy is used, and none is trained on."
        )
        told = [counts and f"split: left out {counts}.", copied, classes.note]
        self.notes = tuple(filter(None, told))

    def _stored(self) -> Classes:
        """Returns the classes that the shards hold."""
        fields = read_fields(self.codes)
        labels = tuple(name or str(number) for number, name in enumerate(fields.labels))
        return Classes(labels, np.concatenate(fields.classes).astype(np.int64)[self._kept])

    @property
    def mirrored(self) -> bool:
        """Whether the codes are also of mirror images."""
        crops = self.codes.manifest.crops
        return "flip" in crops or "ten" in crops

    @property
    def size(self) -> tuple[int, int]:
        """Returns (H, W) of every image; AttributeError where they differ, as for data sets that
        have no one size.
        """
        if len(self._sizes) != 1:
            raise AttributeError("size")
        return next(iter(self._sizes))

    @property
    def description(self) -> str:
        labelled = f" with {len(self.labels)} labels" if self.labels else ""
        return f"codes of {len(self):,} images{labelled} from {self.name}"

    def __len__(self) -> int:
        return len(self._kept)

    def image(self, index: int) -> np.ndarray:
        raise InputError(
            f"{self.name} holds codes, not images", "train a prior on them: --stage prior"
        )

    def label(self, index: int) -> int:
        return int(self._targets[index]) if len(self._targets) else -1

    @cached_property
    def grids(self) -> Grids:
        """Returns all grids: read when a batch needs them or, where compact shards must be decoded,
        all at once.
        """
        labels = np.array([self.label(i) for i in range(len(self))], np.int64)
        if self.codes.manifest.compact:
            dtype = index_dtype(self.codes.manifest.codebook_size)
            kept = set(self._kept.tolist())
            grids = (indices for i, (indices, _) in enumerate(self.codes) if i in kept)
            return Grids.of_list([indices.astype(dtype) for indices in grids], labels)
        shapes = self.codes.grids[self._kept]
        return ShardGrids(np.empty(0, np.uint8), shapes, self._kept, labels, self.codes)

    def check_tokenizer(self, config: TokenizerConfig, fingerprint: str, folder: Path) -> None:
        """Raises TrainingError where the codes are not all levels of that tokenizer, which lies in
        `folder`.
        """
        manifest = self.codes.manifest
        if manifest.fingerprint != fingerprint:
            raise TrainingError(
                f"the codes were made with model {manifest.model} ({manifest.fingerprint}), the "
                f"tokenizer in {folder} is {fingerprint}",
                "choose another folder with -o, or encode the images again with --model",
            )
        if manifest.levels != config.levels:
            raise TrainingError(
                f"the codes hold {manifest.levels} of {config.levels} levels",
                "encode the images without --levels",
            )


def _for_training(splits: list[str | None]) -> np.ndarray:
    """Returns the numbers (int64) of the images to train on, by the split of each."""
    wanted = {None, "train"} if "train" in splits else set(splits)
    return np.array([i for i, split in enumerate(splits) if split in wanted], np.int64)


@dataclass(frozen=True)
class ShardGrids(Grids):
    """Reads grids from codes shards; `starts` holds their numbers there, and `flat` nothing."""

    codes: CodesDataset

    def __getitem__(self, i: int) -> np.ndarray:
        return self.codes[int(self.starts[i])][0]

    def select(self, which: np.ndarray) -> "ShardGrids":
        return ShardGrids(
            self.flat, self.shapes[which], self.starts[which], self.labels[which], self.codes
        )


def check_codes(dataset: Dataset, tokenizer: Path) -> None:
    """Raises TrainingError where codes shards are not of the tokenizer in that file."""
    if isinstance(dataset, CodesData):
        dataset.check_tokenizer(
            weights.tokenizer_config(tokenizer),
            weights.tokenizer_fingerprint(tokenizer),
            tokenizer.parent,
        )


def refuse_codes(dataset: Dataset) -> None:
    """Raises UsageError where a tokenizer is to be trained on codes."""
    if isinstance(dataset, CodesData):
        raise UsageError(
            f"{dataset.name} holds codes, and a tokenizer learns from images",
            "train a prior on them: --stage prior",
        )


def tokenizer_for(folder: Path, data: Path | None) -> Path:
    """Returns the path of the tokenizer in a folder or, where there is none, of the codes' own
    model.

    Raises TrainingError, ModelError.
    """
    path = folder / "tokenizer.safetensors"
    if path.exists():
        return path
    if data is None or not is_codes(data):
        raise TrainingError(f"{folder} holds no tokenizer", "train one first: --stage all")
    manifest = CodesDataset(data).manifest
    return model_registry.find_by_fingerprint(manifest.model, manifest.fingerprint).tokenizer


def copy_tokenizer(folder: Path, dataset: Dataset) -> None:
    """Puts the tokenizer of codes beside the prior that is trained on them, where there is none."""
    if isinstance(dataset, CodesData):
        found = tokenizer_for(folder, dataset.codes.folder)
        if found.parent != folder:
            files.write_bytes(folder / "tokenizer.safetensors", found.read_bytes())
