// Which prompt blocks a prefill would find already computed: the least recently used blocks are dropped first.
// Only hashes are kept; the sim doesn't need the KV itself.

export class PrefixCache {
  readonly #limit: number;
  /** Insertion order is age. */
  readonly #hashes = new Set<number>();

  constructor(blockLimit: number) {
    this.#limit = blockLimit;
  }

  /** How many of these blocks, from the first on, are cached. Afterwards all of them are. */
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
