// One process of Tandem that is meant to run until it is told to stop, and is started again when it ends by itself.
// Its standard input is a pipe that is never written to: when this process is gone, SIGKILL included, the pipe ends and the
// child stops (TANDEM_PARENT_PIPE, services/common/lifecycle.ts). It leads a process group of its own, so that a Ctrl-C in
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
  /** As people see it: `router`, `prefill-1`. */
  readonly name: string;
  readonly role: "router" | "prefill" | "decode" | "discover" | "engine" | "up";
  /** Arguments of node: flags, script, role, flags of the role. */
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Longest pause before a restart; it begins at 200 ms and doubles. Default 10 s. */
  readonly pauseMaxMs?: number;
}

/** How a process ended, for people: `exit code 1`, `SIGKILL`. */
export interface Death {
  readonly how: string;
  readonly aliveMs: number;
  /** What it last wrote and nobody has seen yet, oldest first: warnings and errors were printed as they came. */
  readonly unprinted: readonly string[];
}

export interface ChildEvents {
  /** Called for an end that nobody asked for. Returns whether to start it again. */
  died(child: Child, death: Death, restartInMs: number): boolean;
}

export interface Child {
  readonly name: string;
  readonly role: ChildSpec["role"];
  /** Undefined while no process runs. */
  readonly pid: number | undefined;
  /** Performance clock, milliseconds: when the process now running was started. */
  readonly startedMs: number;
  readonly restarts: number;
  /** Asks the process to end and starts it no more. Resolves when it has ended. */
  stop(signal: NodeJS.Signals): Promise<void>;
  /** To the process that runs, if any. One that ends by it is started again. */
  signal(name: NodeJS.Signals): void;
  /** Ends the process at once. */
  kill(): void;
}

/** Pauses before a restart. A process that lived for `RESET_MS` is taken for healthy: the next pause is the shortest. */
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
    // The process may be gone before it read: nothing was sent, so nothing is lost.
    process_.stdin.on("error", () => {});
    output.attach(process_.stdout, false);
    output.attach(process_.stderr, true);
    let failure: string | undefined;
    process_.on("error", (error) => {
      failure = `could not be started: ${error.message}`;
      if (process_.pid === undefined) onEnd(failure);
    });
    // `close`, not `exit`: only then is all it wrote read, and its last lines say why it died.
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

/** Asks all to end, and ends after `limitMs` at once what has not. Resolves when all are gone. */
export async function endWithin(children: readonly Child[], signal: NodeJS.Signals, limitMs: number): Promise<void> {
  const ends = children.map((child) => child.stop(signal));
  const timer = setTimeout(() => {
    for (const child of children) child.kill();
  }, limitMs);
  await Promise.all(ends);
  clearTimeout(timer);
}
