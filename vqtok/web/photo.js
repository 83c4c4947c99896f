// Codes of a photo, made in the page: what the worker's encoder needs of it, strip by strip.

const SOURCE_MAX = 100e6; // pixels that the browser is asked to decode
const ENCODED_MAX = 50e6;
const WHITE = "#ffffff"; // behind what is transparent, as in vqtok encode

const isCodes = async (file) => {
  const start = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  return /\.npz$/i.test(file.name) || file.size === 0 || (start[0] === 0x50 && start[1] === 0x4b);
};

/** The image in a file, of which the browser has read no more than it needs for the size. */
function loadImage(file) {
  return new Promise((done, fail) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => {
      URL.revokeObjectURL(image.src);
      fail({
        error: "neither a codes file (.npz) nor an image that this browser reads",
        fix: "give a .npz that vqtok encode wrote, or an image as PNG, JPEG or WebP",
      });
    };
    image.src = URL.createObjectURL(file);
  });
}

/** [H, W] of an image of which the longest side is at most `most` (0: as it is). */
function fitted(H, W, most) {
  const times = most ? Math.min(1, most / Math.max(H, W)) : 1;
  return [H, W].map((side) => Math.max(1, Math.round(side * times)));
}

function checkSize(H, W, size) {
  const millions = (pixels) => `${Math.round(pixels / 1e6)} million pixels`;
  if (H * W === 0) throw { error: "an image without a size", fix: "save it as PNG or JPEG" };
  if (H * W > SOURCE_MAX)
    throw {
      error: `an image of ${W} x ${H}: larger than this page opens (${millions(SOURCE_MAX)})`,
      fix: "make it smaller first, or use vqtok encode",
    };
  if (size[0] * size[1] > ENCODED_MAX)
    throw {
      error: `an image of ${size[1]} x ${size[0]}: larger than this page encodes (${millions(ENCODED_MAX)})`,
      fix: "choose a shorter longest side under the field above, or use vqtok encode",
    };
}

/** Rows [top, bottom) of a bitmap, as RGBA laid over white. */
function rowsOf(bitmap, [top, bottom]) {
  const canvas = new OffscreenCanvas(bitmap.width, bottom - top);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw { error: "no memory for this image", fix: "use vqtok encode" };
  context.fillStyle = WHITE;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, -top);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

/**
 * Codes of an image file, as those read from a codes file; `progress` gets the part done. Of any
 * content once `wanted` says no.
 */
async function encodePhoto(file, most, progress, wanted) {
  const image = await loadImage(file);
  try {
    const [H, W] = [image.naturalHeight, image.naturalWidth];
    const size = fitted(H, W, most);
    checkSize(H, W, size);
    const shrink = size[0] < H || size[1] < W
      ? { resizeHeight: size[0], resizeWidth: size[1], resizeQuality: "high" } : {};
    const bitmap = await createImageBitmap(image, shrink).catch(() => {
      throw { error: "this browser has no memory for this image", fix: "use vqtok encode" };
    });
    const indices = await encodeBitmap(bitmap, size, progress, wanted);
    bitmap.close();
    const { name, fingerprint, config } = model;
    return {
      model: name, fingerprint, codebookSize: config.codebook_size, downsample: config.downsample,
      channels: config.channels, sizes: [size], ...indices,
    };
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

async function encodeBitmap(bitmap, size, progress, wanted) {
  const { levels, downsample } = model.config;
  const [h, w] = size.map((side) => Math.ceil(side / downsample));
  const { strips } = await pool[0].ask({ do: "encodeStrips", size });
  const parts = [];
  let done = 0;
  const work = async (helper) => {
    while (strips.length && wanted()) {
      const { strip, rows } = strips.shift();
      const pixels = rowsOf(bitmap, rows);
      const { indices } = await helper.ask({ do: "encode", pixels, size, strip, rows });
      parts.push({ strip, indices });
      done += strip[1] - strip[0];
      progress(done / h);
    }
  };
  await Promise.all(pool.map(work));
  if (!wanted()) return null;
  const { indices } = await pool[0].ask({ do: "join", parts, shape: [levels, h, w] });
  return { indices, shape: [1, levels, h, w] };
}

/** The same codes with the first levels only. */
function firstLevels(codes, levels) {
  const [, , h, w] = codes.shape;
  return { ...codes, shape: [1, levels, h, w], indices: codes.indices.slice(0, levels * h * w) };
}
