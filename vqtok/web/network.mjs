// The folded decoder (vqtok/networks/vqvae.py) in strips of rows: indices to pixels. Each layer
// computes the rows that the next ones need, so that a strip is equal to that part of the whole.

import { require } from "./codes.mjs";
import { floats } from "./weights.mjs";

const POINTS = 36; // of kernels.c
const TILES_AT_ONCE = 48;
const FLOATS_AT_ONCE = 2 ** 23; // of the finest layer: 32 MiB

const padded = (channels) => Math.ceil(channels / 8) * 8;

/** Channels and residual blocks of the decoder's stages, finest first. */
function stagesOf(config) {
  if (config.decoder_widths?.length)
    return config.decoder_widths.map((width, i) => [width, config.decoder_depths[i]]);
  const stages = Math.log2(config.downsample / config.fold) + 1;
  return Array.from({ length: stages }, (_, i) => [config.width * 2 ** i, config.decoder_blocks]);
}

export class Decoder {
  /** Of the weights that `vqtok web` writes (see vqtok/web/site.py). */
  constructor({ meta, tensors }, kernels) {
    const { config } = meta;
    this.meta = meta;
    this.config = config;
    this.kernels = kernels;
    this.pixels = config.quantizer === "pixels";
    this.codebooks = floats(tensors, "codebooks"); // (L, K, D)
    if (this.pixels) return;
    require(config.network === undefined || config.network === "folded",
      `this page has no ${config.network} network`, "use vqtok decode");
    this.depth = floats(tensors, "depth"); // (L, D)
    this._build(tensors);
  }

  _build(tensors) {
    const stages = stagesOf(this.config);
    let index = 0;
    const convolution = (name, inputs, outputs, place = (o) => o, wide = padded(outputs)) =>
      this._convolution(tensors, `decoder.${name}`, inputs, outputs, place, wide);
    const D = this.config.code_dim;
    this.layers = [{ kind: "convolution", ...convolution(index++, D, stages.at(-1)[0]) }];
    for (let stage = stages.length - 1; stage >= 0; stage--) {
      const [width, depth] = stages[stage];
      for (let i = 0; i < depth; i++, index++)
        this.layers.push({
          kind: "block",
          first: convolution(`${index}.first`, width, width),
          second: convolution(`${index}.second`, width, width),
        });
      if (stage) {
        this.layers.push(this._upsample(convolution, index, width, stages[stage - 1][0]));
        index += 2;
      }
    }
    this.scale = 2 ** (stages.length - 1); // rows of the finest stage for one of the grid
    this.fold = this.config.downsample / this.scale;
    const images = this.config.likelihood === "heteroscedastic" ? 2 : 1;
    this.outputs = images * this.config.channels * this.fold ** 2;
    this.last = convolution(index + 1, stages[0][0], this.outputs);
    this.layers.push({ kind: "last", ...this.last });
  }

  /** Its outputs in the order (2 rows, 2 columns, channels), as kernels.c takes them. */
  _upsample(convolution, index, width, finer) {
    const part = padded(finer);
    const place = (o) => (o % 4) * part + Math.floor(o / 4);
    const layer = { kind: "upsample", part, ...convolution(index, width, 4 * finer, place, 4 * part) };
    if (this.config.shortcut) {
      const repeat = Math.floor((4 * finer) / width);
      layer.shortcut = this.kernels.numbers(Int32Array, 4 * part).fill(-1);
      for (let o = 0; o < 4 * finer; o++) layer.shortcut[place(o)] = Math.floor(o / repeat);
    }
    return layer;
  }

