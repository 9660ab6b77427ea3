// How late the event loop runs due timers: every stream of this process waits this long, whatever caused the delay.
import type { Metrics } from "./metrics.ts";

const SAMPLE_MS = 25;
const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5];

/**
 * A histogram `tandem_event_loop_delay_seconds`, forty samples a second at about 5 us each. Not perf_hooks'
 * monitorEventLoopDelay: its percentiles count since its last reset, so two scrapers would spoil each other's figures.
 *
 * Ends when it is disposed of. Doesn't keep the process alive.
 */
export function measureEventLoop(metrics: Metrics): Disposable {
  const delays = metrics.histogram("tandem_event_loop_delay_seconds", "How late timers of this process run.", SECONDS);
  let dueMs = performance.now() + SAMPLE_MS;
  const timer = setInterval(() => {
    const nowMs = performance.now();
    delays.observe(Math.max(0, nowMs - dueMs) / 1000);
    dueMs = nowMs + SAMPLE_MS;
  }, SAMPLE_MS);
  timer.unref();
  return { [Symbol.dispose]: () => clearInterval(timer) };
}
