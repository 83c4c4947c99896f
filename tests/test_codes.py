"""The codes file: round trips, exact bytes, and what a damaged or hostile file may do (nothing)."""

import io
import json
import math
import random
import struct
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_golden import large_codes, small_codes

from vqtok import codes
from vqtok.codes import Codes
from vqtok.errors import FormatError, InputError, OutputError

GOLDEN = Path(__file__).parent / "golden" / "format1"
META = {
    "format": 1,
    "model": "m",
    "fingerprint": "0badcafe",
    "codebook_size": 256,
    "downsample": 4,
    "channels": 3,
    "sizes": [[7, 12]],
}


def make(
    K: int = 1024,
    f: int = 8,
    levels: int = 1,
    sizes: tuple[tuple[int, int], ...] = ((31, 77),),
    seed: int = 0,
) -> Codes:
    """Valid codes with random indices, K - 1 among them."""
    h, w = (math.ceil(side / f) for side in sizes[0])
    indices = (
        np.random.default_rng(seed)
        .integers(0, K, (len(sizes), levels, h, w))
        .astype(codes.index_dtype(K))
    )
    indices[0, 0, 0, 0] = K - 1
    return Codes(indices, "photo", "0123abcd", K, f, 3, sizes)


def npy(descr: str, shape: str, data: bytes, order: str = "False") -> bytes:
    """An .npy file of which nothing is checked."""
    header = (
        f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117)
        + b"\n"
    )
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def text(value: Any) -> bytes:
    """A meta member: the JSON of a value, or a string as it is."""
    string = value if isinstance(value, str) else json.dumps(value)
    return npy(f"<U{len(string)}", "()", string.encode("utf-32-le"))


GOOD = npy("|u1", "(1, 1, 2, 3)", bytes(6))


def npz(
    indices: bytes | None = GOOD,
    meta: Any = META,
    method: int = zipfile.ZIP_DEFLATED,
    **others: bytes,
) -> bytes:
    members = {
        "indices": indices,
        "meta": meta if isinstance(meta, bytes) else text(meta),
        **others,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


@pytest.mark.parametrize("K", [2, 256, 257, 1000, 65536, 65537])
def test_round_trip(K: int) -> None:
    before = make(K, levels=3, sizes=((31, 77), (25, 80), (32, 73)))
    after = codes.read_plain_codes(codes.to_bytes(before))
    assert after == before
    assert after.indices.dtype.itemsize == (1 if K <= 256 else 2 if K <= 65536 else 4)
    assert after.indices.flags.writeable  # torch warns about arrays that are not
    assert after.sizes == before.sizes


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (17, 16)])
@pytest.mark.parametrize("f", [2, 16])
def test_round_trip_of_any_size(size: tuple[int, int], f: int) -> None:
    assert codes.read_plain_codes(codes.to_bytes(make(f=f, sizes=(size,)))).sizes == (size,)


def test_one_size_stands_for_all_images() -> None:
    one = make(sizes=((31, 77),) * 5)
    assert codes.read_codes_meta(codes.to_bytes(one))["sizes"] == [[31, 77]]
    assert codes.read_plain_codes(codes.to_bytes(one)) == one
    assert codes.read_plain_codes(codes.to_bytes(one)).sizes == one.sizes


def test_equality_sees_every_part() -> None:
    one = make()
    assert one == make()
    assert one != make(seed=1)
    for change in (
        {"model": "x"},
        {"fingerprint": "00000000"},
        {"channels": 1},
        {"sizes": ((32, 77),)},
        {"codebook_size": 1025},
    ):
        assert one != replace(one, **change)


def test_a_file_opens_with_numpy_alone(tmp_path: Path) -> None:
    before = make(sizes=((31, 77), (31, 77)))
    codes.write_codes(tmp_path / "a.npz", before)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive.files == ["indices", "meta"]
        np.testing.assert_array_equal(archive["indices"], before.indices)
        assert json.loads(str(archive["meta"]))["sizes"] == [[31, 77]]


def test_write_does_not_replace_a_file_unless_forced(tmp_path: Path) -> None:
    codes.write_codes(tmp_path / "a.npz", make())
    with pytest.raises(OutputError):
        codes.write_codes(tmp_path / "a.npz", make(seed=1))
    assert codes.read_plain_codes(tmp_path / "a.npz") == make()
    codes.write_codes(tmp_path / "a.npz", make(seed=1), force=True)
    assert codes.read_plain_codes(str(tmp_path / "a.npz")) == make(seed=1)