  _convolution(tensors, name, inputs, outputs, place, wide) {
    const weight = floats(tensors, `${name}.weight`);
    require(weight.length === outputs * inputs * 9, `the weights are damaged: ${name}`);
    const bias = floats(tensors, `${name}.bias`);
    const { kernels } = this;
    const narrow = padded(inputs);
    kernels.reserve(4 * (POINTS * narrow * wide + wide + weight.length + outputs) + 4096);
    const transformed = kernels.numbers(Float32Array, POINTS * narrow * wide);
    const offset = kernels.numbers(Float32Array, wide).fill(0);
    const mark = kernels.mark();
    const from = kernels.numbers(Float32Array, weight.length);
    from.set(weight);
    const places = kernels.numbers(Int32Array, outputs);
    for (let o = 0; o < outputs; o++) {
      places[o] = place(o);
      offset[place(o)] = bias[o];
    }
    kernels.run.transform_kernels(from.pointer, outputs, inputs, places.pointer, narrow, wide,
      transformed.pointer);
    kernels.release(mark);
    return { inputs: narrow, outputs: wide, weight: transformed.pointer, bias: offset.pointer };
  }

  /** Strips of grid rows, [first, end], of an h x w grid: at least `parts` where there are rows. */
  strips(h, w, parts = 1) {
    const each = this.pixels ? w : this.scale ** 2 * w * Math.max(...stagesOf(this.config)
      .map(([width], i) => padded(width) / 4 ** i));
    const count = Math.min(h, Math.max(parts, Math.ceil(h / Math.max(1, Math.floor(FLOATS_AT_ONCE / each)))));
    return Array.from({ length: count }, (_, i) =>
      [Math.floor((i * h) / count), Math.floor(((i + 1) * h) / count)]);
  }

  /**
   * Pixels of a strip [first, end] of grid rows, RGBA: { rows, width, data }. indices is the
   * (L, h, w) of one image; the first `levels` are used.
   */
  decode(indices, [, h, w], levels, [first, end]) {
    require(levels <= this.config.levels, `the codes have ${levels} levels, the model ${this.config.levels}`);
    if (this.pixels) return this._palette(indices, h, w, levels, first, end);
    const mark = this.kernels.mark();
    try {
      return this._run(indices, h, w, levels, first, end);
    } finally {
      this.kernels.release(mark);
    }
  }

  _run(indices, h, w, levels, first, end) {
    const plan = this._plan(h, first * this.scale, end * this.scale);
    const [start] = plan;
    const size = Math.max(...plan.map(({ from, to, layer, scale }) =>
      Math.max((from[1] - from[0]) * layer.inputs, (to[1] - to[0]) * layer.outputs) * w * scale));
    const scratch = Math.max(...plan.map(({ layer }) => POINTS * TILES_AT_ONCE * (layer.inputs + layer.outputs)));
    require(size < 2 ** 28, "the image is too wide for this page",
      "use vqtok decode");
    this.kernels.reserve(4 * (3 * size + scratch) + 4096);
    let [x, a, b] = [0, 1, 2].map(() => this.kernels.numbers(Float32Array, size));
    const room = this.kernels.numbers(Float32Array, scratch);
    this._lookup(indices, h, w, levels, start.from, x);
    for (const step of plan) [x, a, b] = this._step(step, w * step.scale, x, a, b, room);
    return this._pixels(x, end - first, w);
  }

  /** Layers with the rows that each reads and gives, for rows [first, end) of the finest stage. */
  _plan(h, first, end) {
    const plan = [];
    let scale = this.scale;
    let to = [first, end];
    const grown = ([low, high], by) => [Math.max(0, low - by), Math.min(h * scale, high + by)];
    for (const layer of [...this.layers].reverse()) {
      if (layer.kind === "upsample") {
        scale /= 2;
        const half = [Math.floor(to[0] / 2), Math.ceil(to[1] / 2)];
        plan.at(-1).from = half.map((row) => 2 * row); // it gives two rows at once
        plan.push({ layer, scale, from: grown(half, 1), to: half });
      } else if (layer.kind === "block") {
        const inner = grown(to, 1);
        plan.push({ layer: { ...layer, inputs: layer.first.inputs, outputs: layer.first.outputs }, scale, from: grown(to, 2), inner, to });
      } else plan.push({ layer, scale, from: grown(to, 1), to });
      to = plan.at(-1).from;
    }
    return plan.reverse();
  }

