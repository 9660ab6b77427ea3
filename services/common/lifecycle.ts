// What ends a process and how others wait for it.
import { once } from "node:events";
import { constants } from "node:os";
import { deferred } from "./clock.ts";

/**
 * A second signal within this time is the same one: on Ctrl-C a terminal signals the whole process group, and npm
 * passes its own copy on to the child as well.
 */
const SAME_SIGNAL_MS = 500;

/** Time left to a process after its parent died. */
const ORPHAN_GRACE_MS = 2_000;

/**
 * Signals after which running work may finish first. SIGHUP is one of them: it comes when the terminal closes, and Node
 * can't be told to ignore it by nohup.
 */
export const DRAINS: ReadonlySet<unknown> = new Set(["SIGTERM", "SIGHUP"]);

/**
 * Aborts at the first of `signals`, with the signal's name as reason. A second one (500 ms or more after the first)
 * exits the process at once with the shell's code for it: 130 after SIGINT, 143 after SIGTERM.
 */
export function untilSignal(...signals: NodeJS.Signals[]): AbortSignal {
  const controller = new AbortController();
  let firstAtMs: number | undefined;
  for (const name of signals) {
    process.on(name, () => {
      const nowMs = performance.now();
      if (firstAtMs === undefined) {
        firstAtMs = nowMs;
        controller.abort(name);
      } else if (nowMs - firstAtMs >= SAME_SIGNAL_MS) process.exit(128 + constants.signals[name]);
    });
  }
  return controller.signal;
}

/** Time left to a stopping process after its grace, to close what is open. */
const CLOSE_MS = 2_000;

/** What a stopping process waits for now. */
const waits = new Map<string, number>();

/** `promise`, named for the report of a process that does not end. */
export async function stage<T>(name: string, promise: Promise<T>): Promise<T> {
  waits.set(name, (waits.get(name) ?? 0) + 1);
  try {
    return await promise;
  } finally {
    const left = waits.get(name)! - 1;
    if (left === 0) waits.delete(name);
    else waits.set(name, left);
  }
}

/**
 * Every wait has an end, a stop's too: `graceMs` and 2 s from now the process exits with code 1, if it still runs.
 * Doesn't keep the process alive.
 *
 * @param report Gets the stages that the stop waits for, and what is open by kind: sockets, timers, processes.
 */
export function mustEndWithin(
  graceMs: number,
  report: (found: { readonly waitsFor: readonly string[]; readonly open: Readonly<Record<string, number>> }) => void,
): void {
  const end = (): void => {
    const open: Record<string, number> = {};
    for (const kind of process.getActiveResourcesInfo()) open[kind] = (open[kind] ?? 0) + 1;
    report({ waitsFor: [...waits.keys()], open });
    process.exit(1);
  };
  setTimeout(end, graceMs + CLOSE_MS).unref();
}

/**
 * Node has no parent-death signal. A parent that sets TANDEM_PARENT_PIPE=1 holds the other end of our standard input
 * and never writes: the end of the input means that the parent died. Aborts then and, 2 s later, exits hard. Standard
 * input is read in that case only, and never keeps the process alive.
 */
export function stopWithParent(): AbortSignal | undefined {
  if (process.env["TANDEM_PARENT_PIPE"] !== "1") return undefined;
  const controller = new AbortController();
  const stdin = process.stdin;
  const parentGone = (): void => {
    if (controller.signal.aborted) return;
    controller.abort("parent gone");
    setTimeout(() => process.exit(1), ORPHAN_GRACE_MS).unref();
  };
  stdin.once("end", parentGone).once("close", parentGone).on("error", parentGone).resume();
  if (stdin.readableEnded || stdin.destroyed) parentGone();
  // A socket for pipes, which is the case here; a plain file has no unref.
  (stdin as { unref?: () => void }).unref?.();
  return controller.signal;
}

/** Aborts with the first of `signals`; undefined ones are left out. 20 us: once a process or leg, never per token. */
export function anySignal(...signals: (AbortSignal | undefined)[]): AbortSignal {
  return AbortSignal.any(signals.filter((signal) => signal !== undefined));
}

/** Resolves when `signal` aborts, at once when it has. Doesn't keep the process alive. */
export async function onceAborted(signal: AbortSignal): Promise<void> {
  if (!signal.aborted) await once(signal, "abort");
}

/** Runs `work` until it ends, or until it is disposed of, which aborts its signal and waits for its end. */
export function background(work: (stop: AbortSignal) => Promise<unknown>): AsyncDisposable {
  const stop = new AbortController();
  const ended = work(stop.signal);
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await ended;
    },
  };
}

export interface Started<T> {
  readonly parts: T;
  /** Gives the parts `graceMs` to finish their work. Later calls wait for the first. */
  stop(graceMs: number): Promise<void>;
}

/**
 * Starts a service whose life is one function: the function starts its parts with `await using`, publishes them through
 * `running`, waits there until it is given a grace period to stop in, drains and returns. The parts are disposed of in
 * reverse order when the function returns or its start fails.
 *
 * @returns Once `running` was called. Rejects with the error of the start.
 */
export async function startLife<T>(
  life: (running: (parts: T) => Promise<number>) => Promise<void>,
): Promise<Started<T>> {
  const started = deferred<T>();
  const asked = deferred<number>();
  const over = life((parts) => {
    started.resolve(parts);
    return asked.promise;
  });
  over.catch(started.reject);
  const stop = (graceMs: number): Promise<void> => {
    asked.resolve(graceMs);
    return over;
  };
  return { parts: await started.promise, stop };
}

/**
 * Milliseconds to wait before try `attempt` + 2: doubles from `minMs` up to `maxMs`, the upper half of it at random, so
 * that many clients don't come back together.
 *
 * @param attempt Failures before this one, from 0.
 * @param random Uniform in [0, 1).
 */
export function backoffMs(
  attempt: number,
  { minMs, maxMs }: { readonly minMs: number; readonly maxMs: number },
  random: () => number = Math.random,
): number {
  const ceilingMs = Math.min(maxMs, minMs * 2 ** Math.max(0, attempt));
  return Math.max(minMs, ceilingMs * (0.5 + random() / 2));
}
