"""The compact form: one member, `c`, whose bytes say everything.

    1 byte    form in the high three bits: 2, or 3 where images share streams; flags: 1 coded by a
              prior (else bit-packed), 2 images of one channel (else three), 4 one size for all
              images, 8 several images, 16 a range
    1 byte    log2 K in the low four bits, 1 + log2 f in the high ones
    1 byte    L in the low four bits, bytes of the model's name in the high ones
    varints   of K, f, L and that length: each whose four bits are 0; then n where several; then, in
              form 3, how many images share a stream
    4 bytes   fingerprint of the tokenizer
    bytes     coded: 2, the first of the prior's fingerprint; bit-packed: 3, the lowest of the
              checksum, the lowest first
    bytes     the model's name, UTF-8
    16 bytes  with a range: the values that became 0 and 255, float64
    varints   height and width of each image, or of all
    varints   bytes of each stream but the last, where coded
    the rest  the streams (see `entropy`), each carrying the checksum; or ceil(log2 K) bits an
              index, highest bit first, zeros at the end

A varint has seven bits in each byte, lowest first, and the high bit in all but its last byte. The
member is the bytes themselves, no .npy array, whose header takes 64 bytes or more. The checksum,
of the indices and sizes, costs a coded file nothing: a stream's state has 32 bits to spare.

A stream costs 6 bytes and its length 1 or 2: a tenth of a small image's codes. So small images
share streams, of SHARED indices at most; one image is read together with those of its stream.

The first form had the member `stream`, an .npy array of bytes; vqtok reads it still:

    1 byte    form: 1
    1 byte    flags, as above; 8 a range, none for several
    4 bytes   fingerprint of the tokenizer
    4 bytes   checksum, lowest byte first
    4 bytes   fingerprint of the prior, where coded
    varints   K, f, L, n, bytes of the model's name
    and from the name on as above, but the streams carry nothing
"""

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vqtok import entropy
from vqtok.codes.checks import COPY_AGAIN, require
from vqtok.codes.grids import Codes, GridDescription, check_sizes, index_dtype
from vqtok.errors import FormatError, ModelError

FORM, SHARING = 2, 3  # in the high three bits of the first byte
SHARED, _SHARED_MAX = 1 << 12, 1 << 13  # indices in a stream of several images: as written, as read
_CODED, _GRAY, _ONE_SIZE, _SEVERAL, _RANGE = 1, 2, 4, 8, 16
_FIRST_FORM_RANGE = 8
_IMAGES_MAX = 1 << 24
_PRIOR_BYTES = 2  # of the prior's fingerprint
_CHECK_BYTES = 3  # of the checksum


