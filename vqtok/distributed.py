"""Runs one training in several processes, as torchrun starts them: each takes its part, and all
come to the same numbers.

A run is the same for any number of processes: each takes every n-th image of a step's batch, and
what the whole batch decides (gradients, averages, codes in use, random draws) is summed or drawn
over all. So whatever changes weights is equal everywhere. A process that was started alone is a
group of one, for which each function here gives back what it got.
"""

import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from vqtok import errors
from vqtok.errors import TrainingError, UsageError, VqtokError
from vqtok.weights import Weights, to_safetensors

TIMEOUT = timedelta(minutes=10)  # the longest that others wait is for a validation by the first
BUCKET = 2**23  # numbers summed at a time: 32 MiB


class _Group:
    """This process's position in the group.

    Plain numbers: torch.compile, which goes through what asks for them,
    stumbles over torch's own answer.
    """

    rank, world_size = 0, 1


def world_size_from_env() -> int:
    """Returns how many processes torchrun has started for this command, in all; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def rank_from_env() -> tuple[int, int]:
    """Returns this process's number in the run, and in its machine, as torchrun says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Returns how many of this machine's processes belong to this run."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size_from_env() > 1 else 1


def local_device(device: torch.device) -> torch.device:
    """Returns the device of this process: of several GPUs in a machine, the one with its number.

    UsageError where several processes are asked to share one GPU.
    """
    if device.type != "cuda":
        return device
    if world_size_from_env() == 1:
        if device.index is not None:
            torch.cuda.set_device(device)  # streams and graphs are made on the current one
        return device
    if device.index is not None:
        raise UsageError(
            f"several processes cannot share {device}", "choose cuda: each takes a GPU of its own"
        )
    device = torch.device("cuda", rank_from_env()[1])
    torch.cuda.set_device(device)
    return device


def torchrun_job() -> str:
    """Returns what all starts of this command by one torchrun have in common, and no others; ""
    without it.

    torchrun's --rdzv-id, where it has one; else the process that starts this one and its machine.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"process {os.getppid()} of {platform.node()}" if name == "none" else name


def is_restart() -> bool:
    """Whether torchrun starts this command anew because a process of the run
    has ended (--max-restarts).
    """
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Makes this process one of its run's while the context is open: gloo connects those on CPUs,
    nccl those on GPUs.

    Entered by all of them or by none.
    """
    if world_size_from_env() == 1:
        yield
        return
    if device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"several processes cannot train together on {device.type}",
            "choose --device cpu or cuda, or start one process",
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _connection_errors():
        store, number, count = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        store = PrefixStore(_agree_on_store_prefix(store, number, count), store)
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=TIMEOUT
        )
    _Group.rank, _Group.world_size = number, count
    yield  # after an error there is no other process to say goodbye to
    dist.destroy_process_group()
    _Group.rank, _Group.world_size = 0, 1


