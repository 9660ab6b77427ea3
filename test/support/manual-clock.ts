// A clock that stands still until the test moves it.
import { setImmediate } from "node:timers/promises";
import type { Clock } from "../../services/common/clock.ts";

export interface ManualClock extends Clock {
  /** Timers that have neither run nor been cancelled. */
  readonly pending: number;
  /** Moves on by `ms` and runs what falls due, in order of time; also timers that those set. */
  advance(ms: number): void;
  /** Moves on by `ms` in which nothing could run, as when the process is stopped: what fell due runs late. */
  stall(ms: number): void;
  /** As `advance`, and lets promises settle before, between and after the timers. */
  pass(ms: number): Promise<void>;
}

export function manualClock(startMs = 1_000_000): ManualClock {
  let nowMs = startMs;
  const timers = new Set<{ readonly atMs: number; readonly fn: () => void }>();

  /** Runs the first timer due up to `untilMs`; false when there is none. */
  const runNext = (untilMs: number): boolean => {
    let next: { readonly atMs: number; readonly fn: () => void } | undefined;
    for (const timer of timers) {
      if (timer.atMs <= untilMs && (next === undefined || timer.atMs < next.atMs)) next = timer;
    }
    if (next === undefined) return false;
    timers.delete(next);
    nowMs = Math.max(nowMs, next.atMs);
    next.fn();
    return true;
  };

  return {
    nowMs: () => nowMs,
    setTimer(ms, fn) {
      const timer = { atMs: nowMs + Math.max(0, ms), fn };
      timers.add(timer);
      return { cancel: () => void timers.delete(timer) };
    },
    get pending() {
      return timers.size;
    },
    advance(ms) {
      const untilMs = nowMs + ms;
      while (runNext(untilMs));
      nowMs = untilMs;
    },
    stall(ms) {
      nowMs += ms;
      while (runNext(nowMs));
    },
    async pass(ms) {
      const untilMs = nowMs + ms;
      do await setImmediate();
      while (runNext(untilMs));
      nowMs = untilMs;
    },
  };
}
