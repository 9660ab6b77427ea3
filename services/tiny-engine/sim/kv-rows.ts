// The sim's KV cache: one row of bytes per prompt token. A row carries a running hash of the tokens
// up to it, so the answer can be computed from the rows alone: a decode engine that received other
// rows gives another answer, which makes a wrong transfer visible in a test.

/** The state that decides the answer: two independent 32-bit folds over all rows. */
export interface PromptState {
  readonly a: number;
  readonly b: number;
}

/** Hash, token id, position and a check word, 4 bytes each; the rest of a row is filler made from the hash. */
export const MIN_ROW_BYTES = 16;

/** Avalanche of one 32-bit word (the finaliser of MurmurHash3). */
export function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return x ^ (x >>> 16);
}

const chain = (hash: number, token: number): number => mix(Math.imul(hash ^ 0x9e3779b9, 31) + token);

class Fold {
  a = 0x243f6a88;
  b = 0x13198a2e;

  add(hash: number, token: number): void {
    this.a = mix(this.a ^ hash);
    this.b = ((Math.imul(this.b, 0x01000193) ^ hash) + token) | 0;
  }

  get state(): PromptState {
    return { a: this.a, b: mix(this.b) };
  }
}

/** The state that rows of `tokens` would give, without making the rows. */
export function promptState(tokens: readonly number[], modelSeed: number): PromptState {
  const fold = new Fold();
  let hash = modelSeed;
  for (const token of tokens) {
    hash = chain(hash, token);
    fold.add(hash, token);
  }
  return fold.state;
}

/** The running hash at the end of each full block: the keys of a prefix cache. */
export function blockHashes(tokens: readonly number[], blockSize: number, modelSeed: number): number[] {
  const hashes: number[] = [];
  let hash = modelSeed;
  tokens.forEach((token, position) => {
    hash = chain(hash, token);
    if ((position + 1) % blockSize === 0) hashes.push(hash);
  });
  return hashes;
}

/** Rows of `tokens`, cut into blocks of `blockSize` rows; the last may be shorter. */
export function* blocksOf(
  tokens: readonly number[],
  blockSize: number,
  rowBytes: number,
  modelSeed: number,
): Generator<Buffer> {
  const rowWords = rowBytes >>> 2;
  let hash = modelSeed;
  for (let from = 0; from < tokens.length; from += blockSize) {
    const to = Math.min(from + blockSize, tokens.length);
    const block = Buffer.alloc((to - from) * rowBytes);
    // Rows are written in the machine's byte order, little-endian on all machines of Node except s390x.
    const words = new Uint32Array(block.buffer, block.byteOffset, block.byteLength >>> 2);
    for (let position = from, at = 0; position < to; position++, at += rowWords) {
      const token = tokens[position]!;
      hash = chain(hash, token);
      words[at] = hash;
      words[at + 1] = token;
      words[at + 2] = position;
      words[at + 3] = hash ^ token ^ position;
      for (let word = 4, filler = hash | 1; word < rowWords; word++) {
        filler = Math.imul(filler, 0x2545f491);
        words[at + word] = filler;
      }
    }
    yield block;
  }
}

/**
 * The state and the tokens that `blocks` carry, at most `count` rows.
 * Missing rows are skipped: the caller decides whether that is an error.
 */
export function readRows(
  blocks: readonly Buffer[],
  rowBytes: number,
  count: number,
): { state: PromptState; tokens: number[] } {
  const fold = new Fold();
  const tokens: number[] = [];
  for (const block of blocks) {
    for (let at = 0; at + rowBytes <= block.length && tokens.length < count; at += rowBytes) {
      const token = block.readUInt32LE(at + 4);
      fold.add(block.readInt32LE(at), token);
      tokens.push(token);
    }
  }
  return { state: fold.state, tokens };
}

/** Identifies a state: equal for equal prompts under equal weights. */
export function stateName(state: PromptState): string {
  return hex32(state.a) + hex32(state.b);
}

export function hex32(value: number): string {
  return (value >>> 0).toString(16).padStart(8, "0");
}
