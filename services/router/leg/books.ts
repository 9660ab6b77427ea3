// Counts and judges the legs of instances. The pool does that for users' requests; probes have books of their own.
import type { Verdict } from "../pool/breaker.ts";
import type { Instance } from "../pool/pool.ts";

export interface Books {
  /** @param tokens The leg's prompt tokens, if they are still to be computed. */
  legStarted(instance: Instance, tokens?: number): void;
  legEnded(instance: Instance, verdict: Verdict): void;
  /** Books what a leg says about its two instances as a pair. */
  pairEnded(prefill: Instance, decode: Instance, verdict: Verdict): void;
  /** Whether KV has moved between the two since both of them started. */
  isWarm(prefill: Instance, decode: Instance): boolean;
  /** @param tokens Tokens that were computed, or waited for, in `ms`. */
  prefilled(prefill: Instance, tokens: number, ms: number): void;
}
