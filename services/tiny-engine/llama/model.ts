// One Llama model in memory: its weights, its KV blocks, and the forward pass over a batch of rows.
// A row is one token of one sequence at one position. Rows of a batch may belong to one prompt or to many sequences;
// the result of a row doesn't depend on the others (see kernel.c).
import { cos, exp, ln, sin } from "./exact-math.ts";
import type { Gguf } from "./gguf.ts";
import { createKernel, type Kernel } from "./kernel.ts";
import { KV_BLOCK_TOKENS, kvBlockBytes, readShape, type LlamaShape } from "./shape.ts";
import { loadWeights, type LayerWeights, type Matrix, type Weights } from "./weights.ts";

/** Rows computed at once. More would only cost scratch memory. */
export const MAX_ROWS = 64;

/** One sequence's list of KV blocks. */
export interface BlockTable {
  /** Where the kernel reads the block addresses. */
  readonly pointer: number;
  /** Addresses of the blocks, in the order of their tokens. */
  readonly blocks: number[];
}

export interface Row {
  readonly token: number;
  readonly position: number;
  readonly table: BlockTable;
}

export type Model = ReturnType<typeof createModel>;

/** @param limits.kvBytes Bound of the KV cache. @throws GgufError */
export function createModel(gguf: Gguf, limits: { readonly kvBytes: number }) {
  const shape = readShape(gguf);
  const weightBytes = [...gguf.tensors.values()].reduce((sum, { bytes }) => sum + bytes.byteLength, 0);
  // F16 weights double; Q8_0 scales double.
  const kernel = createKernel(weightBytes * 2 + limits.kvBytes + (64 << 20));
  const forward = createForward(shape, loadWeights(gguf, shape, kernel), kernel);
  const blockBytes = kvBlockBytes(shape);
  const tableLength = Math.ceil(shape.maxContext / KV_BLOCK_TOKENS);
  const freeBlocks: number[] = [];
  const freeTables: number[] = [];
  let unallocatedBlocks = Math.floor(limits.kvBytes / blockBytes);

  return {
    shape,
    forward,
    /** Blocks that tables can still grow by. */
    get freeBlocks(): number {
      return unallocatedBlocks + freeBlocks.length;
    },
    /** The bytes of a block: [layers][K, V][16][kvDim] F32, little-endian. A view, stale after the next `grow`. */
    blockBytes: (block: number): Uint8Array => kernel.bytes(block, blockBytes),
    takeTable: (): BlockTable => ({ pointer: freeTables.pop() ?? kernel.allocate(tableLength * 4), blocks: [] }),
    /** Adds a free block to the table. @returns False if the KV cache is full. */
    grow(table: BlockTable): boolean {
      let block = freeBlocks.pop();
      if (block === undefined) {
        if (unallocatedBlocks === 0) return false;
        block = kernel.allocate(blockBytes);
        unallocatedBlocks--;
      }
      kernel.integers(table.pointer, tableLength)[table.blocks.length] = block;
      table.blocks.push(block);
      return true;
    },
    freeTable({ pointer, blocks }: BlockTable): void {
      freeBlocks.push(...blocks.splice(0));
      freeTables.push(pointer);
    },
  };
}

/**
 * Computes 1 to MAX_ROWS rows and writes their keys and values into their blocks. Rows of one sequence are in the
 * order of their positions, and every position before them has been computed.
 * @param logitsOf Index of the first row whose logits are wanted; all rows after it too. `rows.length` for none.
 * @returns [rows - logitsOf][vocab], a view that the next call overwrites.
 */
type Forward = (rows: readonly Row[], logitsOf: number) => Float32Array;

