// A clock that stands still until the test moves it.
import { setImmediate } from "node:timers/promises";
import type { Clock } from "../../services/common/clock.ts";
import { deferred, within } from "./waits.ts";

export interface ManualClock extends Clock {
  /** Timers that have neither run nor been cancelled. */
  readonly pending: number;
  /** Moves on by `ms` and runs what falls due, in order of time; also timers that those set. */
  advance(ms: number): void;
  /** Moves on by `ms` in which nothing could run, as when the process is stopped: what fell due runs late. */
  stall(ms: number): void;
  /** As `advance`, and lets promises settle before, between and after the timers. */
  pass(ms: number): Promise<void>;
  /** Resolves when so many timers are pending: what was under way has been done, and its next time is awaited. */
  untilPending(count?: number): Promise<void>;
}

export function manualClock(startMs = 1_000_000): ManualClock {
  let nowMs = startMs;
  const watchers = new Set<() => void>();
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
      for (const watcher of watchers) watcher();
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
    async untilPending(count = 1) {
      if (timers.size >= count) return;
      const { promise, resolve } = deferred();
      const watcher = (): void => {
        if (timers.size >= count) resolve();
      };
      watchers.add(watcher);
      try {
        await within(promise, `${count} pending timers`);
      } finally {
        watchers.delete(watcher);
      }
    },
  };
}
