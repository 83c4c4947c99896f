// The integer prior and the range coder (rANS) of compact files: streams to indices, equal on every
// machine. Sums are of integers in 32 bits; what is rounded is rounded down; the one division is
// of integers below 2^40 by integers below 2^24, in float64. docs/format.md says what is computed.

import { CODED_TOTAL, withIndices } from "./codes.mjs";
import { CodesError, allocate, require } from "./errors.mjs";

const REACH = 3; // rows up and columns to either side that a place sees
const LAG = 4; // times by which a level follows the one below
const EMBEDDING_STEP = 6;
const ACTIVATION_STEP = 5;
const READ_STEP = 4;
const LOGIT_STEP = 5;
const WEIGHT_LIMIT = 127;
const ACTIVATION_LIMIT = 255;
const STREAM_LIMIT = 4095;
const EXACT = 2 ** 24;
const LOW = 2 ** 32; // the coder's state is never below
const ROWS = 256; // places whose logits are in memory

/** [row, column] offsets: places before one that it sees, and the 3x3 around it. */
export const CAUSAL = [];
for (let di = -REACH; di <= 0; di++)
  for (let dj = -REACH; dj <= REACH; dj++)
    if (2 * di + dj < 0 && (di > -REACH || Math.abs(dj) < 3)) CAUSAL.push([di, dj]);
const AROUND = [-1, 0, 1].flatMap((di) => [-1, 0, 1].map((dj) => [di, dj]));
const PLACES = CAUSAL.length + AROUND.length;

const bitLength = (value) => 32 - Math.clz32(value);
const weightStep = (inputs) => (bitLength(Math.floor((WEIGHT_LIMIT ** 2 * inputs) / 64)) - 1) >> 1;

/** 2^(-drop / 32), for drops from 0 to the first that gives 0, of `top`, rounded down. */
function powers(K) {
  const scale = 1n << 64n;
  let root = 2n * scale; // of two, taken LOGIT_STEP times
  for (let i = 0; i < LOGIT_STEP; i++) root = squareRoot(root * scale);
  const top = Math.min(Math.floor(EXACT / K), 65536);
  const table = [];
  for (let drop = 0, value; value !== 0; drop++) {
    let exact = BigInt(top) << 64n;
    for (let i = 0; i < drop % 32; i++) exact = (exact * scale) / root;
    value = Number(exact >> BigInt(drop >> LOGIT_STEP) >> 64n);
    table.push(value);
  }
  return Int32Array.from(table);
}

function squareRoot(n) {
  let x = 1n << BigInt(Math.ceil(n.toString(2).length / 2));
  for (;;) {
    const next = (x + n / x) >> 1n;
    if (next >= x) return x;
    x = next;
  }
}

/** Sums of products in plain JavaScript; `kernels.mjs` has the same in WebAssembly. */
export class PlainArithmetic {
  /** Memory for integers: a typed array that `multiply` takes. */
  numbers(Type, length) {
    return allocate(Type, length);
  }

  /** Memory given back: all that `numbers` gave since `mark`. */
  reserve() {}
  mark() {}
  release() {}

  /** out (n, outputs) = x (n, inputs) times weight (outputs, inputs), transposed. */
  multiply(x, n, inputs, weight, outputs, out) {
    for (let row = 0; row < n; row++)
      for (let o = 0; o < outputs; o++) {
        let sum = 0;
        for (let i = 0, a = row * inputs, b = o * inputs; i < inputs; i++) sum += x[a + i] * weight[b + i];
        out[row * outputs + o] = sum;
      }
  }
}

const pad = (count, to) => Math.ceil(count / to) * to;

/** Decodes streams with the weights of an entropy.safetensors. */
export class IntegerPrior {
  /** `arithmetic` multiplies: PlainArithmetic, or Kernels. */
  constructor({ meta, tensors }, arithmetic = new PlainArithmetic()) {
    require(meta.kind === "entropy", "these weights are no integer prior");
    this.config = meta.config;
    this.arithmetic = arithmetic;
    this.power = powers(this.config.codebook_size);
    const { embedding: E, width: C, rank: R, blocks, levels, codebook_size: K } = this.config;
    this.tensors = tensors;
    this._checkSums();
    this.embedding = tensors.get("embedding").values; // (L, K, E)
    this.inputs = pad(PLACES * E, 8);
    const layer = (name, inputs, level = 0) => this._layer(name, inputs, level);
    // level l has number l of these matrices, or the last
    const matrices = Math.min(this.config.kinds ?? 1, levels);
    const shared = (name, inputs) => Array.from({ length: matrices }, (_, m) => layer(name, inputs, m));
    this.first = shared("first", PLACES * E);
    this.blocks = Array.from({ length: blocks }, (_, i) => ({
      rise: shared(`blocks.${i}.rise`, C),
      fall: shared(`blocks.${i}.fall`, C),
    }));
    this.features = Array.from({ length: levels }, (_, l) => layer("features", C, l));
    this.readout = Array.from({ length: levels }, (_, l) => layer("readout", R, l));
    this.shift = {
      first: weightStep(PLACES * E) + EMBEDDING_STEP - ACTIVATION_STEP,
      block: weightStep(C),
      features: weightStep(C) + ACTIVATION_STEP - READ_STEP,
      readout: weightStep(R) + READ_STEP - LOGIT_STEP,
    };
    this.K = K;
  }

