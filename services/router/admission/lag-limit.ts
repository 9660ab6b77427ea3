// Limits the legs that run at once while this process itself is the bottleneck: slots may be free, but each further
// stream makes all of them later. Additive increase, multiplicative decrease (Chiu, Jain, Computer Networks 17(1), 1989)
// on the delay of the event loop, which every stream pays. Pure.

/** A mean delay at which more streams bring no more throughput: a request passes this event loop some ten times. */
const LAG_MS = 400;
/** The delay is a mean over a second, so it shows the effect of a change after a part of that. */
const STEP_MS = 250;
const DECREASE = 0.95;
const INCREASE_LEGS = 4;
/** So that a router on a machine that is busy with something else still serves. */
const LEAST_LEGS = 32;

export class LagLimit {
  #legs = Infinity;
  #lookedMs = -Infinity;

  /** @returns The legs that may run at once. Infinity: the event loop sets no limit. */
  at(delayMs: number, running: number, nowMs: number): number {
    if (nowMs - this.#lookedMs < STEP_MS) return this.#legs;
    this.#lookedMs = nowMs;
    // By the legs that run, and not by the last limit: legs that were admitted before take seconds to end.
    if (delayMs > LAG_MS) this.#legs = Math.max(LEAST_LEGS, Math.floor(running * DECREASE));
    else if (delayMs > LAG_MS / 2) return this.#legs;
    else if (running >= this.#legs) this.#legs += INCREASE_LEGS;
    else if (running < this.#legs / 2) this.#legs = Infinity;
    return this.#legs;
  }
}
