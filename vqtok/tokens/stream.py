"""Sequences as a stream for training: shuffled, divided by rank and worker, and resumable.

>>> stream = data.stream(batch_size=32, seed=0)
>>> for batch in DataLoader(stream, batch_size=None, num_workers=2):
...     save({"position": batch["position"], ...})
>>> stream.resume(position)     # goes on after that batch
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vqtok.errors import UsageError
from vqtok.tokens.reader import SequenceReader


class TokenStream(IterableDataset[dict[str, Any]]):
    """Batches (or single samples) of an epoch in which every image comes once.

    The order of an epoch is a function of (seed, epoch) alone. Rank r of R takes the samples r,
    r + R, ... of it. Of a rank's batches, worker k of W makes k, k + W, ...: a DataLoader takes its
    workers in turn, so a rank sees the same batches for any number of workers. Chunks (shards or
    codes files) are drawn in random order, and the images of those that hold 2^25 indices together
    are shuffled with each other.

    An iteration is the rest of one epoch, and the next iteration is the epoch after it.
    """

    def __init__(
        self,
        sequences: SequenceReader,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        """Configures the stream. With `batch_size` it gives collated batches: give DataLoader
        batch_size=None. Without, it gives samples. `rank` and `world_size` are by default RANK and
        WORLD_SIZE, which torchrun sets. `drop_last` leaves out the last samples of an epoch, so
        that all ranks have as many full batches.
        """
        env = os.environ
        self.sequences, self.batch_size, self.shuffle = sequences, batch_size, shuffle
        self.seed, self.drop_last = seed, drop_last
        self.rank = int(env.get("RANK", 0)) if rank is None else rank
        self.world_size = int(env.get("WORLD_SIZE", 1)) if world_size is None else world_size
        if not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"there is no rank {self.rank} of {self.world_size}", "count ranks from 0"
            )
        if batch_size is not None and batch_size < 1:
            raise UsageError("a batch has at least one sample", "give a larger batch_size")
        self._fields = sequences.fields  # read here, and not by each worker
        self._next, self._iterations = _SharedPosition(), 0

    def __len__(self) -> int:
        """Returns how many batches (or samples) a whole epoch of this rank has."""
        n, size = len(self.sequences), self.batch_size or 1
        if self.drop_last:
            return n // self.world_size // size
        return -(-len(range(self.rank, n, self.world_size)) // size)

    @property
    def position(self) -> dict[str, int]:
        """Returns where the next iteration begins.

        Workers read ahead, so only the batches know what has been given: each has a "position".
        """
        return self._next.read()

    def resume(self, position: dict[str, int]) -> None:
        """Goes on after the batch whose "position" this is."""
        epoch, done = int(position["epoch"]), int(position["done"])
        if epoch < 0 or done < 0:
            raise UsageError("a position does not lie before the start", "give one that was saved")
        # a whole epoch is the start of the next one
        self._next.write(*((epoch, done) if done < len(self) else (epoch + 1, 0)))

    def state_dict(self) -> dict[str, int]:
        """Returns the position, under the name that checkpointing tools look for."""
        return self.position

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resumes there."""
        self.resume(state)

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration that of an epoch, counted from 0."""
        self._next.write(epoch, 0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # equal for the workers of one iteration, and for no other: the seed is drawn for each,
        # but persistent workers keep it, and count
        run = (info.seed - info.id if info else -1, self._iterations)
        self._iterations += 1
        epoch, first = self._next.claim(run)
        batch, current = list[dict[str, Any]](), -1
        for number, sample in self._samples(epoch, first, worker, workers):
            if batch and number != current:
                yield self._finish(batch, epoch, current)
                batch = []
            batch.append(sample)
            current = number
        if batch:
            yield self._finish(batch, epoch, current)

    def _finish(self, batch: list[dict[str, Any]], epoch: int, number: int) -> dict[str, Any]:
        found = batch[0] if self.batch_size is None else collate(batch)
        return found | {"position": {"epoch": epoch, "done": number + 1}}

    def _samples(
        self, epoch: int, first: int, worker: int, workers: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the samples that a worker makes, each with the number of its batch."""
        sequences, start, size, count = self.sequences, 0, self.batch_size or 1, len(self)
        for pool, images in sequences.pools(self.shuffle, self.seed, epoch):
            places = np.arange(start, start + images)  # in the epoch
            start += images
            places = places[places % self.world_size == self.rank]
            numbers = places // self.world_size // size
            mine = (numbers >= first) & (numbers < count) & ((numbers - first) % workers == worker)
            if not mine.any():
                continue
            places, numbers = places[mine], numbers[mine]
            chunks, of_chunk = sequences.pool_order(pool, self.shuffle, self.seed, epoch)
            wanted = places - (start - images)
            sequences.open_pool(pool)
            for place, number, chunk, image in zip(
                places.tolist(),
                numbers.tolist(),
                chunks[wanted].tolist(),
                of_chunk[wanted].tolist(),
                strict=True,
            ):
                yield number, self._sample(epoch, place, chunk, image)

    def _sample(self, epoch: int, place: int, chunk: int, image: int) -> dict[str, Any]:
        cut = (0.5, 0.5)
        if self.shuffle:
            cut = self.sequences.window_place(self.seed, epoch, place)
        tokens, grid = self.sequences.sequence(chunk, image, cut)
        sample: dict[str, Any] = {
            "tokens": torch.from_numpy(tokens.astype(np.int64)),
            "grid": torch.tensor(grid),
            "image": self.sequences.number(chunk, image),
        }
        if self._fields.labels:
            sample["label"] = int(self._fields.classes[chunk][image])
        if self._fields.captions:
            sample["caption"] = self.sequences.item(chunk, image).caption or ""
        return sample


