// Router and instances as processes of their own, found through a registry: what a signal does to one of them shows.
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { eventually, freePort } from "./waits.ts";

const CLI = fileURLToPath(new URL("../../dist/clients/cli/main.js", import.meta.url));
const START_MS = 30_000;

export interface TestProcess {
  readonly pid: number;
  output(): string;
  /** JSON lines of its log whose event is `event`. */
  logged(event: string): Record<string, unknown>[];
  signal(name: NodeJS.Signals): void;
  /** Sends `name` and resolves when it has ended. */
  end(name?: NodeJS.Signals): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface TestRouter extends TestProcess {
  readonly url: string;
  readonly grpcAddress: string;
  /** Calls RouterService with JSON. */
  call(method: string, request?: object): Promise<any>;
}

export type Env = Readonly<Record<string, string>>;

/** Not waited for: whoever needs it looks whether the router gives it legs. */
export function startProcess(
  role: "router" | "prefill" | "decode",
  flags: readonly string[],
  env: Env = {},
): TestProcess {
  const folder = mkdtempSync(join(tmpdir(), "tandem-process-"));
  const child: ChildProcess = spawn(process.execPath, [CLI, role, ...flags], {
    stdio: ["pipe", "pipe", "pipe"],
    env: {
      ...process.env,
      TANDEM_LOG_FORMAT: "json",
      TANDEM_PARENT_PIPE: "1",
      XDG_STATE_HOME: folder,
      TMPDIR: folder,
      ...env,
    },
  });
  let output = "";
  for (const stream of [child.stdout!, child.stderr!]) stream.on("data", (text: Buffer) => (output += text.toString()));
  const running: TestProcess = {
    pid: child.pid!,
    output: () => output,
    logged: (event) =>
      output
        .split("\n")
        .filter((line) => line.startsWith("{") && line.includes(`"msg":${JSON.stringify(event)}`))
        .map((line) => JSON.parse(line) as Record<string, unknown>),
    signal: (name) => void child.kill(name),
    async end(name = "SIGTERM") {
      if (child.exitCode === null && child.signalCode === null) {
        const gone = once(child, "exit");
        child.kill(name);
        await gone;
      }
      rmSync(folder, { recursive: true, force: true });
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGCONT");
      await running.end("SIGKILL");
    },
  };
  return running;
}

export async function startRouterProcess(flags: readonly string[], env: Env = {}): Promise<TestRouter> {
  const [rest, grpc] = [await freePort(), await freePort()];
  const router = startProcess("router", ["--port", String(rest), "--grpc-port", String(grpc), ...flags], env);
  const url = `http://127.0.0.1:${rest}`;
  await eventually("the router listens", () => fetch(`${url}/livez`).then((answer) => answer.ok), START_MS);
  return Object.assign(router, {
    url,
    grpcAddress: `127.0.0.1:${grpc}`,
    async call(method: string, request: object = {}) {
      const answer = await fetch(`${url}/tandem.router.v1.RouterService/${method}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(request),
      });
      if (!answer.ok) throw new Error(`${method}: ${answer.status} ${await answer.text()}`);
      return answer.json();
    },
  });
}

/** The instance of this process as the router sees it, once it gives it legs. */
export function eligible(router: TestRouter, instance: TestProcess): Promise<any> {
  return eventually(
    "the router gives the instance legs",
    async () => {
      const { instances = [] } = await router.call("ListInstances");
      return instances.find((one: any) => one.info.pid === instance.pid && one.eligible === true);
    },
    START_MS,
  );
}
