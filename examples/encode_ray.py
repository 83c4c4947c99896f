"""Encodes tars on a Ray cluster: python encode_ray.py MODEL OUT ACTORS TARS...

OUT and TARS may be URLs like s3://bucket/train-{0000..1023}.tar. Each actor takes a tar at a time.
Run it again after an interruption: what is finished stays.
"""

import sys

import numpy as np
import ray  # pyright: ignore[reportMissingImports]
import torch

import vqtok
from vqtok.bulk.encode import BulkSettings, encode
from vqtok.bulk.inputs import Inputs, WorkSlice
from vqtok.files import as_path

name, out, actors, words = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]


class Encoder:
    def __init__(self) -> None:
        self.model, self.inputs = vqtok.load(name), Inputs(words)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        images = []
        for part in batch["item"]:
            part_of = WorkSlice(int(part), len(self.inputs.all))
            settings, workers = BulkSettings(), 0  # a process of its own is what an actor is
            shards = encode(
                self.model, self.inputs, as_path(out), settings, part_of, workers, resume=True
            )
            images.append(sum(report.shard.head.pictures for report in shards))
        return {"images": images}


pool = ray.data.ActorPoolStrategy(size=actors)
parts = ray.data.from_items(list(range(len(Inputs(words).all))), override_num_blocks=2 * actors)
gpus = int(torch.cuda.is_available())
done = parts.map_batches(Encoder, batch_size=1, compute=pool, num_gpus=gpus).sum("images")
print(f"{done} images -> {out}")
