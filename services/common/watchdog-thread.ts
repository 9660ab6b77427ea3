// The thread of watchdog.ts. It shares nothing with the main thread but a counter, and writes its report straight to the
// standard error output, because every other way out leads through the main thread.
import { readFileSync, readdirSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { workerData } from "node:worker_threads";
import type { WatchdogData } from "./watchdog.ts";

const TICK_MS = 250;
/** Processor time of the main thread in one turn of its event loop: far more than its longest sound turn takes. */
const TURN_CPU_MS = 3_000;
/** One turn, whatever it waits for: a lock, a disk that is gone. */
const TURN_MS = 30_000;
/** A turn that has lasted `GROWTH_AFTER_MS` and grew by this much will not end well. */
const GROWTH_BYTES = 384 * 2 ** 20;
const GROWTH_AFTER_MS = 1_000;
/** Time for the main thread to tell where it is. */
const STACK_MS = 1_000;

const { beats, memoryLimitBytes, name } = workerData as WatchdogData;

void watch();

async function watch(): Promise<never> {
  let seen = -1;
  // Ticks, not time: a pause of the whole process stops this thread as well, and counts for nothing.
  let silentTicks = 0;
  let cpuAtBeatMs = 0;
  let rssAtBeat = 0;
  for (;;) {
    const beat = Atomics.load(beats, 0);
    const rss = process.memoryUsage.rss();
    const cpuMs = mainThreadCpuMs();
    if (beat !== seen) {
      seen = beat;
      silentTicks = 0;
      cpuAtBeatMs = cpuMs;
      rssAtBeat = rss;
    } else silentTicks++;
    const silentMs = silentTicks * TICK_MS;
    const turnCpuMs = cpuMs - cpuAtBeatMs;
    const verdict =
      rss > memoryLimitBytes
        ? `its memory is above its limit of ${mib(memoryLimitBytes)} (memory.limit_mib)`
        : silentMs >= GROWTH_AFTER_MS && rss - rssAtBeat > GROWTH_BYTES
          ? `its event loop is stuck for ${silentMs} ms, and its memory grew by ${mib(rss - rssAtBeat)} meanwhile`
          : turnCpuMs >= TURN_CPU_MS && silentMs >= 2 * TICK_MS
            ? `its event loop is stuck for ${Math.round(turnCpuMs)} ms of processor time`
            : silentMs >= TURN_MS
              ? `its event loop is stuck for ${silentMs} ms`
              : undefined;
    if (verdict !== undefined) await end(verdict);
    await sleep(TICK_MS);
  }
}

/** Never returns. SIGABRT, not SIGKILL, so that the death differs from those that the kernel or a person ordered. */
async function end(verdict: string): Promise<void> {
  const stack = await Promise.race([mainThreadStack(), sleep(STACK_MS, [])]).catch(() => []);
  const where =
    stack.length > 0
      ? `\n${stack.map((line) => `    at ${line}`).join("\n")}`
      : "\n    (native code: it does not tell where it is)";
  say(
    `The watchdog ends the ${name} (pid ${process.pid}) with SIGABRT: ${verdict}.\n` +
      `  memory ${mib(process.memoryUsage.rss())}, ${openFiles()}\n` +
      `  main thread:${where}\n`,
  );
  process.kill(process.pid, "SIGABRT");
  await sleep(1_000);
  process.kill(process.pid, "SIGKILL");
}

/** Where the main thread is, innermost first. Never resolves if the thread is in native code. */
async function mainThreadStack(): Promise<string[]> {
  const { Session } = await import("node:inspector");
  return new Promise((resolve) => {
    const session = new Session();
    session.connectToMainThread();
    const urls = new Map<string, string>();
    session.on("Debugger.scriptParsed", ({ params: { scriptId, url } }) => urls.set(scriptId, url));
    session.once("Debugger.paused", ({ params }) => {
      const frames = params.callFrames.map(({ functionName, location: { scriptId, lineNumber, columnNumber = 0 } }) => {
        const at = `${urls.get(scriptId) ?? ""}:${lineNumber + 1}:${columnNumber + 1}`;
        return `${functionName === "" ? "(anonymous)" : functionName} (${at})`;
      });
      resolve(frames);
    });
    session.post("Debugger.enable");
    session.post("Debugger.pause");
  });
}

/** Milliseconds of processor time of the main thread; elsewhere than on Linux that of the whole process. */
function mainThreadCpuMs(): number {
  try {
    const text = readFileSync(`/proc/self/task/${process.pid}/stat`, "latin1");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    // utime and stime, in hundredths of a second: proc(5).
    return (Number(fields[11]) + Number(fields[12])) * 10;
  } catch {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1_000;
  }
}

/** The handles of the main thread's loop can't be read from here; the files behind them can. */
function openFiles(): string {
  try {
    return `${readdirSync("/proc/self/fd").length} open files and sockets`;
  } catch {
    return "open files unknown";
  }
}

function mib(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}

function say(text: string): void {
  for (let attempt = 0; attempt < 10; attempt++) {
    try {
      writeSync(2, text);
      return;
    } catch {
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10); // The pipe is full.
    }
  }
}
