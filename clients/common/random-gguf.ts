// Writes small GGUF files with seeded random weights, for tests and benchmarks of the engine. Such a model
// writes gibberish, but costs as much as a trained model of the same shape.
import { BYTE_CHARACTERS } from "../../services/tiny-engine/llama/bpe.ts";
import { TENSOR_TYPES, VALUE_TYPE, type TensorType } from "../../services/tiny-engine/llama/gguf.ts";

export type RandomModel = Readonly<typeof SMALL>;

/** 0.9M parameters, the size that the protocol notes measured. */
export const SMALL = {
  layers: 4,
  dim: 128,
  heads: 4,
  kvHeads: 2,
  ffDim: 384,
  vocab: 1024,
  maxContext: 2048,
  type: "Q8_0" as TensorType,
  seed: 1,
  /** Whether a tokenizer and a chat template are inside; takes a vocabulary of 300 to 1,600. */
  speaks: false,
};

/** Overrides replace metadata; a value of undefined leaves the key out. */
export function randomGguf(
  model: RandomModel,
  overrides: Readonly<Record<string, MetadataValue | undefined>> = {},
): Buffer {
  const random = xorshift(model.seed);
  const headDim = model.dim / model.heads;
  const kvDim = model.kvHeads * headDim;
  const tensors: RawTensor[] = [];
  const matrix = (name: string, outs: number, n: number, gain = 1): void => {
    const values = Float32Array.from({ length: outs * n }, () => (random() * 2 - 1) * gain * Math.sqrt(3 / n));
    tensors.push({ name, dimensions: [n, outs], type: model.type, bytes: encode(values, model.type) });
  };
  const norm = (name: string): void => {
    const values = Float32Array.from({ length: model.dim }, () => 0.5 + random());
    tensors.push({ name, dimensions: [model.dim], type: "F32", bytes: encode(values, "F32") });
  };
  // Embeddings far apart make logits far apart, so that greedy choices are not near-ties.
  matrix("token_embd.weight", model.vocab, model.dim, 4);
  for (let layer = 0; layer < model.layers; layer++) {
    const name = (part: string): string => `blk.${layer}.${part}.weight`;
    norm(name("attn_norm"));
    matrix(name("attn_q"), model.dim, model.dim, 2);
    matrix(name("attn_k"), kvDim, model.dim, 2);
    matrix(name("attn_v"), kvDim, model.dim);
    matrix(name("attn_output"), model.dim, model.dim);
    norm(name("ffn_norm"));
    matrix(name("ffn_gate"), model.ffDim, model.dim);
    matrix(name("ffn_up"), model.ffDim, model.dim);
    matrix(name("ffn_down"), model.dim, model.ffDim);
  }
  norm("output_norm.weight");
  const metadata: Record<string, MetadataValue | undefined> = {
    "general.architecture": "llama",
    "llama.block_count": model.layers,
    "llama.embedding_length": model.dim,
    "llama.attention.head_count": model.heads,
    "llama.attention.head_count_kv": model.kvHeads,
    "llama.feed_forward_length": model.ffDim,
    "llama.context_length": model.maxContext,
    "llama.rope.dimension_count": headDim,
    ...(model.speaks ? tokenizerOf(model.vocab) : {}),
    ...overrides,
  };
  return writeGguf(metadata, tensors);
}

export interface RawTensor {
  readonly name: string;
  readonly dimensions: readonly number[];
  /** ggml's name. */
  readonly type: string;
  readonly bytes: Buffer;
}

/** The chat format on which the shipped model was trained. */
const CHAT_TEMPLATE =
  "{{ '<|bos|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
const SPECIALS = ["<|bos|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"];

