// The page: loads the model from its scripts, hands files to workers, and shows what comes back.

const element = (id) => document.getElementById(id);
const WORKERS = Math.max(1, Math.min(4, navigator.hardwareConcurrency || 1));
const SIDE_MAX = 16384; // of a canvas
const AREA_MAX = 2 ** 27; // twice 0.5 GiB

// The model

const vqtok = {
  parts: { model: [], prior: [], encoder: [] },
  /** Called by the scripts of the model, in their order. */
  receive(name, base64) {
    this.parts[name].push(bytesOf(base64));
  },
};

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function loadScript(name) {
  return new Promise((done, fail) => {
    const script = document.createElement("script");
    script.src = name;
    script.onload = done;
    script.onerror = () => fail({
      error: `${name} of the model could not be loaded`,
      fix: "keep it beside this page, or make the page again: vqtok web",
    });
    document.head.append(script);
  });
}

async function loadModel() {
  const total = Object.values(SCRIPTS).reduce((a, b) => a + b, 0);
  let done = 0;
  for (const [name, size] of Object.entries(SCRIPTS)) {
    say(`Loading the model: ${megabytes(done)} of ${megabytes(total)} MB`);
    await loadScript(name);
    done += size;
    progress(done / total);
  }
  say("Starting the model");
  const [weights, prior, encoder] = ["model", "prior", "encoder"].map((name) =>
    (vqtok.parts[name].length ? join(vqtok.parts[name]) : null));
  const source = URL.createObjectURL(
    new Blob([element("worker").textContent], { type: "text/javascript" }));
  const kernels = bytesOf(KERNELS);
  const start = { do: "start", kernels, weights, prior, encoder };
  pool = Array.from({ length: WORKERS }, () => new Helper(source));
  const [{ meta }] = await Promise.all(pool.map((helper) => helper.ask(start)));
  vqtok.parts = null;
  for (const helper of pool) helper.ask({ do: "warm" }).catch(() => {}); // the first file then waits less
  return meta;
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

// Workers

class Helper {
  constructor(source) {
    this.worker = new Worker(source);
    this.waiting = new Map();
    this.next = 0;
    this.worker.onmessage = ({ data }) => this.hear(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      const said = { error: `this browser could not decode it (${event.message})`, fix: "try another browser, or use vqtok decode" };
      for (const { fail } of this.waiting.values()) fail(said);
      this.waiting.clear();
    };
  }

  hear({ id, ...answer }) {
    const waiting = this.waiting.get(id);
    if (!waiting) return;
    if (answer.progress !== undefined) return waiting.progress(answer.progress);
    this.waiting.delete(id);
    if (answer.error !== undefined) waiting.fail(answer);
    else waiting.done(answer);
  }

  ask(message, progress = () => {}) {
    const id = this.next++;
    return new Promise((done, fail) => {
      this.waiting.set(id, { done, fail, progress });
      this.worker.postMessage({ ...message, id });
    });
  }
}

let pool = [];

// What is said

const say = (text) => { element("status").textContent = text; };
const progress = (part) => {
  element("progress").value = part;
  element("progress").hidden = part >= 1;
};

function complain({ error, fix, message, stack }) {
  const text = error ?? `this page has a mistake (${message ?? stack})`;
  element("error").replaceChildren(...[text, fix ? `What to do: ${fix}` : ""].map((line) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = line;
    return paragraph;
  }));
  say("");
  progress(1);
}

// A file

let model;
let current = null; // { name, bytes, codes }, and of a photo { photo, file: what is saved }
let several = ""; // what is said of other files that came with it
let turn = 0; // of what was asked for last: answers to earlier ones are dropped

