// Whether this router has more to do than it can. What is only for safety or for speed, such as retries, hedges and
// probes, adds work at the worst moment, so it is shed first.
import type { LoopDelay } from "../../common/event-loop.ts";
import type { Metrics } from "../../common/metrics.ts";

/** A mean delay of the event loop that streams show, and that a process with enough processor never has. */
const STRAINED_MS = 100;

/**
 * `loop`: the event loop runs late. `queue`: the waiting queue stands. `self_doubt`: most instances are suspect together.
 * `last_resort`: instances are used although legs fail on them.
 */
export const STRAINS = ["loop", "queue", "self_doubt", "last_resort"] as const;
export type Strain = (typeof STRAINS)[number];

export interface Overload {
  /** Whether retries, hedges and probes are to be shed. */
  readonly on: boolean;
  /** Mean delay of the event loop. */
  readonly loopDelayMs: number;
  /** Admission's word: whether a queue stands. */
  queueStands: boolean;
}

/** For a router that has all that it needs, as in tests. */
export const calm = (): Overload => ({ on: false, loopDelayMs: 0, queueStands: false });

export function watchOverload(o: {
  readonly loop: LoopDelay;
  readonly pool: { readonly view: { readonly doubtsItself: boolean; readonly lastResortCount: number } };
  readonly metrics: Metrics;
}): Overload {
  const { loop, pool } = o;
  const has = (strain: Strain): boolean => {
    switch (strain) {
      case "loop":
        return loop.delayMs > STRAINED_MS;
      case "queue":
        return overload.queueStands;
      case "self_doubt":
        return pool.view.doubtsItself;
      case "last_resort":
        return pool.view.lastResortCount > 0;
    }
  };
  const overload: Overload = {
    get on() {
      return STRAINS.some(has);
    },
    get loopDelayMs() {
      return loop.delayMs;
    },
    queueStands: false,
  };
  o.metrics.gauge(
    "tandem_overload",
    "1 while the router sheds retries, hedges and probes, by cause, otherwise 0.",
    ["because"],
    (gauge) => {
      for (const because of STRAINS) gauge.set({ because }, has(because) ? 1 : 0);
    },
  );
  return overload;
}
