// Time as an argument, so that a test can move it, and waits.
import { type EventEmitter, once } from "node:events";

export interface Timer {
  /** Has no effect once the timer has run, or on a second call. */
  cancel(): void;
}

export interface Clock {
  /**
   * Milliseconds since 1970 as of the start of the process, counted on by a clock that never jumps: for durations and
   * deadlines. Dates for people come from `Date.now()`.
   */
  nowMs(): number;
  /** Runs `fn` once, `ms` from now. Keeps the process alive until then. */
  setTimer(ms: number, fn: () => void): Timer;
}

/** setTimeout treats a larger number as 1. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

export const systemClock: Clock = {
  nowMs: () => performance.timeOrigin + performance.now(),
  setTimer(ms, fn) {
    // setTimeout never waits less than a millisecond, and an engine whose steps take no time would be that slow.
    if (ms < 0.5) {
      const immediate = setImmediate(fn);
      return { cancel: () => clearImmediate(immediate) };
    }
    const timer = setTimeout(fn, Math.min(ms, LONGEST_TIMER_MS));
    return { cancel: () => clearTimeout(timer) };
  },
};

/** A promise, with the functions that settle it. */
export interface Deferred<T = void> {
  readonly promise: Promise<T>;
  resolve(value: T): void;
  reject(error: unknown): void;
}

export function deferred<T = void>(): Deferred<T> {
  let resolve!: (value: T) => void;
  let reject!: (error: unknown) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** Resolves `ms` from now, or as soon as `signal` aborts. */
export function pause(clock: Clock, ms: number, signal?: AbortSignal): Promise<void> {
  if (signal?.aborted === true) return Promise.resolve();
  return new Promise((resolve) => {
    const done = (): void => {
      timer.cancel();
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = clock.setTimer(ms, done);
    signal?.addEventListener("abort", done, { once: true });
  });
}

/** Whether `promise` settles within `ms`. */
export async function settlesWithin(clock: Clock, promise: Promise<unknown>, ms: number): Promise<boolean> {
  const late = new AbortController();
  let settled = false;
  const end = promise.then(
    () => (settled = true),
    () => (settled = true),
  );
  await Promise.race([end, pause(clock, ms, late.signal)]);
  late.abort();
  return settled;
}

/** Resolves when `isSo`, which is asked now and at each `change` of `source`, or when `stop` aborts. */
export async function until(
  source: EventEmitter<{ change: [] }>,
  isSo: () => boolean,
  stop?: AbortSignal,
): Promise<void> {
  while (!isSo() && stop?.aborted !== true) await once(source, "change", { signal: stop }).catch(() => {});
}
