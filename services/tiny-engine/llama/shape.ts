// The facts of a Llama model, read from GGUF metadata and checked.
import { GgufError, type Gguf } from "./gguf.ts";

export type LlamaShape = Readonly<ReturnType<typeof readShape>>;

/** @throws GgufError if the file is not a Llama that this engine can compute. */
export function readShape(gguf: Gguf) {
  const architecture = gguf.metadata.get("general.architecture");
  if (architecture !== "llama") {
    throw new GgufError(`the model's architecture is "${String(architecture)}"; this engine computes "llama" only`);
  }
  const number = (key: string, fallback?: number): number => {
    const value = gguf.metadata.get(key) ?? fallback;
    if (typeof value !== "number" || !(value > 0)) throw new GgufError(`the file doesn't state ${key}`);
    return value;
  };
  const embedding = gguf.tensors.get("token_embd.weight");
  if (embedding === undefined || embedding.dimensions.length !== 2)
    throw new GgufError("the token embeddings are missing");
  const dim = number("llama.embedding_length");
  const heads = number("llama.attention.head_count");
  const shape = {
    layers: number("llama.block_count"),
    /** Width of the residual stream. */
    dim,
    heads,
    /** Key and value heads; `heads` is a multiple. */
    kvHeads: number("llama.attention.head_count_kv", heads),
    headDim: number("llama.attention.key_length", dim / heads),
    /** Width inside the feed-forward part. */
    ffDim: number("llama.feed_forward_length"),
    vocab: embedding.dimensions[1]!,
    /** Longest sequence in tokens. */
    maxContext: number("llama.context_length"),
    ropeBase: number("llama.rope.freq_base", 10_000),
    epsilon: number("llama.attention.layer_norm_rms_epsilon", 1e-5),
  };
  const rotated = number("llama.rope.dimension_count", shape.headDim);
  if (rotated !== shape.headDim)
    throw new GgufError("only part of each head is rotated, which this engine doesn't compute");
  if (gguf.metadata.has("llama.expert_count") && gguf.metadata.get("llama.expert_count") !== 0) {
    throw new GgufError("this is a mixture of experts, which this engine doesn't compute");
  }
  const scaling = gguf.metadata.get("llama.rope.scaling.type");
  if ((scaling !== undefined && scaling !== "none") || gguf.tensors.has("rope_freqs.weight")) {
    throw new GgufError("the model scales its rotary positions, which this engine doesn't compute");
  }
  for (const [name, value, multiple] of [
    ["embedding_length", dim, 32],
    ["feed_forward_length", shape.ffDim, 32],
    ["the head size", shape.headDim, 4],
    ["attention.head_count", heads, shape.kvHeads],
    ["heads times head size", heads * shape.headDim, 32],
  ] as const) {
    if (value % multiple !== 0) throw new GgufError(`${name} is ${value}, which is not a multiple of ${multiple}`);
  }
  return shape;
}

/** Tokens in one block of the KV cache; kernel.c has the same number. */
export const KV_BLOCK_TOKENS = 16;

/** Bytes of one KV block: [layers][K, V][16 tokens][kvHeads * headDim] of F32. */
export function kvBlockBytes(shape: LlamaShape): number {
  return shape.layers * 2 * KV_BLOCK_TOKENS * shape.kvHeads * shape.headDim * 4;
}
