// What a worker of the page does: files to indices, and strips of grid rows to pixels and back.

import { readCodes } from "./codes.mjs";
import { Encoder, joinStrips } from "./encoder.mjs";
import { CodesError, require } from "./errors.mjs";
import { Kernels } from "./kernels.mjs";
import { Decoder } from "./network.mjs";
import { IntegerPrior, decodeIndices } from "./prior.mjs";
import { readWeights } from "./weights.mjs";
import { toBytes } from "./write.mjs";

const INDICES_MAX = 2 ** 28;

/** A model's decoder, prior and encoder, each built when it is first asked for. */
export class Model {
  /** Bytes of kernels.wasm, of the model, and of its prior and encoder (null where it has none). */
  constructor(kernels, model, prior, encoder = null) {
    this.weights = readWeights(model);
    this.meta = this.weights.meta;
    this.module = new WebAssembly.Module(kernels);
    this.bytes = prior;
    this.encoderBytes = encoder;
  }

  get encoder() {
    this._encoder ??= new Encoder(readWeights(this.encoderBytes), this.weights, new Kernels(this.module));
    return this._encoder;
  }

  get decoder() {
    this._decoder ??= new Decoder(this.weights, new Kernels(this.module));
    return this._decoder;
  }

  get prior() {
    this._prior ??= new IntegerPrior(readWeights(this.bytes), new Kernels(this.module));
    return this._prior;
  }

  /** Codes with their indices, of the bytes of a file; CodesError unless this model made them. */
  async read(bytes, progress) {
    const codes = await readCodes(bytes);
    this._check(codes);
    return decodeIndices(codes, () => this._priorOf(codes), progress);
  }

  _check({ model, fingerprint, codebookSize, downsample, channels, shape }) {
    const { config, name, fingerprint: mine } = this.meta;
    if (fingerprint !== mine)
      throw new CodesError(
        `the codes were made with model ${model} (${fingerprint}), but this page decodes ${name} (${mine})`,
        `open the page of that model, or make it: vqtok web -m ${/^[\w.-]+$/.test(model) ? model : "MODEL"} -o DIR`);
    require(shape.reduce((a, b) => a * b) <= INDICES_MAX,
      `${shape[0]} images of ${shape[3]}x${shape[2]} codes are too many for this page`, "use vqtok decode");
    const same = codebookSize === config.codebook_size && downsample === config.downsample
      && channels === config.channels && shape[1] <= config.levels;
    if (!same) throw new CodesError(`the codes do not fit the model ${name}`,
      "the codes file is damaged: make it again");
  }

  _priorOf(codes) {
    if (!this.bytes || !this.meta.prior.startsWith(codes.prior))
      throw new CodesError(
        `the codes need the entropy prior ${codes.prior}, and this page has ${this.meta.prior ?? "none"}`,
        "make the page again from the model that packed them: vqtok web -m MODEL -o DIR");
    return this.prior;
  }
}

/** What the page gets without a copy. */
const buffersOf = ({ data, indices, codes }) =>
  [data, indices, codes?.indices].filter(Boolean).map(({ buffer }) => buffer);

/** Answers the messages of the page: each has an id, and what is answered has the same. */
export function serve(port) {
  let model;
  const work = {
    start: ({ kernels, weights, prior, encoder }) => {
      model = new Model(kernels, weights, prior, encoder);
      return { meta: model.meta };
    },
    warm: () => ({ ready: Boolean(model.decoder) }),
    read: async ({ id, bytes }) => {
      let shown = 0;
      const progress = (part) => {
        if (part - shown < 0.01) return;
        shown = part;
        port.postMessage({ id, progress: part });
      };
      return { codes: await model.read(bytes, progress) };
    },
    strips: ({ h, w, parts }) => ({ strips: model.decoder.strips(h, w, parts) }),
    decode: ({ indices, shape, levels, strip }) =>
      ({ strip, ...model.decoder.decode(indices, shape, levels, strip) }),
    encodeStrips: ({ size: [H, W] }) => ({ strips: model.encoder.strips(H, W) }),
    encode: ({ pixels, size, strip, rows }) => ({ indices: model.encoder.encode(pixels, size, strip, rows) }),
    join: ({ parts, shape }) => ({ indices: joinStrips(parts, ...shape) }),
    write: async ({ codes }) => ({ bytes: await toBytes(codes) }),
  };
  port.onmessage = async ({ data }) => {
    try {
      const answer = await work[data.do](data);
      port.postMessage({ id: data.id, ...answer }, buffersOf(answer));
    } catch (error) {
      const known = error instanceof CodesError;
      port.postMessage({
        id: data.id,
        error: known ? error.message : `this browser could not decode it (${error.message})`,
        fix: known ? error.fix : "try another browser, or use vqtok decode",
      });
    }
  };
}