  /** Refuses weights with which a sum could pass what float32, in which others compute, holds. */
  _checkSums() {
    const { tensors } = this;
    const { levels, codebook_size: K, embedding: E } = this.config;
    const embedding = tensors.get("embedding").values;
    const summed = new Int32Array(E);
    for (let l = 0; l < levels; l++)
      for (let e = 0; e < E; e++) {
        let most = 0;
        for (let k = 0; k < K; k++) most = Math.max(most, Math.abs(embedding[(l * K + k) * E + e]));
        summed[e] += most;
      }
    for (const [name, { shape, values }] of tensors) {
      if (!name.endsWith("weight")) continue;
      const inputs = shape[2];
      const limit = (i) => (name === "first.weight" ? summed[i % E]
        : name.startsWith("readout") ? WEIGHT_LIMIT : ACTIVATION_LIMIT);
      let most = 0;
      for (let at = 0; at < values.length; at += inputs) {
        let sum = 0;
        for (let i = 0; i < inputs; i++) sum += Math.abs(values[at + i]) * limit(i);
        most = Math.max(most, sum);
      }
      let bias = 0;
      for (const value of tensors.get(name.replace("weight", "bias")).values)
        bias = Math.max(bias, Math.abs(value));
      require(most + bias + 65536 < EXACT, "the weights of the prior are too large");
    }
  }

  /** A matrix (outputs, inputs) as 16-bit integers, padded to what `multiply` takes. */
  _layer(name, inputs, level) {
    const { shape, values } = this.tensors.get(`${name}.weight`);
    const outputs = shape[1];
    const [wide, high] = [pad(inputs, 8), pad(outputs, 4)];
    const weight = this.arithmetic.numbers(Int16Array, wide * high);
    weight.fill(0);
    for (let o = 0; o < outputs; o++)
      for (let i = 0; i < inputs; i++) weight[o * wide + i] = values[(level * outputs + o) * inputs + i];
    return { weight, wide, high, outputs, bias: this.tensors.get(`${name}.bias`).values };
  }

  /**
   * The indices of the n images of a stream, (n, L, h, w) in C order, and the number that it
   * carries; `progress` gets the part done, from 0 to 1. CodesError where the stream is damaged.
   */
  decode(stream, n, levels, h, w, progress = () => {}) {
    require(levels <= this.config.levels, `the codes have ${levels} levels, the prior ${this.config.levels}`);
    const mark = this.arithmetic.mark();
    try {
      return this._decode(new RangeDecoder(stream), n, levels, h, w, progress);
    } finally {
      this.arithmetic.release(mark);
    }
  }

  _decode(coder, images, levels, h, w, progress) {
    const { K } = this;
    const E = this.config.embedding;
    const contexts = Array.from({ length: images }, () => new Context(levels, h, w, E));
    const most = images * Math.min(h, Math.ceil(w / 2)) * levels;
    const room = this._room(most);
    const indices = allocate(Uint16Array, images * levels * h * w); // K is at most 32,768
    const numbers = () => new Int32Array(most);
    const place = { image: numbers(), level: numbers(), row: numbers(), column: numbers() };
    const times = 2 * (h - 1) + w + LAG * (levels - 1);
    for (let time = 0; time < times; time++) {
      const counts = [];
      let n = 0;
      for (let level = 0; level < levels; level++) {
        const first = time - LAG * level;
        const before = n;
        const top = Math.max(0, Math.floor((first - w + 2) / 2));
        const bottom = Math.min(h - 1, Math.floor(first / 2));
        for (let image = 0; image < images; image++)
          for (let row = top; row <= bottom; row++) {
            [place.image[n], place.level[n]] = [image, level];
            [place.row[n], place.column[n]] = [row, first - 2 * row];
            contexts[image].gather(level, row, first - 2 * row, room.x, n * this.inputs);
            n++;
          }
        counts.push(n - before);
      }
      if (n === 0) continue;
      this._stream(room, place.level, counts, n);
      for (let level = 0, start = 0; level < levels; start += counts[level], level++) {
        if (counts[level] === 0) continue;
        for (let i = 0; i < counts[level]; i++) {
          const at = start + i;
          const row = i % ROWS;
          if (row === 0) this._logits(room, at, Math.min(ROWS, counts[level] - i), level);
          const index = this._next(coder, room.logits, row * this.readout[level].high);
          const image = place.image[at];
          indices[((image * levels + level) * h + place.row[at]) * w + place.column[at]] = index;
          const from = (level * K + index) * E;
          contexts[image].add(level, place.row[at], place.column[at], this.embedding, from);
        }
      }
      progress((time + 1) / times);
    }
    return { indices, carried: coder.carried() };
  }

