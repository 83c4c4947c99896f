"""Images for training and evaluation: folders, zips, tar shards, CIFAR-10, IDX, arrays, and a
set that vqtok draws itself.

>>> data = open_data(Path("photos"))
>>> training, validation = split_indices(data, part=0.02, maximum=256, seed=0)
>>> batches = Batches(data, training, batch=16, size=128)
>>> pixels, labels = batches.batch(0)
"""

from vqtok.data.batches import Batch, Batches, split_indices
from vqtok.data.dataset import ArrayData, Dataset, ImageFiles, convert_channels, read_whole
from vqtok.data.shapes import Shapes
from vqtok.data.sources import open_data

__all__ = [
    "ArrayData",
    "Batch",
    "Batches",
    "Dataset",
    "ImageFiles",
    "Shapes",
    "convert_channels",
    "open_data",
    "read_whole",
    "split_indices",
]
