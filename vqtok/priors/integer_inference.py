"""Inference of the integer prior: frequency tables that are equal on every machine, and grids <->
streams of bytes with them.

A coder sees all places at once; a decoder sees a place after those it depends on. Both get the
same tables, because no value on the way is ever rounded by a float: every sum is an integer
below 2^24 (`largest_sum` proves it of given weights), products with powers of two are exact, and
what is rounded is rounded by `floor`. The last division has integers below 2^40 over integers
below 2^24 in float64: its quotient lies at least 2^-24 below the next integer, so that no
rounding can carry it there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok import entropy, ticks
from vqtok.config import EntropyConfig
from vqtok.errors import FormatError
from vqtok.meta_init import init_empty_weights
from vqtok.priors.base import one_thread
from vqtok.priors.integer import (
    ACTIVATION_LIMIT,
    ACTIVATION_STEP,
    AROUND,
    CAUSAL,
    EMBEDDING_STEP,
    LOGIT_STEP,
    REACH,
    READ_STEP,
    STREAM_LIMIT,
    WEIGHT_LIMIT,
    IntegerPrior,
    weight_step,
)

LAG = 4  # steps by which a level follows the one below: its 3x3 reaches to 2i + j + 3
PLACES_AT_ONCE = 1024  # of a table in full: 4 MiB of float32 at K = 1024
IMAGES_AT_ONCE = 32  # decoded in lockstep
EXACT = 1 << 24  # float32 holds every integer below


def integer_tensor_shapes(config: EntropyConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a prior of that config, by name."""
    with init_empty_weights():
        network = IntegerPrior(config)
    return {name: tuple(value.shape) for name, value in network.named_parameters()}


def largest_sum(tensors: Mapping[str, np.ndarray]) -> int:
    """The largest magnitude that any partial sum can reach, for all inputs and in any order;
    FormatError unless it is below EXACT.
    """
    wide = {name: np.abs(value.astype(np.int64)) for name, value in tensors.items()}
    summed = wide["embedding"].max(1).sum(0)  # (E,): levels add up
    inputs = np.tile(summed, len(CAUSAL) + len(AROUND))
    sums = [(wide["first.weight"] @ inputs).max() + wide["first.bias"].max()]
    for name in tensors:
        if name.endswith("weight") and name != "first.weight":
            limit = WEIGHT_LIMIT if name.startswith("readout") else ACTIVATION_LIMIT
            sums.append(
                wide[name].sum(-1).max() * limit + wide[name.replace("weight", "bias")].max()
            )
    largest = int(max(sums)) + (1 << 16)  # rounding adds half of a power of two, at most that
    if largest >= EXACT:
        raise FormatError(
            f"a sum can reach {largest}, past what float32 holds exactly",
            "the file is damaged, or written by a newer vqtok",
        )
    return largest