  _room(n) {
    const { arithmetic } = this;
    const C = this.first[0].high;
    const inner = Math.max(C, pad(this.config.width, 8));
    const { high, wide } = this.readout[0];
    const each = 2 * (this.inputs + inner) + 4 * Math.max(inner, this.features[0].high);
    const rows = Math.min(n, ROWS);
    // views of memory must not die while others are made
    arithmetic.reserve(n * each + rows * (2 * wide + 4 * high) + 4096);
    const numbers = (Type, length) => arithmetic.numbers(Type, length).fill(0);
    return {
      x: numbers(Int16Array, n * this.inputs),
      stream: new Int32Array(n * inner),
      active: numbers(Int16Array, n * inner),
      sums: numbers(Int32Array, n * Math.max(inner, this.features[0].high)),
      read: numbers(Int16Array, rows * wide),
      logits: numbers(Int32Array, rows * high),
      inner,
    };
  }

  /** What the residual blocks make of the inputs of n places: room.active, from 0 to 255. */
  _stream(room, level, counts, n) {
    const C = this.config.width;
    const { inner, stream, active, sums } = room;
    const multiply = (layers, x) => {
      const last = layers.length - 1;
      for (let m = 0, start = 0; m <= last; m++) {
        const count = m < last ? counts[m] ?? 0 : n - start;
        const { wide, high, weight } = layers[m];
        if (count > 0)
          this.arithmetic.multiply(
            x.subarray(start * wide), count, wide, weight, high, sums.subarray(start * high));
        start += count;
      }
    };
    multiply(this.first, room.x);
    const each = ([layer], shift, take) => { // the biases are those of all levels
      const halfUp = 1 << (shift - 1);
      for (let row = 0; row < n; row++)
        for (let c = 0, at = row * inner, from = row * layer.high, bias = level[row] * C; c < C; c++)
          take(at + c, (sums[from + c] + layer.bias[bias + c] + halfUp) >> shift);
    };
    each(this.first, this.shift.first, (at, value) => {
      stream[at] = clamp(value, -STREAM_LIMIT, STREAM_LIMIT);
      active[at] = clamp(stream[at], 0, ACTIVATION_LIMIT);
    });
    for (const { rise, fall } of this.blocks) {
      multiply(rise, active);
      each(rise, this.shift.block, (at, value) => {
        active[at] = clamp(value, 0, ACTIVATION_LIMIT);
      });
      multiply(fall, active);
      each(fall, this.shift.block, (at, value) => {
        stream[at] = clamp(stream[at] + value, -STREAM_LIMIT, STREAM_LIMIT);
        active[at] = clamp(stream[at], 0, ACTIVATION_LIMIT);
      });
    }
  }

  /** Logits of `count` places from `start` on, of one level: room.logits. */
  _logits(room, start, count, level) {
    const [features, readout] = [this.features[level], this.readout[level]];
    const { inner, active, sums, read } = room;
    this.arithmetic.multiply(
      active.subarray(start * inner), count, features.wide, features.weight, features.high, sums);
    const shift = this.shift.features;
    for (let row = 0; row < count; row++)
      for (let c = 0; c < features.outputs; c++)
        read[row * readout.wide + c] = clamp(
          (sums[row * features.high + c] + features.bias[level * features.outputs + c] + (1 << (shift - 1))) >> shift,
          -WEIGHT_LIMIT, WEIGHT_LIMIT);
    this.arithmetic.multiply(read, count, readout.wide, readout.weight, readout.high, room.logits);
    const last = this.shift.readout;
    const { logits } = room;
    for (let row = 0; row < count; row++)
      for (let k = 0, at = row * readout.high; k < this.K; k++, at++)
        logits[at] = (logits[at] + readout.bias[level * this.K + k] + (1 << (last - 1))) >> last;
  }

