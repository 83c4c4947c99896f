// Reads codes files, plain and compact, as docs/format.md describes them. Nothing in a file is
// trusted: sizes and headers are checked before memory is taken for what they claim.

import { CodesError, allocate, require } from "./errors.mjs";
import { crc32, members, unpack } from "./zip.mjs";

const PIXELS_MAX = 200e6;
const LOWEST_FIRST = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
export const CODED_TOTAL = 65536; // frequencies of all indices together
const SHARED_MAX = 8192; // indices in a stream of several images

const isInteger = (value, low, high) => Number.isInteger(value) && low <= value && value <= high;

// Arrays

const NPY = /^\s*\{\s*'descr':\s*'([^']{1,20})',\s*'fortran_order':\s*(True|False),\s*'shape':\s*\(([0-9, ]{0,100})\),?\s*\}\s*$/;

/** The bytes of the one member of that file name. */
async function whole(all, filename, name) {
  const found = all.filter((member) => member.name === filename);
  require(found.length < 2, `the member ${name} stands twice in the file`);
  require(found.length === 1, `not a codes file: the member ${name} is missing`,
    "give a .npz that vqtok encode wrote");
  return unpack(found[0], name);
}

/** An array of an .npz: its type, its shape, and the bytes of its values. */
async function array(all, name) {
  const bytes = await whole(all, `${name}.npy`, name);
  const magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0];
  require(bytes.length >= 10 && magic.every((byte, i) => bytes[i] === byte),
    `the member ${name} is not an .npy array`);
  const start = 10 + bytes[8] + 256 * bytes[9];
  const match = NPY.exec(new TextDecoder("latin1").decode(bytes.subarray(10, start)));
  require(match, `the member ${name} has a damaged header`);
  const [, type, fortran, shown] = match;
  require(!type.includes("O"), `the member ${name} holds Python objects, which nothing here unpacks`);
  require(/^(\|u1|<u[24]|<U[1-9][0-9]{0,9})$/.test(type), `the member ${name} is of type '${type}'`);
  require(fortran === "False", `the member ${name} is in Fortran order`);
  const shape = shown.split(",").filter((side) => side.trim()).map(Number);
  const each = type.startsWith("<U") ? 4 * Number(type.slice(2)) : Number(type[2]);
  require(start + shape.reduce((a, b) => a * b, 1) * each === bytes.length,
    `the member ${name} claims the shape (${shape}), which the file cannot hold`);
  return { type, shape, bytes: bytes.subarray(start) };
}

/** The smallest unsigned type that holds the indices of K codes. */
export const indexType = (K) => (K <= 256 ? Uint8Array : K <= 65536 ? Uint16Array : Uint32Array);

// Codes

/**
 * What a codes file holds: { model, fingerprint, codebookSize, downsample, channels, sizes, range,
 * shape: [n, L, h, w] } and either `indices`, a typed array in C order, or, where a prior coded
 * them, `prior` (its fingerprint, or the first digits of it), `streams`, `sharing` (how many images
 * share a stream) and `checksum` (the bytes of it that the file has; null: each stream carries it).
 */
export async function readCodes(bytes) {
  const all = members(bytes);
  const has = (name) => all.some((member) => member.name === name);
  if (!has("indices.npy") && has("c")) return fromStream(await whole(all, "c", "c"));
  require(!has("vqtok_tokens.npy"), "these are packed tokens, not codes of images",
    "vqtok unpack makes the array again that they were packed from");
  if (!has("indices.npy") && has("stream.npy")) {
    const stream = await array(all, "stream");
    require(stream.type === "|u1" && stream.shape.length === 1, "the stream is no row of bytes");
    return fromFirstForm(stream.bytes);
  }
  const indices = await array(all, "indices");
  return fromPlain(indices, parseMeta(await array(all, "meta")));
}