def test_bytes_depend_on_the_codes_only() -> None:
    one = make(sizes=((64, 48), (63, 41)))
    strided = replace(one, indices=np.asfortranarray(one.indices))
    assert codes.to_bytes(strided) == codes.to_bytes(one)
    with zipfile.ZipFile(io.BytesIO(codes.to_bytes(one))) as archive:
        assert {(i.date_time, i.create_system) for i in archive.infolist()} == {
            ((1980, 1, 1, 0, 0, 0), 3)
        }


def test_ten_bit_indices_do_not_take_sixteen_bits() -> None:
    one = make(1024, sizes=((1024, 1024),))
    assert len(codes.to_bytes(one)) < 0.8 * one.indices.nbytes


def test_bits_and_pixels() -> None:
    one = make(8, f=4, levels=2, sizes=((7, 12), (8, 9)))  # grid 2 x 3
    assert one.bits == 2 * 2 * 2 * 3 * 3
    assert one.pixels == 7 * 12 + 8 * 9
    assert len(one) == 2


GOLDEN_SMALL = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 2, 3), }"
    + b" " * 52
    + b"\n\x005j\x9f\xd4\t"
)
GOLDEN_META = (
    '{"channels":1,"codebook_size":1000,"downsample":8,"fingerprint":"12345678","format":1,'
    '"model":"F\\u00fc\\u00dfe 2","sizes":[[24,32],[17,25]]}'
)


@pytest.mark.parametrize(
    ("name", "expected"), [("small.npz", small_codes()), ("large.npz", large_codes())]
)
def test_golden_files_of_format_1(name: str, expected: Codes) -> None:
    """Files of every release stay readable; the members' bytes are the promise (zlib may
    pack them in another way).
    """
    assert codes.read_plain_codes(GOLDEN / name) == expected
    with (
        zipfile.ZipFile(GOLDEN / name) as golden,
        zipfile.ZipFile(io.BytesIO(codes.to_bytes(expected))) as fresh,
    ):
        assert fresh.namelist() == golden.namelist() == ["indices.npy", "meta.npy"]
        for member in golden.namelist():
            assert fresh.read(member) == golden.read(member)


def test_golden_bytes_written_out() -> None:
    with zipfile.ZipFile(GOLDEN / "small.npz") as archive:
        assert archive.read("indices.npy") == GOLDEN_SMALL
    with zipfile.ZipFile(GOLDEN / "large.npz") as archive:
        assert (
            archive.read("indices.npy")[128:]
            == np.array([i * 377 % 1000 for i in range(48)], "<u2").tobytes()
        )
        assert archive.read("meta.npy")[128:].decode("utf-32-le") == GOLDEN_META


def test_the_hand_made_file_is_valid() -> None:
    """The hostile files below differ from this one in one thing each."""
    assert codes.read_plain_codes(npz()) == Codes(
        np.zeros((1, 1, 2, 3), np.uint8), "m", "0badcafe", 256, 4, 3, ((7, 12),)
    )
    assert codes.read_plain_codes(npz(method=zipfile.ZIP_STORED)) == codes.read_plain_codes(npz())


@pytest.mark.parametrize("deflate", [True, False])
def test_indices_come_first_with_true_sizes_in_their_local_header(deflate: bool):
    """As a reader that goes from member to member sees it, cnpy for one, without the directory."""
    one = codes.Codes(
        np.arange(96, dtype=np.uint16).reshape(2, 4, 3, 4),
        "m",
        "01234567",
        1024,
        4,
        3,
        ((12, 16), (11, 15)),
    )
    data, at, members = codes.to_bytes(one, deflate=deflate), 0, {}
    while data[at : at + 4] == b"PK\x03\x04":
        header = struct.unpack("<IHHHHHIIIHH", data[at : at + 30])
        flags, method, crc, packed, size, name_length, extra = (
            header[i] for i in (2, 3, *range(6, 11))
        )
        assert not flags & 8  # no sizes after the data
        start = at + 30 + name_length + extra
        content = data[start : start + packed]
        content = zlib.decompress(content, -15) if method else content
        assert (len(content), zlib.crc32(content)) == (size, crc)
        members[data[at + 30 : at + 30 + name_length].decode()] = content
        at = start + packed
    assert list(members) == ["indices.npy", "meta.npy"]
    np.testing.assert_array_equal(np.load(io.BytesIO(members["indices.npy"])), one.indices)
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == list(members)


def test_unknown_keys_and_members_are_ignored() -> None:
    assert codes.read_plain_codes(
        npz(meta={**META, "note": None}, more=b"no array at all")
    ) == codes.read_plain_codes(npz())


