// A KV block as it travels: [layers][K, V][rows][kvDim] of F32, little-endian. In the kernel a block always has 16
// rows; a prompt's last block travels with only the computed rows, so it carries nothing of another sequence.
import { KV_BLOCK_TOKENS, type LlamaShape } from "../shape.ts";

/** Bytes of one token's keys and values. */
export function kvRowBytes(shape: LlamaShape): number {
  return shape.layers * 2 * shape.kvHeads * shape.headDim * 4;
}

/** Layout of the bytes; equal for engines that understand each other's blocks. */
export function kvLayout(shape: LlamaShape): string {
  return `f32[${shape.layers}][2][tokens][${shape.kvHeads}][${shape.headDim}]`;
}

/** Copies the first `rows` rows out of a block of the kernel. */
export function packRows(block: Uint8Array, rows: number, shape: LlamaShape): Uint8Array<ArrayBuffer> {
  const packed = new Uint8Array(rows * kvRowBytes(shape));
  eachPlane(shape, rows, (inBlock, inPacked, length) =>
    packed.set(block.subarray(inBlock, inBlock + length), inPacked),
  );
  return packed;
}

/** Copies rows into a block of the kernel. */
export function unpackRows(block: Uint8Array, packed: Uint8Array, shape: LlamaShape): void {
  const rows = packed.length / kvRowBytes(shape);
  eachPlane(shape, rows, (inBlock, inPacked, length) =>
    block.set(packed.subarray(inPacked, inPacked + length), inBlock),
  );
}

function eachPlane(
  shape: LlamaShape,
  rows: number,
  copy: (inBlock: number, inPacked: number, length: number) => void,
): void {
  const lineBytes = shape.kvHeads * shape.headDim * 4;
  for (let plane = 0; plane < shape.layers * 2; plane++) {
    copy(plane * KV_BLOCK_TOKENS * lineBytes, plane * rows * lineBytes, rows * lineBytes);
  }
}
