// Zip archives, read and written.

import { CodesError, allocate, require } from "./errors.mjs";

const DEFLATE_RATIO = 1032; // no deflate stream expands more
const UNPACKED_MAX = 2 ** 29; // bytes of a member
const FIRST_DAY = 33; // 1980-01-01, as zip archives count days

const CRC = new Uint32Array(256).map((_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** CRC-32 of bytes; `start` is that of the bytes before them. */
export function crc32(bytes, start = 0) {
  let value = ~start;
  for (let i = 0; i < bytes.length; i++) value = CRC[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}

/** The members of a zip archive, from its central directory. */
export function members(bytes) {
  require(bytes.length > 0, "the file is empty");
  require(bytes[0] === 0x50 && bytes[1] === 0x4b, "not a codes file (.npz)",
    "give a .npz that vqtok encode wrote");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length - 22;
  for (; end >= 0 && end > bytes.length - 22 - 65536; end--)
    if (view.getUint32(end, true) === 0x06054b50) break;
  require(end >= 0 && view.getUint32(end, true) === 0x06054b50, "damaged or truncated");
  const start = end - view.getUint32(end + 12, true); // of the directory, which ends here
  const shift = start - view.getUint32(end + 16, true); // bytes before the archive
  require(start >= 0 && shift >= 0, "damaged or truncated");
  const text = (at, length) => {
    require(at + length <= bytes.length, "damaged or truncated");
    return new TextDecoder().decode(bytes.subarray(at, at + length));
  };
  const found = [];
  try {
    for (let at = start; at < end; ) {
      require(view.getUint32(at, true) === 0x02014b50, "damaged or truncated");
      require(found.length < 1024, "more members than a codes file has");
      const name = text(at + 46, view.getUint16(at + 28, true));
      const local = view.getUint32(at + 42, true) + shift;
      const named = view.getUint16(local + 26, true);
      const data = local + 30 + named + view.getUint16(local + 28, true);
      const packed = view.getUint32(at + 20, true);
      require(view.getUint32(local, true) === 0x04034b50 && text(local + 30, named) === name
        && bytes[at + 6] <= 63 && data + packed <= bytes.length, "damaged or truncated");
      found.push({
        name,
        flags: view.getUint16(at + 8, true),
        method: view.getUint16(at + 10, true),
        crc: view.getUint32(at + 16, true),
        size: view.getUint32(at + 24, true),
        data: bytes.subarray(data, data + packed),
      });
      at += 46 + view.getUint16(at + 28, true) + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
    }
  } catch (error) {
    if (error instanceof RangeError) throw new CodesError("damaged or truncated");
    throw error;
  }
  return found;
}

/** The bytes of a member, at most as many as the archive says, compared with its checksum. */
export async function unpack(member, name) {
  require(member.method === 0 || member.method === 8,
    `the member ${name} is packed in a way that this page does not read`);
  require(!(member.flags & 0x61), "damaged or truncated");
  const most = member.data.length * (member.method ? DEFLATE_RATIO : 1);
  require(member.size <= most,
    `the member ${name} claims ${member.size} bytes, which the file cannot hold`);
  require(member.size <= UNPACKED_MAX, `the member ${name} has ${member.size} bytes, too many for this page`,
    "use vqtok decode");
  let bytes = member.data;
  if (member.method === 8) {
    bytes = allocate(Uint8Array, member.size);
    let done = 0;
    const stream = new Blob([member.data]).stream().pipeThrough(
      new DecompressionStream("deflate-raw"));
    const reader = stream.getReader();
    try {
      for (;;) {
        const part = await reader.read();
        if (part.done) break;
        if (done + part.value.length > bytes.length) throw new TypeError("too long");
        bytes.set(part.value, done);
        done += part.value.length;
      }
    } catch {
      reader.cancel().catch(() => {});
      throw new CodesError("damaged or truncated");
    }
    require(done === bytes.length, `the member ${name} is truncated`);
  }
  require(bytes.length === member.size && crc32(bytes) === member.crc, "damaged or truncated");
  return bytes;
}

async function deflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** A zip archive of files, [name in ASCII, bytes], without dates. */
export async function zip(files) {
  const [parts, directory] = [[], []];
  let at = 0;
  for (const [name, bytes] of files) {
    const data = await deflated(bytes);
    const shared = [[2, 20], [2, 0], [2, 8], [2, 0], [2, FIRST_DAY], [4, crc32(bytes)], [4, data.length],
      [4, bytes.length], [2, name.length], [2, 0]];
    const letters = new TextEncoder().encode(name);
    const local = [numbers([[4, 0x04034b50], ...shared]), letters, data];
    directory.push(numbers([[4, 0x02014b50], [2, 20 + 3 * 256], ...shared, [2, 0], [2, 0], [2, 0],
      [4, 0o600 * 65536], [4, at]]), letters);
    parts.push(...local);
    at += local.reduce((sum, part) => sum + part.length, 0);
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = numbers([[4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, at],
    [2, 0]]);
  return new Uint8Array(await new Blob([...parts, ...directory, end]).arrayBuffer());
}

/** Numbers of 2 or 4 bytes, [bytes, value], the lowest byte first. */
const numbers = (list) => Uint8Array.from(
  list.flatMap(([bytes, value]) => Array.from({ length: bytes }, (_, i) => (value >>> (8 * i)) & 255)));
