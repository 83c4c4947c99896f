// The folded encoder (vqtok/networks/vqvae.py) and the quantizers (vqtok/quantizers), in strips of
// rows: pixels to indices.

import { indexType } from "./codes.mjs";
import { require } from "./errors.mjs";
import { Layers, grown, padded, stripsOf } from "./layers.mjs";
import { floats } from "./weights.mjs";

const SCORES_AT_ONCE = 2 ** 18;
const ROWS_APART = 12; // grid rows of a strip at least: all around it is computed twice

/** Indices of an image's strips; the same ones on every machine that gives it the same pixels. */
export class Encoder {
  /** Of the weights that `vqtok web --encoder` writes, and the codebooks of the decoder's. */
  constructor({ meta: { sizes }, tensors }, { meta, tensors: shared }, kernels) {
    this.config = meta.config;
    this.codebooks = floats(shared, "codebooks"); // (L, K, D)
    this.pixels = this.config.quantizer === "pixels";
    if (this.pixels) return;
    this.kernels = kernels;
    this.net = new Layers(tensors, kernels);
    this._build(tensors);
    this.quantizer = tensors.has("inward.weight")
      ? new Scalars(this.config, sizes, tensors, this.codebooks, kernels)
      : new Nearest(this.config, this.codebooks, kernels);
  }

  _build(tensors) {
    const { net, config: { channels, code_dim: D, downsample, encoder_blocks: depth, fold, width } } = this;
    const stages = Math.log2(downsample / fold) + 1;
    this.scale = 2 ** (stages - 1); // rows of the finest stage for one of the grid
    this.layers = [{ kind: "convolution", ...net.convolution("encoder.1", channels * fold ** 2, width) }];
    let index = 2;
    for (let stage = 0; stage < stages; stage++) {
      const wide = width * 2 ** stage;
      if (stage) this.layers.push(this._downsample(tensors, index++, wide / 2, wide));
      for (let i = 0; i < depth; i++, index++) this.layers.push(net.block(`encoder.${index}`, wide));
    }
    const inputs = width * 2 ** (stages - 1);
    this.last = this._last(floats(tensors, `encoder.${index + 1}.weight`),
      floats(tensors, `encoder.${index + 1}.bias`), inputs, D);
  }

  /**
   * A 4x4 convolution of stride 2 as a 3x3 one of 2x2 places made channels: tap u, from 1 to 4,
   * reads place u mod 2 of pair floor(u / 2), from 0 to 2. The path without weights is a part of
   * its middle.
   */
  _downsample(tensors, index, inputs, outputs) {
    const weight = floats(tensors, `encoder.${index}.weight`); // (outputs, inputs, 4, 4)
    require(weight.length === outputs * inputs * 16, `the weights are damaged: encoder.${index}`);
    const part = padded(inputs);
    const wide = new Float32Array(outputs * 4 * part * 9);
    const at = (o, channel, a, b, row, column) =>
      ((o * 4 * part + (2 * a + b) * part + channel) * 3 + row) * 3 + column;
    for (let o = 0, from = 0; o < outputs; o++)
      for (let i = 0; i < inputs; i++)
        for (let u = 1; u < 5; u++)
          for (let v = 1; v < 5; v++, from++)
            wide[at(o, i, u % 2, v % 2, u >> 1, v >> 1)] = weight[from];
    if (this.config.shortcut) {
      const each = (4 * inputs) / outputs; // neighbors whose mean is taken
      for (let t = 0; t < 4 * inputs; t++)
        wide[at(Math.floor(t / each), t >> 2, (t >> 1) & 1, t & 1, 1, 1)] += 1 / each;
    }
    const bias = floats(tensors, `encoder.${index}.bias`);
    return { kind: "downsample", ...this.net.convolutionOf(wide, bias, 4 * part, outputs) };
  }

  /** The 1x1 convolution: a matrix (inputs, outputs), as kernels.c multiplies it. */
  _last(weight, bias, inputs, outputs) {
    require(weight.length === inputs * outputs, "the weights are damaged: the encoder's last layer");
    const [narrow, wide] = [padded(inputs), padded(outputs)];
    const matrix = this.kernels.numbers(Float32Array, narrow * wide).fill(0);
    for (let o = 0; o < outputs; o++)
      for (let i = 0; i < inputs; i++) matrix[i * wide + o] = weight[o * inputs + i];
    const offset = this.kernels.numbers(Float32Array, wide).fill(0);
    offset.set(bias);
    return { kind: "last", inputs: narrow, outputs: wide, weight: matrix.pointer, bias: offset.pointer };
  }