@dataclass(frozen=True, eq=False, repr=False)
class Compact(GridDescription):
    """Holds a codes file in compact form; FormatError where the parts disagree.

    Whoever has the prior gets the indices from `streams`.
    """

    model: str  # as in Codes, and so on
    fingerprint: str
    codebook_size: int
    downsample: int
    channels: int
    sizes: tuple[tuple[int, int], ...]
    range: tuple[float, float] | None
    depth: int  # `levels`
    checksum: bytes | None  # as many as the file has, the lowest first; None: the streams carry it
    prior: str | None  # its fingerprint, or the first digits of it; None: bit-packed
    streams: tuple[bytes, ...]  # bit-packed: one for all
    sharing: int = 1  # images that share a stream; the last stream may have fewer

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
        if self.sharing > 1:
            most = _SHARED_MAX // math.prod(self.shape[1:])
            require(
                self.prior is not None and self.sharing <= min(len(self), most),
                f"{self.sharing} images are claimed to share a stream, more than do",
            )
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
            most = 2 * count + 6 * len(self.streams)
            require(size <= most, f"the streams take {size} bytes, {count} indices at most {most}")

    @property
    def shape(self) -> tuple[int, ...]:
        H, W = self.sizes[0]
        return len(self.sizes), self.depth, -(-H // self.downsample), -(-W // self.downsample)

    @property
    def width(self) -> int:
        """Bits of a bit-packed index."""
        return (self.codebook_size - 1).bit_length()

    def with_indices(self, indices: np.ndarray, carried: Sequence[int] = ()) -> Codes:
        """Returns the codes with these indices (n, L, h, w), of which the streams carry `carried`.

        FormatError unless they are the ones that were packed.
        """
        require(
            indices.shape == self.shape and self._agrees(checksum(indices, self.sizes), carried),
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
            self.range,
        )

    def _agrees(self, value: int, carried: Sequence[int]) -> bool:
        if self.checksum is None:
            return [*carried] == [value] * len(self.streams)
        return value.to_bytes(4, "little").startswith(self.checksum) and not any(carried)


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
    """Computes the CRC-32 of indices, little-endian, in C order, and then of the size of each
    image, or of the one of all, as varints.
    """
    written = sizes[:1] if len(set(sizes)) == 1 else sizes
    start = zlib.crc32(np.asarray(indices, indices.dtype.newbyteorder("<"), order="C").tobytes())
    return zlib.crc32(_varints([side for size in written for side in size]), start)


def images_sharing(shape: tuple[int, ...]) -> int:
    """Returns how many of the images of indices (n, L, h, w) are written into one stream."""
    return max(1, min(shape[0], SHARED // math.prod(shape[1:])))


def to_compact(
    codes: Codes,
    prior: str | None = None,
    code: Callable[[int], Sequence[bytes]] | None = None,
    sharing: int = 1,
) -> Compact:
    """Gives the compact form of codes: the streams that the prior of that fingerprint makes, or
    bit-packed where these are not smaller.

    `code` makes the streams, each of `sharing` images, of the checksum that they are to carry. The
    file deflates what is bit-packed: a few bytes of an image of one color.
    """
    described = (*codes.description, codes.levels)
    check_value = checksum(codes.indices, codes.sizes)
    packed = entropy.pack_bits(codes.indices, (codes.codebook_size - 1).bit_length())
    smallest = min(len(packed), len(zlib.compress(packed)) - 6)  # a zip has no zlib header
    if prior is not None and code is not None:
        streams = tuple(code(check_value))
        if sum(map(len, streams)) < smallest:
            return Compact(*described, None, prior, streams, sharing)  # type: ignore[arg-type]
    check_bytes = check_value.to_bytes(4, "little")[:_CHECK_BYTES]
    return Compact(*described, check_bytes, None, (packed,))  # type: ignore[arg-type]


def to_stream(codes: Compact) -> bytes:
    """Writes the bytes of the member `c`. FormatError for coded streams of the first form."""
    require(
        codes.prior is None or codes.checksum is None,
        "streams of the first compact form are not those of the second",
        "unpack the codes, and pack them again",
    )
    one, several, name = len(set(codes.sizes)) == 1, len(codes) > 1, codes.model.encode()
    K, f = codes.codebook_size, codes.downsample
    flags = (
        (codes.prior is not None) * _CODED
        | (codes.channels == 1) * _GRAY
        | one * _ONE_SIZE
        | several * _SEVERAL
        | (codes.range is not None) * _RANGE
    )
    short = [_exponent(K), 1 + _exponent(f) if f == 1 << _exponent(f) else 0, codes.levels]
    short = [number if number < 16 else 0 for number in (*short, len(name))]
    full = [K, f, codes.levels, len(name)]
    numbers = [number for number, bits in zip(full, short, strict=True) if bits == 0]
    sizes = [side for size in (codes.sizes[:1] if one else codes.sizes) for side in size]
    if several:
        numbers += [len(codes), codes.sharing] if codes.sharing > 1 else [len(codes)]
    form = FORM if codes.sharing == 1 else SHARING
    parts = [
        bytes([form << 5 | flags, short[0] | short[1] << 4, short[2] | short[3] << 4]),
        _varints(numbers),
        bytes.fromhex(codes.fingerprint),
        bytes.fromhex(codes.prior or "")[:_PRIOR_BYTES],
        (codes.checksum or b"")[:_CHECK_BYTES],
        name,
        b"" if codes.range is None else struct.pack("<2d", *codes.range),
        _varints(sizes),
        _varints([len(stream) for stream in codes.streams[:-1]]),
    ]
    return b"".join([*parts, *codes.streams])


def _exponent(value: int) -> int:
    """Returns log2 of a power of two above 1; 0 for other numbers."""
    return value.bit_length() - 1 if value & (value - 1) == 0 else 0


def from_stream(data: bytes) -> Compact:
    """Reads what `to_stream` wrote. FormatError where damaged, truncated, or of a newer form."""
    reader = _Reader(data)
    (start,) = reader.read(1)
    form, flags = start >> 5, start & 31
    _check_form(form, FORM, SHARING)
    first, second = reader.read(2)
    K, f = 1 << (first & 15), 1 << max(0, (first >> 4) - 1)
    K = K if K > 1 else reader.varint()
    f = f if first >> 4 else reader.varint()
    L, length = (bits or reader.varint() for bits in (second & 15, second >> 4))
    n = reader.varint() if flags & _SEVERAL else 1
    sharing = reader.varint() if form == SHARING else 1
    require(form == FORM or sharing > 1, "the stream is damaged")
    fingerprint = reader.read(4).hex()
    prior = reader.read(_PRIOR_BYTES).hex() if flags & _CODED else None
    check_value = None if flags & _CODED else reader.read(_CHECK_BYTES)
    head = _Head(flags, K, f, L, n, length, fingerprint, check_value, prior, sharing)
    return _described(reader, head)


def from_first_form(data: bytes) -> Compact:
    """Reads the member `stream` of the first form. Errors as `from_stream`."""
    reader = _Reader(data)
    form, flags = reader.read(2)
    _check_form(form, 1, 1)
    require(flags < 16, "the stream is damaged")
    if flags & _FIRST_FORM_RANGE:
        flags ^= _FIRST_FORM_RANGE | _RANGE
    fingerprint, check_value = reader.read(4).hex(), reader.read(4)
    prior = reader.read(4).hex() if flags & _CODED else None
    K, f, L, n, length = (reader.varint() for _ in range(5))
    return _described(reader, _Head(flags, K, f, L, n, length, fingerprint, check_value, prior))


def _check_form(form: int, first: int, last: int) -> None:
    if form > last:
        raise FormatError(
            f"the compact form is of version {form}, newer than this vqtok reads", "upgrade vqtok"
        )
    require(form >= first, "the stream is damaged")


@dataclass(frozen=True)
class _Head:
    """Holds what stands before the model's name in either form."""

    flags: int  # as in the second form
    K: int
    f: int
    L: int
    n: int
    name_bytes: int
    fingerprint: str
    checksum: bytes | None
    prior: str | None
    sharing: int = 1


def _described(reader: "_Reader", head: _Head) -> Compact:
    """Reads on after the head: name, range, sizes and streams."""
    flags, n = head.flags, head.n
    require(
        0 < n <= min(_IMAGES_MAX, 8 * len(reader.data)),
        f"{n} images are claimed, which the file cannot hold",
    )
    try:
        name = reader.read(head.name_bytes).decode()
    except UnicodeDecodeError:
        raise FormatError("the model's name is not a line of text", COPY_AGAIN) from None
    value_range = struct.unpack("<2d", reader.read(16)) if flags & _RANGE else None
    sizes = tuple((reader.varint(), reader.varint()) for _ in range(1 if flags & _ONE_SIZE else n))
    count = -(-n // head.sharing) if head.prior is not None else 1  # streams
    lengths = [reader.varint() for _ in range(count - 1)]
    streams = (*(reader.read(size) for size in lengths), reader.rest())
    return Compact(
        name,
        head.fingerprint,
        head.K,
        head.f,
        1 if flags & _GRAY else 3,
        sizes * (n // len(sizes)),
        value_range,
        head.L,
        head.checksum,
        head.prior,
        streams,
        head.sharing,
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
        """Reads a varint of at most 35 bits."""
        value = 0
        for shift in range(0, 35, 7):
            (byte,) = self.read(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise FormatError("the stream is damaged", COPY_AGAIN)

    def rest(self) -> bytes:
        return self.read(len(self.data) - self.at)
