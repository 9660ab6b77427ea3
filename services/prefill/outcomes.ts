// Remembers how each leg ended, for a caller that lost its answer, and which leg ids were used, so that none is used
// twice. Bounded in time and count.
import type { Outcome } from "#gen/tandem/prefill/v1/prefill_pb.js";
import type { Clock } from "../common/clock.ts";
import type { PrefillConfig } from "./config.ts";

export interface PrefillOutcome {
  readonly outcome: Outcome;
  readonly ticket: string;
}

export class Outcomes {
  readonly #limits: PrefillConfig["outcomes"];
  readonly #clock: Clock;
  /** Bounded by the instance's slots. */
  readonly #running = new Map<string, Promise<PrefillOutcome>>();
  /** The oldest come first. `ended` undefined: the leg was asked for before it arrived, and is refused since. */
  readonly #over = new Map<string, { readonly ended: PrefillOutcome | undefined; readonly sinceMs: number }>();

  constructor(limits: PrefillConfig["outcomes"], clock: Clock) {
    this.#limits = limits;
    this.#clock = clock;
  }

  /** Whether the id was used, or was asked for before its leg arrived: then the leg must not run any more. */
  has(legId: string): boolean {
    return this.#running.has(legId) || this.#over.has(legId);
  }

  /** @param work Never rejects. */
  add(legId: string, work: Promise<PrefillOutcome>): void {
    const ended = work.then(({ outcome, ticket }) => {
      this.#running.delete(legId);
      return this.#keep(legId, { outcome, ticket });
    });
    this.#running.set(legId, ended);
  }

  /**
   * Resolves when the leg has ended, with undefined for an unknown leg. That leg stays refused from then on: the caller
   * relies on it not running later.
   */
  async of(legId: string): Promise<PrefillOutcome | undefined> {
    if (this.has(legId)) return this.#running.get(legId) ?? this.#over.get(legId)!.ended;
    return this.#keep(legId, undefined);
  }

  #keep<T extends PrefillOutcome | undefined>(legId: string, ended: T): T {
    const nowMs = this.#clock.nowMs();
    this.#over.set(legId, { ended, sinceMs: nowMs });
    for (const [id, { sinceMs }] of this.#over) {
      if (this.#over.size <= this.#limits.limit && sinceMs >= nowMs - this.#limits.keepMs) break;
      this.#over.delete(id);
    }
    return ended;
  }
}