async function open(file) {
  const mine = ++turn;
  performance.mark("opened"); // for benchmarks/web.py
  element("error").replaceChildren();
  element("result").hidden = true;
  say(`Reading ${file.name}`);
  progress(0);
  try {
    const shown = (part) => mine === turn && progress(part * 0.5);
    const photo = !(await isCodes(file));
    if (photo && !ENCODER && file.type.startsWith("image/"))
      throw { error: "an image, and this page decodes only", fix: "make codes of it with vqtok encode, or a page that does: vqtok web --encoder -o DIR" };
    if (photo && ENCODER) say(`Encoding ${file.name}`);
    const codes = await (photo && ENCODER
      ? encodePhoto(file, Number(element("side").value), shown, () => mine === turn) : readFile(file, shown));
    if (mine !== turn) return;
    current = { name: file.name, bytes: file.size, codes, photo: photo ? file : null };
    describe();
    await show();
  } catch (error) {
    if (mine === turn) complain(about(file, error));
  }
}

/** What is said of a file: with its name, where it is the file that is wrong. */
function about({ name }, error) {
  if (error.error) return { ...error, error: `${name}: ${error.error}` };
  if (!(error instanceof DOMException)) return error;
  return { error: `${name} cannot be read (${error.name})`, fix: "choose it again, or a copy of it" };
}

async function readFile(file, shown) {
  if (file.size > 2 ** 31)
    throw { error: `${megabytes(file.size)} MB: too large for this page`, fix: "use vqtok decode" };
  const bytes = new Uint8Array(await file.arrayBuffer());
  return (await pool[0].ask({ do: "read", bytes }, shown)).codes;
}

function describe() {
  const { name, codes, photo } = current;
  const [n, levels] = codes.shape;
  element("name").textContent = name;
  element("which").hidden = n === 1;
  element("depth").hidden = levels === 1;
  Object.assign(element("image"), { max: n, value: 1 });
  element("many").textContent = `of ${n}`;
  Object.assign(element("levels"), { max: levels, value: levels });
  element("keep").hidden = !photo;
}

function facts() {
  const { codes, photo, file } = current;
  const bytes = photo ? file.length : current.bytes;
  const [, levels, h, w] = codes.shape;
  const saved = photo ? ` at ${element("levels").value} of ${levels} levels` : "";
  const [H, W] = codes.sizes[chosen()];
  const pixels = codes.sizes.reduce((sum, [height, width]) => sum + height * width, 0);
  const shown = {
    Size: `${W} x ${H} pixels`,
    Grid: `${w} x ${h}, ${codes.downsample} pixels per code`,
    Levels: `${levels} of ${model.config.levels}, ${codes.codebookSize} codes each`,
    [photo ? "Codes file" : "File"]: `${(bytes / 1000).toFixed(1)} kB${saved}, ${((8 * bytes) / pixels).toFixed(2)} bits per pixel`,
  };
  element("facts").replaceChildren(...Object.entries(shown).map(([term, value]) => {
    const pair = document.createElement("div");
    const [dt, dd] = ["dt", "dd"].map((tag) => document.createElement(tag));
    [dt.textContent, dd.textContent] = [term, value];
    pair.append(dt, dd);
    return pair;
  }));
}

const chosen = () => {
  const n = current.codes.shape[0];
  return Math.min(n, Math.max(1, Math.round(element("image").valueAsNumber || 1))) - 1;
};

