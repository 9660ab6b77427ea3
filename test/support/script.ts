// Runs a piece of TypeScript in a process of its own, for what only a process shows: signals, exit codes, a parent's death.
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { within } from "./waits.ts";

export interface Script {
  readonly process: ChildProcess;
  /** Waits until standard output holds `text`. */
  printed(text: string): Promise<void>;
  /** Resolves when the process has ended and its output is complete. */
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null; stdout: string; stderr: string }>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** @param source An ES module. Imports from services/ go by way of `import.meta.resolve`: see `moduleUrl`. */
export function runScript(
  source: string,
  o: { readonly env?: Record<string, string>; readonly stdin?: "pipe" | "ignore" } = {},
): Script {
  const child = spawn(process.execPath, ["--import=tsx", "--input-type=module", "--eval", source], {
    stdio: [o.stdin ?? "ignore", "pipe", "pipe"],
    env: { ...process.env, ...o.env },
  });
  let [stdout, stderr] = ["", ""];
  child.stdout!.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  child.stderr!.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const ended = once(child, "close").then(
    ([code, signal]) => ({ code, signal, stdout, stderr }) as Awaited<Script["ended"]>,
  );
  return {
    process: child,
    ended: within(ended, "the end of a script", 10_000),
    async printed(text) {
      while (!stdout.includes(text)) {
        const more = Promise.race([
          once(child.stdout!, "data"),
          ended.then(() => Promise.reject(new Error(`ended early: ${stderr}`))),
        ]);
        await within(more, `output ${text}`, 10_000);
      }
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

/** Of a file given from the repository's root: "services/common/lifecycle.ts". */
export function moduleUrl(path: string): string {
  return new URL(`../../${path}`, import.meta.url).href;
}
