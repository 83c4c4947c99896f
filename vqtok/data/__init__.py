"""Images for training, evaluation and bulk encoding: folders, zips, tar shards, CIFAR, STL-10, IDX,
arrays, and a set that vqtok draws itself. `open_data` gives each as a `Dataset`.

>>> data = open_data(Path("photos"))
>>> training, validation = split_indices(data, part=0.02, maximum=256, seed=0)
>>> batches = Batches(data, training, batch=16, size=128)
>>> pixels, labels = batches.batch(0)
"""

from vqtok.data.batches import Batch, Batches, split_indices
from vqtok.data.dataset import (
    ArrayData,
    DataOptions,
    Dataset,
    ImageFiles,
    Plain,
    convert_channels,
    read_whole,
)
from vqtok.data.shapes import Shapes
from vqtok.data.sources import open_data, open_splits
from vqtok.data.splits import Split

__all__ = [
    "ArrayData",
    "Batch",
    "Batches",
    "DataOptions",
    "Dataset",
    "ImageFiles",
    "Plain",
    "Shapes",
    "Split",
    "convert_channels",
    "open_data",
    "open_splits",
    "read_whole",
    "split_indices",
]
