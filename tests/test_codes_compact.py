"""The compact form of codes files: exact bytes, small overhead, and a reader that nothing
surprises. Its first form is read for ever.
"""

import io
import math
import struct
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from vqtok import codes
from vqtok.codes import Codes, Compact
from vqtok.codes.compact import checksum, from_first_form, from_stream, to_stream
from vqtok.errors import FormatError

# never to change
FIRST = bytes.fromhex("01040123abcd96b52e490708010103746f79111929cb800000")
GOLDEN = bytes.fromhex("444031070123abcd96b52e746f79111929cb800000")


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
    streams = [bytes([i]) * size for i, size in enumerate(sizes)]
    return codes.to_compact(plain, "fedcba98", lambda carried: streams)


def zipped(stream: bytes) -> bytes:
    """A compact file with those bytes, made with zipfile alone."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c", stream)
    return file.getvalue()


def zipped_first(stream: bytes) -> bytes:
    """An .npz with that member `stream`, made with NumPy alone: the first form."""
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
    assert (found.prior, found.streams) == ("fedc", (b"\0" * 20, b"", b"\2" * 7))
    value = checksum(plain.indices, plain.sizes)
    assert found.with_indices(plain.indices, [value] * 3) == plain
    wrong = plain.indices.copy()
    wrong[2, 1, 0, 0] ^= 1
    for indices, carried in (
        (plain.indices[:, :1], [value] * 3),
        (plain.indices, [value] * 2 + [0]),
        (plain.indices, [value] * 2),
        (plain.indices, []),
        (wrong, [value] * 3),
    ):
        with pytest.raises(FormatError, match="checksum"):
            found.with_indices(indices, carried)


def test_changed_indices_are_found_in_a_zip_made_anew():
    for damaged in (GOLDEN[:-4] + b"\x2a" + GOLDEN[-3:], GOLDEN[:14] + b"\x12" + GOLDEN[15:]):
        with pytest.raises(FormatError, match="checksum"):
            codes.read_plain_codes(zipped(damaged))


def toy() -> Codes:
    return Codes(
        np.array([[[[1, 2, 3, 4], [5, 6, 0, 0], [0, 0, 0, 0]]]], np.uint8),
        "toy",
        "0123abcd",
        7,
        8,
        3,
        ((17, 25),),
    )


def test_the_bytes_of_the_stream():
    assert to_stream(codes.to_compact(toy())) == GOLDEN
    assert codes.read_plain_codes(zipped(GOLDEN)) == toy()


def test_the_first_form_is_read():
    assert codes.read_plain_codes(zipped_first(FIRST)) == toy()


def with_range(first: bytes) -> bytes:
    """That stream of the first form, with a range from 0 to 4095."""
    return (
        first[:1] + bytes([first[1] | 8]) + first[2:18] + struct.pack("<2d", 0, 4095) + first[18:]
    )


def test_a_range_of_the_first_form_is_read():
    found = codes.read_plain_codes(zipped_first(with_range(FIRST)))
    assert found == replace(toy(), range=(0.0, 4095.0))


def test_a_range_takes_sixteen_bytes():
    plain = replace(toy(), range=(-0.5, 4095.0))
    stream = to_stream(codes.to_compact(plain))
    assert stream == b"\x54" + GOLDEN[1:14] + struct.pack("<2d", -0.5, 4095) + GOLDEN[14:]
    assert codes.read_plain_codes(zipped(stream)) == plain


def test_coded_streams_of_the_first_form_are_not_written_as_the_second():
    """They carry no checksum."""
    first = bytes([1, 5]) + FIRST[2:10] + bytes.fromhex("fedcba98") + FIRST[10:]
    with pytest.raises(FormatError, match="not those of the second"):
        codes.to_bytes(from_first_form(first + bytes(9)))


def test_in_the_first_form_a_size_that_keeps_the_grid_is_checked_too():
    damaged = FIRST[:18] + bytes([0x12]) + FIRST[19:]
    with pytest.raises(FormatError, match="checksum"):
        codes.read_plain_codes(zipped_first(damaged))


@pytest.mark.parametrize("K", [2, 1000, 1024, 4096])
@pytest.mark.parametrize("f", [1, 3, 16])
@pytest.mark.parametrize("levels", [1, 15, 16, 300])
@pytest.mark.parametrize("name", ["a", "a" * 15, "a" * 16, "ü" * 200])
def test_numbers_that_do_not_fit_four_bits_come_back(K: int, f: int, levels: int, name: str):
    indices = np.ones((2, levels, 1, 2), codes.index_dtype(K))
    plain = Codes(indices, name, "0123abcd", K, f, 1, ((f, 2 * f),) * 2)
    assert codes.read_plain_codes(codes.to_bytes(codes.to_compact(plain))) == plain
    about = (name, "0123abcd", K, f, 1, plain.sizes, (-1.5, 1e300), levels)
    for streams in ((b"\0\1\2" * levels, b""), (b"\0\1\2" * levels,)):
        packed = Compact(*about, None, "fedcba98", streams, 3 - len(streams))
        assert vars(from_stream(to_stream(packed))) == vars(packed) | {"prior": "fedc"}


def test_overhead_is_small_and_numpy_opens_it():
    """All that is not the stream takes less than 120 bytes, of which the zip takes 100."""
    noise = np.random.default_rng(0).bytes(9000)
    for sizes, model in ((((512, 768),), "photo"), (((32, 32),), "cifar10")):
        h, w = (side // 16 for side in sizes[0])
        about = (model, "0123abcd", 1024, 16, 3, sizes, None, 8, None, "fedcba98")
        stream = noise[: 10 * h * w]
        data = codes.to_bytes(Compact(*about, (stream,)))
        assert len(data) - len(stream) < 120
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            assert file.files == ["c"]
            assert file["c"].endswith(stream)
    plain = make()
    assert len(codes.to_bytes(codes.to_compact(plain))) - 15360 < 120
    small = Codes(
        make(512, ((32, 32),), 1, 4).indices, "cifar10", "0123abcd", 512, 4, 3, ((32, 32),)
    )
    assert len(codes.to_bytes(codes.to_compact(small))) - 72 < 120


def test_many_images_share_the_header():
    noise = np.random.default_rng(0).bytes(40)
    about = ("photo", "0123abcd", 1024, 16, 3)
    for n in (1, 1000):
        sizes = ((32, 32),) * n
        compact = Compact(*about, sizes, None, 8, None, "fedcba98", (noise,) * n)
        assert len(to_stream(compact)) < 41 * n + 20


def test_bytes_that_repeat_are_deflated():
    indices = np.zeros((1, 8, 32, 48), np.uint16)
    plain = Codes(indices, "photo", "0123abcd", 1024, 16, 3, ((512, 768),))
    assert len(codes.to_bytes(codes.to_compact(plain))) < 180
    assert codes.read_plain_codes(codes.to_bytes(codes.to_compact(plain))) == plain


def test_never_larger_than_bit_packed():
    plain = make(levels=1)
    assert coded(plain, (1920,)).prior is None
    assert coded(plain, (1919,)).prior == "fedcba98"


def test_metadata_is_read_without_the_prior():
    plain = make()
    meta = codes.read_codes_meta(codes.to_bytes(coded(plain, (9000,))))
    assert (meta["form"], meta["prior"], meta["model"], meta["shape"], meta["sizes"]) == (
        "coded",
        "fedc",
        "photo",
        (1, 8, 32, 48),
        [[512, 768]],
    )
    assert codes.read_codes_meta(codes.to_bytes(codes.to_compact(plain)))["form"] == "packed"
    with pytest.raises(FormatError, match="coded by a prior of model photo"):
        codes.read_plain_codes(codes.to_bytes(coded(plain, (9000,))))


VAST = b"\xff\xff\xff\xff\x0f"
MARK, CODED_MARK = bytes.fromhex("0123abcd010203"), bytes.fromhex("0123abcd0102")
DAMAGED = {
    "newer": (b"\x84" + GOLDEN[1:], "newer than this"),
    "sharing of one": (b"\x6d\x43\x31\2\1" + CODED_MARK + b"toy\x11\x19" + bytes(9), "damaged"),
    "sharing of more than there are": (
        b"\x6d\x43\x31\2\3" + CODED_MARK + b"toy\x11\x19" + bytes(9),
        "3 images are claimed to share",
    ),
    "sharing of too many": (
        b"\x6d\x43\x31" + b"\xd8\x04" * 2 + CODED_MARK + b"toy\x11\x29" + bytes(999),
        "600 images are claimed to share",
    ),
    "sharing, bit-packed": (
        b"\x6c\x43\x31\2\2" + MARK + b"toy\x11\x19" + bytes(9),
        "2 images are claimed to share",
    ),
    "sharing, one image": (b"\x65\x43\x31\2" + CODED_MARK + b"toy\x11\x19" + bytes(9), "2 images"),
    "older": (b"\x24" + GOLDEN[1:], "damaged"),
    "empty": (b"", "truncated"),
    "cut in the head": (GOLDEN[:9], "truncated"),
    "cut in the data": (GOLDEN[:-1], "do not take"),
    "endless number": (GOLDEN[:3] + b"\xff" * 9, "damaged"),
    "K is 1": (GOLDEN[:3] + b"\1" + GOLDEN[4:], "codebook size"),
    "f is 2^14": (b"\x44\xf3" + GOLDEN[2:3] + GOLDEN[4:], "downsample"),
    "f is 0": (b"\x44\3" + GOLDEN[2:3] + b"\0" + GOLDEN[4:], "downsample"),
    "no levels": (b"\x44\x43\x30\0" + GOLDEN[4:], "no levels"),
    "no images": (b"\x4c\x43\x31\0" + GOLDEN[4:], "images are claimed"),
    "many images": (b"\x4c\x43\x31\xff\xff\xff\x07" + GOLDEN[4:], "images are claimed"),
    "name past the end": (b"\x44\x43\x01\x7f" + MARK + b"toy", "truncated"),
    "no name": (b"\x44\x43\x01\0" + MARK + b"\x11\x19\0", "line of text"),
    "name is no text": (b"\x44\x43\x31" + MARK + b"\xff\xfe\xfd\x11\x19", "line of text"),
    "range cut": (b"\x54\x43\x31" + MARK + b"toy" + bytes(15), "truncated"),
    "range of nothing": (b"\x54\x43\x31" + MARK + b"toy" + bytes(16) + b"\x11\x19", "LOW, HIGH"),
    "range without end": (
        b"\x54\x43\x31" + MARK + b"toy" + struct.pack("<2d", 0, math.inf) + b"\x11\x19",
        "LOW, HIGH",
    ),
    "height 0": (b"\x44\x43\x31" + MARK + b"toy\0\x19", "positive"),
    "huge sides": (b"\x44\x43\x31" + MARK + b"toy" + VAST + VAST + bytes(9), "larger than any"),
    "huge sides, coded": (
        b"\x45\x43\x31" + CODED_MARK + b"toy" + VAST + VAST + bytes(9),
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


FIRST_HEAD = FIRST[:10]
DAMAGED_FIRST = {
    "newer": (b"\2" + FIRST[1:], "newer than this"),
    "version 0": (b"\0" + FIRST[1:], "damaged"),
    "unknown flag": (b"\1\x14" + FIRST[2:], "damaged"),
    "empty": (b"", "truncated"),
    "cut in the head": (FIRST[:9], "truncated"),
    "cut in the data": (FIRST[:-1], "do not take"),
    "endless number": (FIRST_HEAD + b"\xff" * 9, "damaged"),
    "K is 1": (FIRST_HEAD + b"\1" + FIRST[11:], "codebook size"),
    "f is 0": (FIRST_HEAD + b"\7\0" + FIRST[12:], "downsample"),
    "no levels": (FIRST_HEAD + b"\7\x08\0" + FIRST[13:], "no levels"),
    "no images": (FIRST_HEAD + b"\7\x08\1\0" + FIRST[14:], "images are claimed"),
    "many images": (FIRST_HEAD + b"\7\x08\1\xff\xff\xff\x07" + FIRST[14:], "images are claimed"),
    "name past the end": (FIRST_HEAD + b"\7\x08\1\1\x7ftoy", "truncated"),
    "name is no text": (FIRST_HEAD + b"\7\x08\1\1\3\xff\xfe\xfd\x11\x19", "line of text"),
    "height 0": (FIRST_HEAD + b"\7\x08\1\1\3toy\0\x19", "positive"),
    "huge sides": (
        FIRST_HEAD + b"\7\x08\1\1\3toy\xff\xff\xff\xff\x0f\xff\xff\xff\xff\x0f" + bytes(9),
        "larger than any",
    ),
    "huge sides, coded": (
        b"\1\5"
        + FIRST_HEAD[2:]
        + b"\1\2\3\4\7\x08\1\1\3toy\xff\xff\xff\xff\x0f\xff\xff\xff\xff\x0f"
        + bytes(9),
        "larger than any",
    ),
}


@pytest.mark.parametrize("name", DAMAGED_FIRST)
def test_damaged_streams_of_the_first_form_are_refused(name: str):
    stream, message = DAMAGED_FIRST[name]
    tracemalloc.start()
    with pytest.raises(FormatError, match=message):
        codes.read_plain_codes(zipped_first(stream))
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


def test_a_damaged_file_gives_the_codes_or_a_clear_error():
    """The zip's CRC-32 guards all bytes of the member."""
    plain = make(sizes=((31, 77),), levels=2)
    draw = np.random.default_rng(0)
    file = codes.to_bytes(codes.to_compact(plain))
    for _ in range(400):
        try:
            found = codes.read_plain_codes(mutate(file, draw))
        except FormatError:
            continue
        assert found == plain


@pytest.mark.slow
def test_every_header_is_codes_or_a_clear_error():
    """With a zip made anew around it, so that nothing but the reader's checks are left: what it
    accepts, it writes again as the same codes.
    """
    packed = codes.to_compact(make(sizes=((31, 77), (32, 75)), levels=2))
    by_prior = coded(make(sizes=((31, 77), (32, 75)), levels=2), (20, 7))
    shared = replace(by_prior, streams=(b"1" * 27,), sharing=2)
    draw, accepted = np.random.default_rng(0), 0
    for i in range(2000):
        stream = mutate(to_stream((packed, by_prior, packed, shared)[i % 4])[:60], draw)
        stream += to_stream(packed)[60:] if i % 2 == 0 else b""
        try:
            found = from_stream(stream)
            again = from_stream(to_stream(found))
        except FormatError:
            continue
        accepted += 1
        assert vars(again) == vars(found)
    assert 100 < accepted < 1900


def test_a_stream_of_another_kind_is_refused():
    file = io.BytesIO()
    np.savez(file, stream=np.zeros((2, 2), np.uint8))
    with pytest.raises(FormatError, match="line of bytes"):
        codes.read_plain_codes(file.getvalue())
