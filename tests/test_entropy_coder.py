"""Codes to compact files and back by a prior: what comes out is what went in, or an error."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attacks.codes_files import grid, tiny_coder

from vqtok import codes, entropy
from vqtok.codec import EntropyCoder
from vqtok.codes import Codes, Compact
from vqtok.codes.compact import checksum, from_stream, to_stream
from vqtok.errors import FormatError

GOLDEN = Path(__file__).parent / "golden" / "format1"


@pytest.fixture(scope="module")
def coder() -> EntropyCoder:
    return tiny_coder()


def coded(coder: EntropyCoder, plain: Codes, sharing: int = 1) -> Compact:
    """Coded even where bit-packing is smaller."""
    streams = coder.prior.encode(plain.indices, checksum(plain.indices, plain.sizes), sharing)
    whole = replace(codes.to_compact(plain), checksum=None, prior=coder.fingerprint)
    return from_stream(to_stream(replace(whole, streams=tuple(streams), sharing=sharing)))


def some(n: int = 2) -> Codes:
    return grid(random.Random(0), 16, 2, 8, ((40, 40), (33, 39), (40, 35))[:n])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_coded_files_come_back(coder: EntropyCoder, n: int):
    for sharing in range(1, n + 1):
        packed = coded(coder, some(n), sharing)
        assert (packed.sharing, len(packed.streams)) == (sharing, -(-n // sharing))
        assert coder.unpack(packed) == some(n)


@pytest.mark.parametrize("places", [1, 5, 1024])
def test_images_that_share_a_stream_come_back(
    coder: EntropyCoder, places: int, monkeypatch: pytest.MonkeyPatch
):
    """Whatever goes through the network at once; each stream is coded as if it were alone."""
    plain = grid(random.Random(1), 16, 2, 8, ((17, 20),) * 7)
    monkeypatch.setattr("vqtok.integer_prior.inference.PLACES_AT_ONCE", places)
    for sharing in (2, 3, 7):
        packed = coded(coder, plain, sharing)
        assert coder.unpack(packed) == plain
        value = checksum(plain.indices, plain.sizes)
        first = coder.prior.encode(plain.indices[:sharing], value, sharing)
        assert packed.streams[:1] == tuple(first)
        with pytest.raises(FormatError, match="streams do not hold 7 images"):
            coder.unpack(replace(packed, streams=(*packed.streams, packed.streams[0])))


def test_small_images_share_streams(coder: EntropyCoder):
    """Of 4,096 indices each; large ones do not, and files of them are as they were."""
    for shape, sharing in (
        ((9, 1, 8, 8), 9),
        ((90, 1, 8, 8), 64),
        ((9, 2, 32, 32), 2),
        ((1, 1, 1, 1), 1),
    ):
        assert codes.images_sharing(shape) == sharing
    assert codes.images_sharing((3, 8, 32, 48)) == 1
    size = (2 * 8, 3 * 8)
    indices = np.full((100, 2, 2, 3), 3, np.uint8)
    plain = Codes(indices, "toy", coder.tokenizer, 16, 8, 3, (size,) * 100)
    packed = coder.pack(plain)
    assert (packed.prior, packed.sharing, len(packed.streams)) == (coder.fingerprint, 100, 1)
    assert to_stream(packed)[0] >> 5 == 3
    assert coder.unpack(from_stream(to_stream(packed))) == plain
    assert coder.pack(plain.first_levels(1)).sharing == 100


def wrong_last_index(monkeypatch: pytest.MonkeyPatch, coder: EntropyCoder) -> None:
    """The states are right, and so where the stream ends, but an index is not."""
    inner = entropy.Decoder.decode

    def decode(self: entropy.Decoder, *arguments) -> list[int]:
        return [index ^ (index == 5) for index in inner(self, *arguments)]

    monkeypatch.setattr(entropy.Decoder, "decode", decode)


def wrong_sum(monkeypatch: pytest.MonkeyPatch, coder: EntropyCoder) -> None:
    """One product is off by one step, as rounded ones are."""
    weights = coder.prior.readout.copy()
    weights[-1, :, -1] += 1
    monkeypatch.setattr(coder.prior, "readout", weights * np.linspace(1, 1.01, weights.shape[-1]))


@pytest.mark.parametrize("fault", [wrong_last_index, wrong_sum])
def test_a_decoder_that_goes_wrong_is_found(
    fault: Callable[[pytest.MonkeyPatch, EntropyCoder], None],
    monkeypatch: pytest.MonkeyPatch,
    coder: EntropyCoder,
):
    packed = coded(coder, some())
    fault(monkeypatch, coder)
    with pytest.raises(FormatError):
        coder.unpack(packed)


def test_images_that_change_places_are_found(coder: EntropyCoder):
    """Each stream carries the checksum of all."""
    packed = coded(coder, some())
    with pytest.raises(FormatError, match="checksum"):
        coder.unpack(replace(packed, streams=packed.streams[::-1]))


def test_an_image_that_is_left_out_is_found(coder: EntropyCoder):
    packed = coded(coder, some())
    with pytest.raises(FormatError, match="checksum"):
        coder.unpack(replace(packed, streams=packed.streams[:1], sizes=packed.sizes[:1]))


def test_a_size_that_keeps_the_grid_is_found(coder: EntropyCoder):
    packed = coded(coder, some())
    with pytest.raises(FormatError, match="checksum"):
        coder.unpack(replace(packed, sizes=((40, 39), packed.sizes[1])))


def test_many_images_share_the_fixed_bytes(coder: EntropyCoder):
    """Each costs its stream, of which 4 bytes are the checksum, and the number of its bytes."""
    plain = grid(random.Random(0), 16, 2, 8, ((40, 40),) * 100)
    one = replace(plain, indices=plain.indices[:1], sizes=plain.sizes[:1])
    streams = sum(map(len, coder.prior.encode(plain.indices)))
    size, size_of_one = (len(codes.to_bytes(coded(coder, each))) for each in (plain, one))
    assert size < streams + 101 * 2 + 120
    assert size < 100 * (size_of_one - 110)
    assert coder.unpack(coded(coder, plain)) == plain


BLOCKED = """
import json, sys
sys.modules["torch"] = None  # importing it fails
import vqtok.cli
for words in json.loads(sys.argv[1]):
    sys.argv = ["vqtok", *words]
    try:
        vqtok.cli.main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
"""


@pytest.mark.slow
def test_coding_runs_where_torch_cannot_be_imported(tmp_path: Path):
    """pack, unpack and truncate, of codes that a prior codes."""
    model, plain = GOLDEN / "run", GOLDEN / "codes" / "one-size.plain.npz"
    commands = (
        ("pack", str(plain), "-m", str(model), "-o", "a.npz"),
        ("unpack", "a.npz", "-m", str(model), "-o", "b.npz"),
        ("truncate", "a.npz", "-m", str(model), "--levels", "1", "-o", "c.npz"),
    )
    line = [sys.executable, "-c", BLOCKED, json.dumps(commands)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c.npz").exists()
    golden = codes.read_any_codes(GOLDEN / "compact3" / "one-size.npz")
    packed = codes.read_any_codes(tmp_path / "a.npz")
    assert isinstance(golden, Compact)
    assert isinstance(packed, Compact)
    assert to_stream(packed) == to_stream(golden)
    assert codes.read_plain_codes(tmp_path / "b.npz") == codes.read_plain_codes(plain)