  /**
   * Strips of an H x W image: { strip: [first, end], rows: [top, bottom] }, grid rows and the rows
   * of pixels that they need. How many does not depend on the machine: its rounding would.
   */
  strips(H, W) {
    const f = this.config.downsample;
    const [h, w] = [Math.ceil(H / f), Math.ceil(W / f)];
    if (this.pixels) return stripsOf(h, w * 64, 1).map((strip) => ({ strip, rows: strip }));
    const finest = this.scale ** 2 * w * Math.max(padded(this.config.width), this.layers[0].inputs);
    const parts = Math.max(1, Math.min(4, Math.floor(h / ROWS_APART)));
    return stripsOf(h, finest, parts).map((strip) => {
      const [{ from }] = this._plan(h, strip);
      const rows = from.map((row) => row * this.config.fold);
      return { strip, rows: [rows[0], Math.min(H, rows[1])] };
    });
  }

  /**
   * Indices (L, rows, w) of a strip. data is RGBA of the rows [top, bottom) of an H x W image;
   * what is missing to fill the grid repeats its edge.
   */
  encode(data, [H, W], strip, [top, bottom]) {
    require(data.length === 4 * W * (bottom - top), "the pixels are not those of the strip");
    if (this.pixels) return this._grayLevels(data);
    const mark = this.kernels.mark();
    try {
      return this._run(data, H, W, strip, top);
    } finally {
      this.kernels.release(mark);
    }
  }

  _run(data, H, W, strip, top) {
    const { downsample: f, levels, codebook_size: K } = this.config;
    const [h, w] = [Math.ceil(H / f), Math.ceil(W / f)];
    const plan = this._plan(h, strip);
    let { arrays, scratch } = this.net.room([...plan, { ...plan.at(-1), layer: this.last }], w);
    this._fold(data, W, top, plan[0].from, w * this.scale, arrays[0]);
    for (const step of plan) arrays = this.net.step(step, w * step.scale, arrays, scratch);
    const { run } = this.kernels;
    const [x, a] = arrays;
    const n = (strip[1] - strip[0]) * w;
    run.silu(x.pointer, x.pointer, n * this.last.inputs);
    const z = this.kernels.numbers(Float32Array, (n + 6) * this.last.outputs);
    const from = this.kernels.numbers(Float32Array, (n + 6) * this.last.inputs);
    from.set(this.kernels.again(x, Float32Array, n * this.last.inputs));
    run.multiply(from.pointer, n, this.last.inputs, this.last.weight, this.last.bias, this.last.outputs, z.pointer);
    const indices = new (indexType(K))(levels * n);
    this.quantizer.write(z, n, this.last.outputs, indices);
    return indices;
  }

  /** Layers with the rows that each reads and gives, for grid rows [first, end). */
  _plan(h, strip) {
    const plan = [];
    let scale = 1;
    let to = strip;
    for (const layer of [...this.layers].reverse()) {
      if (layer.kind === "downsample") {
        const from = grown(to, 1, h * scale);
        plan.push({ layer, scale, from, to });
        to = from.map((row) => 2 * row);
        scale *= 2;
        continue;
      }
      if (layer.kind === "block")
        plan.push({ layer, scale, from: grown(to, 2, h * scale), inner: grown(to, 1, h * scale), to });
      else plan.push({ layer, scale, from: grown(to, 1, h * scale), to });
      to = plan.at(-1).from;
    }
    return plan.reverse();
  }

  /** Pixels in [-1, 1] to rows [first, end) of places, each with its fold x fold pixels. */
  _fold(data, W, top, [first, end], width, to) {
    const { channels, fold } = this.config;
    const wide = padded(channels * fold ** 2);
    to.fill(0, 0, (end - first) * width * wide);
    const held = data.length / (4 * W);
    for (let row = first; row < end; row++)
      for (let dy = 0; dy < fold; dy++) {
        const line = Math.min(held - 1, row * fold + dy - top) * W;
        for (let column = 0; column < width; column++)
          for (let dx = 0; dx < fold; dx++) {
            const from = 4 * (line + Math.min(W - 1, column * fold + dx));
            const at = ((row - first) * width + column) * wide + dy * fold + dx;
            if (channels === 1) to[at] = scaled(gray(data, from));
            else for (let c = 0; c < 3; c++) to[at + c * fold ** 2] = scaled(data[from + c]);
          }
      }
  }

  _grayLevels(data) {
    const { channels, codebook_size: K } = this.config;
    const n = data.length / 4;
    const indices = new (indexType(K))(channels * n);
    const level = (value) => Math.round((value * (K - 1)) / 255);
    for (let i = 0; i < n; i++)
      if (channels === 1) indices[i] = level(gray(data, 4 * i));
      else for (let c = 0; c < 3; c++) indices[c * n + i] = level(data[4 * i + c]);
    return indices;
  }
}

/** The indices (L, h, w) of an image from those of its strips, { strip, indices }. */
export function joinStrips(parts, levels, h, w) {
  const whole = new parts[0].indices.constructor(levels * h * w);
  for (const { strip: [first, end], indices } of parts)
    for (let level = 0, n = (end - first) * w; level < levels; level++)
      whole.set(indices.subarray(level * n, (level + 1) * n), (level * h + first) * w);
  return whole;
}

const { fround } = Math;
const scaled = (byte) => fround(fround(byte / 127.5) - 1);

