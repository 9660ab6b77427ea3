// Reads GGUF, the file format of llama.cpp: metadata and tensors in one file. Versions 2 and 3, little-endian.
// Source: ggml's docs/gguf.md. Every count is checked against the available bytes before anything is allocated, so
// that a truncated or hostile file is refused with a reason.

/** A value of the metadata. 64-bit integers are numbers if a double holds them; otherwise the file is refused. */
export type GgufValue = number | string | boolean | readonly GgufValue[];

export type TensorType = "F32" | "F16" | "Q8_0";

export interface Tensor {
  readonly name: string;
  /** As stored: the fastest-varying dimension first, so a matrix [out][in] reads [in, out]. */
  readonly dimensions: readonly number[];
  readonly type: TensorType;
  /** The tensor's bytes, a view into the file. */
  readonly bytes: Uint8Array;
}

export interface Gguf {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

/** The file can't be used. The message says why and is for people. */
export class GgufError extends Error {
  override readonly name = "GgufError";
}

// ggml's type numbers. Only the types that the engine computes with; the names of the others make the refusal readable.
const TYPES: ReadonlyMap<number, TensorType> = new Map([
  [0, "F32"],
  [1, "F16"],
  [8, "Q8_0"],
]);
const OTHER_TYPES: ReadonlyMap<number, string> = new Map([
  [2, "Q4_0"],
  [3, "Q4_1"],
  [6, "Q5_0"],
  [7, "Q5_1"],
  [10, "Q2_K"],
  [11, "Q3_K"],
  [12, "Q4_K"],
  [13, "Q5_K"],
  [14, "Q6_K"],
  [15, "Q8_K"],
  [30, "BF16"],
]);

const LIMIT = { metadata: 10_000, tensors: 10_000, dimensions: 4 };

/** @throws GgufError */
export function readGguf(file: Uint8Array): Gguf {
  const reader = new Reader(file);
  if (reader.text(4) !== "GGUF") throw new GgufError("this is not a GGUF file");
  const version = reader.u32();
  if (version !== 2 && version !== 3) throw new GgufError(`GGUF version ${version} is not supported; 2 and 3 are`);
  const tensorCount = reader.count(LIMIT.tensors, "tensors");
  const metadataCount = reader.count(LIMIT.metadata, "metadata entries");
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < metadataCount; i++) metadata.set(reader.string(), reader.value(reader.u32()));

  const headers: { name: string; dimensions: number[]; typeNumber: number; offset: number }[] = [];
  for (let i = 0; i < tensorCount; i++) {
    const name = reader.string();
    const rank = reader.u32();
    if (rank < 1 || rank > LIMIT.dimensions) throw new GgufError(`tensor ${name} has ${rank} dimensions`);
    const dimensions = Array.from({ length: rank }, () => reader.u64());
    headers.push({ name, dimensions, typeNumber: reader.u32(), offset: reader.u64() });
  }
  const alignment = metadata.get("general.alignment") ?? 32;
  if (typeof alignment !== "number" || alignment < 1 || alignment > 65_536)
    throw new GgufError("the alignment is malformed");
  const base = Math.ceil(reader.at / alignment) * alignment;

  const tensors = new Map<string, Tensor>();
  for (const { name, dimensions, typeNumber, offset } of headers) {
    const type = TYPES.get(typeNumber);
    if (type === undefined) {
      throw new GgufError(
        `tensor ${name} is ${OTHER_TYPES.get(typeNumber) ?? `of type ${typeNumber}`}; this engine computes with ` +
          "F32, F16 and Q8_0 (convert the model, for example to Q8_0)",
      );
    }
    const length = byteLength(type, dimensions, name);
    const start = base + offset;
    if (!(start >= base && start + length <= file.byteLength))
      throw new GgufError(`the file is cut off within tensor ${name}`);
    tensors.set(name, { name, dimensions, type, bytes: file.subarray(start, start + length) });
  }
  return { metadata, tensors };
}

function byteLength(type: TensorType, dimensions: readonly number[], name: string): number {
  const elements = dimensions.reduce((product, dimension) => product * dimension, 1);
  if (!Number.isSafeInteger(elements) || elements < 1) throw new GgufError(`tensor ${name} has an impossible size`);
  if (type === "F32") return elements * 4;
  if (type === "F16") return elements * 2;
  if (dimensions[0]! % 32 !== 0)
    throw new GgufError(`tensor ${name} is Q8_0 with a row length that is not a multiple of 32`);
  // A half-precision scale and 32 bytes for each 32 elements.
  return (elements / 32) * 34;
}

class Reader {
  readonly #bytes: Buffer;
  readonly #view: DataView;
  at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  #take(length: number): number {
    const at = this.at;
    if (length > this.#bytes.byteLength - at) throw new GgufError("the file is cut off");
    this.at = at + length;
    return at;
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  u64(): number {
    return safe(this.#view.getBigUint64(this.#take(8), true));
  }

  count(limit: number, what: string): number {
    const count = this.u64();
    if (count > limit) throw new GgufError(`the file claims ${count} ${what}`);
    return count;
  }

  text(length: number): string {
    const at = this.#take(length);
    // A vocabulary has thousands of strings: a TextDecoder for each would take a quarter of the file's reading time.
    return this.#bytes.toString("utf8", at, at + length);
  }

  string(): string {
    return this.text(this.u64());
  }

  value(type: number): GgufValue {
    switch (type) {
      case 0:
        return this.#view.getUint8(this.#take(1));
      case 1:
        return this.#view.getInt8(this.#take(1));
      case 2:
        return this.#view.getUint16(this.#take(2), true);
      case 3:
        return this.#view.getInt16(this.#take(2), true);
      case 4:
        return this.u32();
      case 5:
        return this.#view.getInt32(this.#take(4), true);
      case 6:
        return this.#view.getFloat32(this.#take(4), true);
      case 7:
        return this.#view.getUint8(this.#take(1)) !== 0;
      case 8:
        return this.string();
      case 9:
        return this.#array();
      case 10:
        return this.u64();
      case 11:
        return safe(this.#view.getBigInt64(this.#take(8), true));
      case 12:
        return this.#view.getFloat64(this.#take(8), true);
      default:
        throw new GgufError(`metadata of type ${type} is not supported`);
    }
  }

  #array(): GgufValue[] {
    const type = this.u32();
    if (type === 9) throw new GgufError("an array of arrays is not supported");
    const length = this.u64();
    // Each element takes at least one byte.
    if (length > this.#bytes.byteLength - this.at) throw new GgufError("the file is cut off within an array");
    const values: GgufValue[] = [];
    for (let i = 0; i < length; i++) values.push(this.value(type));
    return values;
  }
}

function safe(value: bigint): number {
  const number = Number(value);
  if (!Number.isSafeInteger(number)) throw new GgufError("the file holds an impossible number");
  return number;
}