def test_many_sizes_fit_in_meta() -> None:
    sizes = tuple((1 + i % 8, 8 - i % 8) for i in range(20000))
    one = make(256, f=8, sizes=sizes)
    assert len(text([list(size) for size in sizes])) > 1 << 16
    assert codes.read_plain_codes(codes.to_bytes(one)).sizes == sizes


def test_read_meta_leaves_the_indices_alone() -> None:
    one = make(sizes=((31, 77), (32, 75)))
    expected = {
        "format": 1,
        "model": "photo",
        "fingerprint": "0123abcd",
        "codebook_size": 1024,
        "downsample": 8,
        "channels": 3,
        "sizes": [[31, 77], [32, 75]],
        "form": "plain",
        "shape": (2, 1, 4, 10),
    }
    assert codes.read_codes_meta(codes.to_bytes(one)) == expected
    good = npz(
        npy("|u1", "(1, 1, 1, 50000)", bytes(49999) + b"\1"),
        {**META, "sizes": [[1, 200000]]},
        zipfile.ZIP_STORED,
    )
    assert codes.read_plain_codes(good).indices[0, 0, 0, -1] == 1
    data = good.replace(b"\0\1PK", b"\0\2PK")
    assert codes.read_codes_meta(data)["shape"] == (1, 1, 1, 50000)
    with pytest.raises(FormatError, match="damaged"):  # the checksum of the indices is wrong
        codes.read_plain_codes(data)


def edit(change: dict[str, Any]) -> bytes:
    return npz(meta={**META, **change})


def without(key: str) -> bytes:
    return npz(meta={k: v for k, v in META.items() if k != key})


def object_array() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, indices=np.array([{"a": 1}], dtype=object), meta=np.array(json.dumps(META)))
    return buffer.getvalue()


def twice() -> bytes:
    buffer = io.BytesIO(npz())
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("indices.npy", GOOD)
    return buffer.getvalue()


