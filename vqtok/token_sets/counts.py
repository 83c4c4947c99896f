"""An exact integer prior for token grids of any tokenizer: counts by context, mixed.

Each token is predicted from several contexts (tokens around it, the levels below, the frame
before). A context counts what followed it; contexts are mixed with weights that follow what
predicted well. All of it is integers, without floats: encoder and decoder see equal numbers on
every machine, whatever the number of threads. Counts and weights go on learning while they code.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from vqtok import entropy, ticks

BASE = 1 << 16  # what the probabilities of a base prediction sum to, at most
SHARES = 1 << 16  # what the weights of a mixture sum to, at most
COUNTED = 1 << 14  # a context that counted so much halves its counts
CONTEXTS_MAX = 1 << 21  # contexts kept; later ones are not counted: some 1 GiB
PARTS = 32  # contexts of a token, at most
_FORGET = 256  # weights move by at most 1 - 1/_FORGET, so that each can come back


@dataclass(frozen=True)
class Layout:
    """What grids look like: ids below `codebook_size`, `levels` of them a place, one grid after
    another; with `frames` a grid also sees the two before it.
    """

    codebook_size: int
    levels: int
    frames: bool


@dataclass
class Counts:
    """What has been counted, by context, and the weights of the mixtures."""

    counts: dict[int, dict[int, int]] = field(default_factory=dict)
    totals: dict[int, int] = field(default_factory=dict)
    weights: dict[int, list[int]] = field(default_factory=dict)

    def tensors(self) -> dict[str, np.ndarray]:
        """All of it as arrays, sorted by key."""
        keys, mixed = sorted(self.counts), sorted(self.weights)
        pairs = [sorted(self.counts[key].items()) for key in keys]
        flat = np.array([pair for some in pairs for pair in some], np.int32).reshape(-1, 2)
        weights = np.zeros((len(mixed), PARTS), np.int32)
        for row, key in zip(weights, mixed, strict=True):
            row[: len(self.weights[key])] = self.weights[key]
        return {
            "contexts": np.array(keys, np.int64),
            "sizes": np.array([len(some) for some in pairs], np.int32),
            "tokens": flat[:, 0].copy(),
            "counts": flat[:, 1].astype(np.uint16),
            "mixtures": np.array(mixed, np.int64),
            "weights": weights,
        }

    @classmethod
    def of_tensors(cls, layout: Layout, tensors: Mapping[str, np.ndarray]) -> "Counts":
        """The inverse; ValueError or KeyError unless sums stay within the bounds of `Mixture`."""
        keys, sizes, tokens, seen, mixed, weights = (
            tensors[name]
            for name in ("contexts", "sizes", "tokens", "counts", "mixtures", "weights")
        )
        require_all(
            all(a.ndim == 1 for a in (keys, sizes, tokens, seen, mixed)),
            all(a.dtype.kind in "iu" for a in (keys, sizes, tokens, seen, mixed, weights)),
            len(keys) == len(sizes) <= CONTEXTS_MAX,
            len(tokens) == len(seen) == int(sizes.sum(dtype=np.int64)),
            weights.shape == (len(mixed), PARTS),
            bool((sizes > 0).all() and (seen > 0).all()),
            bool(((tokens >= 0) & (tokens < layout.codebook_size)).all()),
        )
        found, start = cls(), 0
        ids, values = tokens.tolist(), seen.tolist()
        for key, size in zip(keys.tolist(), sizes.tolist(), strict=True):
            some = dict(zip(ids[start : start + size], values[start : start + size], strict=True))
            found.counts[key], found.totals[key] = some, sum(some.values())
            require_all(len(some) == size, found.totals[key] < COUNTED)
            start += size
        for key, row in zip(mixed.tolist(), weights.tolist(), strict=True):
            level = key >> 3 * len(watched(layout))
            require_all(0 <= level < layout.levels)
            size = contexts_of(layout, level)
            require_all(
                min(row[:size]) >= SHARES // (_FORGET * size),
                sum(row) <= SHARES,
                not any(row[size:]),
            )
            found.weights[key] = row[:size]
        return found


def require_all(*good: bool) -> None:
    """ValueError unless all hold."""
    if not all(good):
        raise ValueError("the tensors of a token model are damaged")


def watched(layout: Layout) -> tuple[int, ...]:
    """Which contexts choose the weights of a mixture, by how often they were counted."""
    return (2, 4, 8) if layout.frames else (1, 4)


def contexts_of(layout: Layout, level: int) -> int:
    """How many contexts a token of a level has, the base among them."""
    return (14 if layout.frames else 7) + (5 if level else 0)


class Mixture:
    """Predicts the tokens of grids one after another, and learns each."""

    def __init__(self, layout: Layout, counts: Counts, height: int, width: int) -> None:
        self.layout, self.learned = layout, counts
        self.height, self.width, self.edge = height, width, layout.codebook_size
        self.row = width + 2
        self.level = (height + 2) * self.row
        size = layout.levels * self.level
        self.grids = [[self.edge] * size for _ in range(3)]  # this one, and the two before it
        self.base: dict[int, np.ndarray] = {}  # counts of each level as a vector
        self.watched = watched(layout)

    def next_grid(self) -> None:
        """Moves on: the grid that is complete becomes the one before."""
        if self.layout.frames:
            self.grids = [[self.edge] * len(self.grids[0]), *self.grids[:2]]
        else:
            self.grids[0] = [self.edge] * len(self.grids[0])

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Level, place and offset in the grid of each token, in the order of the stream."""
        for y in range(self.height):
            for x in range(self.width):
                for level in range(self.layout.levels):
                    offset = level * self.level + (y + 1) * self.row + x + 1
                    yield level, y * self.width + x, offset

    def contexts(self, level: int, place: int, at: int) -> list[int]:
        """A number for each context that the token at an offset has; the first is the base."""
        now, before, earlier = self.grids
        left, up = now[at - 1], now[at - self.row]
        corner, right = now[at - self.row - 1], now[at - self.row + 1]
        below = now[at - self.level] if level else self.edge
        if self.layout.frames:
            same, old = before[at], earlier[at]
            parts = [
                (same,),
                (place, same),
                (place,),
                (same, left),
                (same, up),
                (same, old),
                (left, up),
                (same, left, up),
                (place, same, old),
                (left, before[at - 1], same),
                (same, before[at + 1]),
                (same, before[at + self.row]),
                (up, before[at - self.row], same),
            ]
        else:
            parts = [(place,), (left,), (up,), (left, up), (left, up, corner), (up, right)]
        if level:
            deeper = now[at - 2 * self.level] if level > 1 else self.edge
            parts += [(below,), (below, deeper), (below, left), (below, up), (place, below)]
        radix, found = self.edge + 1, [level * PARTS]
        for number, part in enumerate(parts, 1):
            key = part[0]  # the first may be a place; all others are below the radix
            for value in part[1:]:
                key = key * radix + value
            found.append((key * self.layout.levels + level) * PARTS + number)
        return found

    def _state(self, keys: list[int], level: int) -> tuple[list[int], int]:
        """The weights of the mixture, and their key: how often its best contexts were counted."""
        totals = self.learned.totals
        key = level
        for k in self.watched:
            key = key * 8 + min(totals.get(keys[k], 0).bit_length(), 7)
        weights = self.learned.weights.get(key)
        if weights is None:
            weights = [SHARES // len(keys)] * len(keys)
        return weights, key

    def cumulative(self, level: int, keys: list[int]) -> np.ndarray:
        """Cumulative frequencies int64 (K + 1,), strictly rising from 0 to TOTAL.

        All is exact: a weighted sum is below 2^44, times TOTAL below 2^60.
        """
        weights, _ = self._state(keys, level)
        K, counts, totals = self.edge, self.learned.counts, self.learned.totals
        base = self._base(level, keys[0])
        rest, ids, values = weights[0] << 12, [], []
        for key, weight in zip(keys[1:], weights[1:], strict=True):
            seen = counts.get(key)
            if seen is None:
                rest += weight << 12
                continue
            scale = (weight << 12) // (2 * totals[key] + 1)
            rest += scale * (len(seen) + 1)
            ids += seen
            values += [(2 * count - 1) * scale for count in seen.values()]
        mixed = (2 * base + 1) * BASE // (2 * totals.get(keys[0], 0) + K) * rest
        if ids:
            np.add.at(mixed, np.array(ids, np.int64), np.array(values, np.int64) * BASE)
        table = np.zeros(K + 1, np.int64)
        sums = mixed.cumsum()
        table[1:] = sums * (entropy.TOTAL - K) // sums[-1] + np.arange(1, K + 1)
        return table

    def learn(self, level: int, at: int, keys: list[int], token: int) -> None:
        """Makes a token known: moves the weights to what predicted it, and counts it."""
        weights, key = self._state(keys, level)
        K, counts, totals = self.edge, self.learned.counts, self.learned.totals
        first = (2 * int(self._base(level, keys[0])[token]) + 1) * BASE
        first //= 2 * totals.get(keys[0], 0) + K
        each = [weights[0] * (first << 12)]
        for one, weight in zip(keys[1:], weights[1:], strict=True):
            seen = counts.get(one)
            if seen is None:
                each.append(weight * (first << 12))
                continue
            likely = first * (len(seen) + 1) + max(0, 2 * seen.get(token, 0) - 1) * BASE
            each.append(weight * ((likely << 12) // (2 * totals[one] + 1)))
        least, total = SHARES // (_FORGET * len(keys)), sum(each)
        shared = SHARES - least * len(keys)
        self.learned.weights[key] = [
            (3 * weight + share * shared // total + least) // 4  # a quarter of the way
            for weight, share in zip(weights, each, strict=True)
        ]
        total_before = totals.get(keys[0], 0)
        for one in keys:
            self._count(one, token)
        if totals.get(keys[0], 0) > total_before:
            self.base[level][token] += 1
        else:  # halved just now, or not counted at all
            del self.base[level]
        self.grids[0][at] = token

    def _base(self, level: int, key: int) -> np.ndarray:
        """Counts of a level's tokens, whatever is around them, int64 (K,)."""
        if level not in self.base:
            self.base[level] = np.zeros(self.edge, np.int64)
            for token, count in self.learned.counts.get(key, {}).items():
                self.base[level][token] = count
        return self.base[level]

    def _count(self, key: int, token: int) -> None:
        counts, totals = self.learned.counts, self.learned.totals
        seen = counts.get(key)
        if seen is None:
            if len(counts) >= CONTEXTS_MAX:
                return
            seen = counts[key] = {}
            totals[key] = 0
        seen[token] = seen.get(token, 0) + 1
        totals[key] += 1
        if totals[key] >= COUNTED:
            for one in seen:
                seen[one] = (seen[one] + 1) // 2
            totals[key] = sum(seen.values())


def train(layout: Layout, grids: np.ndarray, counts: Counts | None = None) -> Counts:
    """Counts grids (n, L, h, w), one after another."""
    counts = counts or Counts()
    mixture = Mixture(layout, counts, *grids.shape[2:])
    flat = grids.transpose(0, 2, 3, 1).reshape(len(grids), -1)  # in the order of the stream
    for number, tokens in enumerate(flat):
        ticks.tell(number, len(flat))
        mixture.next_grid()
        for (level, place, at), token in zip(mixture.places(), tokens.tolist(), strict=True):
            mixture.learn(level, at, mixture.contexts(level, place, at), token)
    return counts


def encode(layout: Layout, grids: np.ndarray, counts: Counts) -> bytes:
    """The stream of grids (n, L, h, w); `counts` learns them."""
    mixture = Mixture(layout, counts, *grids.shape[2:])
    flat = grids.transpose(0, 2, 3, 1).reshape(len(grids), -1)
    intervals = np.empty((flat.size, 2), np.int64)
    done = 0
    for number, tokens in enumerate(flat):
        ticks.tell(number, len(flat))
        mixture.next_grid()
        for (level, place, at), token in zip(mixture.places(), tokens.tolist(), strict=True):
            keys = mixture.contexts(level, place, at)
            intervals[done] = mixture.cumulative(level, keys)[token : token + 2]
            mixture.learn(level, at, keys, token)
            done += 1
    return entropy.encode(intervals[:, 0], intervals[:, 1] - intervals[:, 0])


def decode(
    layout: Layout, stream: bytes, shape: tuple[int, int, int, int], counts: Counts
) -> np.ndarray:
    """The grids of a stream, int64 (n, L, h, w). FormatError where it is damaged."""
    n, levels, h, w = shape
    mixture, decoder = Mixture(layout, counts, h, w), entropy.Decoder([stream])
    found: list[int] = []
    for number in range(n):
        ticks.tell(number, n)
        mixture.next_grid()
        for level, place, at in mixture.places():
            keys = mixture.contexts(level, place, at)
            token = decoder.next_symbol(mixture.cumulative(level, keys))
            mixture.learn(level, at, keys, token)
            found.append(token)
    decoder.finish()
    return np.array(found, np.int64).reshape(n, h, w, levels).transpose(0, 3, 1, 2)
