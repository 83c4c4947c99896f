// Reads weights files: safetensors with one JSON object in their metadata (docs/format.md).

import { CodesError, require } from "./errors.mjs";

const TYPES = {
  I8: Int8Array, U8: Uint8Array, I16: Int16Array, I32: Int32Array, F16: Uint16Array,
  F32: Float32Array,
};

/** { meta, tensors }: tensors by name, { type, shape, values }, where values of F16 are bits. */
export function readWeights(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = bytes.length < 8 ? Infinity : Number(view.getBigUint64(0, true));
  require(8 + length <= bytes.length, "the weights are truncated");
  let header;
  let meta;
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    meta = JSON.parse(header.__metadata__.vqtok);
  } catch {
    throw new CodesError("the weights are damaged");
  }
  const tensors = new Map();
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(header)
    .filter(([name]) => name !== "__metadata__")) {
    const Type = TYPES[dtype];
    require(Type && end <= bytes.length - 8 - length, `the weights are damaged: ${name}`);
    const part = new Uint8Array(bytes.subarray(8 + length + start, 8 + length + end)); // aligned
    tensors.set(name, { type: dtype, shape, values: new Type(part.buffer) });
  }
  return { meta, tensors };
}

/** A tensor as float32; one of int8 times its steps, where it has some. */
export function floats(tensors, name) {
  const { type, values } = tensors.get(name);
  const result = type === "F16" ? Float32Array.from(values, half) : Float32Array.from(values);
  const steps = tensors.get(`${name}.step`);
  if (steps) {
    const each = result.length / steps.values.length;
    steps.values.forEach((bits, o) => {
      const step = half(bits);
      for (let i = o * each; i < (o + 1) * each; i++) result[i] *= step;
    });
  }
  return result;
}

/** The number that 16 bits stand for (IEEE 754 binary16). */
export function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}
