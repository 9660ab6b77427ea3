// Remembers how each leg ended, for a caller that lost its answer, and which leg ids were used, so that none is used
// twice. Bounded in time and count.
import type { Outcome } from "#gen/tandem/prefill/v1/prefill_pb.js";
import type { Clock } from "../common/clock.ts";
import type { PrefillConfig } from "./config.ts";

export interface PrefillOutcome {
  readonly outcome: Outcome;
  readonly ticket: string;
}

/** What is known of one leg. test/router/leg/system.test.ts explores it together with the protocols of both legs. */
export type OutcomeState =
  /** Never heard of, or forgotten. */
  | { readonly kind: "unseen" }
  | { readonly kind: "running" }
  | { readonly kind: "ended"; readonly ended: PrefillOutcome }
  /**
   * Its decode instance asked for it before it arrived, and relies on it not running later: the KV would have been
   * settled by then.
   */
  | { readonly kind: "shut" };

export type OutcomeEvent =
  /** The leg arrived. */
  | { readonly kind: "arrived" }
  | { readonly kind: "ended"; readonly ended: PrefillOutcome }
  /** Its decode instance asks how it ended. */
  | { readonly kind: "asked" };

export interface OutcomeStep {
  readonly state: OutcomeState;
  /** For the leg that arrived, or for the instance that asks; an ended leg answers all that wait. */
  readonly reply: "run" | "refuse" | "wait" | "unknown" | "answer";
}

export const UNSEEN: OutcomeState = { kind: "unseen" };
const SHUT: OutcomeState = { kind: "shut" };

export function stepOutcome(state: OutcomeState, event: OutcomeEvent): OutcomeStep {
  switch (event.kind) {
    case "arrived":
      return state.kind === "unseen" ? { state: { kind: "running" }, reply: "run" } : { state, reply: "refuse" };
    case "ended":
      return { state: { kind: "ended", ended: event.ended }, reply: "answer" };
    case "asked":
      if (state.kind === "ended") return { state, reply: "answer" };
      if (state.kind === "running") return { state, reply: "wait" };
      return { state: SHUT, reply: "unknown" };
  }
}

interface Entry {
  readonly state: OutcomeState;
  /** Resolves when the leg has ended. Undefined if it never ran. */
  readonly work: Promise<PrefillOutcome> | undefined;
  readonly sinceMs: number;
}

const FRESH: Entry = { state: UNSEEN, work: undefined, sinceMs: 0 };

export class Outcomes {
  readonly #limits: PrefillConfig["outcomes"];
  readonly #clock: Clock;
  /** Bounded by the instance's slots. */
  readonly #running = new Map<string, Entry>();
  /** The oldest come first. */
  readonly #over = new Map<string, Entry>();

  constructor(limits: PrefillConfig["outcomes"], clock: Clock) {
    this.#limits = limits;
    this.#clock = clock;
  }

  /** Whether the id was used, or was asked for before its leg arrived: then the leg must not run any more. */
  has(legId: string): boolean {
    return stepOutcome(this.#of(legId).state, { kind: "arrived" }).reply === "refuse";
  }

  /** @param work Never rejects. */
  add(legId: string, work: Promise<PrefillOutcome>): void {
    const ended = work.then(({ outcome, ticket }) => {
      this.#take(legId, { kind: "ended", ended: { outcome, ticket } });
      return { outcome, ticket };
    });
    this.#take(legId, { kind: "arrived" }, ended);
  }

  /** Resolves when the leg has ended, with undefined for an unknown leg, which is refused from then on. */
  async of(legId: string): Promise<PrefillOutcome | undefined> {
    const { state, work } = this.#take(legId, { kind: "asked" });
    return state.kind === "ended" ? state.ended : work;
  }

  #of(legId: string): Entry {
    return this.#running.get(legId) ?? this.#over.get(legId) ?? FRESH;
  }

  #take(legId: string, event: OutcomeEvent, work = this.#of(legId).work): Entry {
    const before = this.#of(legId);
    const { state } = stepOutcome(before.state, event);
    if (state === before.state) return before;
    const entry = { state, work, sinceMs: this.#clock.nowMs() };
    if (state.kind === "running") this.#running.set(legId, entry);
    else this.#keep(legId, entry);
    return entry;
  }

  #keep(legId: string, entry: Entry): void {
    this.#running.delete(legId);
    this.#over.set(legId, entry);
    for (const [id, { sinceMs }] of this.#over) {
      if (this.#over.size <= this.#limits.limit && sinceMs >= entry.sinceMs - this.#limits.keepMs) break;
      this.#over.delete(id);
    }
  }
}