function parseMeta(member) {
  require(member.type.startsWith("<U") && member.shape.length === 0,
    "the metadata is no line of text");
  const view = new DataView(member.bytes.buffer, member.bytes.byteOffset, member.bytes.byteLength);
  const parts = [];
  for (let at = 0; at < member.bytes.length; at += 4) {
    const code = view.getUint32(at, true);
    require(code < 128, "the metadata is damaged");
    parts.push(String.fromCharCode(code));
  }
  let meta;
  try {
    meta = JSON.parse(parts.join("").replace(/\0+$/, ""));
  } catch {
    throw new CodesError("the metadata is damaged");
  }
  require(meta !== null && typeof meta === "object" && isInteger(meta.format, 1, Infinity),
    "the metadata is damaged");
  require(meta.format === 1, `written in format ${meta.format}, newer than this page reads`,
    "make the page again with a newer vqtok");
  return meta;
}

function fromPlain(member, meta) {
  const { type, shape, bytes } = member;
  const Type = { "|u1": Uint8Array, "<u2": Uint16Array, "<u4": Uint32Array }[type];
  require(Type && shape.length === 4, "the indices lack the four axes images, levels, rows, columns");
  require(bytes.length > 0, "the indices are empty");
  const sizes = Array.isArray(meta.sizes) && meta.sizes.length === 1
    ? Array(shape[0]).fill(meta.sizes[0]) : meta.sizes;
  const codes = {
    model: meta.model, fingerprint: meta.fingerprint, codebookSize: meta.codebook_size,
    downsample: meta.downsample, channels: meta.channels, sizes, range: meta.range ?? null, shape,
  };
  check(codes);
  require(Type === indexType(codes.codebookSize), `the indices are ${type}, the wrong type`);
  codes.indices = littleEndian(Type, bytes);
  checkIndices(codes);
  return codes;
}

/** Numbers of bytes, the lowest first: those bytes themselves where a machine holds numbers so. */
function littleEndian(Type, bytes) {
  const each = Type.BYTES_PER_ELEMENT;
  if (LOWEST_FIRST && bytes.byteOffset % each === 0)
    return new Type(bytes.buffer, bytes.byteOffset, bytes.length / each);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const read = { 1: "getUint8", 2: "getUint16", 4: "getUint32" }[each];
  const numbers = allocate(Type, bytes.length / each);
  for (let i = 0; i < numbers.length; i++) numbers[i] = view[read](i * each, true);
  return numbers;
}

function checkIndices(codes) {
  for (const index of codes.indices)
    require(index < codes.codebookSize,
      `the indices go up to ${index}, the codebook has ${codes.codebookSize} entries`);
}

function check(codes) {
  const { model, fingerprint, codebookSize, downsample, channels, sizes, range, shape } = codes;
  require(isInteger(codebookSize, 2, 2 ** 32), "the codebook size is no integer from 2 to 2^32");
  require(isInteger(downsample, 1, 1024), "downsample is no integer from 1 to 1024");
  require(channels === 1 || channels === 3, "channels is neither 1 nor 3");
  require(typeof model === "string" && [...model].length < 256 && /^(?:[^\p{C}\p{Z}]| )+$/u.test(model),
    "the model's name is not a line of text");
  require(typeof fingerprint === "string" && /^[0-9a-f]{8}$/.test(fingerprint),
    "the fingerprint is not eight hex digits");
  const isRange = (value) => Array.isArray(value) && value.length === 2
    && value.every((end) => Number.isFinite(end) && Math.abs(end) < 1e308) && value[0] < value[1];
  require(range === null || isRange(range), "the range is no pair LOW, HIGH");
  require(Array.isArray(sizes) && sizes.length === shape[0],
    "the sizes do not match the number of images");
  const pair = (size) => Array.isArray(size) && size.length === 2
    && size.every((side) => isInteger(side, 1, Number.MAX_SAFE_INTEGER));
  for (const size of new Set(sizes)) {
    require(pair(size), "the sizes are not pairs of positive integers");
    const [H, W] = size;
    require(H * W <= PIXELS_MAX, `an image of ${W}x${H} is claimed, larger than any that vqtok reads`);
    require(Math.ceil(H / downsample) === shape[2] && Math.ceil(W / downsample) === shape[3],
      `an image of ${W}x${H} does not have a grid of ${shape[3]}x${shape[2]} at downsample ${downsample}`);
  }
}

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  read(count) {
    require(this.at + count <= this.bytes.length, "the stream is truncated");
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }

  varint() {
    let value = 0;
    for (let i = 0; i < 5; i++) {
      const [byte] = this.read(1);
      value += (byte & 127) * 2 ** (7 * i); // up to 35 bits: more than a shift has
      if (byte < 128) return value;
    }
    throw new CodesError("the stream is damaged");
  }
}

