// Watches this process from a thread of its own. Nothing inside a process cures an event loop that is stuck in native
// code or in an endless loop: it answers nothing, logs nothing, ignores signals and may fill the memory of its host. The
// thread reports what it can see, and ends the process, so that a supervisor starts it again.
import { extname } from "node:path";
import { Worker } from "node:worker_threads";
import { integer } from "./config.ts";

/** A setting of every process with a watchdog. */
export const memoryLimitMib = integer(
  "memory.limit_mib",
  "Ends the process with a report when its resident memory passes this, so that whatever supervises it starts it again. " +
    "0: 4096 MiB, or nine tenths of what its container may use if that is less.",
  { default: 0, min: 0, max: 1_048_576, unit: "MiB" },
);

/** What the thread is given. */
export interface WatchdogData {
  /** Grows with each turn of the main thread's event loop. */
  readonly beats: Int32Array;
  readonly memoryLimitBytes: number;
  readonly name: string;
}

const BEAT_MS = 250;
/** At most: no process of Tandem has a use for more. */
const MEMORY_CEILING_BYTES = 4 * 2 ** 30;
/** Of what a container grants. */
const MEMORY_SHARE = 0.9;

/**
 * Watches until the process ends. Costs the main thread four timers a second, and the process 9 MB of memory.
 *
 * @param name Of the process, for the report: `router`.
 * @param limitMib Ceiling of its resident memory; 0 takes the default of `memory.limit_mib`.
 */
export function startWatchdog(name: string, limitMib: number): void {
  // Run from the source, as tests do, there is no thread: tsx can't start one on Node 20.
  if (extname(import.meta.url) === ".ts" || isDebugged()) return;
  const beats = new Int32Array(new SharedArrayBuffer(4));
  const memoryLimitBytes = limitMib > 0 ? limitMib * 2 ** 20 : defaultLimitBytes();
  const data: WatchdogData = { beats, memoryLimitBytes, name };
  const thread = new Worker(new URL("./watchdog-thread.js", import.meta.url), {
    name: "watchdog",
    workerData: data,
    execArgv: [],
    resourceLimits: { maxOldGenerationSizeMb: 16, maxYoungGenerationSizeMb: 2, codeRangeSizeMb: 0 },
  });
  // Without its thread the process goes on unwatched.
  thread.on("error", () => {});
  thread.unref();
  setInterval(() => Atomics.add(beats, 0, 1), BEAT_MS).unref();
}

/** A debugger stops the event loop on purpose. */
function isDebugged(): boolean {
  return [...process.execArgv, process.env["NODE_OPTIONS"] ?? ""].some((flag) => flag.includes("--inspect"));
}

function defaultLimitBytes(): number {
  // 0 or enormous where nothing is set.
  const granted = process.constrainedMemory();
  return granted > 0 ? Math.min(MEMORY_CEILING_BYTES, granted * MEMORY_SHARE) : MEMORY_CEILING_BYTES;
}
