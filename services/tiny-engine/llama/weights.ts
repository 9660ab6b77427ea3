// Puts a model's tensors into the kernel's memory, in the layout that the kernel multiplies with.
import { GgufError, type Gguf, type Tensor } from "./gguf.ts";
import type { Kernel } from "./kernel.ts";
import type { LlamaShape } from "./shape.ts";

/** A matrix [outs][n]. With `scales` it is Q8_0, split into a plane of bytes and one of F32 scales; else F32. */
export interface Matrix {
  readonly outs: number;
  readonly n: number;
  readonly data: number;
  readonly scales: number | undefined;
}

export type Weights = ReturnType<typeof loadWeights>;
export type LayerWeights = Weights["layers"][number];

/** @throws GgufError if a tensor is missing or its size differs from the metadata. */
export function loadWeights(gguf: Gguf, shape: LlamaShape, kernel: Kernel) {
  const { dim, ffDim, vocab } = shape;
  const qDim = shape.heads * shape.headDim;
  const kvDim = shape.kvHeads * shape.headDim;
  const tensor = (name: string, dimensions: readonly number[]): Tensor => {
    const found = gguf.tensors.get(name);
    if (found === undefined) throw new GgufError(`tensor ${name} is missing`);
    if (found.dimensions.join() !== dimensions.join()) {
      throw new GgufError(`tensor ${name} is [${found.dimensions.join(", ")}], not [${dimensions.join(", ")}]`);
    }
    return found;
  };
  const matrix = (name: string, outs: number, n: number): Matrix =>
    loadMatrix(tensor(name, [n, outs]), outs, n, kernel);
  const vector = (name: string, n: number): number => loadMatrix(widened(tensor(name, [n])), 1, n, kernel).data;

  const layers = Array.from({ length: shape.layers }, (_, layer) => {
    const name = (part: string): string => `blk.${layer}.${part}.weight`;
    return {
      attentionNorm: vector(name("attn_norm"), dim),
      q: matrix(name("attn_q"), qDim, dim),
      k: matrix(name("attn_k"), kvDim, dim),
      v: matrix(name("attn_v"), kvDim, dim),
      o: matrix(name("attn_output"), dim, qDim),
      ffNorm: vector(name("ffn_norm"), dim),
      gate: matrix(name("ffn_gate"), ffDim, dim),
      up: matrix(name("ffn_up"), ffDim, dim),
      down: matrix(name("ffn_down"), dim, ffDim),
    };
  });
  const embedding = matrix("token_embd.weight", vocab, dim);
  return {
    embedding,
    layers,
    outputNorm: vector("output_norm.weight", dim),
    /** The embedding itself if the model ties them. */
    output: gguf.tensors.has("output.weight") ? matrix("output.weight", vocab, dim) : embedding,
  };
}

function loadMatrix(tensor: Tensor, outs: number, n: number, kernel: Kernel): Matrix {
  if (tensor.type !== "Q8_0") {
    const data = kernel.allocate(outs * n * 4);
    kernel.bytes(data, outs * n * 4).set(widened(tensor).bytes);
    return { outs, n, data, scales: undefined };
  }
  const blocks = (outs * n) / 32;
  const data = kernel.allocate(outs * n);
  const scales = kernel.allocate(blocks * 4);
  const bytes = kernel.bytes(data, outs * n);
  const floats = kernel.floats(scales, blocks);
  for (let block = 0, at = 0; block < blocks; block++, at += 34) {
    floats[block] = halfToFloat(tensor.bytes[at]! | (tensor.bytes[at + 1]! << 8));
    bytes.set(tensor.bytes.subarray(at + 2, at + 34), block * 32);
  }
  return { outs, n, data, scales };
}

/** The tensor as F32. Q8_0 vectors don't occur. */
function widened(tensor: Tensor): Tensor {
  if (tensor.type === "F32") return tensor;
  if (tensor.type === "Q8_0") throw new GgufError(`tensor ${tensor.name} is Q8_0, but F32 or F16 is expected`);
  const count = tensor.bytes.byteLength / 2;
  const floats = new Float32Array(count);
  for (let i = 0; i < count; i++) floats[i] = halfToFloat(tensor.bytes[2 * i]! | (tensor.bytes[2 * i + 1]! << 8));
  return { ...tensor, type: "F32", bytes: new Uint8Array(floats.buffer) };
}

/** IEEE 754 half precision to single, exactly. */
export function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
