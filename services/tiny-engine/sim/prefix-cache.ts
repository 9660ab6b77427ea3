// Which prompt blocks a prefill would find computed already: least recently used blocks go first.
// Only hashes are kept; the sim has no use for the KV itself.

export class PrefixCache {
  readonly #limit: number;
  /** Insertion order is age. */
  readonly #hashes = new Set<number>();

  constructor(blockLimit: number) {
    this.#limit = blockLimit;
  }

  /** How many of these blocks, from the first on, are there. All of them are afterwards. */
  use(hashes: readonly number[]): number {
    const firstMiss = hashes.findIndex((hash) => !this.#hashes.has(hash));
    for (const hash of hashes) {
      this.#hashes.delete(hash);
      this.#hashes.add(hash);
    }
    for (const oldest of this.#hashes) {
      if (this.#hashes.size <= this.#limit) break;
      this.#hashes.delete(oldest);
    }
    return firstMiss === -1 ? hashes.length : firstMiss;
  }
}
