// What a worker of the page does: files to indices, and strips of grid rows to pixels.

import { CodesError, readCodes } from "./codes.mjs";
import { Kernels } from "./kernels.mjs";
import { Decoder } from "./network.mjs";
import { IntegerPrior, decodeIndices } from "./prior.mjs";
import { readWeights } from "./weights.mjs";

/** A model's decoder and prior, each built when it is first asked for. */
export class Model {
  /** Bytes of kernels.wasm, of the model and of its prior (null where it has none). */
  constructor(kernels, model, prior) {
    this.weights = readWeights(model);
    this.meta = this.weights.meta;
    this.module = new WebAssembly.Module(kernels);
    this.bytes = prior;
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
        "make a page for that model: vqtok web -m MODEL -o DIR");
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

/** Answers the messages of the page: each has an id, and what is answered has the same. */
export function serve(port) {
  let model;
  const work = {
    start: ({ kernels, weights, prior }) => {
      model = new Model(kernels, weights, prior);
      return { meta: model.meta };
    },
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
  };
  port.onmessage = async ({ data }) => {
    try {
      const answer = await work[data.do](data);
      port.postMessage({ id: data.id, ...answer }, answer.data ? [answer.data.buffer] : []);
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
