// What a policy is: a pure choice among instances that could all do it. Chance and memory are its own; the figures come
// in with the call, and it awaits nothing.

/** One instance as a policy sees it. All figures are estimates for this moment. */
export interface Candidate {
  readonly instanceId: string;
  /** Differs from instance to instance, and stays: in this order they take turns. Above 0. */
  readonly ordinal: number;
  /** Legs of this router that run on it. */
  readonly legs: number;
  /** Prompt tokens that wait for, or are in, prefill on it: its own figure plus what was placed on it since. 0 on decode. */
  readonly queuedTokens: number;
  /** Legs and reservations of all routers: its own figure plus what was placed on it since. */
  readonly running: number;
  /** Legs it may still take: its own figure less what was placed on it since. */
  readonly freeSlots: number;
}

export interface Policy {
  readonly name: string;
  /** @param candidates At least one, in any order. */
  pick<T extends Candidate>(candidates: readonly T[]): T;
}