const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const bitsOf = (K) => Math.max(1, Math.ceil(Math.log2(K))); // exact up to 2^32 (see the tests)

/** The compact form, from the bytes of the member `c`. */
export function fromStream(bytes) {
  const reader = new Reader(bytes);
  const [start] = reader.read(1);
  checkForm(start >> 5, 2, 3);
  const flags = start & 31;
  const [first, second] = reader.read(2);
  const codebookSize = first & 15 ? 2 ** (first & 15) : reader.varint();
  const downsample = first >> 4 ? 2 ** ((first >> 4) - 1) : reader.varint();
  const levels = second & 15 || reader.varint();
  const length = second >> 4 || reader.varint();
  const n = flags & 8 ? reader.varint() : 1;
  const shared = start >> 5 === 3;
  const sharing = shared ? reader.varint() : 1;
  require(!shared || sharing > 1, "the stream is damaged");
  const fingerprint = hex(reader.read(4));
  const prior = flags & 1 ? hex(reader.read(2)) : null;
  const checksum = flags & 1 ? null : reader.read(3);
  return described(reader, flags,
    { codebookSize, downsample, levels, n, sharing, length, fingerprint, prior, checksum });
}

/** The same, from the member `stream` of the first form. */
export function fromFirstForm(bytes) {
  const reader = new Reader(bytes);
  const [form, flags] = reader.read(2);
  checkForm(form, 1, 1);
  require(flags < 16, "the stream is damaged");
  const fingerprint = hex(reader.read(4));
  const checksum = reader.read(4);
  const prior = flags & 1 ? hex(reader.read(4)) : null;
  const [codebookSize, downsample, levels, n, length] = [1, 2, 3, 4, 5].map(() => reader.varint());
  const same = (flags & 7) | ((flags & 8) << 1); // where the second form has them
  return described(reader, same,
    { codebookSize, downsample, levels, n, sharing: 1, length, fingerprint, prior, checksum });
}

function checkForm(form, first, last) {
  require(form <= last, `the compact form is of version ${form}, newer than this page reads`,
    "make the page again with a newer vqtok");
  require(form >= first, "the stream is damaged");
}

/** The codes of which the rest is still to be read: name, sizes and streams. */
function described(reader, flags, head) {
  const { codebookSize, downsample, levels, n, sharing, length, fingerprint, prior, checksum } = head;
  const { bytes } = reader;
  require(0 < n && n <= Math.min(2 ** 24, 8 * bytes.length),
    `${n} images are claimed, which the file cannot hold`);
  let model;
  try {
    model = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(reader.read(length));
  } catch (error) {
    if (error instanceof CodesError) throw error;
    throw new CodesError("the model's name is not a line of text");
  }
  const range = flags & 16 ? float64s(reader.read(16)) : null;
  const size = () => [reader.varint(), reader.varint()];
  let sizes = flags & 4 ? [size()] : Array.from({ length: n }, size);
  const written = sizes.flat();
  if (flags & 4) sizes = Array(n).fill(sizes[0]);
  const others = prior === null ? 0 : Math.ceil(n / sharing) - 1;
  const lengths = Array.from({ length: others }, () => reader.varint());
  const streams = lengths.map((count) => reader.read(count));
  streams.push(reader.read(bytes.length - reader.at));
  require(isInteger(levels, 1, 65536), "the codes have no levels or no images");
  require(isInteger(downsample, 1, 1024), "downsample is no integer from 1 to 1024");
  const shape = [n, levels, ...sizes[0].map((side) => Math.ceil(side / downsample))];
  const codes = {
    model, fingerprint, codebookSize, downsample, channels: flags & 2 ? 1 : 3, sizes, range, shape,
    prior, sharing, checksum, written: varints(written),
  };
  check(codes);
  checkStreams(codes, streams);
  if (prior !== null) return { ...codes, streams };
  return withIndices(codes, unpackBits(streams[0], count(shape), bitsOf(codebookSize),
    indexType(codebookSize)));
}

