// Writes plain codes files, as docs/format.md describes them: the members are those that
// vqtok/codes/io.py writes, byte by byte.

import { zip } from "./zip.mjs";

const NPY_TYPES = { 1: "|u1", 2: "<u2", 4: "<u4" };

/** The bytes of a plain codes file; `codes` is as `readCodes` gives them, with `indices`. */
export async function toBytes({ indices, shape, sizes, ...about }) {
  const same = sizes.every(([H, W]) => H === sizes[0][0] && W === sizes[0][1]);
  const meta = JSON.stringify({ // in the order of the alphabet
    channels: about.channels, codebook_size: about.codebookSize, downsample: about.downsample,
    fingerprint: about.fingerprint, format: 1, model: about.model, sizes: same ? sizes.slice(0, 1) : sizes,
  }).replace(/[\x7f-\uffff]/g, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const text = Uint32Array.from(meta, (letter) => letter.charCodeAt(0));
  return zip([
    ["indices.npy", npy(NPY_TYPES[indices.BYTES_PER_ELEMENT], shape, indices)],
    ["meta.npy", npy(`<U${meta.length}`, [], text)],
  ]);
}

/** An .npy of version 1.0; its header's length is a multiple of 64. */
function npy(type, shape, values) {
  const shown = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const header = `{'descr': '${type}', 'fortran_order': False, 'shape': (${shown}), }`;
  const length = Math.ceil((header.length + 11) / 64) * 64;
  const each = values.BYTES_PER_ELEMENT;
  const bytes = new Uint8Array(length + values.length * each);
  bytes.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, (length - 10) & 255, (length - 10) >> 8]);
  bytes.set(new TextEncoder().encode(`${header.padEnd(length - 11)}\n`), 10);
  const view = new DataView(bytes.buffer, length);
  const write = { 1: "setUint8", 2: "setUint16", 4: "setUint32" }[each];
  values.forEach((value, i) => view[write](i * each, value, true));
  return bytes;
}
