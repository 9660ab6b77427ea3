// How fast places come free: what a wait is estimated from. The last few that were given back tell.
const KEPT = 32;
/** Fewer tell nothing. */
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

  /** Until so many legs have come free; undefined where too little was seen to tell. */
  waitMs(legs: number, nowMs: number): number | undefined {
    if (this.#atMs.length < ENOUGH) return undefined;
    const oldestMs = Math.min(...this.#atMs);
    const seen = this.#legs.reduce((sum, one) => sum + one, 0);
    return (legs * Math.max(1, nowMs - oldestMs)) / seen;
  }
}
