// Reads GGUF, the file format of llama.cpp: metadata and tensors in one file. Versions 2 and 3, little-endian.
// Source: ggml's docs/gguf.md. Every count is checked against the available bytes before anything is allocated, so
// that a truncated or hostile file is refused with a reason.

/** A value of the metadata. 64-bit integers are numbers if a double holds them; otherwise the file is refused. */
export type GgufValue = number | string | boolean | readonly GgufValue[];

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

/** ggml's types of tensors, each at its number. */
export const TENSOR_TYPES: readonly string[] = (
  "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL " +
  "IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16"
).split(" ");

/** The types that the engine computes with: elements and bytes of a block. Q8_0 has a half-precision scale in each. */
const BLOCKS = { F32: [1, 4], F16: [1, 2], Q8_0: [32, 34] } as const;
export type TensorType = keyof typeof BLOCKS;

/** Numbers of some types of values. The rest are numbers in the table below. */
export const VALUE_TYPE = { u32: 4, boolean: 7, string: 8, array: 9 } as const;

type ReadScalar = (bytes: Buffer, at: number) => number | boolean;
/** By the number of its type: bytes of a value, and how it is read. */
const SCALARS: Readonly<Record<number, readonly [length: number, read: ReadScalar]>> = {
  0: [1, (bytes, at) => bytes.readUInt8(at)],
  1: [1, (bytes, at) => bytes.readInt8(at)],
  2: [2, (bytes, at) => bytes.readUInt16LE(at)],
  3: [2, (bytes, at) => bytes.readInt16LE(at)],
  [VALUE_TYPE.u32]: [4, (bytes, at) => bytes.readUInt32LE(at)],
  5: [4, (bytes, at) => bytes.readInt32LE(at)],
  6: [4, (bytes, at) => bytes.readFloatLE(at)],
  [VALUE_TYPE.boolean]: [1, (bytes, at) => bytes.readUInt8(at) !== 0],
  10: [8, (bytes, at) => safe(bytes.readBigUInt64LE(at))],
  11: [8, (bytes, at) => safe(bytes.readBigInt64LE(at))],
  12: [8, (bytes, at) => bytes.readDoubleLE(at)],
};

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

  const headers = Array.from({ length: tensorCount }, () => {
    const name = reader.string();
    const rank = reader.u32();
    if (rank < 1 || rank > LIMIT.dimensions) throw new GgufError(`tensor ${name} has ${rank} dimensions`);
    const dimensions = Array.from({ length: rank }, () => reader.u64());
    return { name, dimensions, typeNumber: reader.u32(), offset: reader.u64() };
  });
  const alignment = metadata.get("general.alignment") ?? 32;
  if (typeof alignment !== "number" || alignment < 1 || alignment > 65_536)
    throw new GgufError("the alignment is malformed");
  const base = Math.ceil(reader.at / alignment) * alignment;

  const tensors = new Map<string, Tensor>();
  for (const { name, dimensions, typeNumber, offset } of headers) {
    const type = TENSOR_TYPES[typeNumber] ?? `of type ${typeNumber}`;
    if (!isComputed(type)) {
      throw new GgufError(
        `tensor ${name} is ${type}; this engine computes with F32, F16 and Q8_0 (convert the model, for example to Q8_0)`,
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

function isComputed(type: string): type is TensorType {
  return Object.hasOwn(BLOCKS, type);
}

function byteLength(type: TensorType, dimensions: readonly number[], name: string): number {
  const elements = dimensions.reduce((product, dimension) => product * dimension, 1);
  if (!Number.isSafeInteger(elements) || elements < 1) throw new GgufError(`tensor ${name} has an impossible size`);
  const [blockElements, blockBytes] = BLOCKS[type];
  if (dimensions[0]! % blockElements !== 0)
    throw new GgufError(`tensor ${name} is ${type} with a row length that is not a multiple of ${blockElements}`);
  return (elements / blockElements) * blockBytes;
}

class Reader {
  readonly #bytes: Buffer;
  at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  #take(length: number): number {
    const at = this.at;
    if (length > this.#bytes.byteLength - at) throw new GgufError("the file is cut off");
    this.at = at + length;
    return at;
  }

  u32(): number {
    return this.#bytes.readUInt32LE(this.#take(4));
  }

  u64(): number {
    return safe(this.#bytes.readBigUInt64LE(this.#take(8)));
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
    if (type === VALUE_TYPE.string) return this.string();
    if (type === VALUE_TYPE.array) return this.#array();
    const scalar = SCALARS[type];
    if (scalar === undefined) throw new GgufError(`metadata of type ${type} is not supported`);
    const [length, read] = scalar;
    return read(this.#bytes, this.#take(length));
  }

  #array(): GgufValue[] {
    const type = this.u32();
    if (type === VALUE_TYPE.array) throw new GgufError("an array of arrays is not supported");
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
