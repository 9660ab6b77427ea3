// One Llama model in memory: its weights, its KV blocks, and the forward pass over a batch of rows.
// A row is one token of one sequence at one position. Rows of a batch may belong to one prompt or to many sequences;
// the result of a row doesn't depend on the others (see kernel.c).
import { cos, exp, ln, sin } from "./exact-math.ts";
import type { Gguf } from "./gguf.ts";
import { createKernel, type Kernel } from "./kernel.ts";
import { KV_BLOCK_TOKENS, kvBlockBytes, readShape, type LlamaShape } from "./shape.ts";
import { loadWeights, type Matrix, type Weights } from "./weights.ts";

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

export interface Model {
  readonly shape: LlamaShape;
  /** Takes a free KV block, or undefined when the limit is reached. */
  takeBlock(): number | undefined;
  freeBlock(block: number): void;
  /** Remaining blocks. */
  readonly freeBlocks: number;
  /** The bytes of a block: [layers][K, V][16][kvDim] F32, little-endian. A view, stale after the next `takeBlock`. */
  blockBytes(block: number): Uint8Array;
  takeTable(): BlockTable;
  /** Makes the kernel see a block that was added to the table. */
  addBlock(table: BlockTable, block: number): void;
  freeTable(table: BlockTable): void;
  /**
   * Computes 1 to MAX_ROWS rows and writes their keys and values into their blocks. Rows of one sequence are in the
   * order of their positions, and every position before them has been computed.
   * @param logitsOf Index of the first row whose logits are wanted; all rows after it too. `rows.length` for none.
   * @returns [rows - logitsOf][vocab], a view that the next call overwrites.
   */
  forward(rows: readonly Row[], logitsOf: number): Float32Array;
  /** Bytes of the kernel's memory in use. */
  readonly usedBytes: number;
}

/** @param limits.kvBytes Bound of the KV cache. @throws GgufError */
export function createModel(gguf: Gguf, limits: { readonly kvBytes: number }): Model {
  const shape = readShape(gguf);
  const weightBytes = [...gguf.tensors.values()].reduce((sum, tensor) => sum + tensor.bytes.byteLength, 0);
  // F16 weights double; Q8_0 scales double.
  const kernel = createKernel(weightBytes * 2 + limits.kvBytes + (64 << 20));
  const weights = loadWeights(gguf, shape, kernel);
  const angles = ropeAngles(shape, kernel);
  const scratch = allocateScratch(shape, kernel);
  const blockLimit = Math.floor(limits.kvBytes / kvBlockBytes(shape));
  const blockBytes = kvBlockBytes(shape);
  const tableLength = Math.ceil(shape.maxContext / KV_BLOCK_TOKENS);
  const freeBlocks: number[] = [];
  const freeTables: number[] = [];
  let allocatedBlocks = 0;

  return {
    shape,
    takeBlock() {
      const block = freeBlocks.pop();
      if (block !== undefined) return block;
      if (allocatedBlocks >= blockLimit) return undefined;
      allocatedBlocks++;
      return kernel.allocate(blockBytes);
    },
    freeBlock: (block) => void freeBlocks.push(block),
    get freeBlocks() {
      return blockLimit - allocatedBlocks + freeBlocks.length;
    },
    blockBytes: (block) => kernel.bytes(block, blockBytes),
    takeTable: () => ({ pointer: freeTables.pop() ?? kernel.allocate(tableLength * 4), blocks: [] }),
    addBlock(table, block) {
      kernel.integers(table.pointer, tableLength)[table.blocks.length] = block;
      table.blocks.push(block);
    },
    freeTable(table) {
      freeBlocks.push(...table.blocks.splice(0));
      freeTables.push(table.pointer);
    },
    forward(rows, logitsOf) {
      const { pointer: tables } = scratch.tables;
      const positions = scratch.positions.pointer;
      rows.forEach((row, index) => {
        scratch.tables.view()[index] = row.table.pointer;
        scratch.positions.view()[index] = row.position;
        embed(kernel, weights.embedding, row.token, kernel.floats(scratch.x + index * shape.dim * 4, shape.dim));
      });
      for (const [layer] of weights.layers.entries()) {
        attention(kernel, shape, weights, scratch, layer, rows.length, positions, tables, angles);
        feedForward(kernel, shape, weights, scratch, layer, rows.length);
      }
      const count = rows.length - logitsOf;
      if (count === 0) return new Float32Array(0);
      kernel.call.rms_norm(
        scratch.normed,
        scratch.x + logitsOf * shape.dim * 4,
        weights.outputNorm,
        count,
        shape.dim,
        shape.epsilon,
      );
      multiply(kernel, scratch, scratch.logits, scratch.normed, count, [weights.output]);
      return kernel.floats(scratch.logits, count * shape.vocab);
    },
    get usedBytes() {
      return kernel.used;
    },
  };
}

