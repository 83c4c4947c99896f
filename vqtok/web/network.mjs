// The folded decoder (vqtok/networks/vqvae.py) in strips of rows: indices to pixels.

import { require } from "./errors.mjs";
import { Layers, grown, padded, stripsOf } from "./layers.mjs";
import { floats } from "./weights.mjs";

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
    this.net = new Layers(tensors, kernels);
    this._build();
  }

  _build() {
    const { net } = this;
    const stages = stagesOf(this.config);
    let index = 0;
    const convolution = (name, ...rest) => net.convolution(`decoder.${name}`, ...rest);
    const D = this.config.code_dim;
    this.layers = [{ kind: "convolution", ...convolution(index++, D, stages.at(-1)[0]) }];
    for (let stage = stages.length - 1; stage >= 0; stage--) {
      const [width, depth] = stages[stage];
      for (let i = 0; i < depth; i++, index++) this.layers.push(net.block(`decoder.${index}`, width));
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

  /** Strips of grid rows, [first, end], of an h x w grid: at least `parts` where there are rows. */
  strips(h, w, parts = 1) {
    const each = this.pixels ? w : this.scale ** 2 * w * Math.max(...stagesOf(this.config)
      .map(([width], i) => padded(width) / 4 ** i));
    return stripsOf(h, each, parts);
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
    let { arrays, scratch } = this.net.room(plan, w);
    this._lookup(indices, h, w, levels, plan[0].from, arrays[0]);
    for (const step of plan) arrays = this.net.step(step, w * step.scale, arrays, scratch);
    return this._pixels(arrays[0], end - first, w);
  }

  /** Layers with the rows that each reads and gives, for rows [first, end) of the finest stage. */
  _plan(h, first, end) {
    const plan = [];
    let scale = this.scale;
    let to = [first, end];
    for (const layer of [...this.layers].reverse()) {
      if (layer.kind === "upsample") {
        scale /= 2;
        const half = [Math.floor(to[0] / 2), Math.ceil(to[1] / 2)];
        plan.at(-1).from = half.map((row) => 2 * row); // it gives two rows at once
        plan.push({ layer, scale, from: grown(half, 1, h * scale), to: half });
      } else if (layer.kind === "block")
        plan.push({ layer, scale, from: grown(to, 2, h * scale), inner: grown(to, 1, h * scale), to });
      else plan.push({ layer, scale, from: grown(to, 1, h * scale), to });
      to = plan.at(-1).from;
    }
    return plan.reverse();
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
