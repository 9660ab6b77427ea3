// A router that has just started hears of its instances one by one. Decode that serves alone makes up for prefill that is
// gone, not for prefill that was never there yet: until then requests wait for a pair, for as long as one may be expected.
import type { Clock } from "../../common/clock.ts";
import type { Member } from "./member.ts";

export interface FirstPrefill {
  /** Models that have a decode instance and never had a prefill instance that took legs, while one may still come. */
  awaited(
    prefill: readonly Member[],
    decode: readonly Member[],
    models: ReadonlyMap<string, unknown>,
  ): ReadonlySet<string>;
  /** Whether the time of one that was awaited is over. */
  readonly isOver: boolean;
}

/** @param waitMs From the first decode instance of a model that gets legs. */
export function awaitFirstPrefill(clock: Clock, waitMs: number): FirstPrefill {
  const had = new Set<string>();
  const decodeSinceMs = new Map<string, number>();
  let nextMs = Infinity;
  return {
    awaited(prefill, decode, models) {
      for (const { eligible, info } of prefill) if (eligible) had.add(info.model);
      const nowMs = clock.nowMs();
      for (const { eligible, info } of decode)
        if (eligible && !decodeSinceMs.has(info.model)) decodeSinceMs.set(info.model, nowMs);
      // A model that nobody has any more starts afresh.
      for (const model of had) if (!models.has(model)) had.delete(model);
      const awaited = new Set<string>();
      nextMs = Infinity;
      for (const [model, sinceMs] of decodeSinceMs) {
        if (!models.has(model)) decodeSinceMs.delete(model);
        if (!models.has(model) || had.has(model) || nowMs >= sinceMs + waitMs) continue;
        awaited.add(model);
        nextMs = Math.min(nextMs, sinceMs + waitMs);
      }
      return awaited;
    },
    get isOver() {
      return clock.nowMs() >= nextMs;
    },
  };
}