/** Decodes the chosen image at the chosen levels, in strips, and draws each as it comes. */
async function show() {
  const mine = ++turn;
  const { codes, name } = current;
  const [, all, h, w] = codes.shape;
  const [number, levels] = [chosen(), Number(element("levels").value)];
  const [H, W] = codes.sizes[number];
  element("shown").textContent = `${levels} of ${all}`;
  element("error").replaceChildren();
  try {
    if (current.photo) {
      const { bytes } = await pool[0].ask({ do: "write", codes: firstLevels(codes, levels) });
      if (mine !== turn) return;
      current.file = bytes;
    }
    facts();
    if (Math.max(H, W) > SIDE_MAX || H * W > AREA_MAX)
      throw { error: `${name}: an image of ${W}x${H} is larger than this page shows`, fix: "use vqtok decode" };
    say("Decoding");
    const size = all * h * w;
    const indices = codes.indices.slice(number * size, (number + 1) * size);
    const { strips } = await pool[0].ask({ do: "strips", h, w, parts: w * h < 256 ? 1 : pool.length });
    const target = new OffscreenCanvas(W, H);
    const context = target.getContext("2d");
    if (!context) throw { error: `${name}: no memory for an image of ${W}x${H}`, fix: "use vqtok decode" };
    const begin = performance.now();
    let done = 0;
    const work = async (helper) => {
      while (strips.length && mine === turn) {
        const strip = strips.shift();
        const part = await helper.ask({ do: "decode", indices, shape: [all, h, w], levels, strip });
        context.putImageData(new ImageData(part.data, part.width, part.rows), 0, strip[0] * codes.downsample);
        done += strip[1] - strip[0];
        if (mine === turn) progress(0.5 + (0.5 * done) / h);
      }
    };
    await Promise.all(pool.map(work));
    if (mine !== turn) return;
    draw(target, W, H, `${name} decoded from ${levels} of ${all} levels, ${W} x ${H} pixels`);
    performance.mark("shown");
    const seconds = ((performance.now() - begin) / 1000).toFixed(1);
    say(`Decoded ${name} at ${levels} of ${all} levels in ${seconds} s${several}`);
    progress(1);
  } catch (error) {
    if (mine === turn) complain(error);
  }
}

function draw(image, W, H, title) {
  const canvas = element("canvas");
  Object.assign(canvas, { width: W, height: H });
  canvas.getContext("2d").drawImage(image, 0, 0);
  canvas.setAttribute("aria-label", title);
  const first = element("result").hidden;
  element("result").hidden = false;
  zoom();
  if (first) element("name").focus({ preventScroll: true });
}

function zoom() {
  const [canvas, times] = [element("canvas"), Number(element("zoom").value)];
  canvas.className = times === 0 ? "fit" : times > 1 ? "large" : "";
  canvas.style.width = times ? `${canvas.width * times}px` : "";
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  say(`Saved ${name}`);
}

const stem = () => current.name.replace(current.photo ? /\.[^.]*$/ : /\.npz$/i, "");

function saveImage() {
  element("canvas").toBlob((blob) => {
    if (!blob) return complain({ error: "the image is too large to save here", fix: "use vqtok decode" });
    const many = current.codes.shape[0] > 1 ? `-${String(chosen() + 1).padStart(4, "0")}` : "";
    download(blob, `${stem()}${many}.decoded.png`);
  }, "image/png");
}

const saveCodes = () => download(new Blob([current.file], { type: "application/octet-stream" }), `${stem()}.npz`);

function listen() {
  const drop = element("drop");
  const take = (files) => {
    if (files.length === 0) return;
    several = files.length > 1 ? ` (the first of ${files.length} files)` : "";
    open(files[0]);
  };
  element("file").addEventListener("change", ({ target }) => take(target.files));
  element("file").addEventListener("click", ({ target }) => { target.value = ""; }); // the same file again
  addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  });
  for (const id of ["levels", "image"]) element(id).addEventListener("input", () => current && show());
  element("zoom").addEventListener("change", zoom);
  element("side").addEventListener("change", () => current?.photo && open(current.photo));
  element("save").addEventListener("click", saveImage);
  element("keep").addEventListener("click", saveCodes);
  element("file").disabled = false;
}

async function main() {
  if (ENCODER) {
    document.title = element("title").textContent = "Make and decode vqtok files";
    element("invite").textContent = "Drop a photo or a codes file (.npz) here, or choose one:";
    element("file").accept = ".npz,image/*";
    element("shrink").hidden = false;
  }
  try {
    model = await loadModel();
    const { name, fingerprint, config } = model;
    element("model").textContent = `Model ${name} (${fingerprint}): ${config.levels} `
      + `${config.levels === 1 ? "level" : "levels"} of ${config.codebook_size} codes, one for `
      + `${config.downsample} x ${config.downsample} pixels`;
    listen();
    say("Ready.");
    progress(1);
    if (location.protocol.startsWith("http") && navigator.serviceWorker)
      navigator.serviceWorker.register("offline.js").catch(() => {}); // a page that works all the same
  } catch (error) {
    complain(error);
  }
}

main();