/** Byte-level BPE: the specials, the bytes, then pairs of letters, with and without a space, and pairs of those. */
function tokenizerOf(vocab: number): Record<string, MetadataValue> {
  const letters = [..."etaoinsrhldcumfpgwybvkxjqz"];
  const starts = ["\u0120", ...letters];
  const pairs = starts.flatMap((first) => letters.map((second) => [first, second] as const));
  const quads = pairs.map(([first, second]) => [first + second, "et"] as const);
  const merges = [...pairs, ...quads].slice(0, vocab - SPECIALS.length - BYTE_CHARACTERS.length);
  const tokens = [...SPECIALS, ...BYTE_CHARACTERS, ...merges.map(([first, second]) => first + second)];
  if (tokens.length !== vocab) throw new RangeError(`no tokenizer for a vocabulary of ${vocab}`);
  return {
    "general.name": "random",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": tokens.map((_, token) => (token < SPECIALS.length ? 3 : 1)),
    "tokenizer.ggml.merges": merges.map((merge) => merge.join(" ")),
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.eot_token_id": 1,
    "tokenizer.ggml.add_bos_token": true,
    "tokenizer.chat_template": CHAT_TEMPLATE,
  };
}

export type MetadataValue = number | string | boolean | readonly (number | string)[];

/** Serialises a GGUF file. Numbers are written as u32. */
export function writeGguf(
  metadata: Readonly<Record<string, MetadataValue | undefined>>,
  tensors: readonly RawTensor[],
): Buffer {
  const parts: Buffer[] = [];
  const u32 = (value: number): void => void parts.push(Buffer.from(Uint32Array.of(value).buffer));
  const u64 = (value: number): void => void parts.push(Buffer.from(BigUint64Array.of(BigInt(value)).buffer));
  const string = (text: string): void => {
    u64(Buffer.byteLength(text));
    parts.push(Buffer.from(text));
  };
  const typeOf = (value: MetadataValue): number => {
    if (Array.isArray(value)) return VALUE_TYPE.array;
    return typeof value === "string"
      ? VALUE_TYPE.string
      : typeof value === "boolean"
        ? VALUE_TYPE.boolean
        : VALUE_TYPE.u32;
  };
  const write = (value: MetadataValue): void => {
    if (typeof value === "string") string(value);
    else if (typeof value === "boolean") parts.push(Buffer.of(Number(value)));
    else if (typeof value === "number") u32(value);
    else {
      u32(typeOf(value[0]!));
      u64(value.length);
      value.forEach(write);
    }
  };
  parts.push(Buffer.from("GGUF"));
  u32(3);
  const entries = Object.entries(metadata).filter(([, value]) => value !== undefined);
  u64(tensors.length);
  u64(entries.length);
  for (const [key, value] of entries) {
    string(key);
    u32(typeOf(value!));
    write(value!);
  }
  let offset = 0;
  for (const { name, dimensions, type, bytes } of tensors) {
    string(name);
    u32(dimensions.length);
    for (const dimension of dimensions) u64(dimension);
    u32(TENSOR_TYPES.indexOf(type));
    u64(offset);
    offset += aligned(bytes).length;
  }
  return Buffer.concat([aligned(Buffer.concat(parts)), ...tensors.map(({ bytes }) => aligned(bytes))]);
}

function aligned(bytes: Buffer): Buffer {
  return Buffer.concat([bytes], Math.ceil(bytes.length / 32) * 32);
}

function encode(values: Float32Array, type: TensorType): Buffer {
  if (type === "F32") return Buffer.from(values.buffer);
  if (type === "F16") {
    const out = Buffer.alloc(values.length * 2);
    values.forEach((value, index) => out.writeUInt16LE(floatToHalf(value), index * 2));
    return out;
  }
  const out = Buffer.alloc((values.length / 32) * 34);
  for (let block = 0; block < values.length / 32; block++) {
    const slice = values.subarray(block * 32, block * 32 + 32);
    const scale = slice.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 127;
    out.writeUInt16LE(floatToHalf(scale), block * 34);
    slice.forEach((value, index) =>
      out.writeInt8(Math.max(-127, Math.min(127, Math.round(value / scale))), block * 34 + 2 + index),
    );
  }
  return out;
}

/** Nearest half-precision value, for normal numbers and zero. */
function floatToHalf(value: number): number {
  if (value === 0) return 0;
  const sign = value < 0 ? 0x8000 : 0;
  const exponent = Math.floor(Math.log2(Math.abs(value)));
  if (exponent < -14) return sign | Math.round(Math.abs(value) * 2 ** 24);
  return sign + ((exponent + 15) << 10) + Math.round((Math.abs(value) / 2 ** exponent - 1) * 1024);
}

function xorshift(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}
