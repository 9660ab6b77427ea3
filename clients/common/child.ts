// One process of Tandem that should run until it is stopped, and is restarted when it ends by itself. Its standard
// input is a pipe that is never written to: when this process is gone, SIGKILL included, the pipe ends and the child
// stops (TANDEM_PARENT_PIPE, services/common/lifecycle.ts). It leads a process group of its own, so that a Ctrl-C in
// the terminal reaches this process alone, which then decides the order in which things end.
import { spawn, type ChildProcess } from "node:child_process";
import { extname } from "node:path";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { pause, systemClock } from "../../services/common/clock.ts";

/** Arguments of node that run `tandem` of the same build as this file. */
export const TANDEM: readonly string[] = [
  ...process.execArgv,
  fileURLToPath(new URL(`../cli/main${extname(import.meta.url)}`, import.meta.url)),
];

export interface ChildSpec {
  /** Name that people see: `router`, `prefill-1`. */
  readonly name: string;
  readonly role: "router" | "prefill" | "decode" | "discover" | "consul";
  /** The program. Left out: this node, with flags, script, role, flags of the role as arguments. */
  readonly command?: string;
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Longest pause before a restart; the pause begins at 200 ms and doubles. Default 10 s. */
  readonly pauseMaxMs?: number;
}

/** Must read the stream to its end, because a full pipe blocks the child. */
export type ReadOutput = (stream: Readable, isError: boolean) => void;

export interface Death {
  /** How the process ended, for people: `exit code 1`, `SIGKILL`. */
  readonly how: string;
  readonly aliveMs: number;
  readonly restartInMs: number;
}

export interface Child extends Pick<ChildSpec, "name" | "role"> {
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

/**
 * @param readOutput Called for both outputs of every process that is started.
 * @param died Called when the process ends without being asked to. Returns whether to restart it.
 */
export function startChild(
  spec: ChildSpec,
  readOutput: ReadOutput,
  died: (child: Child, death: Death) => boolean,
): Child {
  const stopping = new AbortController();
  let running: ChildProcess | undefined;
  const child = {
    name: spec.name,
    role: spec.role,
    startedMs: 0,
    restarts: 0,
    get pid() {
      return running?.pid;
    },
    stop(signal: NodeJS.Signals) {
      stopping.abort();
      running?.kill(signal);
      return life;
    },
    signal(name: NodeJS.Signals) {
      running?.kill(name);
    },
    kill() {
      stopping.abort();
      if (running?.pid === undefined) return;
      try {
        process.kill(-running.pid, "SIGKILL");
      } catch {
        // Gone already.
      }
    },
  };

  async function live(): Promise<void> {
    for (let attempt = 0; ; child.restarts++) {
      child.startedMs = performance.now();
      running = start(spec, readOutput);
      const how = await endOf(running);
      running = undefined;
      if (stopping.signal.aborted) return;
      const aliveMs = performance.now() - child.startedMs;
      if (aliveMs >= RESET_MS) attempt = 0;
      const restartInMs = Math.min(spec.pauseMaxMs ?? PAUSE_MAX_MS, PAUSE_MIN_MS * 2 ** attempt++);
      if (!died(child, { how, aliveMs, restartInMs })) return;
      await pause(systemClock, restartInMs, stopping.signal);
      if (stopping.signal.aborted) return;
    }
  }
  const life: Promise<void> = live();
  return child;
}

function start({ command = process.execPath, argv, env }: ChildSpec, readOutput: ReadOutput): ChildProcess {
  const child = spawn(command, argv, {
    env: { ...env, TANDEM_PARENT_PIPE: "1" },
    stdio: ["pipe", "pipe", "pipe"],
    detached: true,
  });
  // The process may end before reading. Nothing was sent, so nothing is lost.
  child.stdin.on("error", () => {});
  readOutput(child.stdout, false);
  readOutput(child.stderr, true);
  return child;
}

/** Resolves with how the process ended, for people. */
function endOf(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => {
    child.on("error", (error) => {
      if (child.pid === undefined) resolve(`could not be started: ${error.message}`);
    });
    // `close`, not `exit`: only then has all output been read, and the last lines show why the process died.
    child.on("close", (code, signal) => resolve(signal ?? `exit code ${code}`));
  });
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