  /** The index that the coder has next, by the K logits from `at` on; they become their sums. */
  _next(coder, logits, at) {
    const { K, power } = this;
    const end = at + K;
    let most = logits[at];
    for (let i = at + 1; i < end; i++) if (logits[i] > most) most = logits[i];
    const last = power.length - 1;
    let total = 0;
    for (let i = at; i < end; i++) {
      const drop = most - logits[i];
      total += power[drop < last ? drop : last];
      logits[i] = total;
    }
    // first frequency of index k: each index has 1, and its share of the others
    const start = (k) => (k === 0 ? 0 : Math.floor((logits[at + k - 1] * (CODED_TOTAL - K)) / total) + k);
    const slot = coder.slot;
    let [low, high] = [0, K]; // start(low) <= slot < start(high)
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (start(middle) <= slot) low = middle;
      else high = middle;
    }
    const first = start(low);
    coder.take(first, start(low + 1) - first);
    return low;
  }
}

const clamp = (value, low, high) => (value < low ? low : value > high ? high : value);

/** Embeddings summed over the levels below, with zeros around the grid. */
class Context {
  constructor(levels, h, w, E) {
    this.E = E;
    this.width = w + 2 * REACH;
    this.level = (h + REACH + 1) * this.width * E;
    this.sums = allocate(Int16Array, (levels + 1) * this.level);
    const offset = ([di, dj]) => (di * this.width + dj) * E;
    this.causal = Int32Array.from(CAUSAL, (place) => this.level + offset(place));
    this.around = Int32Array.from(AROUND, offset);
  }

  _at(level, row, column) {
    return level * this.level + ((row + REACH) * this.width + column + REACH) * this.E;
  }

  /** Writes what the network sees at a place. */
  gather(level, row, column, to, at) {
    const center = this._at(level, row, column);
    for (const offsets of [this.causal, this.around])
      for (const offset of offsets)
        for (let e = 0, from = center + offset; e < this.E; e++) to[at++] = this.sums[from++];
  }

  /** Makes an index known, of which `table` has the embedding from `from` on. */
  add(level, row, column, table, from) {
    const below = this._at(level, row, column);
    for (let e = 0; e < this.E; e++)
      this.sums[below + this.level + e] = this.sums[below + e] + table[from + e];
  }
}

/** An asymmetric numeral system: a state of 48 bits, into which words of 16 bits go. */
class RangeDecoder {
  constructor(stream) {
    require(stream.length % 2 === 0 && stream.length >= 6, "the stream is truncated");
    this.stream = stream;
    this.at = 0;
    this.state = this._word() + this._word() * 2 ** 16 + this._word() * 2 ** 32;
    require(this.state >= LOW, "the stream is damaged");
  }

  _word() {
    if (this.at >= this.stream.length) throw new CodesError("the stream is truncated");
    this.at += 2;
    return this.stream[this.at - 2] + 256 * this.stream[this.at - 1];
  }

  get slot() {
    return this.state % CODED_TOTAL;
  }

  /** Takes the index whose frequencies go from `start` on, and hold the slot. */
  take(start, frequency) {
    const slot = this.state % CODED_TOTAL;
    this.state = frequency * ((this.state - slot) / CODED_TOTAL) + slot - start;
    if (this.state < LOW) this.state = this.state * CODED_TOTAL + this._word();
  }

  /** The number that the stream carries; CodesError unless all of it is used up. */
  carried() {
    const number = this.state - LOW;
    require(number < LOW && this.at === this.stream.length, "the stream is damaged");
    return number;
  }
}

/**
 * Codes with indices from what `readCodes` gives. `findPrior` gives the IntegerPrior with that
 * fingerprint, and is asked only where one coded them.
 */
export function decodeIndices(codes, findPrior, progress = () => {}) {
  return codes.streams ? fromStreams(codes, findPrior(codes), progress) : codes;
}

function fromStreams(codes, prior, progress) {
  const [n, levels, h, w] = codes.shape;
  require(prior.K === codes.codebookSize, "the prior has another number of codes");
  const Type = codes.codebookSize <= 256 ? Uint8Array : Uint16Array;
  const indices = allocate(Type, n * levels * h * w);
  const { streams, sharing } = codes;
  const carried = streams.map((stream, i) => {
    const images = Math.min(sharing, n - i * sharing);
    const tell = (part) => progress((i + part) / streams.length);
    const some = prior.decode(stream, images, levels, h, w, tell);
    indices.set(some.indices, i * sharing * levels * h * w);
    return some.carried;
  });
  return withIndices(codes, indices, carried);
}
