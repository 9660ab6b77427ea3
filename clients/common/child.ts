// One process of Tandem that should run until it is stopped, and is restarted when it ends by itself. Its standard
// input is a pipe that is never written to: when this process is gone, SIGKILL included, the pipe ends and the child
// stops (TANDEM_PARENT_PIPE, services/common/lifecycle.ts). It leads a process group of its own, so that a Ctrl-C in
// the terminal reaches this process alone, which then decides the order in which things end.
import { spawn, type ChildProcess } from "node:child_process";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import type { OutputSink } from "./child-output.ts";

/** Arguments of node that run `tandem` of the same build as this file. */
export const TANDEM: readonly string[] = [
  ...process.execArgv,
  fileURLToPath(new URL(`../cli/main${extname(import.meta.url)}`, import.meta.url)),
];

export interface ChildSpec {
  /** Name that people see: `router`, `prefill-1`. */
  readonly name: string;
  readonly role: "router" | "prefill" | "decode" | "discover" | "engine" | "up";
  /** Arguments of node: flags, script, role, flags of the role. */
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Longest pause before a restart; the pause begins at 200 ms and doubles. Default 10 s. */
  readonly pauseMaxMs?: number;
}

/** How a process ended, for people: `exit code 1`, `SIGKILL`. */
export interface Death {
  readonly how: string;
  readonly aliveMs: number;
  /** The last lines that were not printed yet, oldest first. Warnings and errors are printed at once. */
  readonly unprinted: readonly string[];
}

export interface ChildEvents {
  /** Called when the process ends without being asked to. Returns whether to restart it. */
  died(child: Child, death: Death, restartInMs: number): boolean;
}

export interface Child {
  readonly name: string;
  readonly role: ChildSpec["role"];
  /** Undefined while no process runs. */
  readonly pid: number | undefined;
  /** Performance clock, milliseconds: when the running process was started. */
  readonly startedMs: number;
  readonly restarts: number;
  /** Asks the process to end, and doesn't restart it. Resolves when the process has ended. */
  stop(signal: NodeJS.Signals): Promise<void>;
  /** Sends a signal to the running process, if any. A process that the signal ends is restarted. */
  signal(name: NodeJS.Signals): void;
  /** Ends the process at once. */
  kill(): void;
}

/** Pauses before a restart. A process that lived for `RESET_MS` counts as healthy: the next pause is the shortest. */
const PAUSE_MIN_MS = 200;
const PAUSE_MAX_MS = 10_000;
const RESET_MS = 30_000;

type State =
  | { readonly kind: "running"; readonly process: ChildProcess }
  | { readonly kind: "pausing"; readonly timer: NodeJS.Timeout }
  | { readonly kind: "ended" };

export function startChild(spec: ChildSpec, output: OutputSink, events: ChildEvents): Child {
  let state: State = { kind: "ended" };
  let stopping = false;
  let attempt = 0;
  let startedMs = 0;
  let restarts = 0;
  let settle = (): void => {};
  const ended = new Promise<void>((resolve) => {
    settle = resolve;
  });

  const start = (): void => {
    startedMs = performance.now();
    const process_ = spawn(process.execPath, spec.argv, {
      env: { ...spec.env, TANDEM_PARENT_PIPE: "1" },
      stdio: ["pipe", "pipe", "pipe"],
      detached: true,
    });
    state = { kind: "running", process: process_ };
    // The process may end before reading. Nothing was sent, so nothing is lost.
    process_.stdin.on("error", () => {});
    output.attach(process_.stdout, false);
    output.attach(process_.stderr, true);
    let failure: string | undefined;
    process_.on("error", (error) => {
      failure = `could not be started: ${error.message}`;
      if (process_.pid === undefined) onEnd(failure);
    });
    // `close`, not `exit`: only then has all output been read, and the last lines show why the process died.
    process_.on("close", (code, signal) => onEnd(failure ?? signal ?? `exit code ${code}`));
  };

  const onEnd = (how: string): void => {
    if (state.kind !== "running") return;
    const aliveMs = performance.now() - startedMs;
    state = { kind: "ended" };
    if (stopping) {
      settle();
      return;
    }
    if (aliveMs >= RESET_MS) attempt = 0;
    const pauseMs = Math.min(spec.pauseMaxMs ?? PAUSE_MAX_MS, PAUSE_MIN_MS * 2 ** attempt++);
    if (!events.died(child, { how, aliveMs, unprinted: output.takeUnprinted() }, pauseMs)) {
      settle();
      return;
    }
    state = {
      kind: "pausing",
      timer: setTimeout(() => {
        restarts++;
        start();
      }, pauseMs),
    };
  };

  const child: Child = {
    name: spec.name,
    role: spec.role,
    get pid() {
      return state.kind === "running" ? state.process.pid : undefined;
    },
    get startedMs() {
      return startedMs;
    },
    get restarts() {
      return restarts;
    },
    stop(signal) {
      stopping = true;
      if (state.kind === "running") {
        state.process.kill(signal);
      } else {
        if (state.kind === "pausing") clearTimeout(state.timer);
        state = { kind: "ended" };
        settle();
      }
      return ended;
    },
    signal(name) {
      if (state.kind === "running") state.process.kill(name);
    },
    kill() {
      stopping = true;
      if (state.kind !== "running" || state.process.pid === undefined) return;
      try {
        process.kill(-state.process.pid, "SIGKILL");
      } catch {
        // Gone already.
      }
    },
  };
  start();
  return child;
}

/** Asks all children to end, and kills the remaining ones after `limitMs`. Resolves when all are gone. */
export async function endWithin(children: readonly Child[], signal: NodeJS.Signals, limitMs: number): Promise<void> {
  const ends = children.map((child) => child.stop(signal));
  const timer = setTimeout(() => {
    for (const child of children) child.kill();
  }, limitMs);
  await Promise.all(ends);
  clearTimeout(timer);
}
