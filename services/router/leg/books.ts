// Where the legs of instances are counted and judged: the pool for users' requests. A probe brings books of its own.
import type { Verdict } from "../pool/breaker.ts";
import type { Instance } from "../pool/pool.ts";

export interface Books {
  /** @param tokens Prompt tokens of it, where they are still to be computed. */
  legStarted(instance: Instance, tokens?: number): void;
  legEnded(instance: Instance, verdict: Verdict): void;
  /** What a leg says of its two instances together. */
  pairEnded(prefill: Instance, decode: Instance, verdict: Verdict): void;
  /** Whether KV has moved between the two since both of them started. */
  isWarm(prefill: Instance, decode: Instance): boolean;
  /** @param tokens That were computed, or waited for, in `ms`. */
  prefilled(prefill: Instance, tokens: number, ms: number): void;
}