/** The gray level of an RGB pixel (ITU-R BT.601, as Pillow computes it). */
const gray = (data, at) => (data[at] * 19595 + data[at + 1] * 38470 + data[at + 2] * 7471 + 0x8000) >> 16;

/** Takes the entry (level, index) from a vector: what the next level quantizes. */
function subtract(z, at, codebooks, entry, D) {
  for (let d = 0; d < D; d++) z[at + d] -= codebooks[entry + d];
}

/** The nearest entry of a codebook at each level, or that of the largest inner product. */
class Nearest {
  constructor(config, codebooks, kernels) {
    this.config = config;
    this.codebooks = codebooks;
    this.kernels = kernels;
    const { levels, codebook_size: K, code_dim: D, distance } = config;
    this.outputs = padded(K);
    const inputs = padded(D);
    kernels.reserve(levels * 4 * (inputs + 1) * this.outputs + 4096 * levels);
    this.levels = Array.from({ length: levels }, (_, level) => {
      const weight = kernels.numbers(Float32Array, inputs * this.outputs).fill(0);
      const bias = kernels.numbers(Float32Array, this.outputs).fill(0);
      for (let k = 0; k < K; k++) {
        let square = 0;
        for (let d = 0; d < D; d++) {
          const value = codebooks[(level * K + k) * D + d];
          weight[d * this.outputs + k] = 2 * value;
          square += value * value;
        }
        bias[k] = distance === "dot" ? 0 : -square;
      }
      return { weight: weight.pointer, bias: bias.pointer };
    });
  }

  /** Indices (L, n) of n vectors of `wide` numbers, which are changed. */
  write(z, n, wide, indices) {
    const { codebook_size: K, code_dim: D, levels, normalize } = this.config;
    const most = Math.max(6, Math.floor(SCORES_AT_ONCE / this.outputs / 6) * 6);
    this.kernels.reserve(4 * most * (this.outputs + wide) + 4096);
    z = this.kernels.again(z, Float32Array, n * wide); // where memory has grown
    const scores = this.kernels.numbers(Float32Array, most * this.outputs);
    const part = this.kernels.numbers(Float32Array, most * wide);
    for (let level = 0; level < levels; level++)
      for (let start = 0; start < n; start += most) {
        const count = Math.min(most, n - start);
        part.set(z.subarray(start * wide, (start + count) * wide));
        if (normalize) for (let i = 0; i < count; i++) unit(part, i * wide, D);
        this.kernels.run.multiply(part.pointer, count, wide, this.levels[level].weight,
          this.levels[level].bias, this.outputs, scores.pointer);
        for (let i = 0; i < count; i++) {
          const index = largest(scores, i * this.outputs, K);
          indices[level * n + start + i] = index;
          subtract(z, (start + i) * wide, this.codebooks, (level * K + index) * D, D);
        }
      }
  }
}

function largest(values, at, count) {
  let found = 0;
  for (let k = 1; k < count; k++) if (values[at + k] > values[at + found]) found = k;
  return found;
}

function unit(values, at, D) {
  let square = 0;
  for (let d = 0; d < D; d++) square += values[at + d] ** 2;
  const length = Math.max(Math.sqrt(square), 1e-12);
  for (let d = 0; d < D; d++) values[at + d] /= length;
}

/** Numbers of a linear layer, each rounded to one of a few values (fsq) or to its sign (lfq). */
class Scalars {
  /** `sizes`: how many values each number has. */
  constructor(config, sizes, tensors, codebooks, kernels) {
    this.config = config;
    this.sizes = sizes;
    this.codebooks = codebooks;
    this.kernels = kernels;
    this.weight = floats(tensors, "inward.weight"); // (L, d, D)
    this.bias = floats(tensors, "inward.bias"); // (L, d)
  }

  write(z, n, wide, indices) {
    const { codebook_size: K, code_dim: D, levels } = this.config;
    z = this.kernels.again(z, Float32Array, n * wide);
    for (let level = 0; level < levels; level++)
      for (let i = 0; i < n; i++) {
        const index = this._index(z, i * wide, level);
        indices[level * n + i] = index;
        subtract(z, i * wide, this.codebooks, (level * K + index) * D, D);
      }
  }

  _index(z, at, level) {
    const { sizes, config: { code_dim: D } } = this;
    let [index, unit] = [0, 1];
    sizes.forEach((size, i) => {
      const row = level * sizes.length + i;
      let sum = this.bias[row];
      for (let d = 0; d < D; d++) sum += this.weight[row * D + d] * z[at + d];
      index += unit * this._digit(fround(sum), size);
      unit *= size;
    });
    return index;
  }

  _digit(value, size) {
    if (this.config.quantizer === "lfq") return value > 0 ? 1 : 0;
    const reach = ((size - 1) / 2) * (1 - 1e-3);
    const offset = size % 2 ? 0 : 0.5;
    const bounded = reach * Math.tanh(value + Math.atanh(offset / reach)) - offset;
    return Math.round(bounded) + Math.floor(size / 2);
  }
}