def _agree_on_store_prefix(store: Store, number: int, count: int) -> str:
    """Agrees on a name with the processes that are here now, and no others.

    A torchrun that starts its processes again keeps the store in which those before have left their
    addresses, and its count of restarts differs from machine to machine. So each process calls with
    a word of its own until the first answers with its own.
    """
    word = uuid.uuid4().hex
    if number:
        store.set(f"vqtok/call/{number}", word)
        name = store.get(f"vqtok/answer/{word}").decode()
        store.set(f"vqtok/{name}/{number}", "here")
        return name
    missing, deadline = set(range(1, count)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for other in list(missing):
            if store.check([f"vqtok/{word}/{other}"]):
                missing.discard(other)
            elif store.check([f"vqtok/call/{other}"]):
                # perhaps one of a process that has ended: the next look finds a newer one
                store.set(f"vqtok/answer/{store.get(f'vqtok/call/{other}').decode()}", word)
        if time.monotonic() > deadline:
            raise RuntimeError(f"no call from processes {sorted(missing)}")
        time.sleep(0.02)
    return word


def world_size() -> int:
    """Returns how many processes there are."""
    return _Group.world_size


def rank() -> int:
    """Returns the number of this process, from 0."""
    return _Group.rank


def is_main_process() -> bool:
    """Whether this is the process that writes files, validates and speaks."""
    return rank() == 0


def local_count(count: int) -> int:
    """Returns how many of the first `count` images of a batch are this process's: those with j %
    world_size() == rank().
    """
    return len(range(rank(), count, world_size()))


@contextmanager
def _connection_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # whose message names sockets; torch's kinds for the network are of this kind too
        if os.environ.get("VQTOK_DEBUG") == "1":
            raise
        raise TrainingError(
            f"process {rank_from_env()[0]} of {world_size_from_env()} has lost another one, "
            "which has ended or cannot be reached",
            "see what that one said; then go on with --resume, "
            "or have torchrun do so by itself: --max-restarts 3",
        ) from error


def all_reduce_sum(*tensors: Tensor) -> None:
    """Replaces tensors of one dtype by their sums over all processes."""
    if world_size() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        with _connection_errors():
            dist.all_reduce(flat)
        for tensor, part in zip(
            bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def all_reduce_mean(*tensors: Tensor) -> None:
    """Replaces tensors by their means over all processes:
    of means over parts of a batch, which are equally long, over the batch.
    """
    all_reduce_sum(*tensors)
    if world_size() > 1:
        for tensor in tensors:
            tensor /= world_size()


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        whole = value.clone()
        all_reduce_mean(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return gradients[0]


def mean_over_ranks(value: Tensor) -> Tensor:
    """Averages a value over all processes, for losses that are no mean over images themselves.

    Its gradient is taken for that of one's own value. The mean over processes of such
    gradients is the whole batch's: each is the world_size()-th part of what the loss
    changes by, world_size() times.
    """
    return (
        value
        if world_size() == 1
        else _MeanOverRanks.apply(  # type: ignore[no-any-return]
            value
        )
    )


class Rows(Protocol):
    """A matrix (N, D), or what gives its rows when they are asked for."""

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


def gather_rows(mine: Rows, which: Tensor, block: int) -> Tensor:
    """Gathers rows `which` (n,) of the whole batch's (N, D), of which `mine` are this process's;
    each image has `block` of them.
    """
    if world_size() == 1:
        return mine[which]
    image, row = which // block, which % block
    here = image % world_size() == rank()
    own = mine[(image // world_size() * block + row)[here]]
    found = own.new_zeros(len(which), own.shape[1])
    found[here] = own
    all_reduce_sum(found)  # all others hold zeros
    return found


def gather_all_rows(mine: Tensor, block: int) -> Tensor:
    """Gathers all rows (N, D) of the whole batch, of which `mine` are this process's; each image
    has `block` of them.
    """
    return (
        mine
        if world_size() == 1
        else gather_rows(mine, torch.arange(len(mine) * world_size(), device=mine.device), block)
    )


def all_reduce_max(*numbers: int) -> list[int]:
    """Returns, of each number, the highest in any process."""
    if world_size() == 1:
        return list(numbers)
    values = torch.tensor(numbers)
    with _connection_errors():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return [int(value) for value in values]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Replaces tensors by those of the first process."""
    if world_size() > 1:
        with _connection_errors():
            for tensor in tensors:
                whole = tensor.detach().contiguous()  # a broadcast takes no channels-last ones
                dist.broadcast(whole, 0)
                tensor.detach().copy_(whole)


def broadcast_bytes(make: Callable[[], bytes]) -> bytes:
    """Sends all processes what `make` gives in the first, which alone calls it.

    A VqtokError of it is raised in all.
    """
    if world_size() == 1:
        return make()
    data, failed = b"", 0
    if is_main_process():
        try:
            data = make()
        except VqtokError as error:
            told = [type(error).__name__, str(error), error.fix, error.command_fix]
            data, failed = json.dumps(told).encode(), 1
    head = torch.tensor([len(data), failed])
    with _connection_errors():
        dist.broadcast(head, 0)
    body = (
        torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        if is_main_process()
        else torch.empty(int(head[0]), dtype=torch.uint8)
    )
    with _connection_errors():
        dist.broadcast(body, 0)
    data = body.numpy().tobytes()
    if head[1]:
        kind, *words = json.loads(data)
        raise getattr(errors, kind)(*words)
    return data


def broadcast_weights(read: Callable[[], Weights | None]) -> Weights | None:
    """Sends all processes the weights that `read` gives in the first: only that one needs the file.

    Errors as `broadcast_bytes`.
    """
    if world_size() == 1:
        return read()

    def make() -> bytes:
        found = read()
        if found is None:
            return b""
        head = json.dumps(found.meta).encode()
        return len(head).to_bytes(8, "little") + head + to_safetensors(found.tensors)

    data = broadcast_bytes(make)
    if not data:
        return None
    end = 8 + int.from_bytes(data[:8], "little")
    return Weights(safetensors.numpy.load(data[end:]), json.loads(data[8:end]))


def all_gather_bytes(mine: bytes) -> list[bytes]:
    """Returns what each process has, in their order."""
    if world_size() == 1:
        return [mine]
    lengths = torch.zeros(world_size(), dtype=torch.int64)
    lengths[rank()] = len(mine)
    all_reduce_sum(lengths)
    padded = torch.zeros(max(1, int(lengths.max())), dtype=torch.uint8)
    padded[: len(mine)] = torch.from_numpy(np.frombuffer(mine, np.uint8).copy())
    found = [torch.empty_like(padded) for _ in range(world_size())]
    with _connection_errors():
        dist.all_gather(found, padded)
    return [
        part[: int(length)].numpy().tobytes() for part, length in zip(found, lengths, strict=True)
    ]
