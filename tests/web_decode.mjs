// Runs the page's modules in Node, for tests/test_web.py: node web_decode.mjs FOLDER-OF-MODULES,
// with a list of jobs as JSON on standard input, and a list of what came out on standard output.

import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const folder = process.argv[2];
const load = (name) => import(pathToFileURL(`${folder}/${name}.mjs`));
const { CodesError, readCodes } = await load("codes");
const { Kernels } = await load("kernels");
const { Decoder } = await load("network");
const { IntegerPrior, PlainArithmetic, decodeIndices } = await load("prior");
const { readWeights } = await load("weights");
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

const answers = [];
for (const job of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    answers.push(await (job.out ? pixels(job) : indices(job)));
  } catch (error) {
    // anything else is a mistake of the modules
    if (!(error instanceof CodesError)) throw error;
    answers.push({ error: error.message, fix: error.fix });
  }
}
process.stdout.write(JSON.stringify(answers));
