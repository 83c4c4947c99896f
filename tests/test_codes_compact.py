"""The compact form of codes files: exact bytes, small overhead, and a
reader that nothing surprises.
"""

import io
import tracemalloc

import numpy as np
import pytest

from vqtok import codes
from vqtok.codes import Codes, Compact
from vqtok.codes.compact import to_stream
from vqtok.errors import FormatError

# never to change
GOLDEN = bytes.fromhex("01040123abcd96b52e490708010103746f79111929cb800000")


def make(
    K: int = 1024,
    sizes: tuple[tuple[int, int], ...] = ((512, 768),),
    levels: int = 8,
    f: int = 16,
    channels: int = 3,
) -> Codes:
    h, w = (-(-side // f) for side in sizes[0])
    draw = np.random.default_rng(0)
    indices = draw.integers(0, K, (len(sizes), levels, h, w)).astype(codes.index_dtype(K))
    return Codes(indices, "photo", "0123abcd", K, f, channels, sizes)


def coded(plain: Codes, sizes: tuple[int, ...] = (60,)) -> Compact:
    """As if a prior had made streams of these lengths."""
    return codes.to_compact(plain, "fedcba98", [bytes([i]) * size for i, size in enumerate(sizes)])


def zipped(stream: bytes) -> bytes:
    """An .npz with that member `stream`, made with NumPy alone."""
    file = io.BytesIO()
    np.savez_compressed(file, stream=np.frombuffer(stream, np.uint8))
    return file.getvalue()


@pytest.mark.parametrize("K", [2, 16, 512, 1000, 1024, 65536, 65537, 1 << 18])
@pytest.mark.parametrize("sizes", [((31, 77),), ((31, 77), (32, 75)), ((32, 80),) * 3])
def test_round_trip(K: int, sizes: tuple[tuple[int, int], ...]):
    plain = make(K, sizes, levels=2, f=8, channels=1 if K == 16 else 3)
    data = codes.to_bytes(codes.to_compact(plain))
    assert codes.read_plain_codes(data) == plain
    found = codes.read_any_codes(data)
    assert isinstance(found, Compact)
    assert (found.shape, found.levels, len(found), found.bits, found.pixels) == (
        plain.shape,
        plain.levels,
        len(plain),
        plain.bits,
        plain.pixels,
    )


def test_coded_streams_come_back():
    plain = make(sizes=((31, 77), (32, 75), (32, 80)), levels=2)
    found = codes.read_any_codes(codes.to_bytes(coded(plain, (20, 0, 7))))
    assert isinstance(found, Compact)
    assert (found.prior, found.streams) == ("fedcba98", (b"\0" * 20, b"", b"\2" * 7))
    assert found.with_indices(plain.indices) == plain
    with pytest.raises(FormatError, match="checksum"):
        found.with_indices(plain.indices ^ 1)


def test_the_bytes_of_the_stream():
    one = Codes(
        np.array([[[[1, 2, 3, 4], [5, 6, 0, 0], [0, 0, 0, 0]]]], np.uint8),
        "toy",
        "0123abcd",
        7,
        8,
        3,
        ((17, 25),),
    )
    assert to_stream(codes.to_compact(one)) == GOLDEN
    assert codes.read_plain_codes(zipped(GOLDEN)) == one


def test_a_size_that_keeps_the_grid_is_checked_too():
    damaged = GOLDEN[:18] + bytes([0x12]) + GOLDEN[19:]
    with pytest.raises(FormatError, match="checksum"):
        codes.read_plain_codes(zipped(damaged))


def test_overhead_is_small_and_numpy_opens_it():
    plain = make()
    compact = coded(plain, (9000,))
    data = codes.to_bytes(compact)
    assert len(data) - 9000 <= 300
    assert len(codes.to_bytes(codes.to_compact(plain))) - 15360 <= 300
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        assert file.files == ["stream"]
        assert file["stream"].dtype == np.uint8


def test_never_larger_than_bit_packed():
    plain = make(levels=1)
    assert coded(plain, (1916,)).prior is None
    assert coded(plain, (1915,)).prior == "fedcba98"


def test_metadata_is_read_without_the_prior():
    plain = make()
    meta = codes.read_codes_meta(codes.to_bytes(coded(plain, (9000,))))
    assert (meta["form"], meta["prior"], meta["model"], meta["shape"], meta["sizes"]) == (
        "coded",
        "fedcba98",
        "photo",
        (1, 8, 32, 48),
        [[512, 768]],
    )
    assert codes.read_codes_meta(codes.to_bytes(codes.to_compact(plain)))["form"] == "packed"
    with pytest.raises(FormatError, match="coded by a prior of model photo"):
        codes.read_plain_codes(codes.to_bytes(coded(plain, (9000,))))


HEAD = GOLDEN[:10]
DAMAGED = {
    "newer": (b"\2" + GOLDEN[1:], "newer than this"),
    "version 0": (b"\0" + GOLDEN[1:], "damaged"),
    "unknown flag": (b"\1\x14" + GOLDEN[2:], "damaged"),
    "empty": (b"", "truncated"),
    "cut in the head": (GOLDEN[:9], "truncated"),
    "cut in the data": (GOLDEN[:-1], "do not take"),
    "endless number": (HEAD + b"\xff" * 9, "damaged"),
    "K is 1": (HEAD + b"\1" + GOLDEN[11:], "codebook size"),
    "f is 0": (HEAD + b"\7\0" + GOLDEN[12:], "downsample"),
    "no levels": (HEAD + b"\7\x08\0" + GOLDEN[13:], "no levels"),
    "no images": (HEAD + b"\7\x08\1\0" + GOLDEN[14:], "images are claimed"),
    "many images": (HEAD + b"\7\x08\1\xff\xff\xff\x07" + GOLDEN[14:], "images are claimed"),
    "name past the end": (HEAD + b"\7\x08\1\1\x7ftoy", "truncated"),
    "name is no text": (HEAD + b"\7\x08\1\1\3\xff\xfe\xfd\x11\x19", "line of text"),
    "height 0": (HEAD + b"\7\x08\1\1\3toy\0\x19", "positive"),
    "huge sides": (
        HEAD + b"\7\x08\1\1\3toy\xff\xff\xff\xff\x0f\xff\xff\xff\xff\x0f" + bytes(9),
        "larger than any",
    ),
    "huge sides, coded": (
        b"\1\5"
        + HEAD[2:]
        + b"\1\2\3\4\7\x08\1\1\3toy\xff\xff\xff\xff\x0f\xff\xff\xff\xff\x0f"
        + bytes(9),
        "larger than any",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_streams_are_refused(name: str):
    stream, message = DAMAGED[name]
    tracemalloc.start()
    with pytest.raises(FormatError, match=message):
        codes.read_plain_codes(zipped(stream))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def mutate(data: bytes, draw: np.random.Generator) -> bytes:
    """Some bits flipped, a part cut out, or bytes added."""
    changed = bytearray(data)
    kind = int(draw.integers(3))
    if kind == 0:
        for _ in range(int(draw.integers(1, 4))):
            changed[int(draw.integers(len(changed)))] ^= 1 << int(draw.integers(8))
    elif kind == 1:
        start = int(draw.integers(len(changed)))
        del changed[start : start + int(draw.integers(1, 20))]
    else:
        at = int(draw.integers(len(changed) + 1))
        changed[at:at] = draw.bytes(int(draw.integers(1, 20)))
    return bytes(changed)


def test_mutations_give_the_codes_or_a_clear_error():
    plain = make(sizes=((31, 77),), levels=2)
    draw = np.random.default_rng(0)
    stream, file = to_stream(codes.to_compact(plain)), codes.to_bytes(codes.to_compact(plain))
    for _ in range(400):
        for data in (zipped(mutate(stream, draw)), mutate(file, draw)):
            try:
                found = codes.read_plain_codes(data)
            except FormatError:
                continue
            np.testing.assert_array_equal(found.indices, plain.indices)


def test_a_stream_of_another_kind_is_refused():
    file = io.BytesIO()
    np.savez(file, stream=np.zeros((2, 2), np.uint8))
    with pytest.raises(FormatError, match="line of bytes"):
        codes.read_plain_codes(file.getvalue())
