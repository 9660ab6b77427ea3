// The processes under test, started as a user starts them.
import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { StartError } from "../../services/common/config.ts";
import { liveRuns, type Run } from "../cli/run-file.ts";
import { commandLine, processTree } from "./procfs.ts";

/** `tandem` of the same build as this file. */
const TANDEM = [...process.execArgv, fileURLToPath(new URL(`../cli/main${extname(import.meta.url)}`, import.meta.url))];
const START_LIMIT_MS = 60_000;

export interface Started {
  readonly url: string;
  readonly pid: number;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface StartedUp extends Started {
  readonly run: Run;
}

/** `tandem up` on free ports, when it is ready. */
export async function startUp(
  flags: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<StartedUp> {
  const stateDir = mkdtempSync(join(tmpdir(), "tandem-bench-"));
  const argv = [...TANDEM, "up", "--port", "0", "--grpc-port", "0", "--state.dir", stateDir, ...flags];
  try {
    const { child } = await startUntil(argv, env, /^Ready after/m);
    const run = liveRuns(stateDir).find((candidate) => candidate.pid === child.pid)!;
    return {
      url: run.restUrl,
      pid: run.pid,
      run,
      async [Symbol.asyncDispose]() {
        await stop(child);
        rmSync(stateDir, { recursive: true, force: true });
      },
    };
  } catch (error) {
    rmSync(stateDir, { recursive: true, force: true });
    throw error;
  }
}

/** One aggregated sim engine, without Tandem. */
export async function startEngine(flags: readonly string[]): Promise<Started> {
  const { child, output } = await startUntil(
    [...TANDEM, "engine", "--listen", "127.0.0.1:0", ...flags],
    {},
    /ready on http\S+/,
  );
  const url = /ready on (http:\/\/[\d.:]+\d)/.exec(output)![1]!;
  return { url, pid: child.pid!, [Symbol.asyncDispose]: () => stop(child) };
}

/** A process of a run and what it is. */
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

/** Resolves with what it wrote when that matches `ready`. It is ended when this process exits. */
async function startUntil(
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
  ready: RegExp,
): Promise<{ child: ChildProcess; output: string }> {
  const child = spawn(process.execPath, argv, {
    stdio: ["pipe", "pipe", "pipe"],
    // Its ends are ours: a benchmark that is killed leaves nothing behind either.
    env: { ...process.env, TANDEM_PARENT_PIPE: "1", TANDEM_LOG_LEVEL: "warn", ...env },
  });
  let output = "";
  const what = argv.slice(TANDEM.length).join(" ");
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      reject(new StartError(`tandem ${what}: not ready within ${START_LIMIT_MS / 1000} s:\n${output}`));
    }, START_LIMIT_MS);
    const onOutput = (text: string): void => {
      if (output.length > 64 * 1024) return;
      output += text;
      if (!ready.test(output)) return;
      clearTimeout(timer);
      resolve();
    };
    child.stdout.setEncoding("utf8").on("data", onOutput);
    child.stderr.setEncoding("utf8").on("data", onOutput);
    child.once("error", reject);
    child.once("close", () => {
      clearTimeout(timer);
      reject(new StartError(`tandem ${what} ended before it was ready:\n${output}`));
    });
  });
  return { child, output };
}

function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => {
    child.once("close", () => resolve());
    child.kill("SIGINT");
  });
}
