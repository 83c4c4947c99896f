// Runs the page's modules in Node, for tests/test_web.py: node web_decode.mjs FOLDER-OF-MODULES,
// with a list of jobs as JSON on standard input, and a list of what came out on standard output.

import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const folder = process.argv[2];
const load = (name) => import(pathToFileURL(`${folder}/${name}.mjs`));
const { readCodes } = await load("codes");
const { CodesError } = await load("errors");
const { Kernels } = await load("kernels");
const { Decoder } = await load("network");
const { Encoder, joinStrips } = await load("encoder");
const { IntegerPrior, PlainArithmetic, decodeIndices } = await load("prior");
const { readWeights } = await load("weights");
const { toBytes } = await load("write");
const module = new WebAssembly.Module(readFileSync(`${folder}/kernels.wasm`));

const known = new Map();
function once(key, make) {
  if (!known.has(key)) known.set(key, make());
  return known.get(key);
}

async function indices({ file, prior, plain }) {
  const codes = await readCodes(readFileSync(file));
  const find = () => once(`${prior} ${plain}`, () =>
    new IntegerPrior(readWeights(readFileSync(prior)), plain ? new PlainArithmetic() : new Kernels(module)));
  const { indices: found, ...rest } = decodeIndices(codes, find);
  return { ...rest, bytes: Buffer.from(found.buffer, found.byteOffset, found.byteLength).toString("base64") };
}

async function pixels({ file, model, levels, parts, out }) {
  const codes = await readCodes(readFileSync(file));
  const decoder = once(model, () => new Decoder(readWeights(readFileSync(model)), new Kernels(module)));
  const [, all, h, w] = codes.shape;
  const strips = decoder.strips(h, w, parts);
  const data = strips.map((strip) => decoder.decode(codes.indices, [all, h, w], levels, strip).data);
  writeFileSync(out, Buffer.concat(data.map((part) => Buffer.from(part.buffer))));
  return { strips: strips.length };
}

const weightsOf = (path) => once(`weights ${path}`, () => readWeights(readFileSync(path)));

/** Writes a codes file of an image, RGBA as bytes in a file. */
async function encoded({ rgba, size, model, encoder, codes }) {
  const weights = weightsOf(model);
  const { config, name, fingerprint } = weights.meta;
  const found = once(`encoder ${encoder}`, () => new Encoder(weightsOf(encoder), weights, new Kernels(module)));
  const data = readFileSync(rgba);
  const [H, W] = size;
  const [h, w] = size.map((side) => Math.ceil(side / config.downsample));
  const strips = found.strips(H, W);
  const parts = strips.map(({ strip, rows }) => ({
    strip, indices: found.encode(data.subarray(4 * W * rows[0], 4 * W * rows[1]), size, strip, rows),
  }));
  const indices = joinStrips(parts, config.levels, h, w);
  const about = { codebookSize: config.codebook_size, downsample: config.downsample, channels: config.channels };
  writeFileSync(codes, await toBytes(
    { ...about, model: name, fingerprint, sizes: [size], shape: [1, config.levels, h, w], indices }));
  return { strips: strips.length };
}

const answers = [];
for (const job of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    answers.push(await (job.out ? pixels(job) : job.rgba ? encoded(job) : indices(job)));
  } catch (error) {
    // anything else is a mistake of the modules
    if (!(error instanceof CodesError)) throw error;
    answers.push({ error: error.message, fix: error.fix });
  }
}
process.stdout.write(JSON.stringify(answers));
