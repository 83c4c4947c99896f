// What decoder and encoder share: convolutions in the memory of the kernels, run on rows of an
// image. Each layer computes the rows that the next ones need, so that a strip is equal to that
// part of the whole, up to float rounding.

import { require } from "./errors.mjs";
import { floats } from "./weights.mjs";

const POINTS = 36; // of kernels.c
const TILES_AT_ONCE = 48;
const FLOATS_AT_ONCE = 2 ** 23; // of the finest layer: 32 MiB

export const padded = (channels) => Math.ceil(channels / 8) * 8;

export class Layers {
  constructor(tensors, kernels) {
    this.tensors = tensors;
    this.kernels = kernels;
  }

  /** A 3x3 convolution; its output o stands at place(o) of `wide` channels. */
  convolution(name, inputs, outputs, place = (o) => o, wide = padded(outputs)) {
    const weight = floats(this.tensors, `${name}.weight`);
    require(weight.length === outputs * inputs * 9, `the weights are damaged: ${name}`);
    return this.convolutionOf(weight, floats(this.tensors, `${name}.bias`), inputs, outputs, place, wide);
  }

  /** The same, of a weight (outputs, inputs, 3, 3). */
  convolutionOf(weight, bias, inputs, outputs, place = (o) => o, wide = padded(outputs)) {
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

  /** A residual block; the two convolutions are named `name`.first and `name`.second. */
  block(name, width) {
    const [first, second] = ["first", "second"].map((part) =>
      this.convolution(`${name}.${part}`, width, width));
    return { kind: "block", first, second, inputs: first.inputs, outputs: second.outputs };
  }

  /**
   * Room for what a plan's steps read and give, `width` columns of the grid wide: three arrays, and
   * the convolutions' own. Whoever asks releases it.
   */
  room(plan, width) {
    const size = Math.max(...plan.map(({ from, to, layer, scale }) =>
      Math.max((from[1] - from[0]) * layer.inputs, (to[1] - to[0]) * layer.outputs) * width * scale));
    const scratch = Math.max(...plan.map(({ layer }) => POINTS * TILES_AT_ONCE * (layer.inputs + layer.outputs)));
    require(size < 2 ** 28, "the image is too wide for this page", "use vqtok itself");
    this.kernels.reserve(4 * (3 * size + scratch) + 4096);
    const arrays = [0, 1, 2].map(() => this.kernels.numbers(Float32Array, size));
    return { arrays, scratch: this.kernels.numbers(Float32Array, scratch) };
  }

  /** Runs a layer on x, `width` columns; what it gives comes first in the array returned. */
  step({ layer, from, inner, to }, width, [x, a, b], scratch) {
    const { run } = this.kernels;
    const convolve = (part, source, [low, high], target, [first, end], more = 0) =>
      run.convolve(source.pointer, low, high - low, width, part.inputs, part.weight, part.bias,
        part.outputs, more, target.pointer, first, end - first, scratch.pointer);
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
    if (layer.kind === "downsample") {
      run.halve(x.pointer, rows(from), width, layer.inputs / 4, a.pointer);
      convolve(layer, a, from, b, to);
      return [b, x, a];
    }
    run.silu(x.pointer, x.pointer, rows(from) * width * layer.inputs);
    convolve(layer, x, from, a, to);
    return [a, x, b];
  }
}

/** Strips of grid rows, [first, end], of an h-row grid, of `each` floats a row: at least `parts`. */
export function stripsOf(h, each, parts) {
  const count = Math.min(h, Math.max(parts, Math.ceil(h / Math.max(1, Math.floor(FLOATS_AT_ONCE / each)))));
  return Array.from({ length: count }, (_, i) =>
    [Math.floor((i * h) / count), Math.floor(((i + 1) * h) / count)]);
}

/** Rows [low, high) and as many to either side as there are, of `rows`. */
export const grown = ([low, high], by, rows) => [Math.max(0, low - by), Math.min(rows, high + by)];
