"""The compact form: one member, `stream`, whose bytes say everything.

    1 byte    version: 1
    1 byte flags: 1 coded by a prior (else bit-packed), 2 images of one channel (else three), 4
    one size for all images
    4 bytes   fingerprint of the tokenizer
    4 bytes CRC-32, little-endian, of the indices as the plain form holds them, and then of
    the sizes below as varints
    4 bytes   fingerprint of the prior, where coded
    varints   K, f, L, n, bytes of the model's name
    bytes     the name, UTF-8
    varints   height and width of each image, or of all
    varints   bytes of each image's stream but the last, where coded
    the rest the streams (see `entropy`), or ceil(log2 K) bits an index, highest
    bit first, zeros at the end

Numbers are little-endian; a varint has seven bits in each byte, lowest first, and the high bit
in all but its last byte.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vqtok import entropy
from vqtok.codes.checks import COPY_AGAIN, require
from vqtok.codes.grids import Codes, GridDescription, check_sizes, index_dtype
from vqtok.errors import FormatError, ModelError

VERSION = 1
_CODED, _GRAY, _ONE_SIZE = 1, 2, 4
_IMAGES_MAX = 1 << 24


@dataclass(frozen=True, eq=False, repr=False)
class Compact(GridDescription):
    """A codes file in compact form; FormatError where the parts disagree.

    Whoever has the prior gets the indices from `streams`.
    """

    model: str  # as in Codes, and so on
    fingerprint: str
    codebook_size: int
    downsample: int
    channels: int
    sizes: tuple[tuple[int, int], ...]
    depth: int  # `levels`
    checksum: int  # see `checksum`
    prior: str | None  # fingerprint of the prior that coded them; None: bit-packed
    streams: tuple[bytes, ...]  # one an image; bit-packed: one for all

    def __post_init__(self) -> None:
        self._check_description()
        require(
            1 <= self.depth <= 1 << 16 and len(self.sizes) > 0,
            "the codes have no levels or no images",
        )
        require(
            all(H > 0 and W > 0 for H, W in self.sizes),
            "the sizes are not pairs of positive integers",
        )
        check_sizes(self.sizes, self.shape, self.downsample)
        count, size = math.prod(self.shape), sum(map(len, self.streams))
        if self.prior is None:
            require(
                size == -(-count * self.width // 8),
                f"{count} indices of {self.width} bits do not take {size} bytes",
            )
        else:
            require(
                self.codebook_size <= entropy.TOTAL // 2, "the codebook is too large for a prior"
            )
            # bits of the likeliest index there can be
            least = math.log2(entropy.TOTAL / (entropy.TOTAL - self.codebook_size + 1))
            require(
                count * least <= 8 * size,
                f"{count} indices are claimed, more than {size} bytes can hold",
            )
            # a word an index, and three for the state: the decoder makes lists of all words
            most = 2 * count + 6 * len(self.sizes)
            require(size <= most, f"the streams take {size} bytes, {count} indices at most {most}")

    @property
    def shape(self) -> tuple[int, ...]:
        H, W = self.sizes[0]
        return len(self.sizes), self.depth, -(-H // self.downsample), -(-W // self.downsample)

    @property
    def width(self) -> int:
        """Bits of a bit-packed index."""
        return (self.codebook_size - 1).bit_length()

    def with_indices(self, indices: np.ndarray) -> Codes:
        """The codes with these indices (n, L, h, w);
        FormatError unless they are the ones that were packed.
        """
        require(
            indices.shape == self.shape and checksum(indices, self.sizes) == self.checksum,
            "the codes do not match their checksum",
        )
        return Codes(
            indices,
            self.model,
            self.fingerprint,
            self.codebook_size,
            self.downsample,
            self.channels,
            self.sizes,
        )


class Coder(Protocol):
    """What decodes the streams of a prior: `codec.EntropyCoder`."""

    def unpack(self, packed: Compact) -> Codes: ...


def unpack(
    codes: Codes | Compact, find_coder: Callable[[Compact], Coder | None] | None = None
) -> Codes:
    """Gives the codes of either form in the plain one.

    `find_coder` is called where a prior coded them, and must be given for those.
    FormatError: damaged. ModelError: `find_coder` has returned None, or its coder does not fit.
    """
    if isinstance(codes, Codes):
        return codes
    if codes.prior is None:
        values = entropy.unpack_bits(b"".join(codes.streams), math.prod(codes.shape), codes.width)
        indices = values.astype(index_dtype(codes.codebook_size)).reshape(codes.shape)
        return codes.with_indices(indices)
    assert find_coder is not None, "codes that a prior coded need its coder"
    coder = find_coder(codes)
    if coder is None:
        raise ModelError(
            f"the codes need the entropy prior {codes.prior} of model {codes.model}, "
            "and the model here has none",
            "copy its entropy.safetensors into the model's folder",
        )
    return coder.unpack(codes)


def checksum(indices: np.ndarray, sizes: Sequence[tuple[int, int]]) -> int:
    """CRC-32 of indices, little-endian, in C order, and then of the size of each image, or of
    the one of all, as varints.
    """
    written = sizes[:1] if len(set(sizes)) == 1 else sizes
    start = zlib.crc32(np.asarray(indices, indices.dtype.newbyteorder("<"), order="C").tobytes())
    return zlib.crc32(_varints([side for size in written for side in size]), start)


def to_compact(codes: Codes, prior: str | None = None, streams: Sequence[bytes] = ()) -> Compact:
    """The compact form of codes: the streams that the prior of that fingerprint made, or bit-packed
    where these are not smaller.

    The file deflates what is bit-packed: a few bytes of an image of one color.
    """
    described = (
        codes.model,
        codes.fingerprint,
        codes.codebook_size,
        codes.downsample,
        codes.channels,
        codes.sizes,
        codes.levels,
    )
    packed = entropy.pack_bits(codes.indices, (codes.codebook_size - 1).bit_length())
    check_value = checksum(codes.indices, codes.sizes)
    smallest = min(len(packed), len(zlib.compress(packed)) - 6)  # a zip has no zlib header
    if prior is not None and sum(map(len, streams)) + 4 < smallest:
        return Compact(*described, check_value, prior, tuple(streams))
    return Compact(*described, check_value, None, (packed,))


def to_stream(codes: Compact) -> bytes:
    """The bytes of the member `stream`."""
    one = len(set(codes.sizes)) == 1
    flags = (codes.prior is not None) * _CODED | (codes.channels == 1) * _GRAY | one * _ONE_SIZE
    name = codes.model.encode()
    numbers = [codes.codebook_size, codes.downsample, codes.levels, len(codes), len(name)]
    sizes = [side for size in (codes.sizes[:1] if one else codes.sizes) for side in size]
    lengths = [len(stream) for stream in codes.streams[:-1]]
    parts = [
        bytes([VERSION, flags]),
        bytes.fromhex(codes.fingerprint),
        codes.checksum.to_bytes(4, "little"),
        bytes.fromhex(codes.prior or ""),
        _varints(numbers),
        name,
        _varints(sizes),
        _varints(lengths),
    ]
    return b"".join([*parts, *codes.streams])


def from_stream(data: bytes) -> Compact:
    """What `to_stream` wrote. FormatError where damaged, truncated, or of a newer version."""
    reader = _Reader(data)
    version, flags = reader.read(2)
    if version > VERSION:
        raise FormatError(
            f"the compact form is of version {version}, newer than this vqtok reads",
            "upgrade vqtok",
        )
    require(version == VERSION and flags < 8, "the stream is damaged")
    fingerprint, check_value = reader.read(4).hex(), int.from_bytes(reader.read(4), "little")
    prior = reader.read(4).hex() if flags & _CODED else None
    K, f, L, n, length = (reader.varint() for _ in range(5))
    require(
        0 < n <= min(_IMAGES_MAX, 8 * len(data)),
        f"{n} images are claimed, which the file cannot hold",
    )
    try:
        name = reader.read(length).decode()
    except UnicodeDecodeError:
        raise FormatError("the model's name is not a line of text", COPY_AGAIN) from None
    sizes = tuple((reader.varint(), reader.varint()) for _ in range(1 if flags & _ONE_SIZE else n))
    lengths = [reader.varint() for _ in range(n - 1)] if prior is not None else []
    streams = (*(reader.read(size) for size in lengths), reader.rest())
    return Compact(
        name,
        fingerprint,
        K,
        f,
        1 if flags & _GRAY else 3,
        sizes * (n // len(sizes)),
        L,
        check_value,
        prior,
        streams,
    )


def _varints(values: Sequence[int]) -> bytes:
    out = bytearray()
    for value in values:
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


class _Reader:
    """Takes parts off the front of bytes; FormatError past their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def read(self, count: int) -> bytes:
        require(self.at + count <= len(self.data), "the stream is truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        """At most 35 bits."""
        value = 0
        for shift in range(0, 35, 7):
            (byte,) = self.read(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise FormatError("the stream is damaged", COPY_AGAIN)

    def rest(self) -> bytes:
        return self.read(len(self.data) - self.at)