def collate(samples: Sequence[dict[str, Any]], pad: int = 0) -> dict[str, Any]:
    """Joins samples of any lengths to a batch.

    `tokens` int64 (B, T) with `pad` after the end of shorter ones, `mask` bool (B, T) of those that
    are no padding, `grid` int64 (B, 2): h and w; `image` int64 (B,): the number of each; and, where
    there are some, `label` int64 (B,), -1 for none, and `caption`, a list.
    """
    rows = [sample["tokens"] for sample in samples]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    batch: dict[str, Any] = {
        "tokens": tokens,
        "mask": torch.arange(tokens.shape[1]) < lengths[:, None],
        "grid": torch.stack([sample["grid"] for sample in samples]),
    }
    for name in ("image", "label"):
        if name in samples[0]:
            batch[name] = torch.tensor([sample[name] for sample in samples])
    if "caption" in samples[0]:
        batch["caption"] = [sample["caption"] for sample in samples]
    return batch


class _SharedPosition:
    """The (epoch, done) of the next iteration, which the workers of a DataLoader share.

    A worker that begins an iteration claims it: the first moves the position on to the next epoch,
    the others of the same iteration get what the first got.
    """

    def __init__(self) -> None:
        self._set_up(0, 0)

    def _set_up(self, epoch: int, done: int) -> None:
        # the two numbers of the claiming iteration, its epoch and done, and those of the next
        self.values: Tensor = torch.tensor([-2, -2, 0, 0, epoch, done]).share_memory_()
        self.lock = multiprocessing.get_context("spawn").Lock()

    def read(self) -> dict[str, int]:
        return {"epoch": int(self.values[4]), "done": int(self.values[5])}

    def write(self, epoch: int, done: int) -> None:
        with self.lock:
            self.values.copy_(torch.tensor([-2, -2, 0, 0, epoch, done]))

    def claim(self, run: tuple[int, int]) -> tuple[int, int]:
        with self.lock:
            known = self.values.tolist()
            if tuple(known[:2]) != run:
                epoch, done = known[4:]
                known = [*run, epoch, done, epoch + 1, 0]
                self.values.copy_(torch.tensor(known))
            return known[2], known[3]

    def __getstate__(self) -> dict[str, Any]:
        """Gives a process that is being started the shared memory; gives other readers a copy."""
        return self.__dict__.copy() if get_spawning_popen() is not None else self.read()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "lock" in state:
            self.__dict__.update(state)
        else:
            self._set_up(**state)