BAD_FILES = {
    "empty": (b"", "empty"),
    "png": (b"\x89PNG\r\n", "not a codes file"),
    "truncated": (npz()[:-30], "damaged or truncated"),
    "no indices": (npz(None), "not a codes file: the member indices is missing"),
    "no meta": (npz(meta=b"").replace(b"meta.npy", b"beta.npy"), "meta is missing"),
    "twice": (twice(), "twice"),
    "lzma": (npz(method=zipfile.ZIP_LZMA), "packed"),
    "object array": (object_array(), "never unpickles"),
    "not npy": (npz(b"hello"), "not an .npy"),
    "npy version 3": (npz(GOOD.replace(b"NUMPY\x01", b"NUMPY\x03")), "not an .npy"),
    "header": (npz(GOOD.replace(b"'shape'", b"'shope'")), "damaged header"),
    "header code": (npz(GOOD.replace(b"False", b"f(1) ")), "damaged header"),
    "dimensions": (npz(npy("|u1", "(1, 1, 2 3)", bytes(6))), "damaged header"),
    "one tebibyte": (npz(npy("|u1", "(1, 1, 1048576, 1048576)", bytes(6))), "cannot hold"),
    "overflow": (npz(npy("<u4", f"(1, 1, {2**62}, 4)", b"")), "cannot hold"),
    "too short": (npz(npy("|u1", "(1, 1, 2, 3)", bytes(5))), "cannot hold"),
    "too long": (npz(npy("|u1", "(1, 1, 2, 3)", bytes(7))), "cannot hold"),
    "signed": (npz(npy("|i1", "(1, 1, 2, 3)", bytes(6))), "type '|i1'"),
    "float": (npz(npy("<f4", "(1, 1, 2, 3)", bytes(24))), "type '<f4'"),
    "big-endian": (npz(npy(">u2", "(1, 1, 2, 3)", bytes(12))), "type '>u2'"),
    "too wide": (npz(npy("<u2", "(1, 1, 2, 3)", bytes(12))), "asks for uint8"),
    "string": (npz(npy("<U1", "(1, 1, 2, 3)", bytes(24))), "asks for uint8"),
    "Fortran order": (npz(npy("|u1", "(1, 1, 2, 3)", bytes(6), order="True")), "Fortran"),
    "rank 0": (npz(npy("|u1", "()", bytes(1))), "four axes"),
    "rank 3": (npz(npy("|u1", "(1, 2, 3)", bytes(6))), "four axes"),
    "no images": (npz(npy("|u1", "(0, 1, 2, 3)", b""), {**META, "sizes": []}), "empty"),
    "no columns": (npz(npy("|u1", "(1, 1, 2, 0)", b"")), "empty"),
    "index too large": (
        npz(npy("|u1", "(1, 1, 2, 3)", b"\0\0\0\0\0\7"), {**META, "codebook_size": 7}),
        "up to 7, the",
    ),
    "compact": (npz(None, stream=npy("|u1", "(1,)", b"a")), "truncated"),
    "meta is bytes": (npz(meta=npy("|u1", "(2,)", b"{}")), "meta is not a string"),
    "meta is a list": (
        npz(meta=npy("<U1", "(2,)", "{}".encode("utf-32-le"))),
        "meta is not a string",
    ),
    "meta is no UTF-32": (npz(meta=npy("<U1", "()", b"\xff\xff\xff\xff")), "metadata is damaged"),
    "meta is not JSON": (npz(meta="{"), "metadata is damaged"),
    "meta is a number": (npz(meta="1"), "metadata is damaged"),
    "meta is deep": (npz(meta="[" * 9000), "metadata is damaged"),
    "meta is not ASCII": (
        npz(meta=json.dumps({**META, "model": "ü"}, ensure_ascii=False)),
        "metadata is damaged",
    ),
    "NaN": (edit({"downsample": float("nan")}), "metadata is damaged"),
    "infinity": (edit({"note": -math.inf}), "metadata is damaged"),
    "9000 digits": (npz(meta=json.dumps(META).replace("256", "9" * 9000)), "metadata is damaged"),
    "4000 digits": (npz(meta=json.dumps(META).replace("256", "9" * 4000)), "codebook size"),
    "format 0": (edit({"format": 0}), "metadata is damaged"),
    "format true": (edit({"format": True}), "metadata is damaged"),
    "format 1.0": (edit({"format": 1.0}), "metadata is damaged"),
    "no format": (without("format"), "metadata is damaged"),
    "no model": (without("model"), "lacks 'model'"),
    "no sizes": (without("sizes"), "lacks 'sizes'"),
    "model 5": (edit({"model": 5}), "name"),
    "model empty": (edit({"model": ""}), "name"),
    "model with a terminal code": (edit({"model": "\x1b[2J"}), "name"),
    "model long": (edit({"model": "m" * 256}), "name"),
    "fingerprint": (edit({"fingerprint": "0BADCAFE"}), "fingerprint"),
    "fingerprint with newline": (edit({"fingerprint": "0badcafe\n"}), "fingerprint"),
    "K 1": (edit({"codebook_size": 1}), "codebook size"),
    "K 256.0": (edit({"codebook_size": 256.0}), "codebook size"),
    "downsample 0": (edit({"downsample": 0}), "downsample"),
    "channels 2": (edit({"channels": 2}), "channels"),
    "sizes null": (edit({"sizes": None}), "sizes"),
    "sizes flat": (edit({"sizes": [7, 12]}), "sizes"),
    "sizes of three": (edit({"sizes": [[7, 12, 3]]}), "pairs"),
    "sizes true": (edit({"sizes": [[True, 12]]}), "pairs"),
    "sizes negative": (edit({"sizes": [[-1, 12]]}), "pairs"),
    "sizes of two images": (edit({"sizes": [[7, 12], [7, 12]]}), "number of images"),
    "sizes swapped": (edit({"sizes": [[12, 7]]}), "12"),
    "sizes too small": (edit({"sizes": [[4, 12]]}), "grid of 3x2"),
    "sizes too large": (edit({"sizes": [[9, 12]]}), "grid of 3x2"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_give_one_clear_error(case: str, tmp_path: Path) -> None:
    data, message = BAD_FILES[case]
    path = tmp_path / "bad.npz"
    path.write_bytes(data)
    with pytest.raises(FormatError) as error:
        codes.read_plain_codes(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert error.value.fix
    assert (error.value.fix == "give a .npz that vqtok encode wrote") == (
        "not a codes file" in str(error.value)
    )
    assert len(str(error.value)) < 400 + len(str(path))


@pytest.mark.parametrize("indices", [None, npy("<f8", "(1,)", bytes(8)), GOOD])
def test_a_newer_format_asks_for_an_upgrade_whatever_it_holds(indices: bytes | None) -> None:
    for read in (codes.read_plain_codes, codes.read_codes_meta):
        with pytest.raises(FormatError, match="format 2, newer") as error:
            read(npz(indices, {"format": 2, "other": 1}))
        assert error.value.fix == "upgrade vqtok"


def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.npz"):
        with pytest.raises(InputError):
            codes.read_plain_codes(path)


def forge(data: bytes, size: int, packed: int | None) -> bytes:
    """The file with other sizes for its first member in the directory at its end, which
    is what zipfile believes.
    """
    entry = data.index(b"PK\1\2")
    packed_bytes = data[entry + 20 : entry + 24] if packed is None else packed.to_bytes(4, "little")
    return data[: entry + 20] + packed_bytes + size.to_bytes(4, "little") + data[entry + 28 :]


def peak(data: bytes) -> int:
    """Bytes that reading takes at most; the file must be refused."""
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            codes.read_plain_codes(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_is_bounded_by_what_the_file_can_hold() -> None:
    zeros = bytes(16 << 20)
    shape = f"(1, 1, 1, {len(zeros)})"
    assert peak(npz(npy("|u1", "(1, 1, 1048576, 1048576)", b""))) < 1 << 20
    for method, packed in ((zipfile.ZIP_DEFLATED, None), (zipfile.ZIP_STORED, 128 + len(zeros))):
        assert (
            peak(forge(npz(npy("|u1", shape, b""), method=method), 128 + len(zeros), packed))
            < 1 << 20
        )
    # 16 MiB of meta for one image, in a file of 16 kB
    meta = npy(f"<U{len(zeros) // 4}", "()", zeros)
    assert peak(npz(meta=meta)) < 1 << 20
    # more images allow more meta, but these cannot be in the file
    crowd = npy("|u1", f"({2**40}, 1, 1, 1)", b"")
    assert peak(npz(crowd, meta)) < 1 << 20


def test_a_stream_that_ends_early_gives_no_uninitialized_memory() -> None:
    """Header and directory agree on 600 bytes, the checksum is right for the 6 that are there."""
    short = npz(npy("|u1", "(1, 1, 2, 300)", bytes(6)), {**META, "sizes": [[7, 1200]]})
    with pytest.raises(FormatError, match="truncated"):
        codes.read_plain_codes(forge(short, 128 + 600, None))


BAD_CODES: dict[str, tuple[dict[str, Any], str]] = {
    "list": ({"indices": [[[[0]]]]}, "four axes"),
    "signed": ({"indices": np.zeros((1, 1, 4, 10), np.int64)}, "int64"),
    "list of sizes": ({"sizes": [(31, 77)]}, "sizes"),
    "lists as sizes": ({"sizes": ([31, 77],)}, "pairs"),
}


@pytest.mark.parametrize("case", BAD_CODES)
def test_codes_check_themselves(case: str) -> None:
    change, message = BAD_CODES[case]
    with pytest.raises(FormatError, match=message):
        replace(make(), **change)


def survives(data: bytes) -> None:
    """A damaged file gives valid codes or a FormatError, and nothing else."""
    for read in (codes.read_plain_codes, codes.read_codes_meta):
        try:
            read(data)
        except FormatError as error:
            assert error.fix  # noqa: PT017


@pytest.mark.slow
def test_damaged_files_never_raise_anything_else() -> None:
    chance = random.Random(0)
    for good in ((GOLDEN / "large.npz").read_bytes(), npz(method=zipfile.ZIP_STORED)):
        for cut in range(0, len(good), 7):
            survives(good[:cut])
        for _ in range(1500):
            bad = bytearray(good)
            for _ in range(chance.choice((1, 1, 2, 8))):
                bad[chance.randrange(len(bad))] = chance.choice((0, 255, chance.randrange(256)))
            survives(bytes(bad))


@pytest.mark.slow
def test_damage_under_a_right_checksum_never_raises_anything_else() -> None:
    chance = random.Random(1)
    for _ in range(1500):
        members = [bytearray(GOOD), bytearray(text(META))]
        bad = chance.choice(members)
        for _ in range(chance.choice((1, 1, 3))):
            bad[chance.randrange(len(bad))] = chance.choice(
                (0, 32, 39, 44, 48, 57, 79, 92, 255, chance.randrange(256))
            )
        survives(npz(bytes(members[0]), bytes(members[1]), zipfile.ZIP_STORED))


def test_strange_values_in_meta_never_raise_anything_else() -> None:
    strange = [
        None,
        True,
        -1,
        0,
        2**63,
        10**300,
        1.5,
        "",
        "x",
        [],
        [[]],
        {},
        [[None, 1]],
        [[1, 2], 3],
        ["ab"],
        [{}],
        "\ud800",
    ]
    for key in META:
        for value in strange:
            survives(edit({key: value}))
