// The WebAssembly kernel and its memory. Pointers are byte offsets; everything is 16-byte aligned.
import { readFileSync } from "node:fs";

// TypeScript declares this API only with the whole DOM, and then browser-only code would pass the type check.
declare const WebAssembly: {
  readonly Memory: new (pages: {
    readonly initial: number;
    readonly maximum: number;
  }) => {
    readonly buffer: ArrayBuffer;
    grow(pages: number): number;
  };
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (module: object, imports: object) => { readonly exports: unknown };
};

/** The exports of kernel.c; the comments there give shapes. All arguments but `epsilon` are integers. */
interface KernelFunctions {
  quantize(q: number, scales: number, x: number, rows: number, n: number): void;
  matmul_q8(out: number, x: number, xs: number, rows: number, w: number, ws: number, outs: number, n: number): void;
  matmul_f32(out: number, x: number, rows: number, w: number, outs: number, n: number): void;
  rms_norm(out: number, x: number, w: number, rows: number, n: number, epsilon: number): void;
  rope(x: number, positions: number, angles: number, rows: number, heads: number, headDim: number): void;
  store_kv(k: number, v: number, positions: number, tables: number, rows: number, layer: number, kvDim: number): void;
  attend(
    out: number,
    q: number,
    scores: number,
    positions: number,
    tables: number,
    rows: number,
    layer: number,
    heads: number,
    kvHeads: number,
    headDim: number,
  ): void;
  silu_gate(gate: number, up: number, n: number): void;
  add(x: number, y: number, n: number): void;
}

const PAGE = 65_536;
const ALIGNMENT = 16;
/** Memory grows by this much at a time, so that allocating many KV blocks doesn't copy views each time. */
const GROWTH_PAGES = 16;

export type Kernel = ReturnType<typeof createKernel>;

/** @param limitBytes Limit on all allocations. @throws RangeError beyond the limit, or if the system has no memory. */
export function createKernel(limitBytes: number) {
  const memory = new WebAssembly.Memory({
    initial: 2,
    maximum: Math.min(65_536, Math.ceil(limitBytes / PAGE) + 2 + GROWTH_PAGES),
  });
  const module = new WebAssembly.Module(readFileSync(new URL("./kernel.wasm", import.meta.url)));
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  let used = (exports as { readonly __heap_base: { readonly value: number } }).__heap_base.value;
  return {
    call: exports as KernelFunctions,
    /** Allocates memory permanently. @param bytes 0 or more. @returns A pointer to zeroes. */
    allocate(bytes: number): number {
      const pointer = Math.ceil(used / ALIGNMENT) * ALIGNMENT;
      const end = pointer + bytes;
      const missing = Math.ceil((end - memory.buffer.byteLength) / PAGE);
      if (missing > 0) memory.grow(Math.max(missing, GROWTH_PAGES));
      used = end;
      return pointer;
    },
    // Views. They become invalid when memory grows, so take one after the last `allocate`.
    bytes: (pointer: number, length: number) => new Uint8Array(memory.buffer, pointer, length),
    floats: (pointer: number, length: number) => new Float32Array(memory.buffer, pointer, length),
    integers: (pointer: number, length: number) => new Int32Array(memory.buffer, pointer, length),
  };
}
