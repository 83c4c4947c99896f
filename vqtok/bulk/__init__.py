"""Encodes many images to few files: codes shards, made by `vqtok encode` from tar shards and
folders, and read by `CodesDataset`.

A folder of codes shards holds
- `manifest.json`: format, model and fingerprint, K, downsample, channels, levels, the settings that
  decide about indices, and the
  inputs in order: the tars, and after them, as one input, all images that lie in no tar
- `00012-00003.npz` or `.tar`: the codes of images 3000 to 3999 of input 12 (with 1000 images a
  shard). Where all their grids have
  one size it is an ordinary codes file of many images;
  else it is a tar of such files, one a size: `27x20.npz`
- `00012-00003.jsonl`: the shard's own manifest.
  Its first line is the head: what `ShardHeader` holds.
  After it comes a line for each
  image, in the order of the input: `name`, and `size` [W, H], `grid` [w, h] and `row` in the
  codes file of that grid, or, for an image
  that could not be encoded, `error`. It may have a `label` (the number of its class, or the
  class's name; `labels` in `manifest.json` may list the names by number), a `caption` and a
  `split`. It is written after the shard, so that a shard
  is finished where it exists

Which image goes where depends on the inputs and the number of images a shard alone.
Every file is written whole or not at all.
"""

from typing import TYPE_CHECKING

from vqtok.lazy import lazy_names

if TYPE_CHECKING:
    from vqtok.bulk.dataset import CodesDataset
    from vqtok.bulk.shards import MANIFEST

__all__ = ["MANIFEST", "CodesDataset"]


# imported on first use: `vqtok encode` of an image takes `vqtok.bulk.crops` alone
if not TYPE_CHECKING:  # type checkers would take every name for one that is here
    __getattr__, __dir__ = lazy_names(
        __name__,
        __all__,
        dataset="CodesDataset",
        shards="MANIFEST",
    )
