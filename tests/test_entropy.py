"""The entropy coder: streams give back their symbols, are as short as they can be,
and damage is always found.
"""

import numpy as np
import pytest

from vqtok import entropy
from vqtok.entropy import BLOCK, TOTAL, Decoder, Frequencies
from vqtok.errors import FormatError


def tables(shape: tuple[int, int], K: int, seed: int = 0) -> np.ndarray:
    """Random cumulative tables (B, N, K + 1), many of them uneven."""
    weights = np.random.default_rng(seed).dirichlet(np.full(K, 0.3), size=shape).cumsum(-1)
    cumulative = np.zeros((*shape, K + 1), np.int32)
    cumulative[..., 1:] = np.floor(weights / weights[..., -1:] * (TOTAL - K)) + np.arange(1, K + 1)
    return cumulative


def drawn(cumulative: np.ndarray, seed: int = 0) -> np.ndarray:
    """Symbols (B, N) as likely as the tables say."""
    slots = np.random.default_rng(seed).integers(0, TOTAL, cumulative.shape[:2])
    return (cumulative[..., 1:] <= slots[..., None]).sum(-1)


def shares(cumulative: np.ndarray) -> Frequencies:
    """The frequencies of rows (n, K + 1) of a table: of each symbol 1 and its weight."""
    n, K = cumulative.shape[0], cumulative.shape[1] - 1
    weights = np.zeros((n, -(-K // BLOCK) * BLOCK), np.float32)
    weights[:, :K] = np.diff(cumulative) - 1
    return Frequencies(weights.reshape(n, -(-K // BLOCK), BLOCK).swapaxes(1, 2), K)


def encode(cumulative: np.ndarray, symbols: np.ndarray) -> list[bytes]:
    ends = np.take_along_axis(cumulative, symbols[..., None] + np.arange(2), -1)
    return [entropy.encode(pair[:, 0], pair[:, 1] - pair[:, 0]) for pair in ends]


def next_symbols(decoder: Decoder, cumulative: np.ndarray) -> np.ndarray:
    """The next N symbols of B streams by tables (B, N, K + 1)."""
    B, N, size = cumulative.shape
    rows = shares(cumulative.reshape(B * N, size))
    return np.array(decoder.decode(rows, np.arange(B).repeat(N)), np.int64).reshape(B, N)


def decode(data: bytes, cumulative: np.ndarray) -> np.ndarray:
    """The symbols of one stream; FormatError unless it ends there."""
    decoder = Decoder([data])
    symbols = next_symbols(decoder, cumulative)
    decoder.finish()
    return symbols


@pytest.mark.parametrize("number", [0, 1, 0x12345678, (1 << 32) - 1])
@pytest.mark.parametrize("N", [0, 1, 7, 300])
def test_a_stream_carries_a_number(number: int, N: int):
    """In no more than half a bit more."""
    cumulative = tables((1, N), 50)
    symbols = drawn(cumulative)
    ends = np.take_along_axis(cumulative, symbols[..., None] + np.arange(2), -1)[0]
    data = entropy.encode(ends[:, 0], ends[:, 1] - ends[:, 0], number)
    assert len(data) <= len(encode(cumulative, symbols)[0]) + 2
    decoder = Decoder([data])
    np.testing.assert_array_equal(next_symbols(decoder, cumulative), symbols)
    assert decoder.carried() == [number]
    one_by_one = Decoder([data])
    found = [one_by_one.next_symbol(row) for row in cumulative[0]]
    assert (found, one_by_one.carried()) == (symbols[0].tolist(), [number])
    if number:
        with pytest.raises(FormatError, match="damaged"):
            decoder.finish()


def test_a_stream_that_does_not_end_carries_nothing():
    cumulative = tables((1, 40), 50)
    (data,) = encode(cumulative, drawn(cumulative))
    for stream, rows, message in (
        (data + b"\0\0", cumulative, "damaged"),
        (data, cumulative[:, :39], "damaged"),
        (data[:-2], cumulative, "truncated"),
    ):
        with pytest.raises(FormatError, match=message):
            read_to_the_end(stream, rows[0])


def read_to_the_end(stream: bytes, rows: np.ndarray) -> None:
    decoder = Decoder([stream])
    for row in rows:
        decoder.next_symbol(row)
    decoder.carried()


@pytest.mark.parametrize("K", [2, 16, 17, 300, 1024])
def test_intervals_are_what_the_weights_say(K: int):
    """By integers alone: floor(P(c) (TOTAL - K) / P(K)) + c."""
    draw = np.random.default_rng(K)
    weights = np.floor(2.0 ** draw.uniform(0, 14, (5, K))).astype(np.int64)
    weights[1, 1:] = 0  # all for one
    padded = np.zeros((5, -(-K // BLOCK) * BLOCK), np.float32)
    padded[:, :K] = weights
    found = Frequencies(padded.reshape(5, -1, BLOCK).swapaxes(1, 2), K)
    sums = np.pad(weights.cumsum(1), ((0, 0), (1, 0)))
    exact = sums * (TOTAL - K) // sums[:, -1:] + np.arange(K + 1)
    for symbol in {0, 1, K // 2, K - 1}:
        intervals = found.intervals(np.full(5, symbol))
        np.testing.assert_array_equal(intervals, exact[:, symbol : symbol + 2])
    assert found.intervals(np.full(5, K - 1))[:, 1].tolist() == [TOTAL] * 5


@pytest.mark.parametrize(
    ("B", "N", "K"), [(1, 200, 50), (3, 40, 2), (12, 30, 300), (2, 0, 4), (1, 1, 1024)]
)
def test_round_trip(B: int, N: int, K: int):
    cumulative = tables((B, N), K)
    symbols = drawn(cumulative)
    decoder = Decoder(encode(cumulative, symbols))
    parts = [next_symbols(decoder, part) for part in np.split(cumulative, [N // 3], axis=1)]
    decoder.finish()
    np.testing.assert_array_equal(np.concatenate(parts, 1), symbols)


def test_certain_and_unlikely_symbols_cost_what_they_should():
    cumulative = np.tile(np.array([0, TOTAL - 1, TOTAL], np.int32), (1, 4000, 1))
    likely, unlikely = np.zeros((1, 4000), np.int64), np.ones((1, 4000), np.int64)
    assert len(encode(cumulative, likely)[0]) == 6
    assert 8000 <= len(encode(cumulative, unlikely)[0]) <= 8006


@pytest.mark.slow
def test_at_most_eight_bytes_more_than_constriction():
    constriction = pytest.importorskip("constriction")
    cumulative = tables((1, 1536), 1024)
    symbols = drawn(cumulative)
    coder = constriction.stream.stack.AnsCoder()
    for table, symbol in zip(cumulative[0, ::-1], symbols[0, ::-1], strict=True):
        model = constriction.stream.model.Categorical(
            (np.diff(table) / TOTAL).astype(np.float32), perfect=True
        )
        coder.encode_reverse(np.array([symbol], np.int32), model)
    assert len(encode(cumulative, symbols)[0]) <= 4 * len(coder.get_compressed()) + 8


def test_damage_is_found():
    draw = np.random.default_rng(0)
    cumulative = tables((1, 60), 40)
    (stream,) = encode(cumulative, drawn(cumulative))
    damaged = [
        stream[:-2],
        stream[:4],
        stream[:-1],
        b"",
        stream + b"\0\0",
        bytes(len(stream)),
        b"\xff" * len(stream),
    ]
    for _ in range(100):
        at, bit = int(draw.integers(len(stream))), 1 << int(draw.integers(8))
        damaged.append(stream[:at] + bytes([stream[at] ^ bit]) + stream[at + 1 :])
    for data in damaged:
        with pytest.raises(FormatError, match="stream is"):
            decode(data, cumulative)


@pytest.mark.parametrize("bits", [1, 9, 10, 16])
def test_bits_are_packed_tightly(bits: int):
    values = np.random.default_rng(bits).integers(0, 1 << bits, 77)
    data = entropy.pack_bits(values, bits)
    assert len(data) == -(-77 * bits // 8)
    np.testing.assert_array_equal(entropy.unpack_bits(data, 77, bits), values)
    with pytest.raises(FormatError, match="do not take"):
        entropy.unpack_bits(data + b"\0", 77, bits)


def test_the_highest_bit_comes_first():
    assert entropy.pack_bits(np.array([1, 2, 3]), 10) == bytes(
        [0b00000000, 0b01000000, 0b00100000, 0b00001100]
    )