const count = (shape) => shape.reduce((a, b) => a * b, 1);

function checkStreams({ prior, codebookSize, shape, sharing }, streams) {
  const total = count(shape);
  const each = Math.floor(SHARED_MAX / count(shape.slice(1)));
  require(sharing === 1 || (prior !== null && sharing <= Math.min(shape[0], each)),
    `${sharing} images are claimed to share a stream, more than do`);
  const size = streams.reduce((sum, stream) => sum + stream.length, 0);
  if (prior === null) {
    const bits = bitsOf(codebookSize);
    require(size === Math.ceil((total * bits) / 8),
      `${total} indices of ${bits} bits do not take ${size} bytes`);
    return;
  }
  require(codebookSize <= CODED_TOTAL / 2, "the codebook is too large for a prior");
  const least = Math.log2(CODED_TOTAL / (CODED_TOTAL - codebookSize + 1)); // bits of an index
  require(total * least <= 8 * size, `${total} indices are claimed, more than ${size} bytes can hold`);
  const most = 2 * total + 6 * streams.length;
  require(size <= most, `the streams take ${size} bytes, ${total} indices at most ${most}`);
}

function float64s(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Array.from({ length: bytes.length / 8 }, (_, i) => view.getFloat64(8 * i, true));
}

/**
 * The same codes with the indices in place of streams, compared with their checksum: that of the
 * file, or, where that is null, the number that each stream carries.
 */
export function withIndices(codes, indices, carried = []) {
  let bytes = new Uint8Array(indices.buffer, indices.byteOffset, indices.byteLength);
  if (indices.BYTES_PER_ELEMENT > 1 && !LOWEST_FIRST) {
    const each = indices.BYTES_PER_ELEMENT; // a machine that puts the highest byte first
    bytes = bytes.map((_, i) => bytes[i - (i % each) + each - 1 - (i % each)]);
  }
  const sum = crc32(codes.written, crc32(bytes));
  const agrees = codes.checksum === null
    ? carried.length === codes.streams.length && carried.every((number) => number === sum)
    : codes.checksum.every((byte, i) => byte === ((sum >>> (8 * i)) & 255))
      && carried.every((number) => number === 0);
  require(agrees, "the codes do not match their checksum");
  const { prior, streams, sharing, written, checksum, ...rest } = codes;
  const done = { ...rest, indices };
  checkIndices(done);
  return done;
}

function varints(values) {
  const bytes = [];
  for (let value of values) {
    for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
    bytes.push(value);
  }
  return Uint8Array.from(bytes);
}

function unpackBits(bytes, total, bits, Type) {
  const indices = allocate(Type, total);
  let [held, value, at] = [0, 0, 0]; // bits not yet given out, below 2^40
  for (let i = 0; i < total; i++) {
    for (; held < bits; held += 8) value = value * 256 + bytes[at++];
    held -= bits;
    const unit = 2 ** held;
    indices[i] = Math.floor(value / unit);
    value %= unit;
  }
  return indices;
}
