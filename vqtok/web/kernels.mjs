// kernels.wasm and its memory. Whatever is reserved comes after what is there; `release` gives it
// back. Views die where memory grows: reserve first, then take numbers.

import { CodesError } from "./errors.mjs";

const PAGE = 65536;
const ALIGN = 64;

export class Kernels {
  constructor(module) {
    this.memory = new WebAssembly.Memory({ initial: 4 });
    this.run = new WebAssembly.Instance(module, { env: { memory: this.memory } }).exports;
    this.top = Math.ceil(this.run.__heap_base.value / ALIGN) * ALIGN;
  }

  mark() {
    return this.top;
  }

  release(mark) {
    this.top = mark;
  }

  /** Makes room for that many bytes more. */
  reserve(bytes) {
    const missing = this.top + bytes + 4096 - this.memory.buffer.byteLength;
    if (missing <= 0) return;
    try {
      this.memory.grow(Math.ceil(missing / PAGE));
    } catch {
      throw new CodesError(`${Math.round(bytes / 2 ** 20)} MiB do not fit in memory`,
        "use a machine with more memory");
    }
  }

  /** A typed array in this memory, of any content; `pointer` is its place, which stays valid. */
  numbers(Type, length) {
    const bytes = Math.ceil((length * Type.BYTES_PER_ELEMENT) / ALIGN) * ALIGN;
    this.reserve(bytes);
    const view = new Type(this.memory.buffer, this.top, length);
    view.pointer = this.top;
    this.top += bytes;
    return view;
  }

  /** A view of numbers that were taken before memory grew. */
  again(view, Type, length) {
    return new Type(this.memory.buffer, view.pointer, length);
  }

  /** As PlainArithmetic: inputs are a multiple of 8, outputs of 4. */
  multiply(x, n, inputs, weight, outputs, out) {
    this.run.integers(x.byteOffset, n, inputs, weight.pointer, outputs, out.byteOffset);
  }
}
