// The policies, and the choice among instances that could all serve. A policy is pure: it compares the figures of two
// candidates. Equals take turns.
import type { PolicyName } from "../config.ts";

/** One instance as a policy sees it. All figures are estimates for this moment. */
export interface Candidate {
  readonly instanceId: string;
  /** Legs of this router that run on it. */
  readonly legs: number;
  /** Prompt tokens waiting for or in prefill on it: its own figure plus those placed on it since. 0 on decode. */
  readonly queuedTokens: number;
  /** Legs and reservations of all routers: its own figure plus the legs placed on it since. */
  readonly running: number;
  /** Legs it may still take: its own figure less the legs placed on it since. */
  readonly freeSlots: number;
}

/** Below 0 if `a` is the better choice, above 0 if `b` is, 0 if they are equals. */
type Policy = (a: Candidate, b: Candidate) => number;

const POLICIES: Readonly<Record<PolicyName, Policy>> = {
  // Whatever the load. It suits uniform requests, and is the baseline for other policies.
  "round-robin": () => 0,
  // The fewest prompt tokens to compute and, among equals, the fewest legs. Prefill time grows with tokens, so one
  // 32k-token prompt outweighs forty short ones; on decode the tokens are all 0 and the legs decide. "Always the
  // minimum" would send a burst to one instance while its figures are stale, so they include the legs placed since.
  "least-load": (a, b) => a.queuedTokens - b.queuedTokens || a.running - b.running || a.legs - b.legs,
};

/** Picks instances for one side. Prefill and decode have one each, so that their turns are not coupled. */
export class Picker {
  readonly #policyNow: () => PolicyName;
  /** Id and not only position, so that no instance loses its turn when another one joins, leaves or is left out. */
  #last = "";
  #lastIndex = -1;

  /** @param policyNow The configured policy. It may change between choices. */
  constructor(policyNow: () => PolicyName) {
    this.#policyNow = policyNow;
  }

  /**
   * Picks an instance with a free slot, if there is one, by the policy. One pass without copies, because this runs
   * twice a request, over every instance.
   *
   * @param candidates At least one, in the order of their ids.
   */
  pick<T extends Candidate>(candidates: readonly T[]): T {
    const compare = POLICIES[this.#policyNow()];
    const count = candidates.length;
    let index = this.#next(candidates);
    let best = candidates[index]!;
    this.#lastIndex = index;
    for (let seen = 1; seen < count; seen += 1) {
      index = index + 1 === count ? 0 : index + 1;
      const one = candidates[index]!;
      const isFree = one.freeSlots > 0;
      if (isFree === best.freeSlots > 0 ? compare(one, best) >= 0 : !isFree) continue;
      best = one;
      this.#lastIndex = index;
    }
    this.#last = best.instanceId;
    return best;
  }

  /** Index of the candidate whose turn it is. */
  #next<T extends Candidate>(candidates: readonly T[]): number {
    const isSame = candidates[this.#lastIndex]?.instanceId === this.#last;
    const next = isSame ? this.#lastIndex + 1 : candidates.findIndex(({ instanceId }) => instanceId > this.#last);
    return next === -1 || next === candidates.length ? 0 : next;
  }
}
