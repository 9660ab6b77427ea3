// The forward pass again, slow and plain, in doubles: the oracle for the engine's arithmetic.
// Source: the Llama architecture as llama.cpp computes it (interleaved rotary pairs, grouped heads, SwiGLU).
import type { Gguf } from "../../../services/tiny-engine/llama/gguf.ts";
import type { LlamaShape } from "../../../services/tiny-engine/llama/shape.ts";
import { halfToFloat } from "../../../services/tiny-engine/llama/weights.ts";

/** Logits after the last of `tokens`, [vocab]. */
export function referenceLogits(gguf: Gguf, shape: LlamaShape, tokens: readonly number[]): number[] {
  const { dim, heads, kvHeads, headDim, ffDim } = shape;
  const m = (name: string): number[] => values(gguf, name);
  const embedding = m("token_embd.weight");
  const xs = tokens.map((token) => embedding.slice(token * dim, (token + 1) * dim));
  for (let layer = 0; layer < shape.layers; layer++) {
    const w = (part: string): number[] => m(`blk.${layer}.${part}.weight`);
    const normed = xs.map((x) => norm(x, w("attn_norm"), shape.epsilon));
    const q = normed.map((x, at) => rotate(times(w("attn_q"), x, heads * headDim), at, headDim, shape.ropeBase));
    const k = normed.map((x, at) => rotate(times(w("attn_k"), x, kvHeads * headDim), at, headDim, shape.ropeBase));
    const v = normed.map((x) => times(w("attn_v"), x, kvHeads * headDim));
    const mixed = xs.map((_, at) => {
      const out = new Array<number>(heads * headDim).fill(0);
      for (let head = 0; head < heads; head++) {
        const kv = Math.floor(head / (heads / kvHeads)) * headDim;
        const scores = k
          .slice(0, at + 1)
          .map((key) => dot(q[at]!, head * headDim, key, kv, headDim) / Math.sqrt(headDim));
        const most = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - most));
        const total = weights.reduce((sum, weight) => sum + weight, 0);
        weights.forEach((weight, t) => {
          for (let i = 0; i < headDim; i++) out[head * headDim + i]! += (weight / total) * v[t]![kv + i]!;
        });
      }
      return out;
    });
    mixed.forEach((x, at) => addTo(xs[at]!, times(w("attn_output"), x, dim)));
    xs.forEach((x) => {
      const normed = norm(x, w("ffn_norm"), shape.epsilon);
      const gate = times(w("ffn_gate"), normed, ffDim);
      const up = times(w("ffn_up"), normed, ffDim);
      addTo(
        x,
        times(
          w("ffn_down"),
          gate.map((g, i) => (g / (1 + Math.exp(-g))) * up[i]!),
          dim,
        ),
      );
    });
  }
  return times(embedding, norm(xs.at(-1)!, m("output_norm.weight"), shape.epsilon), shape.vocab);
}

const cache = new WeakMap<Gguf, Map<string, number[]>>();

function values(gguf: Gguf, name: string): number[] {
  const known = cache.get(gguf) ?? new Map<string, number[]>();
  cache.set(gguf, known);
  const found = known.get(name);
  if (found !== undefined) return found;
  const { type, bytes } = gguf.tensors.get(name)!;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const out: number[] = [];
  if (type === "F32") for (let at = 0; at < bytes.length; at += 4) out.push(view.getFloat32(at, true));
  else if (type === "F16") for (let at = 0; at < bytes.length; at += 2) out.push(halfToFloat(view.getUint16(at, true)));
  else {
    for (let at = 0; at < bytes.length; at += 34) {
      const scale = halfToFloat(view.getUint16(at, true));
      for (let i = 0; i < 32; i++) out.push(scale * view.getInt8(at + 2 + i));
    }
  }
  known.set(name, out);
  return out;
}

function times(matrix: readonly number[], x: readonly number[], outs: number): number[] {
  return Array.from({ length: outs }, (_, o) => dot(matrix, o * x.length, x, 0, x.length));
}

function dot(a: readonly number[], aAt: number, b: readonly number[], bAt: number, n: number): number {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += a[aAt + i]! * b[bAt + i]!;
  return sum;
}

function norm(x: readonly number[], w: readonly number[], epsilon: number): number[] {
  const scale = 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + epsilon);
  return x.map((value, i) => value * scale * w[i]!);
}

function rotate(x: number[], position: number, headDim: number, base: number): number[] {
  const out = [...x];
  for (let at = 0; at < x.length; at += 2) {
    const angle = position * base ** (-(at % headDim) / headDim);
    out[at] = x[at]! * Math.cos(angle) - x[at + 1]! * Math.sin(angle);
    out[at + 1] = x[at]! * Math.sin(angle) + x[at + 1]! * Math.cos(angle);
  }
  return out;
}

function addTo(x: number[], y: readonly number[]): void {
  for (let i = 0; i < x.length; i++) x[i]! += y[i]!;
}