  /** Runs a layer on x; what it gives comes first in the array returned. */
  _step({ layer, from, inner, to }, width, x, a, b, room) {
    const { run } = this.kernels;
    const convolve = (part, source, [low, high], target, [first, end], more = 0) =>
      run.convolve(source.pointer, low, high - low, width, part.inputs, part.weight, part.bias,
        part.outputs, more, target.pointer, first, end - first, room.pointer);
    const rows = (range) => range[1] - range[0];
    if (layer.kind === "convolution") {
      convolve(layer, x, from, a, to);
      return [a, x, b];
    }
    if (layer.kind === "block") {
      const { first, second } = layer;
      run.silu(x.pointer, a.pointer, rows(from) * width * first.inputs);
      convolve(first, a, from, b, inner);
      run.silu(b.pointer, b.pointer, rows(inner) * width * first.outputs);
      convolve(second, b, inner, a, to, x.pointer + 4 * (to[0] - from[0]) * width * second.outputs);
      return [a, x, b];
    }
    if (layer.kind === "upsample") {
      convolve(layer, x, from, a, to);
      const kept = x.pointer + 4 * (to[0] - from[0]) * width * layer.inputs;
      run.upsample(a.pointer, rows(to), width, layer.part, kept, layer.inputs,
        layer.shortcut?.pointer ?? 0, b.pointer);
      return [b, a, x];
    }
    run.silu(x.pointer, x.pointer, rows(from) * width * layer.inputs);
    convolve(layer, x, from, a, to);
    return [a, x, b];
  }

  /** Vectors of grid rows [first, end): the sum over levels, and the mark of their number. */
  _lookup(indices, h, w, levels, [first, end], to) {
    const { codebooks, depth } = this;
    const { codebook_size: K, code_dim: D } = this.config;
    const wide = padded(D);
    to.fill(0, 0, (end - first) * w * wide);
    for (let place = 0; place < (end - first) * w; place++) {
      const at = place * wide;
      for (let level = 0; level < levels; level++) {
        const entry = (level * K + indices[level * h * w + first * w + place]) * D;
        for (let d = 0; d < D; d++) to[at + d] += codebooks[entry + d];
      }
      for (let d = 0; d < D; d++) to[at + d] += depth[(levels - 1) * D + d];
    }
  }

  _pixels(x, gridRows, w) {
    const { fold, config: { channels, likelihood } } = this;
    const [rows, width, wide] = [gridRows * this.scale, w * this.scale, this.last.outputs];
    const data = new Uint8ClampedArray(rows * fold * width * fold * 4);
    const logits = likelihood === "bce";
    for (let row = 0; row < rows; row++)
      for (let dy = 0; dy < fold; dy++)
        for (let column = 0, to = (row * fold + dy) * width * fold * 4; column < width; column++)
          for (let dx = 0, from = (row * width + column) * wide + dy * fold; dx < fold; dx++, to += 4) {
            for (let c = 0; c < 3; c++) {
              const value = x[from + (channels === 1 ? 0 : c) * fold * fold + dx];
              // a clamped array rounds to the nearest
              data[to + c] = ((logits ? 2 / (1 + Math.exp(-value)) - 1 : value) + 1) * 127.5;
            }
            data[to + 3] = 255;
          }
    return { rows: rows * fold, width: width * fold, data };
  }

  /** Levels are gray values of channels here; where some are missing, their mean stands in. */
  _palette(indices, h, w, levels, first, end) {
    const { channels, codebook_size: K } = this.config;
    const data = new Uint8ClampedArray((end - first) * w * 4);
    for (let place = 0; place < (end - first) * w; place++) {
      const known = Array.from({ length: levels }, (_, level) =>
        this.codebooks[level * K + indices[level * h * w + first * w + place]]);
      const mean = known.reduce((a, b) => a + b) / levels;
      for (let c = 0; c < 3; c++) data[place * 4 + c] = known[channels === 1 ? 0 : c] ?? mean;
      data[place * 4 + 3] = 255;
    }
    return { rows: end - first, width: w, data };
  }
}