@contextmanager
def _coding(device: torch.device) -> Iterator[None]:
    """Whatever the caller has allowed elsewhere, here products are not rounded to bfloat16 or
    TF32, and one thread works: beside one busy core two took 4.9 s for what one does in 1.3.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, enabled=False),
            one_thread(device.type == "cpu"),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Positions:
    """Places of a grid, those of one level after those of another:
    level, row and column of each, and how many each level has.
    """

    level: Tensor
    row: Tensor
    column: Tensor
    counts: tuple[tuple[int, int], ...]  # (level, count), counts above 0

    @classmethod
    def of(cls, level: np.ndarray, row: np.ndarray, column: np.ndarray) -> "Positions":
        found, counts = np.unique(level, return_counts=True)
        first, second, third = (
            torch.from_numpy(part.astype(np.int64)) for part in (level, row, column)
        )
        return cls(first, second, third, tuple(zip(found.tolist(), counts.tolist(), strict=True)))

    def to(self, device: torch.device) -> "Positions":
        return Positions(
            self.level.to(device), self.row.to(device), self.column.to(device), self.counts
        )


def wavefront(levels: int, h: int, w: int) -> list[np.ndarray]:
    """The order of a stream: steps of places (3, n) (level, row, column) that depend on earlier
    steps alone, sorted by level, then row.
    """
    return list(steps(levels, h, w))


def steps(levels: int, h: int, w: int) -> Iterator[np.ndarray]:
    """The steps of `wavefront` one after another:
    a short stream that claims a vast grid ends long before the last is made.
    """
    for time in range(2 * (h - 1) + w + LAG * (levels - 1)):
        parts = []
        for level in range(levels):
            first = time - LAG * level
            row = np.arange(max(0, (first - w + 2) // 2), min(h - 1, first // 2) + 1)
            parts.append(np.stack([np.full_like(row, level), row, first - 2 * row]))
        step = np.concatenate(parts, axis=1)
        if step.size:  # in a column every other time has none
            yield step


class ContextSums:
    """What is known of B grids: for each level l the embeddings of the levels below l, summed,
    with zeros around the grid.
    """

    def __init__(self, prior: "IntegerInference", B: int, levels: int, h: int, w: int) -> None:
        self.prior, self.B, self.levels = prior, B, levels
        self.height, self.width = h + REACH + 1, w + 2 * REACH
        self.sums = _zeros(
            (levels + 1, B, self.height, self.width, prior.embedding.shape[-1]),
            prior.embedding.dtype,
            prior.device,
        )
        self.indices = _zeros((levels, B, h, w), torch.int64, prior.device)
        self.batch = torch.arange(B, device=prior.device)[:, None]
        offsets = [[di * self.width + dj for di, dj in part] for part in (CAUSAL, AROUND)]
        level = B * self.height * self.width
        self.offsets = torch.tensor(
            [level + offset for offset in offsets[0]] + offsets[1], device=prior.device
        )

    def fill(self, indices: Tensor) -> None:
        """Makes all indices (B, l, h, w) known at once."""
        h, w = indices.shape[2:]
        self.indices.copy_(indices.transpose(0, 1))
        inside = self.sums[:, :, REACH : REACH + h, REACH : REACH + w]
        for level in range(self.levels):
            inside[level + 1] = inside[level] + F.embedding(
                self.indices[level], self.prior.embedding[level]
            )

    def add(self, positions: Positions, indices: Tensor) -> None:
        """Makes indices (B, n) known; those of the levels below at these
        places are known already.
        """
        level, row, column = positions.level, positions.row, positions.column
        self.indices[level, self.batch, row, column] = indices
        row, column = row + REACH, column + REACH
        table = self.prior.embedding
        self.sums[level + 1, self.batch, row, column] = (
            self.sums[level, self.batch, row, column] + table[level, indices]
        )

    def inputs(self, positions: Positions) -> Tensor:
        """What the network sees at each place, (B * n, places * E)."""
        center = (
            ((positions.level * self.B + self.batch) * self.height + positions.row + REACH)
            * self.width
            + positions.column
            + REACH
        )
        E = self.sums.shape[-1]
        around = self.sums.view(-1, E).index_select(0, (center.view(-1, 1) + self.offsets).view(-1))
        return around.view(center.numel(), -1)


@dataclass(frozen=True)
class CodedGrids:
    """What each index of B grids takes under a prior.

    A level is coded given those below it alone, so this holds for any number of first levels.
    """

    intervals: np.ndarray  # int64 (B, L, h, w, 2): first frequency, and one past the last

    def streams(self, levels: int) -> list[bytes]:
        """The stream of the first levels of each grid."""
        _, _, h, w, _ = self.intervals.shape
        order = np.concatenate(wavefront(levels, h, w), axis=1)
        found = self.intervals[:, order[0], order[1], order[2]]  # (B, n, 2)
        return [entropy.encode(one[:, 0], one[:, 1] - one[:, 0]) for one in found]


class IntegerInference:
    """Tables and streams from a prior's integers.
    dtype is float32 or float64, which gives the same.
    """

    def __init__(
        self,
        config: EntropyConfig,
        tensors: Mapping[str, np.ndarray],
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.device = config, device or torch.device("cpu")
        self.largest_sum = largest_sum(tensors)
        values = {
            name: torch.from_numpy(value).to(self.device, dtype) for name, value in tensors.items()
        }
        self.embedding = values["embedding"]  # (L, K, E)
        self.values = {
            name: value.transpose(1, 2).contiguous() if name.endswith("weight") else value
            for name, value in values.items()
        }
        top = min(EXACT // config.codebook_size, 1 << 16)
        powers = [*takewhile(bool, (_power(top, drop) for drop in range(1 << 16))), 0]
        # 2^logit below the likeliest, by the drop in logit
        self.weights = torch.tensor(powers, device=self.device, dtype=dtype)

    def logits(
        self, inputs: Tensor, level: Tensor, counts: Sequence[tuple[int, int]]
    ) -> Iterator[Tensor]:
        """Logits in 2^-LOGIT_STEP bits, (n, K) for each level in turn;
        inputs (n, places * E), sorted by level.
        """
        shift = weight_step(self.config.width)
        x = self._matmul("first", inputs, level)
        x = _rounded(
            x,
            weight_step(inputs.shape[1]) + EMBEDDING_STEP - ACTIVATION_STEP,
            -STREAM_LIMIT,
            STREAM_LIMIT,
        )
        for i in range(self.config.blocks):
            hidden = self._matmul(f"blocks.{i}.rise", x.clamp(0, ACTIVATION_LIMIT), level)
            hidden = _rounded(hidden, shift, 0, ACTIVATION_LIMIT)
            change = _rounded(self._matmul(f"blocks.{i}.fall", hidden, level), shift, -EXACT, EXACT)
            x = (x + change).clamp_(-STREAM_LIMIT, STREAM_LIMIT)
        parts = x.clamp_(0, ACTIVATION_LIMIT).split([count for _, count in counts])
        for (number, _), part in zip(counts, parts, strict=True):
            features = torch.addmm(
                self.values["features.bias"][number], part, self.values["features.weight"][number]
            )
            features = _rounded(
                features, shift + ACTIVATION_STEP - READ_STEP, -WEIGHT_LIMIT, WEIGHT_LIMIT
            )
            read = torch.addmm(
                self.values["readout.bias"][number], features, self.values["readout.weight"][number]
            )
            yield _rounded(
                read, weight_step(self.config.rank) + READ_STEP - LOGIT_STEP, -EXACT, EXACT
            )

    def _matmul(self, name: str, x: Tensor, level: Tensor) -> Tensor:
        return torch.addmm(
            self.values[f"{name}.bias"].index_select(0, level), x, self.values[f"{name}.weight"][0]
        )

    def _cumulative(self, logits: Tensor) -> Tensor:
        """Sums of the weights 2^logit up to each index, integers below EXACT, (n, K)."""
        drop = (logits.amax(1, keepdim=True) - logits).clamp_(max=len(self.weights) - 1)
        return self.weights[drop.int()].cumsum_(1)

    def table(self, logits: Tensor) -> Tensor:
        """Cumulative frequencies int32 (n, K + 1), strictly rising from 0 to
        TOTAL, for logits (n, K).
        """
        sums = self._cumulative(logits)
        n, K = sums.shape
        table = torch.zeros(n, K + 1, dtype=torch.int32, device=sums.device)
        table[:, 1:] = _shares(sums, sums[:, -1:], K) + torch.arange(1, K + 1, device=sums.device)
        return table

    def interval(self, logits: Tensor, indices: Tensor) -> Tensor:
        """First frequency and one past the last of indices (n,):
        int64 (n, 2), two entries of `table`.
        """
        sums = self._cumulative(logits)
        ends = indices[:, None] + torch.arange(2, device=indices.device)  # (n, 2)
        found = F.pad(sums, (1, 0)).gather(1, ends)
        return _shares(found, sums[:, -1:], sums.shape[1]).long() + ends

    def encode(self, indices: np.ndarray) -> list[bytes]:
        """A stream for each of the grids (B, l, h, w) of the first l levels."""
        return self.code(indices).streams(indices.shape[1])

    def code(self, indices: np.ndarray) -> CodedGrids:
        """What each index of the grids (B, L, h, w) takes: streams of any number of first levels
        are made of it without another pass of the network.
        """
        B, levels, h, w = indices.shape
        order = np.stack([axis.ravel() for axis in np.indices((levels, h, w))])  # (3, n)
        found = np.empty((B, order.shape[1], 2), np.int64)
        with _coding(self.device):
            for b in range(B):
                found[b] = self.intervals(indices[b : b + 1], order)[0]
                if B > 1:
                    ticks.tell(b + 1, B)
        return CodedGrids(found.reshape(B, levels, h, w, 2))

    def bits(self, indices: np.ndarray) -> np.ndarray:
        """What each index of the grids (B, l, h, w) takes in a stream, -log2 p:
        float64 (B, l, h, w).
        """
        order = np.concatenate(wavefront(*indices.shape[1:]), axis=1)
        with _coding(self.device):
            found = self.intervals(indices, order)
        bits = np.empty(indices.shape)
        bits[:, order[0], order[1], order[2]] = entropy.BITS - np.log2(
            found[..., 1] - found[..., 0]
        )
        return bits

    def intervals(self, indices: np.ndarray, order: np.ndarray) -> np.ndarray:
        """First frequency and one past the last of each index of grids (B, l, h, w), in the order
        of places (3, n): int64 (B, n, 2).
        """
        known = torch.from_numpy(indices.astype(np.int64)).to(self.device)
        B, levels, h, w = known.shape
        sums = ContextSums(self, B, levels, h, w)
        sums.fill(known)
        result = np.empty((B, order.shape[1], 2), np.int64)
        by_level = np.argsort(order[0], kind="stable")
        size = max(1, PLACES_AT_ONCE // B)
        for start in range(0, len(by_level), size):
            ticks.tell(start, len(by_level))
            which = by_level[start : start + size]
            positions = Positions.of(*order[:, which]).to(self.device)
            done = 0
            for (level, count), logits in zip(
                positions.counts, self._logits(sums, positions), strict=True
            ):
                row, column = (
                    part[done : done + count] for part in (positions.row, positions.column)
                )
                found = self.interval(logits, known[:, level, row, column].reshape(-1))
                result[:, which[done : done + count]] = found.view(B, count, 2).cpu().numpy()
                done += count
        return result

    def _logits(self, sums: "ContextSums", positions: Positions) -> Iterator[Tensor]:
        """Logits (B * count, K) of the places of each level in turn."""
        inputs = sums.inputs(positions)  # (B * n, places * E)
        n, level = len(positions.level), positions.level
        if sums.B > 1:  # those of one level together
            width = inputs.shape[1]
            parts = inputs.view(sums.B, n, width).split(
                [count for _, count in positions.counts], dim=1
            )
            inputs = torch.cat([part.reshape(-1, width) for part in parts])
            level = torch.cat(
                [
                    torch.full((sums.B * count,), number, device=self.device)
                    for number, count in positions.counts
                ]
            )
        return self.logits(
            inputs, level, [(number, sums.B * count) for number, count in positions.counts]
        )

    def decode(self, streams: Sequence[bytes], levels: int, h: int, w: int) -> np.ndarray:
        """The grids (B, l, h, w) int64 in B streams; FormatError where a stream is damaged."""
        with _coding(self.device):
            parts = [
                self._decode(streams[b : b + IMAGES_AT_ONCE], levels, h, w)
                for b in range(0, len(streams), IMAGES_AT_ONCE)
            ]
        return np.concatenate(parts)

    def _decode(self, streams: Sequence[bytes], levels: int, h: int, w: int) -> np.ndarray:
        decoder = entropy.Decoder(streams)
        sums = ContextSums(self, len(streams), levels, h, w)
        last = 2 * (h - 1) + w + LAG * (levels - 1)
        for number, step in enumerate(steps(levels, h, w)):
            ticks.tell(number, last)
            positions = Positions.of(*step).to(self.device)
            found = []
            for (_, size), logits in zip(
                positions.counts, self._logits(sums, positions), strict=True
            ):
                table = self.table(logits).view(len(streams), size, -1)
                found.append(decoder.decode(table.cpu().numpy()))
            sums.add(positions, torch.from_numpy(np.concatenate(found, axis=1)).to(self.device))
        decoder.finish()
        return sums.indices.transpose(0, 1).cpu().numpy()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros of which a CPU takes memory where they are first written:
    torch's own take it all at once, whatever a file claims.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    try:
        return torch.from_numpy(np.zeros(shape, np.dtype(str(dtype).removeprefix("torch."))))
    except MemoryError:
        raise FormatError(
            "the grid does not fit in memory", "use a machine with more memory"
        ) from None


def _shares(sums: Tensor, total: Tensor, K: int) -> Tensor:
    """floor(sums * (TOTAL - K) / total), exact: see the top of the module. float64."""
    return (sums.double() * (entropy.TOTAL - K)).div_(total.double()).floor_()


def _rounded(x: Tensor, shift: int, low: float, high: float) -> Tensor:
    """floor(x / 2^shift + 1/2) between low and high: halves go up, as in training."""
    return x.mul_(2.0**-shift).add_(0.5).floor_().clamp_(low, high)


def _power(top: int, drop: int) -> int:
    """top * 2^(-drop / 2^LOGIT_STEP), rounded down, by integers alone:
    the same table on every machine.
    """
    scale = 1 << 64
    value = top << 64
    root = _root_of_two(LOGIT_STEP, scale)
    for _ in range(drop % (1 << LOGIT_STEP)):
        value = value * scale // root
    return (value >> (drop >> LOGIT_STEP)) >> 64


def _root_of_two(times: int, scale: int) -> int:
    """2^(1 / 2^times) as an integer over scale."""
    value = 2 * scale
    for _ in range(times):
        value = math.isqrt(value * scale)
    return value
