// The processes under test, started as a user starts them.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { StartError } from "../../services/common/config.ts";
import { liveRuns, type Run } from "../cli/run-file.ts";
import { TANDEM } from "../common/child.ts";
import { commandLine, processTree } from "./procfs.ts";

const START_LIMIT_MS = 60_000;

export interface StartedProcess extends AsyncDisposable {
  readonly url: string;
  readonly pid: number;
}

/** Starts `tandem up` on free ports. Resolves when it is ready. */
export async function startUp(
  flags: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<StartedProcess & { readonly run: Run }> {
  const stateDir = mkdtempSync(join(tmpdir(), "tandem-bench-"));
  const all = ["up", "--port", "0", "--grpc-port", "0", "--state.dir", stateDir, ...flags];
  const removeState = (): void => rmSync(stateDir, { recursive: true, force: true });
  const started = await startUntil(/^Ready after/m, all, env, removeState);
  const run = liveRuns(stateDir).find(({ pid }) => pid === started.pid)!;
  return { ...started, url: run.restUrl, run };
}

/** Starts one engine that does both legs, without Tandem. */
export async function startEngine(flags: readonly string[]): Promise<StartedProcess> {
  const started = await startUntil(/ready on (http:\S+): /, ["engine", "--listen", "127.0.0.1:0", ...flags]);
  return { ...started, url: started.ready[1]! };
}

/** All processes of a run: `up`, its children, their engines and the engines' guardians. */
export function processesOf(run: Run): { readonly pid: number; readonly name: string }[] {
  const below = run.processes.flatMap(({ pid, name }) => [
    { pid, name },
    ...processTree(pid)
      .slice(1)
      .map((inner) => {
        const isNode = basename(commandLine(inner)[0] ?? "").startsWith("node");
        return { pid: inner, name: `${name} ${isNode ? "engine" : "guardian"}` };
      }),
  ]);
  return [{ pid: run.pid, name: "up" }, ...below];
}

/**
 * Starts a process. Resolves when its output matches `ready`. The process ends when this process exits.
 *
 * @param onEnd Called when the process has ended.
 */
async function startUntil(
  ready: RegExp,
  argv: readonly string[],
  env: Readonly<Record<string, string>> = {},
  onEnd: () => void = () => {},
) {
  const child = spawn(process.execPath, [...TANDEM, ...argv], {
    env: { ...process.env, TANDEM_LOG_LEVEL: "warn", TANDEM_PARENT_PIPE: "1", ...env },
    stdio: "pipe",
    // A Ctrl-C in the terminal reaches this process alone.
    detached: true,
  });
  const ended = once(child, "close").then(onEnd);
  let output = "";
  const matched = new Promise<RegExpExecArray>((resolve) => {
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        // The output is read to the end, so that the pipe never fills, but no longer kept.
        if (output.length < 64 * 1024) output += text;
        const match = ready.exec(output);
        if (match !== null) resolve(match);
      });
    }
  });
  const late = sleep(START_LIMIT_MS, `not ready within ${START_LIMIT_MS / 1000} s`, { ref: false });
  const first = await Promise.race([matched, late, ended.then(() => "ended before it was ready")]);
  if (typeof first === "string") {
    child.kill("SIGKILL");
    throw new StartError(`tandem ${argv.join(" ")}: ${first}:\n${output}`);
  }
  return {
    pid: child.pid!,
    ready: first,
    async [Symbol.asyncDispose]() {
      child.kill("SIGINT");
      await ended;
    },
  };
}
