// How fast a prefill engine computes prompts, by its answers. Legs that run at the same time share the engine, so what
// counts is all that it computed since it last had no leg, not the time of one leg.
import type { Clock } from "../common/clock.ts";

/** Weight of a new observation. */
const RATE_WEIGHT = 0.2;

export class PromptPace {
  /** Prompt tokens a millisecond. 0: none was seen. */
  tokensPerMs = 0;
  readonly #clock: Clock;
  #running = 0;
  #busySinceMs = 0;
  #busyTokens = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  began(): void {
    if (this.#running++ > 0) return;
    this.#busySinceMs = this.#clock.nowMs();
    this.#busyTokens = 0;
  }

  /** @param computedTokens 0 if it gave no answer. */
  ended(computedTokens: number): void {
    this.#running--;
    this.#busyTokens += computedTokens;
    const rate = this.#busyTokens / (this.#clock.nowMs() - this.#busySinceMs);
    if (computedTokens <= 0 || !Number.isFinite(rate)) return;
    this.tokensPerMs += (rate - this.tokensPerMs) * (this.tokensPerMs === 0 ? 1 : RATE_WEIGHT);
  }
}
