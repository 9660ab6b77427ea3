// `tandem up` under test, with a mark in its environment by which every process that it ever started can be found.
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { liveRuns, type Run } from "../../../clients/cli/run-file.ts";
import { eventually, within } from "../../support/waits.ts";

const CLI = fileURLToPath(new URL("../../../dist/clients/cli/main.js", import.meta.url));
const START_LIMIT_MS = 30_000;

export interface RunningUp {
  readonly pid: number;
  readonly stateDir: string;
  /** All that it wrote so far, both streams. */
  output(): string;
  /** Resolves when the output matches. */
  says(pattern: RegExp, limitMs?: number): Promise<void>;
  /** Its run file. */
  run(): Run;
  readonly exited: Promise<{ readonly code: number | null; readonly signal: NodeJS.Signals | null }>;
  /** Processes of this run that are there, as `pid command line`. */
  processes(): string[];
  [Symbol.asyncDispose](): Promise<void>;
}

/** Not waiting for anything. Free ports unless `argv` says otherwise. */
export function spawnUp(argv: readonly string[], env: Readonly<Record<string, string>> = {}): RunningUp {
  const mark = `TANDEM_TEST_RUN=${randomUUID()}`;
  const stateDir = mkdtempSync(join(tmpdir(), "tandem-up-"));
  const ports = argv.some((word) => word.includes("port")) ? [] : ["--port", "0", "--grpc-port", "0"];
  // Where nothing else is said: what happens to processes is tested here, and the sim starts fastest.
  const engine = argv.some((word) => /^--(engine|attach)/.test(word) && !word.startsWith("--engine.flag"))
    ? []
    : ["--engine=sim"];
  const child = spawn(process.execPath, [CLI, "up", "--state.dir", stateDir, ...ports, ...engine, ...argv], {
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      ...process.env,
      ...env,
      [mark.split("=")[0]!]: mark.split("=")[1],
      XDG_STATE_HOME: stateDir,
      TMPDIR: stateDir,
    },
  });
  let output = "";
  const listeners = new Set<() => void>();
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      for (const listener of listeners) listener();
    });
  }
  const exited = once(child, "close").then(([code, signal]) => ({
    code: code as number | null,
    signal: signal as NodeJS.Signals | null,
  }));
  const says = (pattern: RegExp, limitMs = START_LIMIT_MS): Promise<void> => {
    const said = new Promise<void>((resolve, reject) => {
      const look = (): void => {
        if (pattern.test(output)) resolve();
      };
      listeners.add(look);
      look();
      void exited.then(() => reject(new Error(`tandem up ended without saying ${pattern}:\n${output}`)));
    });
    return within(said, `tandem up says ${pattern}`, limitMs).catch((error: unknown) => {
      throw new Error(`${(error as Error).message}\n${output}`);
    });
  };
  return {
    pid: child.pid!,
    stateDir,
    output: () => output,
    says,
    run: () => liveRuns(stateDir)[0]!,
    exited,
    processes: () => processesWith(mark),
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
      await exited;
      await eventually("the processes of tandem up are gone", () => processesWith(mark).length === 0);
      rmSync(stateDir, { recursive: true, force: true });
    },
  };
}

/** Ready to serve. */
export async function startUp(
  argv: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): Promise<RunningUp> {
  const up = spawnUp(argv, env);
  try {
    await up.says(/^Ready after/m);
    return up;
  } catch (error) {
    await up[Symbol.asyncDispose]();
    throw error;
  }
}

function processesWith(mark: string): string[] {
  const found: string[] = [];
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      if (!readFileSync(`/proc/${pid}/environ`, "latin1").split("\0").includes(mark)) continue;
      found.push(`${pid} ${readFileSync(`/proc/${pid}/cmdline`, "latin1").replaceAll("\0", " ").slice(0, 120)}`);
    } catch {
      // Gone meanwhile, or another user's.
    }
  }
  return found;
}
