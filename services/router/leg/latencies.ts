// A distribution of recent times, for percentiles. Buckets half an octave wide instead of samples: adding allocates
// nothing and reads no clock, so this may run once per token.

/** Upper edges from 1 ms to 18 minutes. */
const BUCKETS = 42;
/** After so many times all counts are halved, so that the distribution follows the recent past. */
const KEPT = 1_024;

export function bucketOf(ms: number): number {
  return ms <= 1 ? 0 : Math.min(BUCKETS - 1, Math.ceil(2 * Math.log2(ms)));
}

export class Latencies {
  readonly #counts = new Uint32Array(BUCKETS);
  #count = 0;

  /** Times that count, those that are half forgotten included. */
  get count(): number {
    return this.#count;
  }

  /** @param bucket Of the time, by `bucketOf`. */
  add(bucket: number): void {
    this.#counts[bucket]! += 1;
    this.#count += 1;
    if (this.#count === KEPT) this.#halve();
  }

  /** The time that the given share of times did not exceed, rounded up to the edge of its bucket. 0 without any. */
  quantileMs(share: number): number {
    let left = Math.ceil(share * this.#count);
    if (left === 0) return 0;
    let index = 0;
    while (index < BUCKETS - 1 && (left -= this.#counts[index]!) > 0) index += 1;
    return 2 ** (index / 2);
  }

  #halve(): void {
    this.#count = 0;
    for (let index = 0; index < BUCKETS; index += 1) this.#count += this.#counts[index]! >>>= 1;
  }
}
