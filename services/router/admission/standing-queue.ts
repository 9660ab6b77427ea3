// Tells a queue that absorbs a burst from one that stands: requests come faster than slots become free, so every request
// waits, and answers come late for all. While a queue stands, requests that have waited longer than the target are
// refused, and the newest go first, so those that are admitted are fast and the others know early. Pure.
// Sources: CoDel (Nichols, Jacobson, ACM Queue 10(5), 2012, RFC 8289) for the rule that only a wait that stays above the
// target for an interval counts; adaptive LIFO with CoDel (Maurer, "Fail at Scale", ACM Queue 13(8), 2015).
// `QueuePace` says how long a queue takes to be served.

/** How long the wait must stay above the target: bursts that slots absorb meanwhile are none of our business. */
const INTERVAL_MS = 5_000;
/** A queue that stood within this time stands again after one target, as CoDel resumes at its former rate. */
const RECENT_MS = 60_000;
/** A wait of this share of the time that a request runs is worth while, however long that is. */
const RUN_SHARE = 0.25;
/** Weight of the latest request in the mean time that requests run. */
const RUN_WEIGHT = 0.1;

export class StandingQueue {
  #stands = false;
  #aboveSinceMs: number | undefined;
  #stoodMs = -Infinity;
  #runMs = 0;

  get stands(): boolean {
    return this.#stands;
  }

  /** Notes the time that a request ran after it was admitted. */
  ran(ms: number): void {
    this.#runMs = this.#runMs === 0 ? ms : this.#runMs + RUN_WEIGHT * (ms - this.#runMs);
  }

  /** The wait that is acceptable in a standing queue. @param settingMs `queue.target_ms` */
  targetMs(settingMs: number): number {
    return settingMs === 0 ? Infinity : Math.max(settingMs, RUN_SHARE * this.#runMs);
  }

  /**
   * Called when a slot is free for the first of the queue.
   *
   * @param waitedMs The wait of the oldest request.
   * @param expectedMs Until all that wait have been admitted; undefined if it can't be estimated.
   */
  look(waitedMs: number, expectedMs: number | undefined, targetMs: number, nowMs: number): void {
    if (this.#stands) {
      // Requests that would all be admitted in time need not be refused.
      if (expectedMs !== undefined && expectedMs <= targetMs / 2) this.emptied(nowMs);
      return;
    }
    if (waitedMs <= targetMs) {
      this.#aboveSinceMs = undefined;
      return;
    }
    this.#aboveSinceMs ??= nowMs;
    const intervalMs = nowMs - this.#stoodMs < RECENT_MS ? targetMs : Math.max(INTERVAL_MS, targetMs);
    this.#stands = nowMs - this.#aboveSinceMs >= intervalMs;
  }

  /** The queue is empty, or as good as empty. */
  emptied(nowMs: number): void {
    if (this.#stands) this.#stoodMs = nowMs;
    this.#stands = false;
    this.#aboveSinceMs = undefined;
  }
}

/** Releases that a pace keeps. */
const KEPT = 32;
/** Fewer releases allow no estimate. */
const ENOUGH = 8;

/** Measures how fast slots become free, from the last few releases, to estimate waits. */
export class QueuePace {
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
