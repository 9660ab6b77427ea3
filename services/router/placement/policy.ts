// A policy picks one of several instances that could all serve. It owns its randomness and its state, gets all figures
// as arguments, and awaits nothing.

/** One instance as a policy sees it. All figures are estimates for this moment. */
export interface Candidate {
  readonly instanceId: string;
  /** Unique and constant. Instances take turns in this order. Above 0. */
  readonly ordinal: number;
  /** Legs of this router that run on it. */
  readonly legs: number;
  /** Prompt tokens waiting for or in prefill on it: its own figure plus those placed on it since. 0 on decode. */
  readonly queuedTokens: number;
  /** Legs and reservations of all routers: its own figure plus the legs placed on it since. */
  readonly running: number;
  /** Legs it may still take: its own figure less the legs placed on it since. */
  readonly freeSlots: number;
}

export interface Policy {
  readonly name: string;
  /** @param candidates At least one, in any order. */
  pick<T extends Candidate>(candidates: readonly T[]): T;
}
