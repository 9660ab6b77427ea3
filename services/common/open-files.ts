// Notices that this process has no file descriptor left. The kernel's refusal to accept a connection never reaches
// Node's servers: libuv accepts the connection with a descriptor that it keeps for this case, and closes it at once.
import { closeSync, openSync } from "node:fs";
import type { Log } from "./log.ts";
import type { Metrics } from "./metrics.ts";

const LOOK_MS = 1_000;
const LOG_EVERY_MS = 60_000;

/**
 * Tries to open a file each second, at 20 us, and logs a failure once a minute. Ends when it is disposed of. Doesn't keep
 * the process alive.
 */
export function watchOpenFiles({ log, metrics }: { readonly log: Log; readonly metrics?: Metrics }): Disposable {
  const lacking = metrics?.counter(
    "tandem_open_files_exhausted_seconds_total",
    "Time without a free file descriptor, in which new connections were closed at once.",
  );
  let nextLogMs = 0;
  const timer = setInterval(() => {
    try {
      closeSync(openSync("/dev/null", "r"));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== "EMFILE" && code !== "ENFILE") return;
      lacking?.inc(LOOK_MS / 1000);
      const nowMs = performance.now();
      if (nowMs < nextLogMs) return;
      nextLogMs = nowMs + LOG_EVERY_MS;
      log.error("no file descriptor is left: new connections are closed at once", {
        cure: code === "EMFILE" ? "raise the limit of this process (ulimit -n)" : "raise fs.file-max of this machine",
      });
    }
  }, LOOK_MS);
  timer.unref();
  return { [Symbol.dispose]: () => clearInterval(timer) };
}