/** Allocates the scratch memory of the forward pass. The names below are pointers to [MAX_ROWS][columns] of F32. */
function createForward(shape: LlamaShape, weights: Weights, kernel: Kernel): Forward {
  const { dim, heads, kvHeads, headDim, ffDim, vocab, epsilon } = shape;
  const { call } = kernel;
  const [qDim, kvDim] = [heads * headDim, kvHeads * headDim];
  const floats = (columns: number): number => kernel.allocate(MAX_ROWS * columns * 4);
  const [x, normed, logits] = [floats(dim), floats(dim), floats(vocab)];
  const [q, k, v, mixed] = [floats(qDim), floats(kvDim), floats(kvDim), floats(qDim)];
  const [gate, up] = [floats(ffDim), floats(ffDim)];
  const widest = Math.max(dim, ffDim, qDim);
  const rounded = kernel.allocate(MAX_ROWS * widest * 2);
  const roundedScales = kernel.allocate((MAX_ROWS * widest) / 8);
  const scores = kernel.allocate((shape.maxContext + 4) * 4);
  const [positions, tables] = [kernel.allocate(MAX_ROWS * 4), kernel.allocate(MAX_ROWS * 4)];
  const angles = ropeAngles(shape, kernel);

  /** out = from * matrix^T for each pair. The matrices share the rounding of `from`. */
  const multiply = (from: number, rows: number, ...products: readonly (readonly [Matrix, out: number])[]): void => {
    let isRounded = false;
    for (const [{ outs, n, data, scales }, out] of products) {
      if (scales === undefined) {
        call.matmul_f32(out, from, rows, data, outs, n);
        continue;
      }
      if (!isRounded) call.quantize(rounded, roundedScales, from, rows, n);
      isRounded = true;
      call.matmul_q8(out, rounded, roundedScales, rows, data, scales, outs, n);
    }
  };
  const embed = (token: number, out: Float32Array): void => {
    const { n, data, scales } = weights.embedding;
    if (scales === undefined) {
      out.set(kernel.floats(data + token * n * 4, n));
      return;
    }
    const bytes = kernel.bytes(data + token * n, n);
    const factors = kernel.floats(scales + (token * n) / 8, n / 32);
    for (let i = 0; i < n; i++) out[i] = ((bytes[i]! << 24) >> 24) * factors[i >> 5]!;
  };
  const attention = (w: LayerWeights, layer: number, rows: number): void => {
    call.rms_norm(normed, x, w.attentionNorm, rows, dim, epsilon);
    multiply(normed, rows, [w.q, q], [w.k, k], [w.v, v]);
    call.rope(q, positions, angles, rows, heads, headDim);
    call.rope(k, positions, angles, rows, kvHeads, headDim);
    call.store_kv(k, v, positions, tables, rows, layer, kvDim);
    call.attend(mixed, q, scores, positions, tables, rows, layer, heads, kvHeads, headDim);
    multiply(mixed, rows, [w.o, normed]);
    call.add(x, normed, rows * dim);
  };
  const feedForward = (w: LayerWeights, rows: number): void => {
    call.rms_norm(normed, x, w.ffNorm, rows, dim, epsilon);
    multiply(normed, rows, [w.gate, gate], [w.up, up]);
    call.silu_gate(gate, up, rows * ffDim);
    multiply(gate, rows, [w.down, normed]);
    call.add(x, normed, rows * dim);
  };

  return (rows, logitsOf) => {
    rows.forEach(({ token, position, table }, index) => {
      kernel.integers(tables, MAX_ROWS)[index] = table.pointer;
      kernel.integers(positions, MAX_ROWS)[index] = position;
      embed(token, kernel.floats(x + index * dim * 4, dim));
    });
    weights.layers.forEach((layer, index) => {
      attention(layer, index, rows.length);
      feedForward(layer, rows.length);
    });
    const count = rows.length - logitsOf;
    if (count === 0) return new Float32Array(0);
    call.rms_norm(normed, x + logitsOf * dim * 4, weights.outputNorm, count, dim, epsilon);
    multiply(normed, count, [weights.output, logits]);
    return kernel.floats(logits, count * vocab);
  };
}

/** [maxContext][headDim / 2][cos, sin] for interleaved pairs. */
function ropeAngles({ headDim, maxContext, ropeBase }: LlamaShape, kernel: Kernel): number {
  const pointer = kernel.allocate(maxContext * headDim * 4);
  const out = kernel.floats(pointer, maxContext * headDim);
  for (let i = 0; i < headDim; i += 2) {
    const frequency = exp((-i / headDim) * ln(ropeBase));
    for (let position = 0; position < maxContext; position++) {
      out[position * headDim + i] = cos(position * frequency);
      out[position * headDim + i + 1] = sin(position * frequency);
    }
  }
  return pointer;
}
