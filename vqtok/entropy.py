"""Integers <-> bytes, near the bits that their probabilities ask for:
asymmetric numeral systems (rANS; Duda 2013, arXiv 1311.2540).

A symbol owns an interval of the TOTAL frequencies. The state is one integer in [2^32, 2^48); 16-bit
words leave and enter it, one a symbol at most. The decoder gives the symbols back first to last, so
the encoder takes them last to first. A stream is the state and then the words, all as 16 bits,
little-endian. It holds no lengths and no tables: the decoder is given both.

Both directions have a loop over Python integers, for few images, and one over NumPy lanes, one
image a lane, for many.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from vqtok.errors import FormatError

BITS = 16
TOTAL = 1 << BITS  # frequencies of all symbols together
_LOW = 1 << 32  # the state is never below, and both begin and end with it
_MASK = TOTAL - 1
_STATE_WORDS = 3  # 48 bits
_LANES = 8  # images from which on NumPy is faster


def encode(starts: np.ndarray, freqs: np.ndarray) -> list[bytes]:
    """A stream for each image. starts and freqs are integers (B, N):
    symbol n of image b owns [start, start + freq) of TOTAL.
    """
    assert starts.shape == freqs.shape
    assert starts.ndim == 2
    assert freqs.size == 0 or (
        freqs.min() > 0 and starts.min() >= 0 and (starts + freqs).max() <= TOTAL
    )
    if len(starts) < _LANES:
        return [_encode_one(*pair) for pair in zip(starts.tolist(), freqs.tolist(), strict=True)]
    return _encode_lanes(starts.astype(np.uint64), freqs.astype(np.uint64))


def _encode_one(starts: list[int], freqs: list[int]) -> bytes:
    state, words = _LOW, []
    for start, freq in zip(reversed(starts), reversed(freqs), strict=True):
        if state >= freq << 32:
            words.append(state & _MASK)
            state >>= BITS
        state = (state // freq << BITS) + state % freq + start
    # read last to first: the lowest word first
    words += [state >> 32, state >> BITS & _MASK, state & _MASK]
    return np.array(words[::-1], "<u2").tobytes()


def _encode_lanes(starts: np.ndarray, freqs: np.ndarray) -> list[bytes]:
    B, N = starts.shape
    shift, high = np.uint64(BITS), np.uint64(32)
    state = np.full(B, _LOW, np.uint64)
    words, counts, lanes = (
        np.zeros((B, N + _STATE_WORDS), "<u2"),
        np.zeros(B, np.int64),
        np.arange(B),
    )
    for n in range(N - 1, -1, -1):
        freq = freqs[:, n]
        full = state >= freq << high
        # kept where the lane counts on, else written over
        words[lanes, counts] = state & np.uint64(_MASK)
        counts += full
        state = np.where(full, state >> shift, state)
        state = (state // freq << shift) + state % freq + starts[:, n]
    for k in reversed(range(_STATE_WORDS)):
        words[lanes, counts] = state >> np.uint64(BITS * k) & np.uint64(_MASK)
        counts += 1
    return [
        row[count - 1 :: -1].tobytes() if count < len(row) else row[::-1].tobytes()
        for row, count in zip(words, counts, strict=True)
    ]


class Decoder:
    """Gives back the symbols of B streams, in step."""

    def __init__(self, streams: Sequence[bytes]) -> None:
        """FormatError where a stream is too short to be one."""
        if any(len(stream) % 2 or len(stream) < 2 * _STATE_WORDS for stream in streams):
            raise _truncated()
        self._words = [np.frombuffer(stream, "<u2") for stream in streams]
        states = [
            sum(int(words[k]) << BITS * k for k in range(_STATE_WORDS)) for words in self._words
        ]
        if any(state < _LOW for state in states):
            raise FormatError("the stream is damaged", "copy or download the file again")
        self._few = _Few(self._words, states) if len(streams) < _LANES else None
        self._many = None if self._few else _Many(self._words, states)

    def decode(self, cumulative: np.ndarray) -> np.ndarray:
        """The next n symbols of each image, int64 (B, n).
        cumulative (B, n, K + 1) rises strictly from 0 to TOTAL in each row.
        """
        return self._coder.decode(cumulative)

    def finish(self) -> None:
        """FormatError unless every stream is used up, and its state where it began."""
        if any(state != _LOW for state in self._coder.states()) or any(
            used != len(words) for used, words in zip(self._coder.used(), self._words, strict=True)
        ):
            raise FormatError("the stream is damaged", "copy or download the file again")

    @property
    def _coder(self) -> "_Few | _Many":
        coder = self._few or self._many
        assert coder is not None
        return coder


class _Few:
    """A loop over Python integers."""

    def __init__(self, words: Sequence[np.ndarray], states: Sequence[int]) -> None:
        self._words, self._states = [part.tolist() for part in words], list(states)
        self._used = [_STATE_WORDS] * len(states)

    def states(self) -> list[int]:
        return self._states

    def used(self) -> list[int]:
        return self._used

    def decode(self, cumulative: np.ndarray) -> np.ndarray:
        B, n, size = cumulative.shape
        flat = memoryview(
            np.ascontiguousarray(cumulative, np.int32).reshape(-1)  # type: ignore[arg-type]
        )
        symbols = np.empty((B, n), np.int64)
        for b in range(B):
            symbols[b] = self._decode_one(
                b, flat, range(b * n * size, (b + 1) * n * size, size), size
            )
        return symbols

    def _decode_one(self, b: int, flat: Sequence[int], rows: range, size: int) -> list[int]:
        state, used, words, found = self._states[b], self._used[b], self._words[b], []
        try:
            for row in rows:
                slot = state & _MASK
                end = bisect_right(flat, slot, row, row + size)
                start = flat[end - 1]
                state = (flat[end] - start) * (state >> BITS) + slot - start
                if state < _LOW:
                    state = state << BITS | words[used]
                    used += 1
                found.append(end - 1 - row)
        except IndexError:
            raise _truncated() from None
        self._states[b], self._used[b] = state, used
        return found


class _Many:
    """A loop over symbols, with a NumPy lane for each image."""

    def __init__(self, words: Sequence[np.ndarray], states: Sequence[int]) -> None:
        self._ends = np.array([len(part) for part in words])
        self._words = np.zeros((len(words), int(self._ends.max()) + 1), np.uint64)
        for row, part in zip(self._words, words, strict=True):
            row[: len(part)] = part
        self._state, self._used, self._lanes = (
            np.array(states, np.uint64),
            np.full(len(words), _STATE_WORDS),
            np.arange(len(words)),
        )

    def states(self) -> list[int]:
        return self._state.tolist()

    def used(self) -> list[int]:
        return self._used.tolist()

    def decode(self, cumulative: np.ndarray) -> np.ndarray:
        symbols = np.empty(cumulative.shape[:2], np.int64)
        shift = np.uint64(BITS)
        for n in range(cumulative.shape[1]):
            table, slot = cumulative[:, n], self._state & np.uint64(_MASK)
            found = (table[:, 1:] <= slot[:, None].astype(table.dtype)).sum(1)
            start = table[self._lanes, found].astype(np.uint64)
            freq = table[self._lanes, found + 1].astype(np.uint64) - start
            state = freq * (self._state >> shift) + slot - start
            low = state < _LOW
            if (low & (self._used >= self._ends)).any():
                raise _truncated()
            self._state = np.where(
                low, state << shift | self._words[self._lanes, self._used], state
            )
            self._used += low
            symbols[:, n] = found
        return symbols


def _truncated() -> FormatError:
    return FormatError("the stream is truncated", "copy or download the file again")


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Unsigned integers (N,) of that many bits each, one after another, the highest bit first:
    ceil(N * bits / 8) bytes.
    """
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits(
        (values.reshape(-1, 1).astype(np.int64) >> shifts & 1).astype(np.uint8)
    ).tobytes()


def unpack_bits(data: bytes, count: int, bits: int) -> np.ndarray:
    """What `pack_bits` packed, int64 (count,);
    FormatError where the data is not of exactly that length.
    """
    if len(data) != -(-count * bits // 8):
        raise FormatError(
            f"{count} indices of {bits} bits do not take {len(data)} bytes",
            "copy or download the file again",
        )
    each = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return each.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
