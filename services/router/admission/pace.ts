// Measures how fast slots become free, from the last few releases, to estimate waits.
const KEPT = 32;
/** Fewer releases allow no estimate. */
const ENOUGH = 8;

export class Pace {
  readonly #atMs: number[] = [];
  readonly #legs: number[] = [];
  #next = 0;

  released(legs: number, nowMs: number): void {
    this.#atMs[this.#next] = nowMs;
    this.#legs[this.#next] = legs;
    this.#next = (this.#next + 1) % KEPT;
  }

  /** Estimates the time until this many slots have become free; undefined after too few releases. */
  waitMs(legs: number, nowMs: number): number | undefined {
    if (this.#atMs.length < ENOUGH) return undefined;
    const oldestMs = Math.min(...this.#atMs);
    const seen = this.#legs.reduce((sum, one) => sum + one, 0);
    return (legs * Math.max(1, nowMs - oldestMs)) / seen;
  }
}