interface Scratch {
  readonly x: number;
  readonly normed: number;
  readonly q: number;
  readonly k: number;
  readonly v: number;
  readonly mixed: number;
  readonly gate: number;
  readonly up: number;
  readonly logits: number;
  readonly scores: number;
  readonly quantized: number;
  readonly quantizedScales: number;
  readonly positions: { readonly pointer: number; view(): Int32Array };
  readonly tables: { readonly pointer: number; view(): Int32Array };
}

function allocateScratch(shape: LlamaShape, kernel: Kernel): Scratch {
  const floats = (columns: number): number => kernel.allocate(MAX_ROWS * columns * 4);
  const integers = (): { pointer: number; view(): Int32Array } => {
    const pointer = kernel.allocate(MAX_ROWS * 4);
    return { pointer, view: () => kernel.integers(pointer, MAX_ROWS) };
  };
  const qDim = shape.heads * shape.headDim;
  const kvDim = shape.kvHeads * shape.headDim;
  const widest = Math.max(shape.dim, shape.ffDim, qDim);
  return {
    x: floats(shape.dim),
    normed: floats(shape.dim),
    q: floats(qDim),
    k: floats(kvDim),
    v: floats(kvDim),
    mixed: floats(qDim),
    gate: floats(shape.ffDim),
    up: floats(shape.ffDim),
    logits: floats(shape.vocab),
    scores: kernel.allocate((shape.maxContext + 4) * 4),
    quantized: kernel.allocate(MAX_ROWS * widest * 2),
    quantizedScales: kernel.allocate((MAX_ROWS * widest) / 8),
    positions: integers(),
    tables: integers(),
  };
}

function attention(
  kernel: Kernel,
  shape: LlamaShape,
  weights: Weights,
  s: Scratch,
  layer: number,
  rows: number,
  positions: number,
  tables: number,
  angles: number,
): void {
  const { call } = kernel;
  const w = weights.layers[layer]!;
  const { heads, kvHeads, headDim } = shape;
  call.rms_norm(s.normed, s.x, w.attentionNorm, rows, shape.dim, shape.epsilon);
  multiply(
    kernel,
    s,
    s.q,
    s.normed,
    rows,
    [w.q],
    [
      [w.k, s.k],
      [w.v, s.v],
    ],
  );
  call.rope(s.q, positions, angles, rows, heads, headDim);
  call.rope(s.k, positions, angles, rows, kvHeads, headDim);
  call.store_kv(s.k, s.v, positions, tables, rows, layer, kvHeads * headDim);
  call.attend(s.mixed, s.q, s.scores, positions, tables, rows, layer, heads, kvHeads, headDim);
  multiply(kernel, s, s.normed, s.mixed, rows, [w.o]);
  call.add(s.x, s.normed, rows * shape.dim);
}

function feedForward(
  kernel: Kernel,
  shape: LlamaShape,
  weights: Weights,
  s: Scratch,
  layer: number,
  rows: number,
): void {
  const { call } = kernel;
  const w = weights.layers[layer]!;
  call.rms_norm(s.normed, s.x, w.ffNorm, rows, shape.dim, shape.epsilon);
  multiply(kernel, s, s.gate, s.normed, rows, [w.gate], [[w.up, s.up]]);
  call.silu_gate(s.gate, s.up, rows * shape.ffDim);
  multiply(kernel, s, s.normed, s.gate, rows, [w.down]);
  call.add(s.x, s.normed, rows * shape.dim);
}

/** out = x * matrix^T, and the same x with `others`, whose rounding it shares. */
function multiply(
  kernel: Kernel,
  s: Scratch,
  out: number,
  x: number,
  rows: number,
  [first]: readonly [Matrix],
  others: readonly (readonly [Matrix, number])[] = [],
): void {
  const { call } = kernel;
  let rounded = false;
  for (const [matrix, to] of [[first, out] as const, ...others]) {
    if (matrix.scales === undefined) {
      call.matmul_f32(to, x, rows, matrix.data, matrix.outs, matrix.n);
      continue;
    }
    if (!rounded) call.quantize(s.quantized, s.quantizedScales, x, rows, matrix.n);
    rounded = true;
    call.matmul_q8(to, s.quantized, s.quantizedScales, rows, matrix.data, matrix.scales, matrix.outs, matrix.n);
  }
}

function embed(kernel: Kernel, embedding: Matrix, token: number, out: Float32Array): void {
  const { n, data, scales } = embedding;
  if (scales === undefined) {
    out.set(kernel.floats(data + token * n * 4, n));
    return;
  }
  const bytes = kernel.bytes(data + token * n, n);
  const factors = kernel.floats(scales + (token * n) / 8, n / 32);
  for (let i = 0; i < n; i++) out[i] = ((bytes[i]! << 24) >> 24) * factors[i >> 5]!;
}

/** [maxContext][headDim / 2][cos, sin] for interleaved pairs. */
function ropeAngles(shape: LlamaShape, kernel: Kernel): number {
  const { headDim, maxContext, ropeBase } = shape;
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
