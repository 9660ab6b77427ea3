// How late the event loop runs due timers: every stream of this process waits this long, whatever caused the delay.
import type { Metrics } from "./metrics.ts";

const SAMPLE_MS = 25;
const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5];
/** The mean covers about this time, so that one long garbage collection is not taken for a starved process. */
const MEAN_MS = 1_000;

/** Timers of a process that runs undisturbed are late by less. */
export const PUNCTUAL_MS = 25;

export interface LoopDelay {
  /** How late timers have run in the last second, on average, in milliseconds. */
  readonly delayMs: number;
}

/**
 * Samples the delay forty times a second at about 5 us each, until it is disposed of. Doesn't keep the process alive.
 *
 * @param metrics Gets a histogram `tandem_event_loop_delay_seconds`. Not perf_hooks' monitorEventLoopDelay: its
 *   percentiles count since its last reset, so two scrapers would spoil each other's figures.
 */
export function measureEventLoop(metrics?: Metrics): LoopDelay & Disposable {
  const delays = metrics?.histogram("tandem_event_loop_delay_seconds", "How late timers of this process run.", SECONDS);
  const mean = new DelayMean();
  let dueMs = performance.now() + SAMPLE_MS;
  const timer = setInterval(() => {
    const nowMs = performance.now();
    const lateMs = Math.max(0, nowMs - dueMs);
    delays?.observe(lateMs / 1000);
    mean.add(lateMs);
    dueMs = nowMs + SAMPLE_MS;
  }, SAMPLE_MS);
  timer.unref();
  return {
    get delayMs() {
      return mean.delayMs;
    },
    [Symbol.dispose]: () => clearInterval(timer),
  };
}

/** A mean by time: a sample weighs as much as the time that passed until it was taken. */
export class DelayMean implements LoopDelay {
  delayMs = 0;

  add(lateMs: number): void {
    const weight = 1 - Math.exp(-(SAMPLE_MS + lateMs) / MEAN_MS);
    this.delayMs += weight * (lateMs - this.delayMs);
  }
}
