// What a user can cause, and memory that may not be there.

const AGAIN = "copy or download the file again";

/** What a user can cause: a message, and what to do. */
export class CodesError extends Error {
  constructor(message, fix = AGAIN) {
    super(message);
    this.fix = fix;
  }
}

export function require(ok, message, fix = AGAIN) {
  if (!ok) throw new CodesError(message, fix);
}

/** Memory that a file asks for; an array of a type such as Uint8Array. */
export function allocate(Type, length) {
  try {
    return new Type(length);
  } catch {
    throw new CodesError(
      `${Math.round((length * Type.BYTES_PER_ELEMENT) / 2 ** 20)} MiB do not fit in memory`,
      "use a machine with more memory",
    );
  }
}
