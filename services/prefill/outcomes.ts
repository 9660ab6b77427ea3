// Remembers how each leg ended, for a caller that lost its answer, and which leg ids were used, so that none is used
// twice. Bounded in time and count.
import type { Outcome } from "#gen/tandem/prefill/v1/prefill_pb.js";

export interface PrefillOutcome {
  readonly outcome: Outcome;
  readonly ticket: string;
}

export interface Outcomes {
  /** False if the id was used before, or was asked for before the leg arrived: then the leg must not run any more. */
  begin(legId: string): boolean;
  end(legId: string, outcome: PrefillOutcome): void;
  /**
   * Resolves when the leg has ended. Undefined for an unknown leg, which from then on stays refused: the caller
   * relies on the leg not running later.
   */
  of(legId: string): Promise<PrefillOutcome> | undefined;
}

interface Entry {
  /** Undefined: asked for before the leg arrived, and refused since. */
  readonly ended: Promise<PrefillOutcome> | undefined;
  readonly resolve: (outcome: PrefillOutcome) => void;
  running: boolean;
  readonly sinceMs: number;
}

/** @param limit Entries of ended legs. Running legs are bounded by the instance's slots. */
export function createOutcomes(o: {
  readonly keepMs: number;
  readonly limit: number;
  readonly nowMs: () => number;
}): Outcomes {
  // In insertion order, so the oldest come first.
  const running = new Map<string, Entry>();
  const over = new Map<string, Entry>();

  function keep(legId: string, entry: Entry): void {
    over.set(legId, entry);
    const oldest = o.nowMs() - o.keepMs;
    for (const [id, { sinceMs }] of over) {
      if (over.size <= o.limit && sinceMs >= oldest) break;
      over.delete(id);
    }
  }

  return {
    begin(legId) {
      if (running.has(legId) || over.has(legId)) return false;
      let resolve!: (outcome: PrefillOutcome) => void;
      const ended = new Promise<PrefillOutcome>((done) => (resolve = done));
      running.set(legId, { ended, resolve, running: true, sinceMs: o.nowMs() });
      return true;
    },
    end(legId, outcome) {
      const entry = running.get(legId);
      if (entry === undefined) return;
      running.delete(legId);
      keep(legId, { ended: entry.ended, resolve: entry.resolve, running: false, sinceMs: o.nowMs() });
      entry.resolve(outcome);
    },
    of(legId) {
      const entry = running.get(legId) ?? over.get(legId);
      if (entry !== undefined) return entry.ended;
      keep(legId, { ended: undefined, resolve: () => {}, running: false, sinceMs: o.nowMs() });
      return undefined;
    },
  };
}
