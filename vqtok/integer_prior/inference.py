"""Frequencies from the integer prior that are equal on every machine, and grids <-> streams of
bytes with them.

A coder sees all places at once; a decoder sees a place after those it depends on. Both get the
same frequencies, because no value on the way is ever rounded by a float: every sum is an integer
below 2^24 (`largest_sum` proves it of given weights) or such an integer times a power of two, and
what is rounded is rounded by `floor`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from vqtok import entropy, ticks
from vqtok.codes.checks import require
from vqtok.config import EntropyConfig
from vqtok.entropy import BLOCK, Frequencies
from vqtok.errors import FormatError
from vqtok.integer_prior import blas
from vqtok.integer_prior.arithmetic import (
    ACTIVATION_LIMIT,
    ACTIVATION_STEP,
    EMBEDDING_STEP,
    EXACT,
    LOGIT_STEP,
    READ_STEP,
    STREAM_LIMIT,
    WEIGHT_LIMIT,
    largest_sum,
    power_table,
    weight_step,
)
from vqtok.integer_prior.neighborhood import IMAGE, Neighborhood

PLACES_AT_ONCE = 1024  # through the network
ROWS_AT_ONCE = 192  # of weights of all K indices: 0.75 MiB at K = 1024
IMAGES_AT_ONCE = 256  # decoded in lockstep, at most
Runs = Sequence[tuple[int, int]]  # (level, rows), levels rising, rows above 0
Parts = Sequence[tuple[int, slice]]  # (matrix, its rows)


@dataclass(frozen=True)
class CodedGrids:
    """What each index of B grids takes under a prior.

    A level is coded given those below it alone, so this holds for any number of first levels.
    """

    intervals: np.ndarray  # int64 (B, L, h, w, 2): first frequency, and one past the last
    neighborhood: Neighborhood = IMAGE

    def streams(self, levels: int, carried: int = 0, sharing: int = 1) -> list[bytes]:
        """Returns the streams of the first levels, each of `sharing` grids, the last of fewer;
        each carries that number, below 2^32.
        """
        steps = list(self.neighborhood.steps(levels, self.intervals.shape[2:-1]))
        result, rows, images = [], np.empty((0, 0), np.int64), 0
        for start in range(0, len(self.intervals), sharing):
            part = self.intervals[start : start + sharing]
            if len(part) != images:  # of the first, and perhaps of the last
                images = len(part)
                rows = np.concatenate([_Rows.of(step, images).numbers for step in steps], axis=1)
            found = part[*rows]
            result.append(entropy.encode(found[:, 0], found[:, 1] - found[:, 0], carried))
        return result


class ContextSums:
    """What is known of B grids: for each level l the embeddings of the levels below l, summed,
    with zeros around the grid.
    """

    def __init__(
        self, prior: "IntegerInference", B: int, levels: int, sides: tuple[int, ...]
    ) -> None:
        self.B, self.levels, self.table = B, levels, prior.embedding
        margins = prior.neighborhood.margins
        self.margins = [before for before, _ in margins]
        padded = [side + sum(margin) for side, margin in zip(sides, margins, strict=True)]
        self.sums = _zeros((levels + 1, B, *padded, self.table.shape[-1]), self.table.dtype)
        self.indices = _zeros((levels, B, *sides), np.dtype(np.int64))
        self.rows = self.sums.reshape(-1, self.table.shape[-1])
        self.strides = np.cumprod([1, *padded[:0:-1]])[::-1]  # in rows
        self.first = int(self.strides @ self.margins)  # of the grid's first place
        self.grid = math.prod(padded)
        near = prior.neighborhood
        offsets = [np.array(part) @ self.strides for part in (near.causal, near.around)]
        self.offsets = np.concatenate([offsets[0] + B * self.grid, offsets[1]])

    def fill(self, indices: np.ndarray) -> None:
        """Makes all indices (B, l, ...) known at once."""
        self.indices[:] = np.moveaxis(indices, 1, 0)
        inside = tuple(
            slice(before, before + side)
            for before, side in zip(self.margins, self.indices.shape[2:], strict=True)
        )
        for level in range(self.levels):
            below, above = (self.sums[number][:, *inside] for number in (level, level + 1))
            np.add(below, self.table[level][self.indices[level]], out=above)

    def centers(self, rows: "_Rows") -> np.ndarray:
        """Returns which row of `sums` (n,) is that of each position."""
        inner = self.strides @ rows.places[1:] + self.first
        return (rows.places[0] * self.B + rows.images) * self.grid + inner

    def add(self, rows: "_Rows", centers: np.ndarray, indices: np.ndarray) -> None:
        """Makes indices (n,) known; those of the levels below at these places are known already."""
        level = rows.places[0]
        self.indices[level, rows.images, *rows.places[1:]] = indices
        known, K = self.rows, self.table.shape[1]
        embeddings = self.table.reshape(-1, self.table.shape[-1])
        added = known.take(centers, axis=0)
        added += embeddings.take(level * K + indices, axis=0)
        known[centers + self.B * self.grid] = added

    def seen(self, step: np.ndarray) -> np.ndarray:
        """Returns what the network sees at places (1 + axes, n), sorted by level, of each grid."""
        return self.inputs(self.centers(_Rows.of(step, self.B)))

    def inputs(self, centers: np.ndarray) -> np.ndarray:
        """Returns what the network sees at each position, (n, positions * E)."""
        return self.rows.take(centers[:, None] + self.offsets, axis=0).reshape(len(centers), -1)


class IntegerInference:
    """Frequencies and streams from a prior's integers. dtype is float32 or float64, which gives the
    same; None takes float32, where NumPy multiplies exactly with it.
    """

    def __init__(
        self,
        config: EntropyConfig,
        tensors: Mapping[str, np.ndarray],
        neighborhood: Neighborhood = IMAGE,
        dtype: Any = None,
    ) -> None:
        self.config, self.neighborhood = config, neighborhood
        self.largest_sum = largest_sum(tensors)
        if dtype is None:
            dtype = np.float32 if blas.multiplies_exactly() else np.float64
        self.dtype = np.dtype(dtype)
        self.embedding = tensors["embedding"].astype(dtype)  # (L, K, E)
        E, C, R = config.embedding, config.width, config.rank
        block, features = weight_step(C), weight_step(C) + ACTIVATION_STEP - READ_STEP
        shifts = {"first": weight_step(neighborhood.places * E) + EMBEDDING_STEP - ACTIVATION_STEP}
        for i in range(config.blocks):
            shifts |= {f"blocks.{i}.rise": block, f"blocks.{i}.fall": block}
        shifts |= {"features": features}
        self.layers = {name: self._layer(tensors, name, shift) for name, shift in shifts.items()}
        self.fine = 2.0 ** -(weight_step(R) + READ_STEP - LOGIT_STEP)  # the step of a readout
        self.readout = self._read_layer(tensors)  # (L, panels, R + 1, columns of a panel)
        self.columns = self.readout.shape[1] * self.readout.shape[3]
        self.powers = np.array(power_table(config.codebook_size), dtype)

    def _layer(
        self, tensors: Mapping[str, np.ndarray], name: str, shift: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns weights (kinds, in, out) and biases (L, out), both divided by 2^shift, and a half
        in each bias: what `floor` then gives is rounded.
        """
        weight = tensors[f"{name}.weight"].transpose(0, 2, 1).astype(self.dtype) * 2.0**-shift
        bias = tensors[f"{name}.bias"].astype(self.dtype) * 2.0**-shift + 0.5
        return np.ascontiguousarray(weight, self.dtype), bias.astype(self.dtype)

    def _read_layer(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the weights (L, R + 1, columns) of the readout, with the bias as last row.

        Column r * blocks + b is that of index BLOCK * b + r, as `Frequencies` wants it. Columns
        past the last index have a bias so low that their weight is 0.
        """
        weight = tensors["readout.weight"].transpose(0, 2, 1)  # (L, R, K)
        whole = np.concatenate([weight, tensors["readout.bias"][:, None]], axis=1)
        more = -whole.shape[2] % BLOCK
        whole = np.pad(whole.astype(np.float64), ((0, 0), (0, 0), (0, more)))
        whole[:, -1, whole.shape[2] - more :] = -4.0 * EXACT
        whole *= self.fine
        whole[:, -1] += 0.5
        L, rows, columns = whole.shape
        turned = whole.reshape(L, rows, columns // BLOCK, BLOCK).swapaxes(2, 3)
        turned = turned.reshape(L, rows, columns).astype(self.dtype)
        return np.stack([blas.panels(weight) for weight in turned])

    def features(self, inputs: np.ndarray, runs: Runs) -> np.ndarray:
        """Computes what the readout multiplies: integers, and a 1 in the last column, (n, R + 1).

        inputs are (n, places * E), sorted by level; runs tell the levels.
        """
        n, R = len(inputs), self.config.rank
        level = np.array([number for number, _ in runs]).repeat([count for _, count in runs])
        parts, each = (_parts(runs, count) for count in (self.config.matrices, self.config.levels))

        def multiply(name: str, x: np.ndarray, parts: Parts, out: np.ndarray) -> np.ndarray:
            weight, bias = self.layers[name]
            for matrix, part in parts:
                blas.multiply(x[part], weight[matrix], out[part])
            out += bias.take(level, axis=0)
            return np.floor(out, out=out)

        x, y, active = np.empty((3, n, self.config.width), self.dtype)
        multiply("first", inputs, parts, x).clip(-STREAM_LIMIT, STREAM_LIMIT, out=x)
        for i in range(self.config.blocks):
            x.clip(0, ACTIVATION_LIMIT, out=active)
            hidden = multiply(f"blocks.{i}.rise", active, parts, y)
            hidden.clip(0, ACTIVATION_LIMIT, out=active)
            x += multiply(f"blocks.{i}.fall", active, parts, y)
            x.clip(-STREAM_LIMIT, STREAM_LIMIT, out=x)
        x.clip(0, ACTIVATION_LIMIT, out=active)
        result = np.ones((n, R + 1), self.dtype)
        read = multiply("features", active, each, result[:, :R])
        read.clip(-WEIGHT_LIMIT, WEIGHT_LIMIT, out=read)
        return result

    def logits(self, features: np.ndarray, runs: Runs) -> np.ndarray:
        """Computes logits (n, columns) in 2^-LOGIT_STEP bits, not yet rounded down: see
        `_read_layer`.
        """
        found = np.empty((len(features), self.columns), self.dtype)
        start = 0
        for level, count in runs:
            part = slice(start, start + count)
            blas.multiply_panels(features[part], self.readout[level], found[part])
            start += count
        return found

    def frequencies(self, inputs: np.ndarray, runs: Runs) -> Iterator[Frequencies]:
        """Computes the frequencies of rows (n, positions * E), at most ROWS_AT_ONCE of them at a
        time.
        """
        features, start = self.features(inputs, runs), 0
        for part in _split(runs, ROWS_AT_ONCE):
            size = sum(count for _, count in part)
            logits = self.logits(features[start : start + size], part)
            yield self.weighed(logits)
            start += size

    def weighed(self, logits: np.ndarray) -> Frequencies:
        """Computes frequencies from what `logits` gives."""
        # floor(max) - floor(z) = trunc(floor(max) + 1 - fine - z): z is a multiple of fine. Where
        # that difference is not exact it is far past the last power.
        top = np.floor(logits.max(1, keepdims=True))
        top += 1 - self.fine
        drop = np.empty(logits.shape, np.int32)  # `take` makes intp of it, faster
        np.subtract(top, logits, out=drop, casting="unsafe")
        weights = self.powers.take(drop, out=logits, mode="clip")
        return Frequencies(weights.reshape(len(logits), BLOCK, -1), self.config.codebook_size)

    def context(self, indices: np.ndarray) -> ContextSums:
        """Returns what is known of grids (B, l, h, w) whose indices are all known."""
        sums = ContextSums(self, len(indices), indices.shape[1], indices.shape[2:])
        sums.fill(indices)
        return sums

    def costs(self, inputs: np.ndarray, level: int) -> np.ndarray:
        """Computes the bits of each index at places of one level: float32 (n, K) for inputs (n,
        positions * E). In floats: near what `bits` computes, and not equal on every machine.
        """
        runs = [(level, len(inputs))]
        with blas.one_thread():
            logits = np.floor(self.logits(self.features(inputs, runs), runs))
        logits = logits.reshape(len(logits), BLOCK, -1).swapaxes(1, 2).reshape(len(logits), -1)
        bits = logits[:, : self.config.codebook_size].astype(np.float32) * -(2.0**-LOGIT_STEP)
        bits -= bits.min(1, keepdims=True)
        return bits + np.log2(np.exp2(-bits).sum(1, keepdims=True))

    def encode(self, indices: np.ndarray, carried: int = 0, sharing: int = 1) -> list[bytes]:
        """Encodes grids (B, l, h, w) of the first l levels into streams of `sharing` grids each."""
        return self.code(indices).streams(indices.shape[1], carried, sharing)

    def code(self, indices: np.ndarray) -> CodedGrids:
        """Computes the interval that codes each index of the grids (B, L, h, w): streams of any
        number of first levels are made of it without another pass of the network.
        """
        B, *shape = indices.shape
        order = np.stack([axis.ravel() for axis in np.indices(shape)])  # (1 + axes, n)
        found = np.empty((B, order.shape[1], 2), np.int64)
        size = max(1, PLACES_AT_ONCE // order.shape[1])  # small grids share a product
        for b in range(0, B, size):
            found[b : b + size] = self.intervals(indices[b : b + size], order)
            if B > 1:
                ticks.tell(min(b + size, B), B)
        return CodedGrids(found.reshape(B, *shape, 2), self.neighborhood)

    def bits(self, indices: np.ndarray) -> np.ndarray:
        """Computes the bits that each index of the grids (B, l, h, w) takes in a stream, -log2 p:
        float64 (B, l, h, w).
        """
        found = self.code(indices).intervals
        return entropy.BITS - np.log2(found[..., 1] - found[..., 0])

    def intervals(self, indices: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Returns first frequency and one past the last of each index of grids (B, l, h, w), in the
        order of positions (1 + axes, n): int64 (B, n, 2).
        """
        B = len(indices)
        sums = self.context(indices)
        result = np.empty((B, order.shape[1], 2), np.int64)
        by_level = np.argsort(order[0], kind="stable")
        size = max(1, PLACES_AT_ONCE // B)
        with blas.one_thread():
            for start in range(0, len(by_level), size):
                ticks.tell(start, len(by_level))
                which = by_level[start : start + size]
                rows = _Rows.of(order[:, which], B)
                known = indices[rows.images, rows.places[0], *rows.places[1:]].astype(np.int64)
                found, done = np.empty((len(known), 2), np.int64), 0
                inputs = sums.inputs(sums.centers(rows))
                for frequencies in self.frequencies(inputs, rows.runs):
                    part = slice(done, done + len(frequencies))
                    found[part] = frequencies.intervals(known[part])
                    done += len(frequencies)
                result[rows.images, which[rows.which]] = found
        return result

    def decode(self, streams: Sequence[bytes], levels: int, *sides: int) -> np.ndarray:
        """Decodes B streams that carry 0 to grids (B, l, h, w) int64. Errors as `decode_all`."""
        indices, carried = self.decode_all(streams, levels, *sides)
        require(not any(carried), "the stream is damaged")
        return indices

    def decode_all(
        self,
        streams: Sequence[bytes],
        levels: int,
        *sides: int,
        sharing: int = 1,
        images: int | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        """Decodes streams to grids (B, l, h, w) int64, and the number that each stream carries.

        A stream has `sharing` grids, the last one those that are left of `images`. Raises
        FormatError where a stream is damaged.
        """
        B = len(streams) * sharing if images is None else images
        require(len(streams) == -(-B // sharing), f"{len(streams)} streams do not hold {B} images")
        widest = levels * math.prod(sides) // max(sides)  # no step has more places
        size = max(1, min(IMAGES_AT_ONCE, PLACES_AT_ONCE // widest) // sharing)  # streams
        grids, carried = [], []
        with blas.one_thread():
            for first in range(0, len(streams), size):
                decoder = entropy.Decoder(streams[first : first + size])
                count = min(size * sharing, B - first * sharing)
                grids.append(self._decode(decoder, count, levels, sides, sharing))
                carried += decoder.carried()
        return np.concatenate(grids), carried

    def _decode(
        self, decoder: entropy.Decoder, B: int, levels: int, sides: tuple[int, ...], sharing: int
    ) -> np.ndarray:
        sums = ContextSums(self, B, levels, sides)
        times = self.neighborhood.last_time(levels, sides) + 1
        for number, step in enumerate(self.neighborhood.steps(levels, sides)):
            ticks.tell(number, times)
            rows = _Rows.of(step, B)
            centers, owners, found, start = sums.centers(rows), rows.images // sharing, [], 0
            for runs in _split(rows.runs, PLACES_AT_ONCE):
                part = slice(start, start + sum(count for _, count in runs))
                for frequencies in self.frequencies(sums.inputs(centers[part]), runs):
                    done = len(found)
                    found += decoder.decode(frequencies, owners[done : done + len(frequencies)])
                start = part.stop
            sums.add(rows, centers, np.array(found))
        return np.moveaxis(sums.indices, 0, 1)


@dataclass(frozen=True)
class _Rows:
    """Places of B images, those of one level together, of a level those of one image together."""

    places: np.ndarray  # (1 + axes, n)
    images: np.ndarray  # (n,)
    which: np.ndarray  # (n,), the number of the place
    runs: list[tuple[int, int]]  # (level, rows)

    @property
    def numbers(self) -> np.ndarray:
        """Image and place of each row: (2 + axes, n)."""
        return np.concatenate([self.images[None], self.places])

    @classmethod
    def of(cls, step: np.ndarray, B: int) -> "_Rows":
        """Selects the rows of positions (1 + axes, n), sorted by level, of each image."""
        counts = np.bincount(step[0]).tolist()
        runs = [(level, count * B) for level, count in enumerate(counts) if count]
        which = np.arange(step.shape[1])
        if B == 1:
            return cls(step, np.zeros_like(which), which, runs)
        spans = np.split(which, np.cumsum(counts[:-1]))
        which = np.concatenate([np.tile(span, B) for span in spans])
        images = np.concatenate([np.arange(B).repeat(len(span)) for span in spans])
        return cls(step[:, which], images, which, runs)


def _parts(runs: Runs, matrices: int) -> Parts:
    """Lists the matrices of runs, each with its rows: the last one is that of all levels from there
    on.
    """
    last, start, parts = matrices - 1, 0, []
    for matrix, same in groupby(runs, lambda run: min(run[0], last)):
        stop = start + sum(count for _, count in same)
        parts.append((matrix, slice(start, stop)))
        start = stop
    return parts


def _split(runs: Runs, most: int) -> Iterator[Runs]:
    """Runs in parts of at most `most` rows."""
    part, room = [], most
    for level, count in runs:
        left = count
        while left:
            taken = min(left, room)
            part.append((level, taken))
            left, room = left - taken, room - taken
            if not room:
                yield part
                part, room = [], most
    if part:
        yield part


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns zeros whose memory is taken where they are first written, whatever a file claims."""
    try:
        return np.zeros(shape, dtype)
    except (MemoryError, ValueError):  # ValueError: more than an address can say
        raise FormatError(
            "the grid does not fit in memory", "use a machine with more memory"
        ) from None
