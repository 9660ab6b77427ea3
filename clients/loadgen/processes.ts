// The processes under test, started as a user starts them.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { StartError } from "../../services/common/config.ts";
import { startChild, TANDEM, type Child, type ReadOutput } from "../common/child.ts";
import { liveRuns, type Run } from "../cli/run-file.ts";
import { commandLine, processTree } from "./procfs.ts";

const START_LIMIT_MS = 60_000;

export interface StartedProcess {
  readonly url: string;
  readonly pid: number;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface StartedUp extends StartedProcess {
  readonly run: Run;
}

/** Starts `tandem up` on free ports. Resolves when it is ready. */
export async function startUp(
  flags: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<StartedUp> {
  const stateDir = mkdtempSync(join(tmpdir(), "tandem-bench-"));
  const all = ["--port", "0", "--grpc-port", "0", "--state.dir", stateDir, ...flags];
  try {
    const { child } = await startUntil("up", all, env, /^Ready after/m);
    const run = liveRuns(stateDir).find((candidate) => candidate.pid === child.pid)!;
    return {
      url: run.restUrl,
      pid: run.pid,
      run,
      async [Symbol.asyncDispose]() {
        await child.stop("SIGINT");
        rmSync(stateDir, { recursive: true, force: true });
      },
    };
  } catch (error) {
    rmSync(stateDir, { recursive: true, force: true });
    throw error;
  }
}

/** Starts one sim engine that does both legs, without Tandem. */
export async function startEngine(flags: readonly string[]): Promise<StartedProcess> {
  const all = ["--listen", "127.0.0.1:0", ...flags];
  const { child, output } = await startUntil("engine", all, {}, /ready on http\S+/);
  const url = /ready on (http:\/\/[\d.:]+\d)/.exec(output)![1]!;
  return { url, pid: child.pid!, [Symbol.asyncDispose]: () => child.stop("SIGINT") };
}

/** A process of a run and its name. */
export interface NamedProcess {
  readonly pid: number;
  readonly name: string;
}

/** All processes of a run: `up`, its children, their engines and the engines' guardians. */
export function processesOf(run: Run): NamedProcess[] {
  const named: NamedProcess[] = [{ pid: run.pid, name: "up" }];
  for (const child of run.processes) {
    named.push({ pid: child.pid, name: child.name });
    for (const pid of processTree(child.pid).slice(1)) {
      const isNode = basename(commandLine(pid)[0] ?? "").startsWith("node");
      named.push({ pid, name: `${child.name} ${isNode ? "engine" : "guardian"}` });
    }
  }
  return named;
}

/** Starts a process. Resolves with its output when that matches `ready`. The process ends when this process exits. */
async function startUntil(
  role: "up" | "engine",
  flags: readonly string[],
  env: Readonly<Record<string, string>>,
  ready: RegExp,
): Promise<{ child: Child; output: string }> {
  let output = "";
  let look = (): void => {};
  const read: ReadOutput = (stream) => {
    stream.setEncoding("utf8").on("data", (text: string) => {
      // The output is read to the end, so that the pipe never fills, but no longer kept.
      if (output.length < 64 * 1024) output += text;
      look();
    });
  };
  const what = `tandem ${[role, ...flags].join(" ")}`;
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      child.kill();
      reject(new StartError(`${what}: not ready within ${START_LIMIT_MS / 1000} s:\n${output}`));
    }, START_LIMIT_MS);
    look = () => {
      if (!ready.test(output)) return;
      clearTimeout(timer);
      resolve({ child, output });
    };
    const spec = {
      name: role,
      role,
      argv: [...TANDEM, role, ...flags],
      env: { ...process.env, TANDEM_LOG_LEVEL: "warn", ...env },
    };
    const child = startChild(spec, read, () => {
      clearTimeout(timer);
      reject(new StartError(`${what} ended before it was ready:\n${output}`));
      return false;
    });
  });
}
